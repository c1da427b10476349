"""Which device a model would run on here and what is free on it, without torch, which takes longer
to import than all the rest of a dry run."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cot_engine.backends.local.amount import free_ram
from cot_engine.errors import InputError

_AUTO = {"cpu": "float32", "mps": "float16", "cuda": "bfloat16"}
"""The dtype that `auto` is on each kind of device (float16 on an old GPU, which is as large)."""


@dataclass(frozen=True, slots=True)
class Here:
    """`device` as torch calls it, the bytes that are `free` on it, and what `dtype` comes to."""

    device: str
    free: int
    dtype: str


def here(device: str = "auto", dtype: str = "auto") -> Here:
    """What `auto` would choose. Raises InputError for a GPU that is not there."""
    kind, _, number = device.partition(":")
    free = _gpu(int(number or 0)) if kind in ("auto", "cuda") else None
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    there = {"cuda": free is not None, "mps": apple, "cpu": True}
    if kind == "auto":
        device = kind = next(each for each in there if there[each])
    if not there[kind]:
        raise InputError(
            f"This machine (or this build of torch) has no {device} device.", "Use --device cpu."
        )
    return Here(
        device, free_ram() if free is None else free, _AUTO[kind] if dtype == "auto" else dtype
    )


def _gpu(number: int) -> int | None:
    """Bytes that are free on that NVIDIA GPU of those that this process may see."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number)] if seen is None else seen.split(",")[number : number + 1]
    if not names or not names[0].strip() or not _built_for_gpu() or not shutil.which("nvidia-smi"):
        return None
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        asked = ["--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i", names[0].strip()]
        said = subprocess.run(["nvidia-smi", *asked], capture_output=True, text=True, timeout=10)
        return int(said.stdout) << 20 if said.returncode == 0 else None
    return None


def _built_for_gpu() -> bool:
    """Whether the torch that is installed can use one, as it writes down itself."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    with suppress(OSError):
        text = (Path(found.origin).parent / "version.py").read_text("utf-8")
        return re.search(r"^cuda\b.*= *['\"]", text, re.MULTILINE) is not None
    return False
