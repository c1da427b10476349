"""One writer of a file at a time."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cot_engine.errors import StoreError
from cot_engine.files.writing import unwritable

_HOLDER = "Process "  # how a lock begins that names its holder


@contextmanager
def held(
    path: str | Path,
    what: str,
    hint: str,
    *,
    wait: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold a file for writing. Another process that holds it is named in a StoreError with this
    `hint`, or waited for. `what` is "the store" or the like.

    The lock is the system's (by filelock), on a file beside that says who holds it: it lets go
    however this process ends. That file goes with the block, and so do folders that were made for
    nothing. Over a network it holds as far as the file system's own locks do.
    """
    from filelock import FileLock, Timeout

    path, made = Path(path), []
    lock = None
    try:
        try:
            beside = path.with_name(path.name + ".lock")
            for folder in [each for each in path.parents if not each.exists()][::-1]:
                folder.mkdir(exist_ok=True)
                made.append(folder)
            # Its other lock, for file systems that have none, would outlive a killed process.
            told, lock = False, FileLock(beside, fallback_to_soft=False)
            while not lock.is_locked:
                _holder(beside)
                try:
                    lock.acquire(blocking=False)
                except Timeout:
                    holder = _holder(beside)
                    if not wait:
                        said = f"{holder} is writing to {what} {str(path)!r}."
                        raise StoreError(said, hint) from None
                    if tell is not None and not told:
                        tell(f"Waiting for {holder} to finish with {str(path)!r}.")
                        told = True
                    time.sleep(0.5)
            with suppress(OSError):  # a disk that is full, or Windows, where a lock forbids it
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
                who = f"{_HOLDER}{os.getpid()} on {socket.gethostname()}, since {since} UTC,"
                beside.write_text(who, "utf-8")
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            why = "Check its name and permissions, or name another."
            raise unwritable(path, error, what.capitalize(), StoreError, why) from None
        yield
    finally:
        if lock is not None and lock.is_locked:
            with suppress(OSError):  # Windows does not remove what is open
                beside.unlink()
            lock.release()
        for folder in reversed(made):
            with suppress(OSError):  # it holds something
                folder.rmdir()


def _holder(lock: Path) -> str:
    """Who holds or held a lock, as far as it tells. Raises OSError for what is none of ours."""
    try:
        said = lock.read_text("utf-8", "replace")
    except (FileNotFoundError, PermissionError):  # Windows lets nobody read it
        return "Another process"
    if said and not said.startswith(_HOLDER):
        raise FileExistsError(errno.EEXIST, f"{lock.name} beside it is a file of somebody else's")
    return said or "Another process"
