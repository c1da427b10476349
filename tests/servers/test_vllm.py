"""The engine on a real vLLM: what it says is what the same model says in this process, under search
too, on several of them, and when one is killed."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from cot_engine import Engine, statistics
from cot_engine.ablation.store import Store
from cot_engine.cli import main
from cot_engine.core.events import Finished, Selected
from cot_engine.questions.data import load_data

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

N = 200


@pytest.fixture(scope="module")
def items():
    return load_data("scenes", n=N).items


def problems(items):
    return [item.problem() for item in items]


def right(items, answers):
    """Scores [problems, 1 seed]."""
    grades = [item.grade(answer.text) for item, answer in zip(items, answers, strict=True)]
    return np.array(grades, dtype=float)[:, None]


@pytest.fixture(scope="module")
def greedy(local, items):
    return list(local.solve_many(problems(items), strategy="greedy"))


def test_what_it_can_do_is_found_out(url, capsys):
    assert main(["list", "models", "--probe", url, "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert (found["server"], found["version"]) == ("vLLM", "0.32.0")
    wanted = {"verdict": "token ids", "stop": "kept", "seeded": True, "several": "strided"}
    wanted |= {"streams": True, "logprobs": True, "ids": True, "block": 32, "tokenize": True}
    assert {name: found[name] for name in wanted} == wanted
    assert (found["model"], found["context"]) == ("served", 1024)
    assert found["pictures"] >= 1 and found["picture"] >= 16
    assert main(["list", "models", "--probe", url]) == 0
    told = capsys.readouterr().out
    assert "vLLM 0.32.0" in told and "it continues a begun reply" in told


def test_greedy_answers_are_those_of_the_local_model(remote, items, greedy):
    answers = list(remote.solve_many(problems(items), strategy="greedy"))
    assert len(answers) == N and all(answer.complete for answer in answers[:10])
    same = sum(a.text == b.text for a, b in zip(answers, greedy, strict=True))
    whole = sum(a.chain.text == b.chain.text for a, b in zip(answers, greedy, strict=True))
    print(f"{same} of {N} answers are the same, {whole} whole replies")
    assert same >= 0.95 * N and whole >= 0.9 * N


def test_searches_are_right_as_often_as_local_ones(remote, local, items):
    """At the settings of the published comparison, each judged by the model itself."""
    how = {"strategy": "stage-beam", "n": 4, "judge": "self"}
    there = list(remote.solve_many(problems(items), **how))
    here = list(local.solve_many(problems(items), **how))
    scores = right(items, there), right(items, here)
    compared = statistics.paired(*scores)
    print(f"right {scores[0].mean():.3f} there, {scores[1].mean():.3f} here: {compared}")
    assert compared.p > 0.05 and abs(compared.difference.estimate) < 0.08, compared
    # They were searches: candidates that differ were judged, and prefixes found in the cache.
    judged = [e for a in there for e in a.trace if isinstance(e, Selected) and e.matches]
    assert len(judged) > 20
    for role in ("generate", "judge"):
        used = [answer.usage[role] for answer in there if role in answer.usage]
        cached, read = (sum(getattr(u, kind) for u in used) for kind in ("cached", "prefilled"))
        assert cached > read > 0, role
    assert sum(a.total.decoded for a in there) == pytest.approx(
        sum(a.total.decoded for a in here), rel=0.1
    )


def test_special_tokens_in_a_question_are_data(remote, items):
    """As tokens of their own they would be one each, or the place of a picture that is not
    there."""

    def read(text):
        answer = remote.solve(items[0].problem().images[0], text, strategy="greedy")
        assert answer.chain.text
        return answer.usage["generate"].prefilled + answer.usage["generate"].cached

    plain = read("How many red circles are there?")
    for token in ("<image>", "</s>", "<s>"):
        assert read(f"How many {token} red circles are there?") > plain + 2, token


def grid(folder):
    path = folder / "grid.toml"
    path.write_text(
        """
        [data]
        source = "scenes"
        n = 6
        [run]
        temperature = 1.0
        top_p = 1.0
        top_k = 0
        [match]
        reference = "stage-beam n=2"
        unit = "tokens"
        [[cells]]
        strategy = "stage-beam"
        n = 2
        [[cells]]
        strategy = "best-of-n"
        matched = true
        """,
        "utf-8",
    )
    return str(path)


def rows_of(path):
    with Store(path) as store:
        run = store.run()
        return run, list(store.rows(run))


def test_an_ablation_runs_on_it(url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["ablate", grid(tmp_path), "--model", url, "--quiet"]
    assert main(command) == 0
    run, rows = rows_of(Path("grid.sqlite"))
    assert sorted(row.key for row in rows) == sorted(run.keys())
    assert {row.status for row in rows} == {"ok"}
    assert all(row.allotted is None or row.spent <= row.allotted for row in rows)
    assert main(command) == 0 and len(rows_of(Path("grid.sqlite"))[1]) == len(rows)
    assert main(["report", "grid.sqlite"]) == 0
    assert "best-of-n" in capsys.readouterr().out


def test_ray_workers_share_replicas(url, second, tmp_path, monkeypatch, capsys):
    pytest.importorskip("ray", reason="Ray is not installed")
    import ray

    monkeypatch.chdir(tmp_path)
    both = f"{url},{second.url}/v1"
    try:
        assert main(["ablate", grid(tmp_path), "--model", both, "--workers", "ray", "-q"]) == 0
    finally:
        ray.shutdown()
    run, rows = rows_of(Path("grid.sqlite"))
    assert sorted(row.key for row in rows) == sorted(run.keys())
    assert {row.status for row in rows} == {"ok"}


def test_a_replica_that_is_killed_is_taken_over_from(url, second, items, greedy):
    """Nothing is lost, nothing is done twice, and the answers stay what they were."""
    said, done = [], itertools.count(1)
    both = f"{url},{second.url}/v1"

    def heard(index, event):
        # Not when so many have come out: a slow first one holds back others that are done.
        if isinstance(event, Finished) and next(done) == 40:
            os.killpg(second.process.pid, signal.SIGKILL)

    with Engine.from_pretrained(both, in_flight=16, on_notice=said.append) as engine:
        came = list(engine.solve_many(problems(items), strategy="greedy", on_event=heard))
    assert [answer.problem for answer in came] == [answer.problem for answer in greedy]
    assert sum(a.text == b.text for a, b in zip(came, greedy, strict=True)) >= 0.95 * N
    lost = [note for note in said if "Replica 2" in note]
    assert len(lost) == 1 and "is gone" in lost[0]
    assert all(answer.usage["generate"].calls >= 1 for answer in came)
