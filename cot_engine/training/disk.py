"""Whether a disk is full, and writing that outlives a power cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def sync(folder: Path) -> None:
    """Force a folder and the files in it to the disk, so that a rename never outruns them."""
    for path in (*folder.iterdir(), folder):
        if path == folder or path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def is_full(error: BaseException) -> bool:
    """Whether a library failed because the disk is full: each says it in its own way."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    words = ("No space left", "os error 28", "File too large", "os error 27", "Disk quota")
    writer = "PytorchStreamWriter failed" in str(error) or "unexpected pos" in str(error)
    return writer or any(word in str(error) for word in words)
