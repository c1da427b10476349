"""Folders whose weights are quantised already: what reads them, and what their names mean now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from cot_engine.errors import InputError, ModelError, shown

_PACKAGES = {
    "awq": ("gptqmodel", "accelerate"),
    "gptq": ("gptqmodel", "optimum", "accelerate"),
    "compressed-tensors": ("compressed_tensors", "accelerate"),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "fp8": ("accelerate",),
    "fbgemm_fp8": ("fbgemm_gpu", "accelerate"),
    "torchao": ("torchao", "accelerate"),
    "hqq": ("hqq", "accelerate"),
    "aqlm": ("aqlm", "accelerate"),
    "eetq": ("eetq", "accelerate"),
    "quanto": ("optimum.quanto", "accelerate"),
}
"""What transformers needs to read weights that are quantised so, as `import` has it."""

_SPARED = ("ignore", "modules_to_not_convert", "llm_int8_skip_modules")


def check_packed(
    folder: Path, config: dict[str, Any], quantize: str | None, device: str
) -> str | None:
    """How the weights of a folder are quantised, None if they are not."""
    how = config.get("quantization_config")
    if how is None and isinstance(config.get("quantization"), dict):
        raise ModelError(
            f"{folder} is quantised in the format of MLX, which runs on Apple's chips alone.",
            "Give the original checkpoint, and --quantize 8bit or 4bit if memory is short.",
        )
    if not how:
        return None
    method = how.get("quant_method") if isinstance(how, dict) else None
    if (
        method is None
        and isinstance(how, dict)
        and ("load_in_4bit" in how or "load_in_8bit" in how)
    ):
        method = "bitsandbytes"
    if quantize is not None:
        raise InputError(
            f"{folder} is quantised already ({shown(method)}), and cannot be quantised again.",
            "Leave out --quantize, or give the original checkpoint.",
        )
    missing = [name for name in _PACKAGES.get(str(method), ()) if not _installed(name)]
    if missing:
        named = " ".join(name.replace(".", "-").replace("_", "-") for name in missing)
        raise ModelError(
            f"{folder} is quantised with {method}, and what reads that is not installed: {named}.",
            f"Install it: pip install {named}. Or give the original checkpoint, with --quantize "
            "8bit or 4bit if memory is short.",
        )
    if method == "fbgemm_fp8" and device != "cuda":
        raise ModelError(
            f"{folder} holds FP8 weights that need a GPU; the device is {device}.",
            "Give the original checkpoint.",
        )
    return str(method)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def prepare(parsed: Any, method: str, device: str) -> list[str]:
    """Make what config.json says of quantised weights fit the network; what to say of it.

    The modules that were spared are named as their program called them when the folder was
    written. transformers 5 has `model.` before them, finds none, and expects quantised weights
    where the folder has whole ones.
    """
    how = parsed.quantization_config
    for key in _SPARED:
        if isinstance(how.get(key), list):
            how[key] = list(dict.fromkeys(now for name in how[key] for now in names_now(str(name))))
    whole = f"{method} weights are unpacked when they are loaded"
    if method == "compressed-tensors":
        return [f"{whole}: they take the memory of whole ones."]
    if method == "fp8" and device != "cuda":
        how["dequantize"] = True
        return [
            f"{whole}, because only a GPU computes with them: they take the memory of whole ones."
        ]
    return []


def names_now(name: str) -> list[str]:
    """A module's name, or `re:` and an expression: as it stands, and as transformers 5 calls it."""
    mark, name = ("re:", name[3:]) if name.startswith("re:") else ("", name)
    found = [name]
    for inner in ("language_model.model.", r"language_model\.model\."):
        if name.startswith(inner):
            found.append("model.language_model." + name[len(inner) :])
    if name.startswith(("model.layers.", r"model\.layers\.")):
        found.append("model.language_model" + name[len("model") :])
    if name == "language_model.lm_head":
        found.append("lm_head")
    if not name.startswith("model"):
        found.append(rf"model\.(?:{name})" if mark else f"model.{name}")
    return [mark + each for each in found]


def unpacked(model: Any) -> None:
    """Do what a library left for the first forward pass of the whole model, which never comes: the
    engine calls the language model and the tower alone."""
    for hook in list(model._forward_pre_hooks.values()):
        hook(model, ())
