"""Put a trained model in the place of the bundled one.

    python -m cot_engine.training.bundle runs/bundled-judge/model

The weights are rounded to bfloat16, half the bytes; what the model then does is measured on the
rounded ones. README.md, the model card, is left as it is.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cot_engine.errors import InputError
from cot_engine.files.outputs import check_outputs
from cot_engine.training.network import share

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


def bundle(model: str | Path, out: str | Path) -> None:
    """Copy what a model folder needs, its profile as it is: rounded, it is the same model. Raises
    OSError if a file is missing, InputError if `out` is the model's folder."""
    model, out = Path(model), Path(out)
    check_outputs([("--out", out)], [("the model", model)])
    weights = load_file(model / "model.safetensors")
    for name in FILES:
        shutil.copyfile(model / name, out / name)
    rounded = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_file(rounded, out / "model.safetensors", metadata={"format": "pt"})
    share(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="where to (default: the package)")
    args = parser.parse_args()
    try:
        bundle(args.model, args.out)
    except InputError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
