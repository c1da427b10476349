"""Verifiers on a real vLLM that pools: its states are those of the same model in this process, and
a search that it scores is the one that the model here would have scored."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from near import largest
from safetensors.torch import save_file

from cot_engine import Engine
from cot_engine.backends.local.opener import Local
from cot_engine.backends.server.opener import Server
from cot_engine.cli import main
from cot_engine.core.events import Notice, Scored
from cot_engine.core.requests import Dialogue, Measure, Piece, Turn
from cot_engine.engine.facade import model_path
from cot_engine.errors import InputError, ModelError
from cot_engine.questions.data import load_data

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

CPU = {"device": "cpu", "dtype": "float32"}
STATE = 1e-4
"""How far a number of a final state may be off, both in float32; the largest are about 5."""
SCORE = 1e-4
SIZES = model_path("bundled")


def said(speaker, text, *images):
    return Turn(speaker, (Piece(text),), images)


def measured(backend, *dialogues):
    return asyncio.run(backend.measure(Measure("s", dialogues)))


@pytest.fixture(scope="module")
def items():
    return load_data("scenes", n=6).items


@pytest.fixture(scope="module")
def bundled():
    with Local(**CPU).open("bundled") as opened:
        yield opened


def asked(items):
    """With a picture and without, one turn, two and three, begun and not."""
    for item in items:
        question, images = item.problem().question, item.problem().images
        for shown in (images, ()):
            user = said("user", question, *shown)
            answer = said("assistant", "There are 2 red circles and a blue one, so it is two.")
            yield Dialogue((user,), True)
            yield Dialogue((user, answer))
            yield Dialogue((user, answer, said("user", "Is that right?")), True)


def test_a_pooled_state_is_the_one_of_the_local_model(pooling, bundled, items):
    dialogues = list(asked(items))
    here = measured(bundled, *dialogues)
    with Server(task="pooling").open(f"{pooling.url}/v1") as backend:
        there = measured(backend, *dialogues)
    with Server(task="pooling").open(f"{pooling.url}/v1#activation=true") as backend:
        short = measured(backend, dialogues[0]).numbers[0][0]
    states = [np.array([rows[0] for rows in each.numbers]) for each in (here, there)]
    apart = abs(states[0] - states[1]).max(axis=1)
    print(f"{len(dialogues)} states of {states[0].shape[1]}: {apart.max():.1e} apart at most")
    assert largest(apart.tolist()) < STATE
    # The same tokens were read, and of each dialogue all of them are counted.
    tokens = [len(bundled._dialogue(dialogue)[0].ids) for dialogue in dialogues]
    assert there.usage.prefilled == sum(tokens)
    assert there.usage.encodes == len(dialogues) // 2
    # Any other dialogue's state is seen to be another, and so is one divided by its length.
    others = abs(states[1][:, None] - states[0][None]).max(axis=2)
    np.fill_diagonal(others, np.inf)
    assert others.min() > 100 * STATE
    assert largest([math.hypot(*short) - 1]) < 1e-5 < abs(np.array(short) - states[0][0]).max()


def test_the_place_of_a_state_is_the_last_token(pooling, bundled, items):
    """A text that ends one token earlier has another state: LAST is the last."""
    question = items[0].problem().question
    whole, cut = (Dialogue((said("user", question), said("assistant", t))) for t in ("A 2", "A"))
    with Server(task="pooling").open(f"{pooling.url}/v1") as backend:
        there = measured(backend, whole).numbers[0][0]
    assert largest(np.subtract(there, measured(bundled, whole).numbers[0][0]).tolist()) < STATE
    assert largest(np.subtract(there, measured(bundled, cut).numbers[0][0]).tolist()) > 0.1


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    save_file({"score.weight": torch.randn(1, 256) / 16, "score.bias": torch.randn(1)}, path)
    return path


def toml(folder, name, model, head, **more):
    path = folder / f"{name}.toml"
    table = {"kind": "head", "model": model, "head": str(head), "sigmoid": True, **more}
    path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items()), "utf-8")
    return path


def scores(answer):
    return [n for e in answer.trace if isinstance(e, Scored) for n in e.scores.values()]


@pytest.mark.parametrize("strategy", ["stage-beam", "weighted-vote"])
def test_a_search_scored_by_a_pooling_server_is_the_one_scored_here(
    pooling, items, head, tmp_path, strategy
):
    """The same model searches, here; its own states are read by a head, there and here."""
    there = toml(tmp_path, "there", f"{pooling.url}/v1#task=pooling&sizes={SIZES}", head)
    here = toml(tmp_path, "here", "bundled", head)
    with here.open("a") as file:
        file.write('[options]\ndevice = "cpu"\ndtype = "float32"\n')
    torch.manual_seed(6)
    save_file({"w": torch.randn(1, 256) / 16}, tmp_path / "another.safetensors")
    another = toml(tmp_path, "another", "bundled", tmp_path / "another.safetensors")
    answers = {}
    with Engine.from_pretrained(**CPU) as engine:
        for verifier in (there, here, another):
            answers[verifier] = [
                engine.solve(*item.problem().images, item.problem().question,
                             strategy=strategy, n=4, parameters={"verifier": str(verifier)})
                for item in items[:3]
            ]  # fmt: skip
    for one, other in zip(answers[there], answers[here], strict=True):
        assert one.text == other.text and one.chain.text == other.chain.text
        assert len(scores(one)) >= 4
        assert largest(np.subtract(scores(one), scores(other)).tolist()) < SCORE
        used, own = one.usage["verify"], other.usage["verify"]
        assert (
            used.calls >= 4 and used.decoded == 0 and used.encodes >= 4 and "judge" not in one.usage
        )
        # All of each dialogue is counted, picture and all: no such server tells what it had cached.
        assert used.prefilled > own.prefilled + own.cached and used.flops > own.flops > 0
        assert one.usage["generate"] == replace(
            other.usage["generate"], seconds=one.usage["generate"].seconds
        )
        assert not [e for e in one.trace if isinstance(e, Notice) and "likelihood" in e.text]
    changed = zip(answers[there], answers[another], strict=True)
    assert any(one.chain.text != other.chain.text for one, other in changed)


def test_the_command_line_asks_two_servers(url, pooling, items, head, tmp_path, capsys):
    """One writes, the other scores; what scoring cost is in a role of its own."""
    verifier = toml(tmp_path, "there", f"{pooling.url}/v1#task=pooling", head)
    problem = items[0].problem()
    shown = tmp_path / "scene.png"
    problem.images[0].pixels.save(shown)
    command = ["solve", str(shown), problem.question, "-m", url, "-s", "stage-beam", "-n", "2"]
    assert main([*command, "-p", f"verifier={verifier}", "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    print(told["usage"])
    assert told["answer"] and "judge" not in told["usage"]
    assert told["usage"]["verify"]["calls"] >= 2 and told["usage"]["verify"]["prefilled"] > 0
    assert told["usage"]["verify"]["decoded"] == 0 < told["usage"]["generate"]["decoded"]


def test_what_it_was_not_started_for_and_what_is_too_long_are_errors(pooling):
    answer = Dialogue((said("user", "which?"), said("assistant", "red")))
    for task, asked, error, match in (
        ("classify", answer, ModelError, "404"),
        ("pooling", Dialogue((said("user", "red " * 2000),)), InputError, "maximum context length"),
    ):
        with (
            Server(task=task).open(f"{pooling.url}/v1") as backend,
            pytest.raises(error, match=match),
        ):
            measured(backend, asked)
