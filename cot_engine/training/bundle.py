"""Put a trained model in the place of the bundled one.

    python -m cot_engine.training.bundle runs/bundled-judge/model --before runs/bundled-3/model

With `--before` the weights are `share` parts of the model's and the rest of those that its last
training began with: what was learnt, and less of what was forgotten for it (Wortsman et al., Robust
fine-tuning of zero-shot models, arXiv 2109.01903).

The weights are rounded to bfloat16, half the bytes; what the model then does is measured on the
rounded ones. README.md, the model card, is left as it is.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BUNDLED = Path(__file__).parent.parent / "bundled"
FILES = (
    "chat_template.jinja",
    "config.json",
    "cot_engine.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def bundle(model: Path, out: Path, before: Path | None = None, share: float = 1.0) -> None:
    """Copy what a model folder needs. Raises OSError if a file is missing."""
    weights = load_file(model / "model.safetensors")
    if before is not None:
        first = load_file(before / "model.safetensors")
        weights = {
            name: share * weight.float() + (1 - share) * first[name].float()
            for name, weight in weights.items()
        }
    for name in FILES:
        shutil.copyfile(model / name, out / name)
    rounded = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_file(rounded, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="where to (default: the package)")
    parser.add_argument("--before", type=Path, help="folder of the model that it grew from")
    parser.add_argument("--share", type=float, default=0.75, help="of the later one, with --before")
    args = parser.parse_args()
    bundle(args.model, args.out, args.before, args.share if args.before else 1.0)


if __name__ == "__main__":
    main()
