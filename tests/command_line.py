"""The command line, in this process and in one of its own."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pytest
import scripted_cli

from cot_engine.cli import main

HERE = Path(__file__).parent


QUESTION = "How many are there?"


def process(*arguments, script="", real=False):
    """The command and environment of a run in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COT_ENGINE_")}
    environment |= {"SCRIPT": script, "COLUMNS": "80", "TERM": "xterm"}
    start = ["-m", "cot_engine"] if real else [str(HERE / "scripted_cli.py")]
    return [sys.executable, *start, *map(str, arguments)], environment


def run(*arguments, **how):
    """Run in a process of its own; that is slow, and for what only a process shows."""
    command, environment = process(*arguments, **how)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def cli(monkeypatch, capfd):
    """Run in this process, on the scripted model: cli(*arguments, script="", SEED="1")."""
    for name in os.environ:
        if name.startswith("COT_ENGINE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("cot_engine.engine.facade.Engine.from_pretrained", scripted_cli.load)
    monkeypatch.setattr("cot_engine.cli.process.silence_libraries", lambda: None)

    def call(*arguments, script="", **environment):
        for name, value in (environment | {"SCRIPT": script}).items():
            monkeypatch.setenv(name, str(value))
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return call


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "street.png"
    PIL.Image.new("RGB", (32, 16), "red").save(path)
    return path


def two_lines(done, code=2):
    """A failure in two lines, what and what next, with nothing on stdout and no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("[ ")]
    assert len(lines) == 2, done.stderr
    return "\n".join(lines)
