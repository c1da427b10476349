"""Files and folders written whole: beside their place first, then put there in one step.

Whoever reads one sees what was there before or all that is there now, also if this process is
killed or the disk is full. What fails is one sentence, and nothing is left behind. Streams that are
added to line by line (traces, logs) are not written so: their point is what survives a crash.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from cot_engine.errors import CotEngineError, said
from cot_engine.files.reading import Path_, is_stream

Put = Callable[[str | bytes], None]
Kind = TypeVar("Kind", bound=CotEngineError)
_FREE = "Free some space, or choose another place."


def write_whole(
    path: Path_, data: str | bytes, what: str, kind: type[CotEngineError], hint: str = _FREE
) -> None:
    """As `writing`, of what is there already."""
    with writing(path, what, kind, hint) as put:
        put(data)


def check_writable(path: Path_, what: str, kind: type[CotEngineError], hint: str = _FREE) -> None:
    """Raises `kind` if a file could not be written, before hours of work and not after them; leaves
    what is there as it is."""
    try:
        existed = os.path.exists(path)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).open("a").close()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unwritable(path, error, what, kind, hint) from None
    if not existed:
        Path(path).unlink(missing_ok=True)


def unwritable(
    path: Path_, error: Exception, what: str, kind: type[Kind], hint: str = _FREE
) -> Kind:
    """The error of a file that the system will not have written."""
    reason = getattr(error, "strerror", None) or error
    return kind(f"{what} {os.fspath(path)!r} cannot be written: {reason}.".lstrip(), hint)


@contextmanager
def writing(path: Path_, what: str, kind: type[CotEngineError], hint: str = _FREE) -> Iterator[Put]:
    """`put(data)` writes into a file beside `path`, which takes its place, on the disk, when the
    block ends, and is removed if it raises. A text becomes UTF-8; half a surrogate pair in it, from
    a command line that is not, \\udcXX.

    Folders are made. A link stays one, and a file keeps its mode. A device, a pipe and what the
    shell has opened are written straight. `what` is "The page" or the like; `kind` is raised for
    what the system refuses.
    """

    def failed(error: Exception) -> CotEngineError:
        return unwritable(path, error, what, kind, hint)

    try:
        target, mode = _target(path)
        beside = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
        straight = is_stream(path) or not (mode is None or stat.S_ISREG(mode))
        file = (target if straight else beside).open("wb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise failed(error) from None

    def put(data: str | bytes) -> None:
        try:
            file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
        except OSError as error:
            raise failed(error) from None

    try:
        yield put
        try:
            file.flush()
            if not straight:
                os.fsync(file.fileno())
            file.close()
            if not straight:
                if mode is not None:
                    os.chmod(beside, stat.S_IMODE(mode))
                os.replace(beside, target)
        except OSError as error:
            raise failed(error) from None
    finally:
        with suppress(OSError):  # closing writes what is left, where the disk may be full
            file.close()
        if not straight:
            with suppress(OSError):
                beside.unlink(missing_ok=True)


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


# --- folders -------------------------------------------------------------------------------------


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
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    words = ("No space left", "os error 28", "File too large", "os error 27", "Disk quota")
    writer = "PytorchStreamWriter failed" in str(error) or "unexpected pos" in str(error)
    return writer or any(word in str(error) for word in words)
