"""One writer of a store at a time."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cot_engine.ablation.store import Store
from cot_engine.errors import StoreError


@contextmanager
def writing(
    path: str | Path, *, wait: bool = False, tell: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold a store for writing. Another run that holds it is named in a StoreError, or waited for.

    The lock is an exclusive transaction on a file beside the store: the system lets go of it
    however this process ends.
    """
    path = Path(path)

    def unusable(error: Exception) -> StoreError:
        said = f"The store {str(path)!r} cannot be written: {error}."
        return StoreError(said, "Check its name and permissions, or use another --store.")

    try:
        beside = path.with_name(path.name + ".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(beside, timeout=0, isolation_level=None)
    except (sqlite3.Error, OSError, ValueError) as error:
        raise unusable(error) from None
    try:
        told = False
        while True:
            try:
                lock.execute("begin exclusive")
                break
            except sqlite3.Error as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise unusable(error) from None
                if not wait:
                    raise StoreError(
                        f"{_writer(path)} is writing to the store {str(path)!r}.",
                        "Wait for it to end (--wait does), stop it, or use another --store.",
                    ) from None
                if tell is not None and not told:
                    tell(f"Waiting for {_writer(path)} to finish with {str(path)!r}.")
                    told = True
                time.sleep(0.5)
        yield
    finally:
        lock.close()  # the file stays: to remove it would let two others lock different files


def _writer(path: Path) -> str:
    """Who holds the store, as far as it tells."""
    try:
        with Store(path) as store:
            return store.writer
    except StoreError:
        return "Another process"
