"""Servers that fail and servers that lack something: what is asked again, what is said, who is
refused, and what takes the place of what is not there."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import PIL.Image
import pytest
from openai_server import Switches, serving

from cot_engine import Engine, Problem
from cot_engine.backends.replicas import Replicas
from cot_engine.backends.server import asking as asking_module
from cot_engine.backends.server.http import Line
from cot_engine.backends.server.opener import Server
from cot_engine.core.boundaries import Until
from cot_engine.core.headway import Headway
from cot_engine.core.requests import Generate, Prompt, Sampling, Segment
from cot_engine.errors import (
    BackendGone,
    BudgetError,
    ConfigError,
    InputError,
    ModelError,
    UnknownNameError,
)
from cot_engine.images.load import load_image
from cot_engine.testing import ScriptedBackend, check_backend

SCRIPT = Path(__file__).parents[1] / "openai_server.py"
PROBLEMS = [Problem(f"p{i}", f"How many legs have {i} cats?") for i in range(200)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(asking_module, "FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def running():
    with serving(ScriptedBackend()) as server:
        yield server, Server().open(server.url)


@pytest.fixture
def served(running):
    """A server that has everything, and nothing is wrong with yet."""
    server, _ = running
    server.app.switches = Switches()
    yield server


@pytest.fixture
def backend(served, running):
    asking = running[1].asking
    asking.retries, asking.timeout = 2, 600.0
    return running[1]


def ask(text="How many legs have two cats?", **more):
    given = {"until": Until(), "seeds": (1, 2), "max_new_tokens": 24, "prefix": ()} | more
    sampling = given.pop("sampling", Sampling(1.2, 1.0, 0))
    return Generate("a", Prompt(text), sampling=sampling, **given)


def answered(backend, request):
    method = backend.generate if isinstance(request, Generate) else backend.choose
    return asyncio.run(method(request))


def texts(given):
    return [each.text for each in given.generations]


# --- what passes by itself -----------------------------------------------------------------------


def test_a_key_is_blotted_out_however_it_is_repeated():
    key = 'sk-"quoted"/and+more\\'
    line = Line("http://127.0.0.1:1/v1", key, 1)
    secret = base64.b64encode(key.encode()).decode()
    for text in (key, json.dumps(key), quote(key), quote(key, safe=""), secret):
        told = line.blot(f"Bearer {text}!")
        assert "***" in told and not any(part in told for part in ("sk-", secret[:-4]))


@pytest.mark.parametrize(
    "fault", ["reset", "429:0.02", "503:0.02", "500", "garbage", "half", "408", "529"]
)
def test_what_passes_is_asked_again(served, backend, fault):
    before, wanted = len(served.log), texts(answered(backend, ask()))
    served.switches.faults = [fault, fault]
    assert texts(answered(backend, ask())) == wanted
    assert len(served.log) == before + 2 + 2 + 2


def test_a_server_that_says_how_long_to_wait_is_waited_for(served, backend):
    served.switches.faults = ["503:0.4"]
    began = time.monotonic()
    answered(backend, ask(seeds=(1,)))
    assert 0.4 <= time.monotonic() - began < 30
    served.switches.faults = ["429:0.01"] * 9  # its queue is full: that is no failure of its own
    answered(backend, ask(seeds=(1,)))
    served.switches.faults = ["429:9000"]
    with pytest.raises(ModelError, match=r"asks to wait 9,000 s \(HTTP 429.*600 s in all"):
        answered(backend, ask(seeds=(1,)))


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("reset", BackendGone, "does not answer, tried 3 times: the connection broke"),
        ("500", BackendGone, "does not answer, tried 3 times: HTTP 500"),
        ("garbage", ModelError, "gave no reply that can be read, tried 3 times: the reply is not"),
        ("404", ModelError, r"does not answer \(HTTP 404"),
        ("401", ModelError, r"will not have us \(HTTP 401.*[\s\S]*COT_ENGINE_API_KEY"),
        ("400", InputError, r"refuses this request \(HTTP 400"),
    ],
)
def test_what_lasts_is_told(served, backend, fault, kind, said):
    served.switches.fault = fault
    with pytest.raises(kind, match=said) as raised:
        answered(backend, ask(seeds=(1,)))
    assert type(raised.value) is kind
    served.switches.fault = ""
    assert texts(answered(backend, ask()))  # one that is back is asked again


@pytest.mark.parametrize("fault", ["slow", "hang"])
def test_a_reply_that_never_ends_has_a_deadline(served, backend, fault):
    backend.asking.timeout, served.switches.fault = 0.4, fault
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"no whole reply in 0\.4 s\.") as raised:
        answered(backend, ask(seeds=(1,)))
    assert time.monotonic() - began < 30 and type(raised.value) is ModelError


def test_a_server_that_is_not_there_is_told_at_once():
    with serving(ScriptedBackend()) as gone:
        backend, url = Server(retries=1).open(gone.url), gone.url
    with pytest.raises(BackendGone, match="does not answer"):
        answered(backend, ask())
    with pytest.raises(ModelError, match=r"does not answer.*[\s\S]*Is the server running\?"):
        Server(retries=0).open(url)


def test_the_key_is_sent_and_never_told(served, monkeypatch):
    key = "sk-do-not-tell-9f8e7d"
    monkeypatch.setenv("MY_KEY", key)
    served.switches.key, how = key, Server(key_env="MY_KEY", retries=0)
    with how.open(served.url) as backend:
        assert served.log[-1]["authorization"] == f"Bearer {key}"
        told = [repr(backend), repr(vars(backend)), repr(backend.info), repr(how)]
        for fault in ("500", "400", "401", "404"):
            served.switches.fault = fault
            with pytest.raises((ModelError, InputError)) as raised:
                answered(backend, ask(seeds=(1,)))
            told += [str(raised.value), repr(raised.value), repr(vars(raised.value))]
    served.switches.fault = ""
    assert any("***" in text for text in told) and not any(key in text for text in told)
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ModelError, match="COT_ENGINE_API_KEY"):
        how.open(served.url)
    monkeypatch.setenv("MY_KEY", "sch\u00f6n")
    with pytest.raises(ConfigError, match="not plain ASCII"):
        how.open("http://127.0.0.1:1/v1")


def test_who_gives_up_is_heard_by_the_server(served, backend):
    served.switches.delay, gone = 30, served.state["gone"]

    async def leave():
        flying = asyncio.ensure_future(backend.generate(ask()))
        while served.state["open"] < 2:
            await asyncio.sleep(0.01)
        flying.cancel()
        await asyncio.wait([flying])
        while served.state["gone"] < gone + 2:
            await asyncio.sleep(0.01)
        return flying.cancelled()

    assert asyncio.run(asyncio.wait_for(leave(), 30))
    assert served.state["open"] == 0


def test_no_more_are_open_than_may_be(served, backend):
    served.app.state["most"], served.switches.delay = 0, 0.02
    backend.asking.most, before = 3, backend.asking.most
    answered(backend, ask(seeds=tuple(range(12))))
    backend.asking.most = before
    assert served.state["most"] == 3


def test_what_was_written_by_the_deadline_is_kept(served, backend):
    whole = answered(backend, ask(seeds=(1,))).generations[0]
    served.switches.stall = 2
    watched = Headway()
    request = ask(seeds=(1,), deadline=time.monotonic() + 1.5, headway=watched)
    given = answered(backend, request)
    one = given.generations[0]
    assert one.finish == "budget" and whole.text.startswith(one.text) and one.text
    assert watched.tokens == len(one.ids) == 2
    assert watched.written is not None and watched.written() == [one.text]
    assert given.usage.decoded >= len(one.ids) and given.usage.prefilled > 0


def test_each_search_has_a_part_of_the_cache_that_is_its_own(served, backend):
    def salts(*scopes):
        before = len(served.log)
        for scope in scopes:
            answered(backend, replace(ask(seeds=(1,)), scope=scope))
        return [entry["cache_salt"] for entry in served.log[before:]]

    one, again, other = salts("x", "x", "y")
    assert one == again != other
    backend.release("x")
    assert salts("x") != [one]
    backend.release("x")
    backend.release("y")


# --- who is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ({"prefill": "ignored"}, r"cannot continue.*reads (\d+) tokens with .* and \1 without"),
        ({"prefill": "refused"}, r"cannot continue.*HTTP 422"),
        ({"usage": False}, "does not count the tokens that it reads"),
        ({"reasoning": True}, "reasoning parser"),
        ({"models": ()}, "lists no model"),
        ({"models": ("one", "two")}, r"lists 2 models[\s\S]*#served=one"),
        (
            {"strict": True, "owner": "someone", "version": "", "tokenize": False},
            r"cannot continue.*Unknown parameter",
        ),
    ],
)
def test_who_cannot_be_searched_on_is_refused_with_the_reason(served, lacking, said):
    served.app.switches = Switches(**lacking)
    with pytest.raises(ModelError, match=said):
        Server().open(served.url)


def test_the_model_of_several_is_named(served):
    served.app.switches = Switches(models=("qwen-7b", "qwen-72b"))
    with Server().open(f"{served.url}#served=qwen-72b&at_once=4") as backend:
        assert backend.dialect.model == "qwen-72b" and backend.asking.most == 4
    with pytest.raises(UnknownNameError, match="Did you mean qwen-7"):
        Server(served="qwen-70b").open(served.url)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://user:secret@a/v1", "user name or password"),
        ("http://a/v1?key=1", "Give one like"),
        ("http://a/v1#atonce=4", "Did you mean at_once"),
        ("http://a/v1#at_once=many", "Give a number"),
        ("http://a/v1#qwen", "#served=qwen"),
        ("http://a/v1#key_env=AWS_SECRET", "may be anybody's word"),
        ("http://a/v1,http://a/v1/", "named twice"),
    ],
)
def test_addresses_that_will_not_do(address, said):
    with pytest.raises(InputError, match=said) as raised:
        Server().open(address)
    assert "secret" not in str(raised.value)


def test_what_only_a_model_in_this_process_has_is_refused():
    with pytest.raises(ConfigError, match="device, dtype is for a model in this process"):
        Engine.from_pretrained("http://127.0.0.1:1/v1", device="cpu", dtype="float32")


# --- what takes the place of what is not there ---------------------------------------------------

POOR = {
    "no tokens": ({"ids": False}, {"ids": False, "verdict": "choice"}),
    "no /tokenize": ({"tokenize": False}, {"tokenize": False, "verdict": "choice"}),
    "bias": ({"verdicts": ("bias", "top")}, {"verdict": "bias"}),
    "top": ({"verdicts": ("top",), "tokenize": False}, {"verdict": "top"}),
    "no logprobs": ({"logprobs": False}, {"logprobs": False, "verdict": "text"}),
    "stop trimmed": ({"stop": "trimmed"}, {"stop": "watched"}),
    "all at once": ({"stop": "trimmed", "streams": False}, {"stop": "watched", "streams": False}),
    "no n": ({"n": False, "cached": False}, {"several": "no", "block": 0}),
}


@pytest.mark.parametrize("name", POOR)
def test_the_contract_is_kept_on_poorer_servers(served, name):
    lacking, found = POOR[name]
    served.app.switches = Switches(context=500, **lacking)
    backend = Server().open(served.url)
    dialect = backend.dialect.plain()
    assert {key: dialect[key] for key in found} == found
    check_backend(backend, PROBLEMS[2])


def test_a_reply_stopped_is_the_same_however_a_server_stops(served):
    until, found = Until(("</SUMMARY>", "</CONCLUSION>")), {}
    for stop in ("kept", "named", "trimmed"):
        served.app.switches = Switches(stop=stop)
        with Server().open(served.url) as backend:
            given = answered(backend, ask(until=until))
            assert backend.dialect.stop == ("watched" if stop == "trimmed" else stop)
            found[stop] = [(g.text[: until.end(g.text)], g.finish) for g in given.generations]
    assert found["kept"] == found["named"] == found["trimmed"]
    assert found["kept"][0][1] == "stop"


def test_a_sentence_ends_where_it_ends_and_the_server_is_left():
    wordy = ScriptedBackend(script=lambda request, seed: "One two three. " + "Four five six. " * 50)
    with serving(wordy) as served, Server().open(served.url) as backend:
        served.switches.pace = 0.01
        given = answered(backend, ask(until=Until(sentence=True), max_new_tokens=90))
    for one in given.generations:
        assert (one.text, len(one.ids), one.finish) == ("One two three.", 3, "stop")
    assert given.usage.decoded < 20


def test_a_search_without_log_probabilities_or_seeds_still_answers(served):
    served.app.switches = Switches(logprobs=False, seeds=False)
    with Engine(Server().open(served.url), in_flight=4) as engine:
        (answer,) = engine.solve_many(PROBLEMS[:1], n=3)
        notes = " ".join(engine.backend.info.notes)
    assert answer.text and "no log-probabilities" in notes and "Seeds do not decide" in notes


def test_what_looks_like_a_special_token_stays_text(served):
    text = "Is <image> or </s> or <|im_end|> in <SUMMARY> [INST] a < b > c?"
    served.app.switches = Switches(tokenize=False)
    with Server().open(served.url) as backend:
        answered(backend, ask(text, prefix=(Segment("<SUMMARY>So </s>"),)))
    user, assistant = (message["content"] for message in served.log[-1]["messages"])
    assert user == "Is < image> or < /s> or < |im_end|> in <SUMMARY> [ INST] a < b > c?"
    assert assistant == "<SUMMARY>So < /s>"


def test_a_large_picture_is_sent_smaller(served):
    large = load_image(PIL.Image.new("RGB", (400, 300), "red"))
    request = replace(ask(), prompt=Prompt("What colour is it?", (large,)))
    with Server(max_pixels=10_000).open(served.url) as backend:
        answered(backend, request)
        assert backend.info.max_pixels == 10_000
    part, text = served.log[-1]["messages"][0]["content"]
    data = part["image_url"]["url"].removeprefix("data:image/png;base64,")
    sent = PIL.Image.open(io.BytesIO(base64.b64decode(data)))
    assert sent.size == (115, 86) and sent.getpixel((50, 50)) == (255, 0, 0)
    assert text == {"type": "text", "text": "What colour is it?"}


def test_what_does_not_fit_is_cut_to_what_does(served):
    served.app.switches = Switches(context=400)
    with Server().open(served.url) as backend:
        assert texts(answered(backend, ask(max_new_tokens=5000)))
        with pytest.raises(InputError, match="refuses this request"):
            answered(backend, ask("and " * 500))


def test_a_budget_in_flops_needs_the_models_sizes(served):
    with Engine(Server().open(served.url)) as engine:
        with pytest.raises(BudgetError, match=r"of unknown size.*[\s\S]*#sizes=FOLDER"):
            engine.solve(None, "How many?", budget="1e12 flops")
        assert engine.solve(None, "How many?", budget="400 tokens").text


# --- replicas ------------------------------------------------------------------------------------


@contextmanager
def process(**switches):
    command = [sys.executable, str(SCRIPT), json.dumps(switches)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started, f"http://127.0.0.1:{int(started.stdout.readline())}/v1"
        finally:
            started.kill()


def test_a_replica_that_stands_still_is_gone_and_others_take_over(served, monkeypatch):
    monkeypatch.setattr(asking_module, "_ALIVE", 0.3)
    with process() as (other, url):
        replicas = Server().open(f"{url},{served.url}")
        wanted = texts(answered(replicas, ask()))
        replicas.release("a")
        other.send_signal(signal.SIGSTOP)
        replicas.backends[0].asking.timeout = 0.3
        assert texts(answered(replicas, ask())) == wanted
        assert "says nothing to anything else" in " ".join(replicas.info.notes)
        replicas.close()


def test_a_replica_killed_among_200_problems_loses_and_doubles_nothing(served):
    said, before = [], len(served.log)
    with process(delay=0.01) as (other, url):
        served.switches.delay = 0.01
        backend = Server(retries=1).open(f"{served.url},{url}", on_notice=said.append)
        assert isinstance(backend, Replicas)
        with Engine(backend, in_flight=16) as engine:
            found = []
            for answer in engine.solve_many(PROBLEMS, strategy="best-of-n", n=1):
                found.append(answer)
                if len(found) == 60:
                    other.send_signal(signal.SIGKILL)
    with Engine(ScriptedBackend(), in_flight=16) as engine:
        alone = list(engine.solve_many(PROBLEMS, strategy="best-of-n", n=1))
    assert [(a.problem, a.text) for a in found] == [(a.problem, a.text) for a in alone]
    gone = [note for note in said if "is gone" in note]
    assert len(gone) == 1 and url.removeprefix("http://").removesuffix("/v1") in gone[0]
    # Each problem's requests went to one of the two: those that this one saw are whole searches.
    salts = {entry.get("cache_salt") for entry in served.log[before:]} - {None}
    assert 60 < len(salts) < 200
