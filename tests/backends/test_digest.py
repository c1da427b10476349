"""What names a model's weights: every byte of them, worked out once."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from cot_engine.backends.local import digest
from cot_engine.backends.local.digest import digest_of


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Large begins at a kilobyte here, and the cache is the test's own."""
    monkeypatch.setattr(digest, "LARGE", 1000)
    monkeypatch.setattr(digest, "BLOCK", 300)
    monkeypatch.setattr(digest, "_CHUNK", 128)
    monkeypatch.setattr(digest, "_YOUNG", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path):
    """Three shards, the last one tiny."""
    made = []
    for i, size in enumerate((900, 1000, 7)):
        path = tmp_path / f"model-{i}.safetensors"
        path.write_bytes(bytes((i + j) % 251 for j in range(size)))
        made.append(path)
    return made


@pytest.fixture
def reads(monkeypatch):
    """How often the files were really read."""
    count = []
    real = digest._blocks
    monkeypatch.setattr(digest, "_blocks", lambda files: count.append(1) or real(files))
    return count


def change(path, at, keep_times=False):
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    if keep_times:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def notes():
    return list((Path(os.environ["XDG_CACHE_HOME"]) / "cot-engine" / "digests").glob("*"))


def test_small_ones_are_named_as_ever(tmp_path, reads):
    """Stored results are named by them."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    assert digest_of([path]) == hashlib.sha256(b"model.safetensors:7weights").hexdigest()[:16]
    assert not reads and not notes()


@pytest.mark.parametrize("at", [(0, 0), (0, 450), (0, 899), (1, 299), (1, 300), (1, 999), (2, 3)])
def test_every_byte_counts(files, at):
    first = digest_of(files)
    change(files[at[0]], at[1])
    assert digest_of(files) != first
    assert len(first) == 16


def test_names_and_order_count(files, tmp_path):
    first = digest_of(files)
    assert digest_of(files[::-1]) != first
    other = tmp_path / "other.safetensors"
    files[0].rename(other)
    assert digest_of([other, *files[1:]]) != first


def test_it_is_worked_out_once(files, reads):
    first = digest_of(files)
    assert [digest_of(files) for _ in range(3)] == [first] * 3
    assert len(reads) == 1 and len(notes()) == 1


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_file_that_changed_is_read_again(files, reads, keep_times):
    """One that was given its old time back, too, as rsync does."""
    first = digest_of(files)
    change(files[0], 450, keep_times)
    assert digest_of(files) != first
    change(files[0], 450)
    assert digest_of(files) == first
    assert len(reads) == 3 and len(notes()) == 1


def test_what_was_written_just_now_is_not_remembered(files, reads, monkeypatch):
    """It may be written again within the same tick of the file system's clock."""
    monkeypatch.setattr(digest, "_YOUNG", 3600.0)
    assert digest_of(files) == digest_of(files)
    assert len(reads) == 2 and not notes()


def test_what_changes_while_it_is_read_is_not_remembered(files, monkeypatch):
    real = digest._blocks

    def blocks(given):
        found = real(given)
        change(files[1], 5)
        return found

    monkeypatch.setattr(digest, "_blocks", blocks)
    digest_of(files)
    assert not notes()


@pytest.mark.parametrize(
    "kept", [b"", b"{", b"null", b"[]", b"{}", b'{"files": 1}', b"\xff\xfe", b'{"digest": "00"}']
)
def test_a_damaged_cache_is_none(files, kept):
    first = digest_of(files)
    (note,) = notes()
    note.write_bytes(kept)
    assert digest_of(files) == first
    assert json.loads(note.read_bytes())["digest"] == first
    whole = json.loads(note.read_bytes())
    for bad in ("", "zz", None, 5, "0" * 300):
        note.write_text(json.dumps({**whole, "digest": bad}))
        assert digest_of(files) == first


def test_a_cache_that_cannot_be_used_is_none(files, tmp_path, monkeypatch):
    first = digest_of(files)
    (note,) = notes()
    note.unlink()
    note.mkdir()  # a folder where the file should be
    assert digest_of(files) == first
    assert notes() == [note]  # nothing half written is left
    (tmp_path / "file").write_text("")
    for where in (str(tmp_path / "file"), "relative/path", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", where)
        monkeypatch.setenv("HOME", str(tmp_path / "file"))
        assert digest_of(files) == first
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert digest_of(files) == first


@pytest.mark.parametrize(
    ("system", "variables", "wanted"),
    [
        ("linux", {}, "home/.cache/cot-engine"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/cot-engine"),
        ("darwin", {}, "home/Library/Caches/cot-engine"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/cot-engine"),
        ("win32", {}, "home/AppData/Local/cot-engine"),
    ],
)
def test_where_it_is_kept(monkeypatch, system, variables, wanted):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "home", lambda: Path("home"))
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert digest.cache_folder() == Path(wanted)
