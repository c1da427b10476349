"""No command writes over what it reads: the one check of outputs, before anything is opened.

Files are told apart by what they are, not by how they are spelled: `./x` and `x`, a symbolic or
hard link, another case where that is the same file.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cot_engine.errors import InputError
from cot_engine.files.reading import is_stream, named

Named = tuple[str, str | os.PathLike[str] | None]
"""What an error calls a file ("--trace", "the picture"), and its path; None: it was not given."""

Opened = tuple[str, str | os.PathLike[str] | int]
"""The same of one that was given, or that the shell has opened, by its number."""

# What a model's folder holds of a model. Other files in there are not read, and may be written.
_OF_A_MODEL = (".safetensors", ".json", ".jinja", ".model", ".txt", ".bin")


def check_outputs(outputs: Iterable[Named], inputs: Iterable[Named]) -> None:
    """Raises InputError if an output is an input, or a model's file where an input is its folder,
    or a folder that an input lies in, or another output.

    "-" is stdin or stdout. Where these are files, they count as an input and an output; devices
    and pipes are free.
    """
    given = [(name, path) for name, path in inputs if path is not None and path != "-"]
    sources: list[Opened] = [*given, *_shell(sys.stdin, "stdin")]
    before: list[Opened] = [*_shell(sys.stdout, "stdout")]
    for name, path in outputs:
        if path is None or path == "-" or is_stream(path) or _is_free(path):
            continue
        for other, source in [*sources, *before]:
            if _same(path, source) or _within(source, path) or _is_of_model(path, source):
                said = "" if isinstance(source, int) else f" {named(source)}"
                raise InputError(
                    f"{name} {named(path)} would write over {other}{said}.", "Name another file."
                )
        before.append((name, path))


def side_files(store: str | os.PathLike[str]) -> list[Named]:
    """A store, and what SQLite and its lock keep beside it."""
    return [("the store", f"{os.fspath(store)}{end}") for end in ("", "-wal", "-shm", ".lock")]


def _shell(stream: Any, name: str) -> list[tuple[str, int]]:
    """What the shell has opened for us, if it is a file."""
    try:
        number = stream.fileno()
        return [(name, number)] if stat.S_ISREG(os.stat(number).st_mode) else []
    except (OSError, ValueError, AttributeError):  # closed, or not of the system
        return []


def _is_free(path: str | os.PathLike[str]) -> bool:
    """A device or a pipe: nothing is lost there."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _same(path: str | os.PathLike[str], other: str | os.PathLike[str] | int) -> bool:
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):  # one is not there yet, or has no possible name
        return not isinstance(other, int) and _resolved(path) == _resolved(other)


def _resolved(path: str | os.PathLike[str]) -> Path:
    try:
        found = os.path.realpath(path)
    except (OSError, ValueError):
        found = os.fspath(path)
    return Path(found.casefold() if sys.platform in ("darwin", "win32") else found)


def _within(source: str | os.PathLike[str] | int, folder: str | os.PathLike[str]) -> bool:
    if isinstance(source, int) or not os.path.isdir(folder):
        return False
    return _resolved(folder) in _resolved(source).parents


def _is_of_model(path: str | os.PathLike[str], folder: str | os.PathLike[str] | int) -> bool:
    if isinstance(folder, int) or not os.path.isdir(folder) or not os.path.exists(path):
        return False
    files = (Path(folder, name) for name in os.listdir(folder) if name.endswith(_OF_A_MODEL))
    return any(_same(path, file) for file in files)
