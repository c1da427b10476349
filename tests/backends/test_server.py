"""A model behind a server: the contract, what is asked of it, and the same search as in process."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from openai_server import serving
from real_engine import HOT

from cot_engine import Engine, Problem, scenes
from cot_engine.backends.local.opener import Local
from cot_engine.backends.opening import backend_of
from cot_engine.backends.server.opener import Server
from cot_engine.cli import main
from cot_engine.cli.serve import _called
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import GREEDY, Choose, Generate, Prompt, Sampling
from cot_engine.engine.facade import profile_path
from cot_engine.images.load import load_image
from cot_engine.judging.profile import Profile
from cot_engine.testing import check_backend

PLAIN = Problem("p", "How many legs have two cats?")


@pytest.fixture(scope="module")
def bundled():
    with Local(device="cpu").open("bundled") as backend:
        yield backend


@pytest.fixture(scope="module")
def served(bundled):
    with serving(bundled) as server:
        yield server


@pytest.fixture(scope="module")
def there(served):
    """The same model behind that server, its sizes known."""
    with Server(sizes="bundled").open(served.url) as backend:
        yield backend


@pytest.fixture(scope="module")
def problems():
    made = [scenes.sample(5, i, "val") for i in range(3)]
    return [Problem(p.id, p.question, (load_image(p.image),)) for p in made]


def asking(images=(), text="How many circles are there?", **more):
    given = {"until": Until(), "seeds": (1, 2), "max_new_tokens": 24, "prefix": ()} | more
    sampling = given.pop("sampling", Sampling(1.2, 1.0, 0))
    return Generate("a", Prompt(text, images), sampling=sampling, **given)


def answered(backend, request):
    method = backend.generate if isinstance(request, Generate) else backend.choose
    return asyncio.run(method(request))


def test_the_contract_is_kept(served, problems):
    check_backend(Server().open(served.url), problems[0])


@pytest.mark.parametrize("strategy", ["stage-beam", "best-of-n"])
def test_a_search_over_http_is_the_search_in_process(bundled, there, problems, strategy):
    profile, how = Profile.of(profile_path("bundled")), {"strategy": strategy, "n": 3, **HOT}
    assert profile.judge == "self+likelihood"
    over_http = Engine(there, profile=profile).solve_many(problems, **how)
    in_process = Engine(bundled, profile=profile).solve_many(problems, **how)
    for mine, own in zip(over_http, in_process, strict=True):
        assert mine.chain.text == own.chain.text
        for one, other in zip(mine.chain.steps, own.chain.steps, strict=True):
            assert one.tokens == other.tokens
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        for role, used in mine.usage.items():
            assert used.decoded == own.usage[role].decoded and used.calls == own.usage[role].calls
            assert used.prefilled == own.usage[role].prefilled
            # A text that is read whole is one rectangle of attention, read in two parts it is less.
            assert 1 <= used.flops / own.usage[role].flops < 1.02


def test_greedy_costs_the_same_to_the_token(bundled, there, problems):
    request = replace(asking(problems[0].images), sampling=GREEDY, seeds=(0,), scope="fresh")
    mine, own = answered(there, request), answered(bundled, request)
    assert mine.generations[0].ids == own.generations[0].ids
    assert replace(mine.usage, seconds=0) == replace(own.usage, seconds=0)


def test_a_verdict_is_that_of_the_choices_own_tokens(bundled, there, problems):
    question = Choose("v", Prompt("Which?", problems[0].images), ("\n1: a", "\n2: b"), ("1", "2"))
    mine, own = answered(there, question), answered(bundled, question)
    assert mine.usage.decoded == 0
    fresh = there.estimate(replace(question, scope="never asked"))
    assert fresh.prefilled >= mine.usage.prefilled and fresh.flops >= mine.usage.flops
    for rows in zip(mine.logprobs, own.logprobs, strict=True):
        assert rows[0] == pytest.approx(rows[1], abs=1e-4)


def test_who_claims_addresses():
    assert backend_of("http://127.0.0.1:8000/v1") == "server"
    assert backend_of("bundled") == "local"


def test_what_a_server_can_do_is_listed(served, capsys):
    assert main(["list", "models", "--probe", served.url]) == 0
    told = capsys.readouterr().out
    assert "vLLM 0.32.0" in told and "log-probabilities of the choices' tokens" in told
    assert main(["list", "models", "--probe", f"{served.url}#served=served", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert (found["name"], found["model"], found["stop"]) == (served.url, "served", "kept")
    assert found["cached"] and found["verdict"] == "token ids" and found["context"] == 4096
    assert main(["list", "models", served.url]) == 2
    assert f"list models --probe {served.url}" in capsys.readouterr().err
    assert main(["list", "judges", "--probe", served.url]) == 2
    assert "--probe belongs to the models" in capsys.readouterr().err


def test_the_command_line_searches_on_a_server(served, problems, tmp_path, capsys):
    picture, trace = tmp_path / "scene.png", tmp_path / "trace.jsonl"
    problems[0].images[0].pixels.save(picture)
    model = f"{served.url}#sizes=bundled"
    ask = ["solve", str(picture), problems[0].question, "-m", model, "-s", "greedy"]
    assert main([*ask, "--dry-run"]) == 0
    assert "is opened by server" in capsys.readouterr().out
    assert main([*ask, "--trace", str(trace), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    started = json.loads(trace.read_text("utf-8").splitlines()[0])
    assert answer["answer"] and started["backend"]["name"] == "server"
    assert started["judge"] == "self+likelihood"  # as the folder's profile has it
    assert main([*ask, "--device", "cpu"]) == 2
    assert "device is for a model in this process" in capsys.readouterr().err


def test_in_front_of_a_server_its_own_name_for_the_model_is_told(there, served):
    called = _called(f"{served.url}#sizes=bundled", there.info.digest)
    assert called == "served" and _called("bundled", "26f94c17") == "bundled"
