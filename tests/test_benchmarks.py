"""The benchmark runs, on models so small that its numbers mean nothing; no time is asserted."""

import json
from pathlib import Path

import forked
import pytest

from cot_engine.testing import alike

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "speed.py"
SMALL = "--n 2 --costs 1 2 --problems 1 --rounds 1 --flight 2 --threads 1".split()


MODELS = ["tiny", pytest.param("mllama-tiny", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=MODELS)
def result(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "out.json"
    command = [SCRIPT, "--model", request.param, *SMALL, "--json", path]
    done = forked.run(*command, cwd=path.parent)
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert json.loads(done.stdout) == written
    return written


def test_both_sides_did_the_same_work(result):
    part = result["a"]["N=2"]
    theirs, ours = part["work_reference"], part["work_engine"]
    stages = len(result["model"]["lengths"])
    assert ours["candidates"] == theirs["candidates"] == 2 * stages
    assert ours["written"] == theirs["written"] == 2 * sum(result["model"]["lengths"].values())
    assert ours["matches"] == theirs["matches"] == stages
    assert ours["merged"] == ours["unjudged"] == 0
    assert (ours["encodes"], theirs["encodes"]) == (1, 3 * stages)
    assert (ours["verdict_tokens"], theirs["verdict_tokens"]) == (0, 30 * stages)


def test_ratios_are_computed(result):
    part = result["a"]["N=2"]
    assert part["single"]["ratio"] > 0 and part["single"]["of"] == 1
    assert part["in_flight"]["problems"] == 2 and part["in_flight"]["ratio"] > 0


def test_the_bare_loop_makes_the_calls_of_the_search(result):
    longest = sum(result["model"]["lengths"].values())
    for name, case in result["b"].items():
        calls = case["calls"]
        assert case["ratio"] > 0
        assert calls["encode"]["calls"] == (2 if "2 in flight" in name else 1)
        # A stage's first token comes from its prompt; each later one takes a step.
        assert calls["steps_of_one_token"] >= longest - len(result["model"]["lengths"])
        assert calls["head"]["calls"] >= calls["steps_of_one_token"]


def test_costs_grow_with_n(result):
    one, two = result["c"]["N=1"], result["c"]["N=2"]
    assert (one["calls"], one["times_of_first"]) == (4, 1)
    for unit in ("new_tokens", "tokens", "calls", "flops"):
        assert two[unit] > one[unit]


def test_judges_cost_what_they_are(result):
    shares = result["d"]["N=2"]
    assert shares["likelihood"]["tokens"] == shares["likelihood"]["flops"] == 0
    assert shares["self"]["new_tokens"] == 0 < shares["self"]["flops"] < 1
    assert shares["self"]["tokens"] < shares["rationale"]["tokens"] < 1
    assert shares["rationale"]["new_tokens"] > 0.5


def test_searches_alone_and_among_others_are_compared(tmp_path):
    script = SCRIPT.with_name("alone.py")
    few = "--problems 3 --temperature 1 --strategy best-of-n -n 2".split()
    done = forked.run(script, *few, cwd=tmp_path)
    assert done.stdout.startswith("best-of-n n=2 T=1: 0 of 3 differ; the others' numbers"), (
        done.stderr
    )


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ({"x": [1.0, "a"]}, {"x": [1.0005, "a"]}, True),
        ({"x": [1.0, "a"]}, {"x": [1.1, "a"]}, False),
        ({"x": [1.0, "a"]}, {"x": [1.0, "b"]}, False),
        ({"x": [1.0]}, {"x": [1.0, 1.0]}, False),
        ({"x": 1}, {"y": 1}, False),
        (["mass 0.97"], ["mass 0.98"], True),
        (["mass 0.97"], ["mass 0.77"], False),
    ],
)
def test_what_counts_as_another_trace(a, b, wanted):
    assert alike(a, b) is wanted


def test_drawing_is_measured(capsys, monkeypatch):
    import torch

    monkeypatch.syspath_prepend(SCRIPT.parent)
    import drawing

    threads = str(torch.get_num_threads())
    drawing.main(["--words", "3000", "--rows", "2", "3", "--rounds", "1", "--threads", threads])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("3000 words") and len(lines) == 2 * len(drawing.KINDS)
    assert [line.endswith(" 1.00 x") for line in lines[:: len(drawing.KINDS)]] == [True, True]
