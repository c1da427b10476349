"""Calls into transformers: without its warnings, and what they raise in our words."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import torch

from cot_engine.errors import InputError, ModelError, cut


@contextlib.contextmanager
def explained(folder: Path, what: str, hint: str) -> Any:
    """Turn whatever a damaged checkpoint raises in the libraries into a ModelError."""
    try:
        yield
    except (ModelError, InputError, KeyboardInterrupt, MemoryError):
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"Not enough memory on the device for {folder}.",
            "Use --quantize 8bit or 4bit, or a smaller model.",
        ) from error
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()][:2]
        why = " ".join(lines).partition(" Should contain one of ")[0] or repr(error)
        if isinstance(error, ImportError):
            hint = "Install what it asks for, in the environment of cot-engine."
        raise ModelError(f"{folder}: {what}: {cut(why, 300)}", hint) from error


@contextlib.contextmanager
def quietly() -> Any:
    """transformers warns of what is an error or a note here."""
    import transformers

    logger = logging.getLogger("transformers")
    level, bar = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bar:
            transformers.utils.logging.enable_progress_bar()
