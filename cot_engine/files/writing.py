"""Files written whole: beside their place first, then put there in one step.

Whoever reads one sees what was there before or all that is there now, also if this process is
killed or the disk is full. What fails is one sentence, and nothing is left behind. Streams that are
added to line by line (traces, logs) are not written so: their point is what survives a crash.
Folders, which only trainings write, are in `training/folders.py`.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cot_engine.errors import CotEngineError
from cot_engine.files.reading import Path_, is_stream, why_not

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system calls a disk that is full."""
Put = Callable[[str | bytes], None]
Kind = TypeVar("Kind", bound=CotEngineError)
_FREE = "Free some space, or choose another place."


def write_whole(
    path: Path_, data: str | bytes, what: str, kind: type[CotEngineError], hint: str = _FREE
) -> None:
    """As `writing`, of what is there already."""
    with writing(path, what, kind, hint) as put:
        put(data)


@contextmanager
def writing(path: Path_, what: str, kind: type[CotEngineError], hint: str = _FREE) -> Iterator[Put]:
    """`put(data)` writes into a file beside `path`, which takes its place, on the disk, when the
    block ends, and is removed if it raises. A text becomes UTF-8; half a surrogate pair in it, from
    a command line that is not, \\udcXX.

    Folders are made. A link stays one, and a file keeps its mode. A device, a pipe and what the
    shell has opened are written straight. `what` is "The page" or the like; `kind` is raised for
    what the system refuses.
    """
    explained = partial(_explained, path, what, kind, hint)
    with explained():
        target, mode = _target(path)
        beside = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
        straight = is_stream(path) or not (mode is None or stat.S_ISREG(mode))
        file = (target if straight else beside).open("wb")

    def put(data: str | bytes) -> None:
        with explained():
            file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)

    try:
        yield put
        with explained():
            file.flush()
            if not straight:
                os.fsync(file.fileno())
            file.close()
            if not straight:
                if mode is not None:
                    os.chmod(beside, stat.S_IMODE(mode))
                os.replace(beside, target)
    finally:
        with suppress(OSError):  # closing writes what is left, where the disk may be full
            file.close()
        if not straight:
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def check_writable(path: Path_, what: str, kind: type[CotEngineError], hint: str = _FREE) -> None:
    """Raises `kind` if a file could not be written, before hours of work and not after them; leaves
    what is there as it is."""
    with _explained(path, what, kind, hint):
        target, mode = _target(path)
        target.open("a").close()
        if mode is None and not is_stream(path):
            target.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path_, *how: Any) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unwritable(path, error, *how) from None


def unwritable(
    path: Path_, error: Exception, what: str, kind: type[Kind], hint: str = _FREE
) -> Kind:
    """The error of a file that the system will not have written."""
    reason = why_not(error)
    return kind(f"{what} {os.fspath(path)!r} cannot be written: {reason}.".lstrip(), hint)


def _target(path: Path_) -> tuple[Path, int | None]:
    """The file that a path stands for, and the mode of what is there. Raises OSError."""
    if is_stream(path):
        return Path(path), None
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target, None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    return target, mode
