"""A world for judges in training: questions, a tiny model, and pairs that one word tells apart."""

from __future__ import annotations

import json
import random

import pytest
from tiny_models import build, picture

from cot_engine.ablation.worth import WHOLE
from cot_engine.training.judge_config import parse_judge_config
from cot_engine.training.pairs import Candidate, Pair

QUESTIONS = 60
WORDS = "the circle square picture shows one two three so because".split(" ")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with models, questions (every third with a picture) and rows of answers."""
    folder = tmp_path_factory.mktemp("judging")
    build("llava", folder / "llava")
    rows, answers = [], []
    for i in range(QUESTIONS):
        row = {"id": f"q{i}", "question": f"how many red circle? {i}", "answer": "two"}
        if i % 3 == 0:
            picture(i).pixels.save(folder / f"{i}.png")
            row["image"] = f"{i}.png"
        rows.append(row)
        said = f"<SUMMARY>so</SUMMARY><REASONING>one {i}</REASONING><CONCLUSION>two</CONCLUSION>"
        turns = [("human", row["question"]), ("gpt", said)]
        answers.append({"id": str(i), "conversations": [{"from": f, "value": v} for f, v in turns]})
    for name, lines in (("questions", rows), ("answers", answers)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture
def make(world, tmp_path):
    """make(**changes) is a configuration; "judge__keep" is a key."""

    def made(output="run", **changes):
        table = {
            "output": str(tmp_path / output),
            "model": {"path": "llava"},
            "pairs": {"data": "questions.jsonl", "held_out": 20, "stages": ["REASONING", WHOLE]},
            "judge": {"keep": 0.25},
            "data": {"rows": "answers.jsonl", "workers": 0},
            "train": {
                "steps": 4,
                "batch": 8,
                "learning_rate": 2e-3,
                "log_every": 1,
                "save_every": 2,
                "keep": 10,
            },
        }
        for key, value in changes.items():
            name, last = key.split("__")
            table.setdefault(name, {})[last] = value
        return parse_judge_config(table, world)

    return made


def said(rng, good):
    """A candidate's text: what tells good from bad is one word among others."""
    words = [rng.choice(WORDS) for _ in range(4)]
    words.insert(rng.randrange(5), "blue" if good else "red")
    return " ".join(words)


def candidate(rng, stage, good, marks=None):
    text = f"<REASONING>{said(rng, good)}</REASONING>"
    if stage == WHOLE:
        text = f"<SUMMARY>so</SUMMARY>{text}<CONCLUSION>{rng.choice(WORDS)}</CONCLUSION>"
    return Candidate(text, float(good), -rng.random() * 9, 5, marks)


def pairs_of(index, stages=("REASONING", WHOLE), each=2):
    rng = random.Random(f"pairs {index}")
    found = []
    for stage in stages:
        for _ in range(each):
            two = [candidate(rng, stage, True), candidate(rng, stage, False)]
            rng.shuffle(two)
            shared = "" if stage == WHOLE else "<SUMMARY>so</SUMMARY>"
            found.append(Pair(stage, shared, *two, "" if stage == WHOLE else stage))
    return tuple(found)
