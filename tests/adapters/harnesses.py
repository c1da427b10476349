"""Harnesses in environments of their own, the questions they are asked, and what came of it."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import environments
import pytest

from cot_engine import Trace, scenes

VENVS = os.environ.get("HARNESS_VENVS", "")
HOT = {"strategy": "stage-beam", "n": 2, "temperature": 1.5, "top_p": 1.0, "top_k": 0}
"""Model arguments: so hot that the bundled model gets some wrong."""
COUNT = 10  # scenes that are asked about
WORDS = "words"  # the question without a picture
TWO = "two"  # the one with two pictures
LONG = "long"  # the one that cannot be asked: it has too many characters
LETTERS = "ABCD"
_OTHERS = [str(n) for n in range(12)], ["red", "blue", "green", "yellow"], ["yes", "no", "maybe"]


@dataclass(frozen=True)
class Asked:
    """A question with four options, one of them right, and its pictures."""

    id: str
    question: str
    options: list[str]
    letter: str
    images: tuple[Path, ...]

    @property
    def answer(self) -> str:
        return self.options[LETTERS.index(self.letter)]


@dataclass
class Outcome:
    """What a harness made of them: predictions and columns by the question's id, its score."""

    predictions: dict[str, str]
    columns: dict[str, dict[str, Any]]
    score: float
    more: dict[str, Any] = field(default_factory=dict)


def questions(folder: Path) -> list[Asked]:
    """What all harnesses are asked; the pictures go into `folder`."""
    found = []
    plain = (scene for n in range(100) if (scene := scenes.sample(5, n, "val")).answer.islower())
    numbers = (scene for n in range(100) if (scene := scenes.sample(6, n, "val")).answer.isdigit())
    for place, scene in enumerate([*islice(plain, COUNT // 2), *islice(numbers, COUNT // 2)]):
        path = folder / f"{place}.png"
        scene.image.save(path)
        others = next((o for o in _OTHERS if scene.answer in o), [*_OTHERS[1]])
        options = [scene.answer, *[other for other in others if other != scene.answer]][:4]
        options += ["none of them"] * (4 - len(options))
        turned = options[-(place % 4) :] + options[: -(place % 4)] if place % 4 else options
        letter = LETTERS[turned.index(scene.answer)]
        found.append(Asked(f"s{place}", scene.question, turned, letter, (path,)))
    told = scenes.sample(0, 0, "val", text_only=True)
    options = [told.answer, "purple", "seven", "nothing"]
    found.append(Asked(WORDS, told.prompt, options, "A", ()))
    one, two = (each.images[0] for each in found[:2])
    options = ["yes", "no", "red", "blue"]
    found.append(Asked(TWO, "Is there a red circle?", options, "B", (one, two)))
    found.append(Asked(LONG, "Is it red? " * 2_000, options, "A", (one,)))
    return found


def harness(name: str) -> Path:
    """The folder of a harness's programs, or a skip that says how to make it."""
    folder = Path(VENVS) / name
    if not (VENVS and (folder / environments.READY).exists()):
        pytest.skip(
            f"HARNESS_VENVS names no folder with {name}: `python tests/adapters/environments.py "
            f"FOLDER {name}` makes it, .ci/run does both"
        )
    return folder / "bin"


def run(*command: Any, folder: Path, **environment: Any) -> str:
    """What a harness's own command says. It fails with all of that if the command does."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COT_ENGINE_", "INSPECT_"))}
    kept |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=kept | {key: str(value) for key, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def python(name: str, module: str, *, broken: bool) -> list[Any]:
    """`python -m MODULE` of a harness; `broken`: with an adapter that gives the whole chain."""
    start = [Path(__file__).with_name("whole_chain.py")] if broken else ["-m"]
    return [harness(name) / "python", *start, module]


def in_python(name: str, code: str, *arguments: Any, folder: Path) -> Any:
    """What a piece of code prints as JSON on its last line, run by a harness's Python."""
    said = run(harness(name) / "python", "-c", code, *arguments, folder=folder)
    return json.loads(said.strip().splitlines()[-1])


def check(found: Outcome, asked: list[Asked], ours: float) -> None:
    """A harness has one prediction for each question, each a CONCLUSION with its columns, and its
    score is `ours`, made of the conclusions that the columns have."""
    assert sorted(found.predictions) == sorted(each.id for each in asked)
    for id, columns in found.columns.items():
        if id == LONG:
            assert "20,000" in columns["error"] and not columns["stages"]
            continue
        assert found.predictions[id] == columns["stages"]["CONCLUSION"] != ""
        assert len(columns["stages"]) == (3 if id == WORDS else 4)  # without CAPTION
        assert columns["new_tokens"] > 20 and columns["flops"] > 0 and columns["seconds"] > 0
        assert columns["usage"].keys() <= {"generate", "judge"}
        started = Trace.read(columns["trace"]).started
        assert len(started.images) == {WORDS: 0, TWO: 2}.get(id, 1)
        assert columns["incomplete"] == columns["error"] == ""
    assert found.score == pytest.approx(ours)


def conclusions(found: Outcome) -> dict[str, str]:
    """What our own scoring is of; "" for a question that failed."""
    return {id: each["stages"].get("CONCLUSION", "") for id, each in found.columns.items()}
