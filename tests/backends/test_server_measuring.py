"""Verifiers behind servers: what a chat server or one that pools says is what the same model says
in this process; what they cannot say is refused."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest
import torch
from near import largest
from openai_server import serving
from safetensors.torch import save_file
from test_measure import LOOK, apart, said, steps
from test_recipes import Both, of_stages
from tiny_models import build

from cot_engine import Engine, HeadVerifier, TokenVerifier, Verifier
from cot_engine.backends.local import loading
from cot_engine.backends.local.backend import LocalBackend
from cot_engine.backends.server.opener import Server
from cot_engine.core.events import Notice, Scored
from cot_engine.core.requests import Choose, Dialogue, Measure, Piece, Prompt, Turn
from cot_engine.errors import ConfigError, InputError, ModelError, StrategyError
from cot_engine.testing import ScriptedBackend


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with LocalBackend(
        loading.load(build("llava", tmp_path_factory.mktemp("m")), device="cpu")
    ) as made:
        yield made


@pytest.fixture(scope="module")
def served(model):
    with serving(model, context=2048) as server:
        yield server


@pytest.fixture(scope="module")
def remote(served):
    with Server().open(served.url) as backend:
        yield backend


def measured(backend, *dialogues, choices=("+", "-"), scope="m"):
    return asyncio.run(backend.measure(Measure(scope, dialogues, choices)))


def answered(reply="red"):
    turns = (Turn("user", (said("which?"),), (LOOK,)), Turn("assistant", (said(reply),)))
    return Dialogue(turns)


def test_a_chat_server_is_asked_at_each_place(model, remote, served):
    """VisualPRM's words, which a server runs whose code is the model's own."""
    visualprm = Verifier.recipe("visualprm", model=remote)
    assert visualprm.turns[1].first and visualprm.choices == ("+", "-")
    served.log.clear()
    dialogue = steps("red circle", "one two three", "so two")
    request = Measure("a", (dialogue, steps("one")), ("+", "-"))
    bound = remote.estimate(request)
    found = asyncio.run(remote.measure(request))
    want = measured(model, dialogue, steps("one"))
    for one, other in zip(found.numbers, want.numbers, strict=True):
        assert apart(one, other) < 1e-4
    assert largest([found.numbers[0][0][0] - want.numbers[0][1][0]]) > 1e-3
    assert sorted(len(body["messages"]) for body in served.log) == [1, 1, 3, 5]
    assert found.usage.prefilled <= bound.prefilled and found.usage.encodes == bound.encodes == 1
    # A place in the middle of a turn: that turn is gone on with.
    begun = (Piece("so it is ", False, True), Piece("+"))
    dialogue = Dialogue((Turn("user", (said("which?"),)), Turn("assistant", begun)))
    assert apart(measured(remote, dialogue).numbers[0], measured(model, dialogue).numbers[0]) < 1e-4
    assert served.log[-1]["continue_final_message"]


def test_what_a_chat_server_cannot_tell_is_refused(remote):
    with pytest.raises(InputError, match="no states"):
        measured(remote, answered(), choices=())
    with pytest.raises(InputError, match="behind the assistant's last word"):
        measured(remote, answered())
    inside = Dialogue((Turn("user", (said("which", True), said(" one"))),), True)
    with pytest.raises(InputError, match="turn of the user"):
        measured(remote, inside)


def test_a_server_without_log_probabilities_is_asked_in_writing(model):
    with (
        serving(model, logprobs=False, verdicts=(), context=2048) as poor,
        Server().open(poor.url) as backend,
        pytest.raises(InputError, match="kind text"),
    ):
        measured(backend, steps("a"))


@pytest.mark.parametrize("task", ["pooling", "classify", "score", "rerank"])
def test_a_server_that_pools_gives_its_numbers(model, served, task):
    """IXC's way: its own numbers, unbounded, made log-odds by centre and spread."""
    own = Verifier.recipe("ixc", model=f"{served.url}#task={task}")
    with Server(task=task).open(f"{served.url}#activation=false") as backend:
        dialogue = answered()
        request = Measure("p", (dialogue,))
        found, bound = asyncio.run(backend.measure(request)), backend.estimate(request)
        ((state,),) = measured(model, dialogue, choices=()).numbers
        assert largest([found.numbers[0][0][0] - state[0]]) < 1e-4
        assert 0 < found.usage.prefilled <= bound.prefilled and found.usage.encodes == 1
        verifier = replace(own, model=backend)
        with Engine(ScriptedBackend(), judge=verifier) as engine:
            answer = engine.solve(LOOK, "which?", strategy="stage-beam", n=2)
        assert answer.usage["verify"].prefilled > 0 and "judge" not in answer.usage
        for refused in (
            backend.choose(Choose("p", Prompt("x"), ("",), ("a", "b"))),
            backend.measure(Measure("p", (dialogue,), ("+", "-"))),
        ):
            with pytest.raises(InputError):
                asyncio.run(refused)
    # What it is not asked to leave out is left to it, but where it pools: a state is a state.
    want = state[0] if task == "pooling" else 1 / (1 + math.exp(-state[0]))
    with Server(task=task).open(served.url) as backend:
        assert largest([measured(backend, dialogue, choices=()).numbers[0][0][0] - want]) < 1e-4


def test_a_head_is_not_laid_on_states_that_were_divided_by_their_length(model, tmp_path):
    save_file({"w": torch.ones(1, 64)}, tmp_path / "head.safetensors")
    own = tmp_path / "head.toml"
    with serving(model, context=2048) as server, Engine(ScriptedBackend()) as engine:
        own.write_text(
            f'kind = "head"\nmodel = "{server.url}#task=pooling"\nhead = "head.safetensors"'
        )
        assert engine.solve(LOOK, "which?", strategy=Both(str(own)), seed=1).usage["verify"].calls
        server.switches.activation = True  # an older one does not know the word for leaving it out
        with pytest.raises(StrategyError, match="one long"):
            engine.solve(LOOK, "which?", strategy=Both(str(own)), seed=2)


def test_what_stands_for_an_activation_is_checked():
    for behind in ("activation=yes&task=score", "activation=true"):
        with pytest.raises(ConfigError, match="activation is"):
            Server().open(f"http://127.0.0.1:1/v1#{behind}")


def test_a_verifier_behind_an_address_scores_a_search(model, served, tmp_path):
    path = tmp_path / "ixc.toml"
    path.write_text(
        'kind = "head"\n'
        f'model = "{served.url}#task=pooling"\ncentre = 0.5\nspread = 2.0\n'
        '[[turns]]\ntext = "{question}"\n[[turns]]\nspeaker = "assistant"\ntext = "{response}"',
        "utf-8",
    )
    with Engine(ScriptedBackend()) as engine:
        answer = engine.solve(LOOK, "which?", strategy=Both(str(path)), seed=1)
    (scored,) = [event for event in answer.trace if isinstance(event, Scored)]
    texts = {c.id: c.text for e in answer.trace for c in getattr(e, "chains", ())}
    for id, number in scored.scores.items():
        response = "\n\n".join(of_stages(texts[id]))
        ((state,),) = measured(model, answered(response), choices=()).numbers
        assert largest([number - (state[0] - 0.5) / 2]) < 1e-4


def test_a_pooling_server_that_does_not_do_as_it_should(model):
    marked = Dialogue((Turn("user", (said("a", True), said(" b", True))),))
    with serving(model, context=2048) as server, Server(task="pooling").open(server.url) as backend:
        server.switches.rows = 3
        assert measured(backend, answered(), choices=()).numbers  # the last of them
        with pytest.raises(ModelError, match="3 rows of numbers to 2 places"):
            measured(backend, marked, choices=())
        server.switches.numberless = True
        with pytest.raises(ModelError, match="no numbers"):
            measured(backend, answered(), choices=())
        for odd in (10**400, "0.5"):
            server.switches.numberless = odd
            with pytest.raises(ModelError, match="where a number is needed"):
                measured(backend, answered(), choices=())
        server.switches.numberless = False
        server.switches.tasks = ()
        with pytest.raises(ModelError, match="404"):
            measured(backend, answered(), choices=())
        server.switches.tasks = ("pooling",)
        server.switches.faults = ["503:0.01"]
        assert measured(backend, answered(), choices=()).numbers  # what passes by itself
    with pytest.raises(ConfigError, match="task is 'embed'"):
        Server(task="embed")


def test_a_budget_in_flops_does_not_pay_for_what_nobody_counts(served):
    with Engine(ScriptedBackend()) as engine, Server(task="pooling").open(served.url) as backend:
        how = {"strategy": "stage-beam", "n": 2, "budget": "1e9 flops"}
        answer = engine.solve(LOOK, "q?", judge=HeadVerifier(model=backend), **how)
    told = [event.text for event in answer.trace if isinstance(event, Notice)]
    assert any("unknown size" in text for text in told) and "verify" not in answer.usage


def test_choices_that_a_servers_tokenizer_does_not_tell_apart(remote):
    with pytest.raises(InputError, match="begin with the same token"):
        measured(remote, steps("a"), choices=("red", "red circle"))
    assert TokenVerifier(model=remote).binding is remote
