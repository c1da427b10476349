"""The name of a model's weights: a digest of every byte, kept where it takes long to make."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cot_engine.errors import CotEngineError
from cot_engine.files.writing import write_whole

LARGE = 1_000_000_000  # bytes; beyond it files are read in blocks, by several threads, once
BLOCK = 64 << 20
_CHUNK = 1 << 20
_YOUNG = 2.0  # seconds in which a file system's clock may not tell two writings apart


def digest_of(files: list[Path]) -> str:
    """16 hex digits naming the weights, from names, sizes and all bytes of `files`.

    Up to 1 GB it is one hash over everything. Beyond that it is a hash over those of blocks, which
    several threads work out, and is kept in the user's cache folder until a file's size, inode or
    times change; where that folder cannot be used it is worked out again.
    """
    if sum(path.stat().st_size for path in files) <= LARGE:
        return _whole(files)
    facts = [_facts(path) for path in files]
    note = _note(files)
    if (known := _remembered(note, facts)) is not None:
        return known
    found = _blocks(files)
    settled = all(time.time_ns() - max(f[3:]) > _YOUNG * 1e9 for f in facts)
    if settled and facts == [_facts(path) for path in files]:
        _remember(note, facts, found)
    return found


def _whole(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _blocks(files: list[Path]) -> str:
    """A hash of names, sizes and the blocks' own hashes; hashing and reading let other threads
    run."""

    def block(path: Path, start: int) -> bytes:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            file.seek(start)
            left = BLOCK
            while left and (chunk := file.read(min(_CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
        return digest.digest()

    digest = hashlib.sha256()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for path in files:
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            for part in threads.map(lambda at, of=path: block(of, at), range(0, size, BLOCK)):
                digest.update(part)
    return digest.hexdigest()[:16]


# --- what is remembered ---------------------------------------------------------------------------


def cache_folder() -> Path | None:
    """The user's own, as the system has it; None where there is no home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        return Path(named) / "cot-engine"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "cot-engine"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "cot-engine"
    return home / ".cache" / "cot-engine"


def _facts(path: Path) -> list[int]:
    """What changes when a file does. The last, which no program can set, is when it was changed."""
    stat = path.stat()
    return [stat.st_size, stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _note(files: list[Path]) -> Path | None:
    """Where the digest of these files is kept: one small file for each model."""
    folder = cache_folder()
    paths = "\n".join(os.path.abspath(path) for path in files)
    name = hashlib.sha256(paths.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return None if folder is None else folder / "digests" / f"{name}.json"


def _remembered(note: Path | None, facts: list[list[int]]) -> str | None:
    if note is None:
        return None
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        kept = json.loads(note.read_bytes())
        if kept.get("files") == facts and len(bytes.fromhex(kept["digest"])) == 8:
            return kept["digest"]
    return None


def _remember(note: Path | None, facts: list[list[int]], digest: str) -> None:
    """Whole or not at all; a cache that cannot be written is none."""
    if note is not None:
        with contextlib.suppress(CotEngineError):
            kept = json.dumps({"files": facts, "digest": digest})
            write_whole(note, kept, "The digest", CotEngineError)
