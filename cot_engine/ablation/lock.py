"""One writer of a store at a time."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cot_engine.ablation.store import Store
from cot_engine.errors import StoreError


@contextmanager
def writing(
    path: str | Path, *, wait: bool = False, tell: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold a store for writing. Another run that holds it is named in a StoreError, or waited for.

    The lock is the system's, on a file beside the store: it lets go however this process ends. The
    file goes when the run ends, and so do folders that were made for nothing.
    """
    path = Path(path)
    made: list[Path] = []
    file: BinaryIO | None = None
    told = False
    try:
        try:
            beside = path.with_name(path.name + ".lock")
            _make(path.parent, made)
            while (file := _hold(beside)) is None:
                if not wait:
                    raise StoreError(
                        f"{_writer(path)} is writing to the store {str(path)!r}.",
                        "Wait for it to end (--wait does), stop it, or use another --store.",
                    )
                if tell is not None and not told:
                    tell(f"Waiting for {_writer(path)} to finish with {str(path)!r}.")
                    told = True
                time.sleep(0.5)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise StoreError(
                f"The store {str(path)!r} cannot be written:"
                f" {getattr(error, 'strerror', None) or error}.",
                "Check its name and permissions, or use another --store.",
            ) from None
        yield
    finally:
        if file is not None:
            with suppress(OSError):  # Windows does not remove what is open
                beside.unlink()
            file.close()
        for folder in reversed(made):
            with suppress(OSError):  # it holds something
                folder.rmdir()


def _make(folder: Path, made: list[Path]) -> None:
    """Make a folder, and those above that are missing, and note which these were."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        made.append(each)


def _hold(path: Path) -> BinaryIO | None:
    """The file, opened and locked; None where another process holds it."""
    while True:
        file = path.open("ab")
        try:
            if os.fstat(file.fileno()).st_size:
                said = f"{path.name} beside it is a file of somebody else's"
                raise FileExistsError(errno.EEXIST, said)
            if not _lock(file):
                file.close()
                return None
            # The one who held it removes it: whoever locks what is no longer there has nothing.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: BinaryIO) -> bool:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _writer(path: Path) -> str:
    """Who holds the store, as far as it tells."""
    try:
        with Store(path) as store:
            return store.writer
    except StoreError:
        return "Another process"
