"""What is written whole: there or as it was, whatever the path is, with nothing left beside it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading

import pytest

from cot_engine.errors import InputError, StoreError
from cot_engine.files.writing import check_writable, write_whole, writing
from cot_engine.training.folders import writing_folder


def write(path, text="new"):
    write_whole(path, text, "The page", InputError, "Choose another place.")


def test_a_file_keeps_its_mode_and_a_link_its_file(tmp_path):
    (tmp_path / "far").write_text("old")
    (tmp_path / "far").chmod(0o640)
    (tmp_path / "link").symlink_to("far")
    write(tmp_path / "link", "half a pair: \udc80")
    (tmp_path / "loose").symlink_to("nowhere")
    check_writable(tmp_path / "loose", "The page", InputError)
    assert (tmp_path / "loose").is_symlink() and not (tmp_path / "nowhere").exists()
    (tmp_path / "loose").unlink()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far").read_text() == "half a pair: \\udc80"
    assert stat.S_IMODE((tmp_path / "far").stat().st_mode) == 0o640
    before = os.umask(0o077)
    try:
        write(tmp_path / "deep" / "secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "deep" / "secret").stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["deep", "far", "link"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "page"
    write(path, "old")
    with writing(path, "The page", InputError) as put:
        put("new")
        put(b" page")
        assert path.read_text() == "old"
    assert path.read_text() == "new page"
    with pytest.raises(KeyboardInterrupt), writing(path, "The page", InputError) as put:
        put("newer")
        raise KeyboardInterrupt
    assert path.read_text() == "new page" and os.listdir(tmp_path) == ["page"]


@pytest.mark.parametrize("name", [".", "file/below", "nul\0byte"])
def test_what_cannot_be_written_is_one_sentence(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"The page '.*' cannot be written: .*\. Choose another"):
        write(tmp_path / name)
    with pytest.raises(InputError, match=r"The page '.*' cannot be written: .*\. Choose another"):
        check_writable(tmp_path / name, "The page", InputError, "Choose another place.")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_devices_and_pipes_are_written_straight(tmp_path):
    write(os.devnull)
    assert not os.path.isfile(os.devnull)
    with pytest.raises(InputError, match="'/dev/full' cannot be written: No space left"):
        write("/dev/full")
    os.mkfifo(tmp_path / "pipe")
    heard = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_text()))
    reader.start()
    write(tmp_path / "pipe")
    reader.join(10)
    assert heard == ["new"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="no /dev/stdout")
def test_what_the_shell_has_opened_stays_open(tmp_path):
    code = "from test_writing import write; write('/dev/stdout', 'out')"
    place = os.path.dirname(__file__)
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, cwd=place, check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=place, check=True, timeout=60
    )
    assert (tmp_path / "out").read_text() == done.stdout.decode() == "out"
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_takes_the_place_of_another_or_leaves_it(tmp_path):
    target = tmp_path / "model"
    for text in ("old", "new"):
        with writing_folder(target, StoreError, "Free some space.") as made:
            (made / "weights").write_text(text)
    full = RuntimeError("PytorchStreamWriter failed writing file")
    for error, kind in ((ZeroDivisionError(), ZeroDivisionError), (full, StoreError)):
        with pytest.raises(kind), writing_folder(target, StoreError, "Free some space.") as made:
            (made / "weights").write_text("newer")
            raise error
    assert (target / "weights").read_text() == "new" and os.listdir(tmp_path) == ["model"]
