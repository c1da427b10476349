"""Calls into transformers: without its warnings, and what they raise in our words."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from cot_engine.backends.local.failures import out_of_memory
from cot_engine.errors import InputError, ModelError, cut


@contextlib.contextmanager
def explained(folder: Path, what: str, hint: str, device: torch.device | None = None) -> Any:
    """Turn whatever a damaged checkpoint raises in the libraries into a ModelError. `device` is
    where its weights go."""
    try:
        yield
    except (ModelError, InputError, KeyboardInterrupt):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise ModelError(
                f"Not enough memory{_left(device)} for {folder}.",
                "Use --quantize 8bit or 4bit, a smaller model, or another --device; or end what "
                "else runs there (nvidia-smi shows it).",
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()][:2]
        why = " ".join(lines).partition(" Should contain one of ")[0] or repr(error)
        if isinstance(error, ImportError):
            hint = "Install what it asks for, in the environment of cot-engine."
        raise ModelError(f"{folder}: {what}: {cut(why, 300)}", hint) from error


def _left(device: torch.device | None) -> str:
    """On which device, and what was left there. A GPU that is full cannot always say."""
    if device is None or device.type != "cuda":
        return f" on {device}" if device else ""
    with contextlib.suppress(RuntimeError, AssertionError):  # or CUDA is not there at all
        free, whole = torch.cuda.mem_get_info(device)
        return f" on {device} ({free / 2**30:.1f} of {whole / 2**30:.1f} GB were left)"
    return f" on {device}"


@contextlib.contextmanager
def quietly() -> Any:
    """transformers warns of what is an error or a note here; gptqmodel prints where results go."""
    import transformers

    logger = logging.getLogger("transformers")
    level, bar = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if bar:
            transformers.utils.logging.enable_progress_bar()
