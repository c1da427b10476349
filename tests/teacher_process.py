"""A scripted OpenAI-compatible server and the command that asks it, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import PIL.Image

HERE = Path(__file__).parent


class Served:
    """A running server: its address, and what it has seen."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"

    def state(self) -> dict:
        with urllib.request.urlopen(self.url.replace("/v1", "/log"), timeout=30) as answer:
            return json.load(answer)

    @property
    def log(self) -> list[dict]:
        return self.state()["log"]

    def paid(self) -> Counter:
        """How often each reply was paid for, by purpose and seed: which row and which attempt."""
        return Counter((e["purpose"], e["seed"]) for e in self.log if e["paid"])

    def until(self, condition, seconds: float = 120) -> None:
        """Wait until `condition(state)`."""
        end = time.monotonic() + seconds
        while not condition(self.state()):
            assert time.monotonic() < end, "it did not come to that"
            time.sleep(0.01)


@contextmanager
def serving(folder: Path, **script):
    """A server that does as the script says."""
    path = folder / f"script-{time.monotonic_ns()}.json"
    path.write_text(json.dumps(script))
    command = [sys.executable, str(HERE / "teacher_server.py"), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Served(int(process.stdout.readline()))
        finally:
            process.kill()


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "cot_engine", "data", "build", *map(str, arguments)]


def environment(**more) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("COT_ENGINE_")}
    return kept | {"COLUMNS": "100", "TERM": "dumb", "OMP_NUM_THREADS": "1", **more}


def build(*arguments, before="", **variables) -> subprocess.CompletedProcess:
    """Run `data build`; `before` is shell to run first in its process."""
    run = command(*arguments)
    if before:
        run = ["bash", "-c", f'{before}; exec "$@"', "bash", *run]
    return subprocess.run(
        run, env=environment(**variables), capture_output=True, text=True, timeout=300
    )


def write_questions(folder: Path, n: int, **more) -> Path:
    """n questions with the answers 11, 12, ... about one picture."""
    PIL.Image.new("RGB", (12, 8), "red").save(folder / "a.png")
    rows = [
        {"id": str(k), "image": "a.png", "question": f"row {k}: how many?", "answer": str(10 + k)}
        | more
        for k in range(1, n + 1)
    ]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
