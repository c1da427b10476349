"""docs/data.md: its files are read and its commands run as they stand, but for the address."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
from teacher_process import environment, lines, serving

from cot_engine.training.tasks import REASONS

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return [block.strip() for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)]


@pytest.fixture
def folder(tmp_path):
    own, cot, told = blocks("json")
    (tmp_path / "questions.jsonl").write_text(own)
    (tmp_path / "cot.jsonl").write_text(cot)
    (tmp_path / "told.jsonl").write_text(told)
    for name in "789":
        PIL.Image.new("RGB", (12, 8), "red").save(tmp_path / f"{name}.png")
    return tmp_path


def run(command, folder, url):
    words = shlex.split(command.replace("http://127.0.0.1:8000/v1", url))
    assert words[0] == "cot-engine"
    return subprocess.run(
        [sys.executable, "-m", "cot_engine", *words[1:]],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_commands_run(folder):
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 4
    with serving(folder) as server:
        for command in commands[:3]:  # the second is `data check`, on what the first one made
            done = run(command, folder, server.url)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert len(lines(folder / "staged.jsonl")) == 1
    with serving(folder, **{"else": "ask"}) as server:
        done = run(commands[3], folder, server.url)
        assert done.returncode == 0, done.stderr
    ids = [row["id"] for row in lines(folder / "told.rows.jsonl")]
    assert ids == ["9-conversation", "9-detail", "9-reasoning"]


def test_the_other_format_is_read(folder):
    with serving(folder) as server:
        command = blocks("sh")[0].splitlines()[0].replace("questions.jsonl", "cot.jsonl")
        assert run(command, folder, server.url).returncode == 0
        (entry,) = server.log
    assert "The note: the square" in entry["text"] and "What is red?" in entry["text"]
    (row,) = lines(folder / "staged.jsonl")
    assert row["id"] == "8" and row["image"] == "8.png"


def test_every_reason_is_explained():
    table = dict(re.findall(r"^\| `([a-z ]+)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert list(table) == list(REASONS)
    for reason, why in REASONS.items():
        assert table[reason].replace("`", "").startswith(why), reason


def test_every_file_is_named(folder):
    with serving(folder) as server:
        done = run(blocks("sh")[0].splitlines()[0] + " --json", folder, server.url)
    for path in json.loads(done.stdout)["files"].values():
        assert f"`{path}`" in PAGE and (folder / path).exists()
