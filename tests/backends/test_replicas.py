"""Several backends as one: answers do not depend on which, searches stay, and none is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest
from tiny_models import picture

from cot_engine import Engine, Problem
from cot_engine.backends.local.devices import device_list
from cot_engine.backends.local.opener import Local
from cot_engine.backends.replicas import Replicas
from cot_engine.core.boundaries import Until
from cot_engine.core.headway import Headway
from cot_engine.core.requests import Choose, Generate, Prompt
from cot_engine.errors import BackendGone, ConfigError, InputError, ModelError
from cot_engine.testing import ScriptedBackend, alike, check_backend, check_exact

PROBLEM = Problem("p", "How many legs have two cats?")
PROBLEMS = [Problem(f"p{i}", f"How many legs have {i} cats?") for i in range(200)]


def ask(scope="a", tokens=8, images=()):
    prompt = Prompt("How many circles are there?", images)
    return Generate(scope, prompt, (), Until(), (1, 2), tokens, headway=Headway())


class Mortal(ScriptedBackend):
    """Ends for good with its `last` request in flight."""

    last = 10**9
    ended = False

    async def generate(self, request):
        if self.ended:
            raise BackendGone("It has ended.")
        if len(self.requests) >= self.last:
            await asyncio.sleep(0)
            self.ended = True
            raise BackendGone("It has ended.")
        return await super().generate(request)


def scripted(*lasts):
    backends = []
    for last in lasts:
        backends.append(Mortal())
        backends[-1].last = last
    return backends


def solved(backend, problems, **options):
    with Engine(backend, in_flight=16) as engine:
        return list(engine.solve_many(problems, **options))


def searches(backend):
    """The scopes of what was asked, but for the question whether stages are opened."""
    return {request.scope for request in backend.requests} - {"probe#0"}


def test_a_search_stays_on_one_of_them_and_answers_as_on_any():
    both = scripted(10**9, 10**9)
    found = solved(Replicas(both), PROBLEMS[:32])
    alone = solved(ScriptedBackend(), PROBLEMS[:32])
    for a, b in zip(found, alone, strict=True):
        assert alike(a.trace.canonical()[1:], b.trace.canonical()[1:])  # but for the device
    one, two = map(searches, both)
    assert not one & two and len(one | two) == 32
    assert abs(len(one) - len(two)) <= 2
    assert Replicas(both)._homes == {}


def test_the_contract_is_kept():
    check_backend(Replicas([ScriptedBackend(), ScriptedBackend()]), PROBLEM)


def test_the_search_goes_where_fewest_are_and_an_estimate_binds_to_nothing():
    both = [ScriptedBackend(), ScriptedBackend()]
    with Replicas(both) as replicas:
        fresh = replicas.estimate(ask("z"))
        for scope in "abc":
            asyncio.run(replicas.generate(ask(scope)))
        assert [sorted(searches(each)) for each in both] == [["a", "c"], ["b"]]
        replicas.release("a")
        replicas.release("c")
        asyncio.run(replicas.generate(ask("d")))
        assert searches(both[0]) == set("acd")
        assert replicas.estimate(ask("b")).prefilled < fresh.prefilled
        assert replicas.estimate(ask("z")) == fresh


def test_one_that_ends_among_200_problems_loses_and_doubles_nothing():
    said, both = [], scripted(10**9, 40)
    replicas = Replicas(both, said.append)
    found = solved(replicas, PROBLEMS, strategy="best-of-n", n=1)
    alone = solved(ScriptedBackend(), PROBLEMS, strategy="best-of-n", n=1)
    assert both[1].ended and 30 < len(searches(both[1])) < 60
    assert [(a.problem, a.text) for a in found] == [(a.problem, a.text) for a in alone]
    assert len(said) == 1 and "Replica 2 (none) is gone: BackendGone: It has ended." in said[0]
    assert replicas.info.notes == (said[0],)


def test_what_ends_all_of_them_is_told():
    with Replicas(scripted(0, 0)) as replicas, pytest.raises(BackendGone, match="None of the 2"):
        asyncio.run(replicas.generate(ask()))
    many = scripted(0, 0, 0, 0, 0)
    with Replicas(many) as replicas:
        with pytest.raises(ModelError, match="3 replicas ended one after the other"):
            asyncio.run(replicas.generate(ask()))
        assert sum(each.ended for each in many) == 3


def test_other_errors_are_answers():
    both = [ScriptedBackend(), ScriptedBackend()]
    with Replicas(both) as replicas, pytest.raises(InputError):
        asyncio.run(replicas.generate(replace(ask(), prompt=Prompt("x " * 10**6))))
    assert len(both[0].requests) == 1 and not both[1].requests


@pytest.mark.parametrize("field", ["digest", "dtype", "context"])
def test_unlike_ones_are_refused(field):
    other = ScriptedBackend()
    other.info = replace(other.info, **{field: 7 if field == "context" else "other"})
    with pytest.raises(ModelError, match=f"Replica 2 has the {field} ('other'|7), the first"):
        Replicas([ScriptedBackend(), other])
    with pytest.raises(ConfigError, match="no replicas"):
        Replicas([])


def test_device_lists():
    assert device_list("cuda:0, cuda:1") == ("cuda:0", "cuda:1")
    assert device_list("cpu,cpu") == ("cpu", "cpu")
    for value in ("cpu,", ",", "cuda:0;cuda:1", "cpu,gpu"):
        with pytest.raises(ConfigError, match=r"or several: cuda:0,cuda:1"):
            device_list(value)
    for value in ("cuda:0,cpu", "auto,auto", "cuda,cuda:1", "mps,mps"):
        with pytest.raises(ConfigError, match="with their numbers"):
            device_list(value)
    with pytest.raises(ConfigError, match="each GPU once"):
        device_list("cuda:0,cuda:1,cuda:0")


# --- in a process, with the bundled model --------------------------------------------------------


@pytest.fixture(scope="module")
def alone():
    with Local(device="cpu").open("bundled") as alone:
        yield alone


@pytest.fixture(scope="module")
def process():
    (process,) = Local().replicas("bundled", ["cpu"]).backends
    yield process
    process.close()
    assert process.process.returncode is not None


def test_a_process_keeps_what_one_in_this_process_promises(process, alone):
    assert replace(process.info, notes=()) == replace(alone.info, notes=())
    request = ask(images=(picture(0),))
    check_exact(process, Problem("p", request.prompt.text, request.prompt.images))
    a, b = (asyncio.run(each.generate(request)) for each in (alone, process))
    assert [g.ids for g in a.generations] == [g.ids for g in b.generations]
    question = Choose("a", request.prompt, ("\nIs it?",), ("yes", "no"))
    one, two = (asyncio.run(each.choose(question)).logprobs[0] for each in (alone, process))
    assert one == pytest.approx(two, abs=1e-4)
    assert alone.estimate(request) == process.estimate(request)
    with pytest.raises(InputError, match="the model holds 4096"):
        asyncio.run(process.generate(replace(request, prompt=Prompt("and " * 5000))))
    for _ in range(20):  # until one takes long enough for what it reads meanwhile to be told
        texts, generated = asyncio.run(_watched(process, ask(tokens=40)))
        if texts:
            break
    whole = [generation.text for generation in generated.generations]
    assert len(texts) == len(whole) and any(texts)
    assert all(b.startswith(a) for a, b in zip(texts, whole, strict=True))
    for each in (alone, process):
        each.release("a")


async def _watched(backend, request):
    """What a request of many rows read when it was first told, and its answer."""
    request = replace(request, seeds=tuple(range(64)))
    task = asyncio.ensure_future(backend.generate(request))
    while request.headway.written is None and not task.done():
        await asyncio.sleep(0.01)
    written = request.headway.written
    return written and written(), await task


def test_what_a_process_cannot_open_is_told():
    with pytest.raises(ModelError, match="no_such_folder"):
        Local(device="cpu,cpu").open("./no_such_folder")


def test_a_killed_process_is_taken_over_from(process, alone):
    replicas = Replicas([process, alone])

    async def go():
        asked = [replicas.generate(ask(s, 40, (picture(i),))) for i, s in enumerate("abcd")]
        flying = asyncio.gather(*asked)
        await asyncio.sleep(0.05)
        os.kill(process.process.pid, signal.SIGKILL)
        return await asyncio.wait_for(flying, 60)

    found = asyncio.run(go())
    for i, (scope, given) in enumerate(zip("efgh", found, strict=True)):
        again = asyncio.run(alone.generate(ask(scope, 40, (picture(i),))))
        assert [g.ids for g in given.generations] == [g.ids for g in again.generations]
    (note,) = replicas.info.notes
    assert "Replica 1 (cpu) is gone" in note and "signal 9" in note
