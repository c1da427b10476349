"""Average the weights of models that were trained on from one another.

    python -m cot_engine.training.average runs/judge/model runs/model \\
        --weights 0.75 0.25 --out runs/averaged

What was learnt last, and less of what was forgotten for it (Wortsman et al., Robust fine-tuning of
zero-shot models, arXiv 2109.01903; of several trainings: Model soups, arXiv 2203.05482). Nothing
says that an average is good: measure it.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cot_engine.errors import CotEngineError, InputError
from cot_engine.judging import profile
from cot_engine.training.folders import writing_folder
from cot_engine.training.network import share, take_profile

_OTHERS = ("*.json", "*.jinja", "*.model", "*.txt")
"""What is copied from the first model's folder, besides the files of weights."""


def average(models: Sequence[str | Path], weights: Sequence[float], out: str | Path) -> str:
    """Write a model folder to `out`: the weights of `models`, weighted, and the other files of the
    first; a file of weights is in memory at a time, in float32, and written in the first's dtype.
    Of the first's profile goes what holds of other weights too; what is to be said of the rest is
    returned.

    Raises InputError if a folder has no weights, the models do not have the same tensors, the
    weights do not sum to 1, or `out` is there already.
    """
    folders, out = [Path(model) for model in models], Path(out)
    if len(folders) != len(weights) or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise InputError(
            f"{len(folders)} models and {len(weights)} weights with the sum {sum(weights):g}.",
            "Give as many weights as models, with the sum 1.",
        )
    if out.exists():
        raise InputError(f"{out} is there already.", "Give another folder, or remove it.")
    profile.Profile.of(folders[0])  # before anything is written
    places = [_places(folder) for folder in folders]
    shapes = [{name: shape for name, (_, shape) in there.items()} for there in places]
    for folder, there in zip(folders[1:], shapes[1:], strict=True):
        if strange := sorted({name for name, _ in shapes[0].items() ^ there.items()}):
            found = [each.get(strange[0], "not there") for each in (shapes[0], there)]
            raise InputError(
                f"{folders[0]} and {folder} are of different architectures: {strange[0]} is "
                f"{found[0]} and {found[1]}."
            )
    with writing_folder(out, InputError, "Free some space.") as made:
        _write(folders, weights, places, made)
        said = take_profile(folders[0], made)
        share(made)
    return said


def _write(
    models: list[Path], weights: Sequence[float], places: list[dict[str, Any]], out: Path
) -> None:
    for file in sorted({file for file, _ in places[0].values()}):
        summed: dict[str, torch.Tensor] = {}
        for name, first in load_file(file).items():
            tensors = [first, *(_tensor(there[name][0], name) for there in places[1:])]
            mean: Any = sum(w * tensor.float() for w, tensor in zip(weights, tensors, strict=True))
            summed[name] = mean.to(first.dtype).contiguous()
        save_file(summed, out / file.name, metadata={"format": "pt"})
    for pattern in _OTHERS:
        for file in models[0].glob(pattern):
            if file.name != profile.FILE:
                shutil.copyfile(file, out / file.name)


def _places(model: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Which file each tensor of a model is in, and its shape."""
    found = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in sorted(opened.keys()):
                found[name] = file, tuple(opened.get_slice(name).get_shape())
    if not found:
        raise InputError(f"{model} has no .safetensors files.", "Give folders of models.")
    return found


def _tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, "pt") as opened:
        return opened.get_tensor(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", type=Path, nargs="+", help="folders of models")
    parser.add_argument("--weights", type=float, nargs="+", required=True, help="one to a model")
    parser.add_argument("--out", type=Path, required=True, help="folder of the average")
    args = parser.parse_args()
    try:
        if said := average(args.models, args.weights, args.out):
            print(f"Note: {said}")
    except CotEngineError as error:
        parser.exit(2, f"{error.message} {error.hint}\n".replace("  ", " "))


if __name__ == "__main__":
    main()
