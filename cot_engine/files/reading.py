"""Files that a user names, and the TOML and JSON in them: read, or refused in a sentence.

The one reader of every configuration, plan, profile, data file and trace, so that each way in which
a file can be none is met once: a name that no file can have, a folder, a pipe that nobody writes
to, bytes that are not UTF-8, nesting without end, numbers that nothing can hold.
"""

from __future__ import annotations

import json
import math
import os
import stat
import tomllib
from io import BufferedReader
from pathlib import Path
from typing import Any

from cot_engine.errors import CotEngineError, shown

MAX_DEPTH = 100
"""Lists and tables inside one another. Python's own readers end at about a thousand, and what
prints or writes a value again ends before that."""
MAX_DIGITS = 300
"""Of a whole number in JSON: one more, and it may be beyond every float."""
MAX_TOML = 1_000_000
"""Bytes. It is some 20,000 lines, all of which somebody would have had to write."""
MAX_EXTENDED = 8
"""Files that make up one table, each extending the next."""
_SHOWN = 120  # characters of a path
_HINT = "Check its name and permissions."

Path_ = str | os.PathLike[str]


def named(path: Path_) -> str:
    """The path in quotes, as an error names it: of a long one its two ends."""
    return shown(os.fspath(path), _SHOWN)


def opened(
    path: Path_, what: str, kind: type[CotEngineError], hint: str = _HINT, beyond: int | None = None
) -> BufferedReader:
    """The file, open for reading. `what` is "configuration" or the like. Raises `kind` for one
    that cannot be read, or has more than `beyond` bytes.

    Pipes and devices are refused: reading one may never end. What the shell has opened itself
    (/dev/stdin, a `<(command)`) is read.
    """
    try:
        there = os.stat(path)
        if stat.S_ISDIR(there.st_mode):
            raise IsADirectoryError(0, "it is a folder")
        if not stat.S_ISREG(there.st_mode) and not is_stream(path):
            raise OSError(0, "it is not a regular file")
        if beyond is not None and there.st_size > beyond:
            raise OSError(0, f"it has {there.st_size:,} bytes; the limit is {beyond:,}")
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(path, what, kind, error, hint) from None


def why_not(error: Exception) -> str:
    """What the system says of a file that it will not open."""
    if isinstance(error, ValueError):  # Python's own, before the system is asked
        return "its name holds a NUL character"
    return str(getattr(error, "strerror", None) or error)


def is_stream(path: Path_) -> bool:
    """Does the path name what this process has open already?"""
    return os.fspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/self/fd/"))


def check_utf8(path: Path_, start: bytes, kind: type[CotEngineError]) -> None:
    """Raises `kind` for a file that does not begin as a text in UTF-8 does: in UTF-16, with a mark
    or without one, or no text at all."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or start.count(0) * 4 > len(start):
        said = f"{named(path)} is not a text file, or not in UTF-8."
        raise kind(said, "Save it as UTF-8 (not UTF-16).")


def _unreadable(
    path: Path_, what: str, kind: type[CotEngineError], error: Exception, hint: str
) -> CotEngineError:
    reason = why_not(error)
    return kind(f"The {what} {named(path)} cannot be read: {reason}.", hint)


def read_bytes(
    path: Path_, what: str, kind: type[CotEngineError], hint: str = _HINT, beyond: int | None = None
) -> bytes:
    """All of the file. Raises `kind` as `opened` does."""
    with opened(path, what, kind, hint, beyond) as file:
        try:
            return file.read() if beyond is None else file.read(beyond + 1)[:beyond]
        except OSError as error:
            raise _unreadable(path, what, kind, error, hint) from None


def read_toml(path: Path_, what: str, kind: type[CotEngineError]) -> dict[str, Any]:
    """The table in a TOML file. Raises `kind`."""
    data = read_bytes(path, what, kind, beyond=MAX_TOML)
    try:
        return parse_toml(data.decode("utf-8-sig"))  # an editor of Windows writes a BOM
    except ValueError as error:
        said = f"The {what} {named(path)} is not valid TOML: {error}."
        raise kind(said, "Correct it there.") from None


def read_extended(
    path: Path_, what: str, kind: type[CotEngineError]
) -> tuple[dict[str, Any], list[Path]]:
    """As `read_toml`, of a file that may take over what another holds: extends = "OTHER.toml", a
    path relative to its own. Its tables are merged key by key, all else it replaces. Also the files
    that it extends; other paths in these stand as if they were written in `path`."""
    files, found = [Path(path)], read_toml(path, what, kind)
    while (other := found.pop("extends", None)) is not None:
        here = files[-1]
        if not isinstance(other, str) or not other.strip():
            raise kind(f"extends is {shown(other)}, in {named(here)}.", "Name a file beside it.")
        files.append(here.parent / other)
        hint = "Let each extend one that stands for itself."
        if os.path.realpath(files[-1]) in map(os.path.realpath, files[:-1]):
            said = f"{named(here)} extends {named(files[-1])}, which leads back to it."
            raise kind(said, hint)
        if len(files) > MAX_EXTENDED:
            said = f"{named(path)} extends more than {MAX_EXTENDED - 1} files, one after another."
            raise kind(said, hint)
        try:
            found = _over(read_toml(files[-1], what, kind), found)
        except kind as error:
            said = f"{error.message.removesuffix('.')}; {named(here)} extends it."
            raise kind(said, error.hint) from None
    return found, files[1:]


def _over(below: Any, table: Any) -> Any:
    """`below`, with what `table` says instead."""
    if not (isinstance(below, dict) and isinstance(table, dict)):
        return table
    return below | {key: _over(below.get(key), value) for key, value in table.items()}


def read_json(path: Path_, what: str, kind: type[CotEngineError]) -> Any:
    """The value in a JSON file. Raises `kind`."""
    data = read_bytes(path, what, kind)
    check_utf8(path, data[:4096], kind)
    try:
        return parse_json(data.decode("utf-8-sig"))
    except ValueError as error:
        said = f"The {what} {named(path)} cannot be read: it is not JSON: {error}."
        raise kind(said, "Correct it there.") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Raises ValueError, and nothing else."""
    try:
        found = tomllib.loads(text)
        check_depth(found)
    except RecursionError:
        raise ValueError(_DEEP) from None
    for value in _leaves(found):
        if type(value) is int and not -(2**63) <= value < 2**63:  # which may be too long to print
            raise ValueError("a whole number is beyond 64 bits")
    return found


def parse_json(text: str) -> Any:
    """Raises ValueError, and nothing else."""
    try:
        found = DECODER.decode(text)
    except RecursionError:
        raise ValueError(_DEEP) from None
    if text.count("[") + text.count("{") > MAX_DEPTH:  # else it cannot be
        check_depth(found)
    return found


_DEEP = f"lists and tables are more than {MAX_DEPTH} deep in one another"


def check_depth(value: Any) -> None:
    """Raises ValueError for lists and tables too deep in one another."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH + 1):
        inner = (x for each in level for x in (each.values() if isinstance(each, dict) else each))
        level = [x for x in inner if isinstance(x, (dict, list))]
        if not level:
            return
    raise ValueError(_DEEP)


def _leaves(value: Any) -> list[Any]:
    """What is in tables and lists that are not too deep."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return [leaf for each in inner for leaf in _leaves(each)]
    return [value]


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _constant(text[:40])


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a whole number has {len(text):,} digits; the limit is {MAX_DIGITS}")
    return int(text)


DECODER = json.JSONDecoder(parse_constant=_constant, parse_float=_float, parse_int=_int)
"""Of JSON as its standard has it: every number is one that a float can hold, about."""
