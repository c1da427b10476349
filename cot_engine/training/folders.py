"""Folders written whole, as `files/writing.py` writes files: models, adapters, checkpoints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cot_engine.errors import CotEngineError, said
from cot_engine.files.writing import FULL


@contextmanager
def writing_folder(target: Path, kind: type[CotEngineError], hint: str) -> Iterator[Path]:
    """An empty folder beside `target` to write files into, which takes its place when the block
    ends, and is removed if it raises. Raises `kind` if the disk is full."""
    beside = target.with_name(f".{target.name}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        yield beside
        put_folder(beside, target)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if not is_full(error):
            raise
        raise kind(f"The {target.name} cannot be written: {said(error)}.", hint) from error


def put_folder(made: Path, target: Path) -> None:
    """Put a whole folder in the place of another, so that it outlives a power cut."""
    _sync(*(path for path in made.iterdir() if path.is_file()), made)
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    os.replace(made, target)
    _sync(target.parent)


def _sync(*paths: Path) -> None:
    """Force files and folders to the disk, so that a rename never outruns them."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_full(error: BaseException) -> bool:
    """Whether something failed because the disk is full: each library says it in its own way."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    words = ("No space left", "os error 28", "File too large", "os error 27", "Disk quota")
    writer = "PytorchStreamWriter failed" in str(error) or "unexpected pos" in str(error)
    return writer or any(word in str(error) for word in words)
