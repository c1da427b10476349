"""No command writes over what it reads, however the file is spelled."""

from __future__ import annotations

import os
import sys

import pytest
from make_traces import greedy

from cot_engine.errors import InputError
from cot_engine.files.outputs import check_outputs
from cot_engine.training import sft
from cot_engine.training.sft_config import parse_config

ASK = "How many?"
ROW = b'{"id": "1", "question": "q", "answer": "a", "conversations": []}\n'
TEACHER = ["--base-url", "http://127.0.0.1:9/v1", "-m", "m"]
MADE = {  # what is read, by name
    "p.png": None,
    "c.toml": b"n = 3\n[run]\n",
    "plan.toml": b'[[stage]]\ntag = "A"\npurpose = "p"\nquestion = "q"\n',
    "named.toml": b'plan = "plan.toml"\n',
    "grid.toml": b'[data]\nsource = "q.jsonl"\n[[cells]]\nstrategy = "greedy"\n',
    "s.sqlite": b"rows",
    "s.sqlite-wal": b"more rows",
    "q.jsonl": ROW,
    "q.aside.jsonl": ROW,
    "model/config.json": b"{}",
    "model/cot_engine.json": b"{}",
    "model/model.safetensors": b"weights",
}
CASES = [  # the command, with OUT where the output goes; what OUT must not be
    (["solve", "p.png", ASK, "--trace", "OUT"], "p.png"),
    (["solve", ASK, "-i", "p.png", "--trace", "OUT"], "p.png"),
    (["solve", ASK, "-c", "named.toml", "--trace", "OUT"], "named.toml"),
    (["solve", ASK, "-c", "named.toml", "--trace", "OUT"], "plan.toml"),
    (["solve", ASK, "--plan", "plan.toml", "--trace", "OUT"], "plan.toml"),
    (["solve", ASK, "-m", "model", "--trace", "OUT"], "model/cot_engine.json"),
    (["solve", ASK, "-m", "model", "--trace", "OUT"], "model/model.safetensors"),
    (["trace", "t.jsonl", "--html", "OUT"], "t.jsonl"),
    (
        ["trace", "t.jsonl", "--html", "OUT", "--judge", "self", "-m", "model"],
        "model/config.json",
    ),
    (["report", "s.sqlite", "--out", "OUT"], "s.sqlite"),
    (["report", "s.sqlite", "--format", "csv", "--out", "OUT"], "s.sqlite-wal"),
    (["report", "s.sqlite", "--trace", "x/y/0", "--out", "OUT"], "s.sqlite"),
    (["ablate", "grid.toml", "--store", "OUT"], "grid.toml"),
    (["ablate", "grid.toml", "--store", "OUT"], "q.jsonl"),
    (["judge-report", "--data", "q.jsonl", "--out", "OUT"], "q.jsonl"),
    (["judge-report", "-c", "named.toml", "--out", "OUT"], "plan.toml"),
    (["judge-report", "-m", "model", "--out", "OUT"], "model/cot_engine.json"),
    (["data", "build", "q.jsonl", *TEACHER, "--out", "OUT"], "q.jsonl"),
    (["data", "check", "q.jsonl", "--overwrite", "--write-good", "OUT"], "q.jsonl"),
    (["data", "check", "q.jsonl", "--overwrite", "--write-bad", "OUT"], "q.jsonl"),
    (["data", "check", "q.jsonl", "--plan", "plan.toml", "--write-bad", "OUT"], "plan.toml"),
]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder with one of everything that is read, which is where the test is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "sub").mkdir()
    for name, data in MADE.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save("p.png")
    greedy().write("t.jsonl")
    return tmp_path


@pytest.mark.parametrize(("command", "target"), CASES, ids=lambda x: str(x))
def test_an_output_that_is_an_input(cli, made, command, target):
    before = (made / target).read_bytes()
    (made / "sub" / "soft").symlink_to(made / target)
    os.link(made / target, made / "sub" / "hard")
    for out in (target, f"./sub/../{target}", str(made / target), "sub/soft", "sub/hard"):
        done = cli(*(out if word == "OUT" else word for word in command))
        assert done.returncode == 2, done.stderr
        assert "would write over" in done.stderr and done.stderr.count("\n") == 2
        assert (made / target).read_bytes() == before


def test_outputs_of_one_command_are_not_each_other(cli, made):
    twice = ["data", "check", "q.jsonl", "--write-good", "new.jsonl", "--write-bad"]
    done = cli(*twice, "sub/../new.jsonl")
    assert done.returncode == 2 and "would write over --write-good" in done.stderr
    assert not (made / "new.jsonl").exists()
    # What was set aside, as the input of another run under the old name.
    done = cli("data", "build", "q.aside.jsonl", *TEACHER, "--out", "q.jsonl")
    assert done.returncode == 2 and "'q.aside.jsonl' would write over the data" in done.stderr
    assert (made / "q.aside.jsonl").read_bytes() == ROW


def test_other_names_pipes_and_devices_are_free(made):
    check_outputs([("--trace", "model/new.json"), ("--out", None), ("--html", "-")], [])
    check_outputs([("--trace", "model/new.jsonl")], [("the model", "model")])
    (made / "model" / "new.jsonl").touch()
    check_outputs([("--trace", "model/new.jsonl")], [("the model", "model")])
    check_outputs([("--trace", "/dev/stdout")], [("the picture", "/dev/stdout")])
    check_outputs([("--trace", "/dev/null"), ("--out", "/dev/null")], [("the data", "/dev/null")])
    check_outputs([("--trace", "q.jsonl")], [("the picture", "http://example.org/q.jsonl")])
    check_outputs([("--trace", "a\0b")], [("the picture", "p.png")])


def test_what_the_shell_opened_counts(made, monkeypatch):
    with open("out.json", "w") as stdout, open("p.png") as stdin:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(InputError, match=r"--trace 'out\.json' would write over stdout"):
            check_outputs([("--trace", "out.json")], [])
        with pytest.raises(InputError, match=r"--trace 'p\.png' would write over stdin"):
            check_outputs([("--trace", "p.png")], [("the picture", "-")])


def test_a_link_to_what_is_not_there_yet_is_that(made):
    (made / "link").symlink_to("new.jsonl")
    with pytest.raises(InputError, match="would write over --out"):
        check_outputs([("--out", "new.jsonl"), ("--trace", "link")], [])


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"data": {"rows": "out/log.jsonl"}}, "data.rows"),
        ({"data": {"rows": "q.jsonl", "images": "out/model/pictures"}}, "data.images"),
        ({"data": {"rows": "q.jsonl", "held_out": "out/adapter/held.jsonl"}}, "data.held_out"),
        ({"model": {"path": "out/model"}}, "model.path"),
        ({"model": {"path": "out/checkpoints/100"}}, "model.path"),
    ],
)
def test_a_training_does_not_write_over_what_it_learns_from(made, table, word):
    for folder in ("model/pictures", "adapter", "checkpoints/100"):
        (made / "out" / folder).mkdir(parents=True)
    (made / "out" / "log.jsonl").touch()
    base = {"output": "out", "model": {"path": "bundled"}, "train": {"steps": 1}}
    config = parse_config(base | {"data": {"scenes": "train"}} | table)
    with pytest.raises(InputError, match=f"would write over {word}"):
        sft.train(config)
