"""Wherever a path is taken, its text and a Path do the same."""

import json
from pathlib import Path

import PIL.Image
import pytest

from cot_engine import Plan, Profile, RunConfig, Trace, load_image
from cot_engine.ablation.grid import load_ablation
from cot_engine.questions.data import load_data
from cot_engine.questions.files import read_file
from cot_engine.training.build import files_of
from cot_engine.training.check import check
from cot_engine.training.journal import Journal
from cot_engine.training.judge_config import load_judge_config
from cot_engine.training.llava import read_described
from cot_engine.training.questions import read_questions
from cot_engine.training.rows import read_rows, write_rows
from cot_engine.training.sft_config import load_config
from cot_engine.training.staged import staged_entries

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def made(entries):
    return [repr(entry.make()) for entry in entries]


def journal(path):
    with Journal(path, {}) as opened:
        return Path(opened.path)


CALLS = {
    "load_data": lambda kind, at: load_data(kind(at / "q.jsonl")),
    "its folder": lambda kind, at: load_data("q.jsonl", folder=kind(at)),
    "read_file": lambda kind, at: read_file(kind(at / "q.jsonl")),
    "read_questions": lambda kind, at: made(read_questions(kind(at / "q.jsonl"), kind(at))),
    "read_described": lambda kind, at: made(
        read_described(kind(at / "t.jsonl"), kind(at / "o.jsonl"), ("detail",), kind(at))
    ),
    "staged_entries": lambda kind, at: made(
        staged_entries(read_questions(at / "q.jsonl"), kind(at / "o.jsonl"), "both")
    ),
    "files_of": lambda kind, at: files_of(kind(at / "o.jsonl")),
    "check": lambda kind, at: check(kind(at / "r.jsonl"), images=kind(at)).counts,
    "rows": lambda kind, at: write_rows(kind(at / "w.jsonl"), read_rows(kind(at / "r.jsonl"))),
    "Journal": lambda kind, at: journal(kind(at / "j.sqlite")),
    "load_config": lambda kind, at: load_config(kind(EXAMPLES / "train-scenes.toml")),
    "load_judge_config": lambda kind, at: load_judge_config(kind(EXAMPLES / "bundled-judge.toml")),
    "load_ablation": lambda kind, at: load_ablation(kind(EXAMPLES / "comparison.toml")).cells,
    "RunConfig": lambda kind, at: RunConfig(model=kind(at)),
    "its hash": lambda kind, at: RunConfig(model=kind(at)).hash(),
    "Plan": lambda kind, at: Plan.from_toml(kind(at / "plan.toml")),
    "Profile": lambda kind, at: (Profile().write(kind(at)), Profile.of(kind(at))),
    "Trace": lambda kind, at: Trace.read(kind(ROOT / "docs" / "example-trace.jsonl")).events,
    "load_image": lambda kind, at: load_image(kind(at / "a.png")).digest,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_path_and_its_text_do_the_same(tmp_path, name):
    PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    row = {"id": "1", "image": "a.png"}
    for file, more in (
        ("q", {"question": "x", "answer": "y"}),
        ("t", {"captions": ["z"]}),
        ("r", {"conversations": turns}),
    ):
        (tmp_path / f"{file}.jsonl").write_text(json.dumps(row | more))
    plan = '[[stage]]\ntag = "LOOK"\npurpose = "a"\nquestion = "b?"\nlength = 5\n'
    (tmp_path / "plan.toml").write_text(plan)
    assert CALLS[name](str, tmp_path) == CALLS[name](Path, tmp_path)
