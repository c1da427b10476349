"""The model's thread: nobody waits for ever, whatever ends it, and it outlives nobody."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest
from tiny_models import picture

from cot_engine.backends.local.backend import LocalBackend
from cot_engine.backends.local.jobs import Job
from cot_engine.backends.local.opener import Local
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Choose, Generate, Prompt
from cot_engine.errors import ModelError

PROMPT = Prompt("how many circle are there?", (picture(0),))


def ask(tokens=3, scope="s"):
    return Generate(scope, PROMPT, (), Until(("never",)), (1, 2), tokens)


async def soon(awaitable, seconds=20):
    """A generous limit: what it guards against never ends."""
    async with asyncio.timeout(seconds):
        return await awaitable


def hold(monkeypatch, backend):
    """Make forward passes wait. Returns (one has begun, let them go on)."""
    begun, let = threading.Event(), threading.Event()
    real = backend.adapter.forward

    def forward(*args, **kwargs):
        begun.set()
        let.wait(60)
        return real(*args, **kwargs)

    monkeypatch.setattr(backend.adapter, "forward", forward)
    return begun, let


def test_closing_answers_everybody_whenever_it_comes(loaded):
    """Requests go on arriving while another thread closes: each ends, with a result or an error."""

    async def once(delay):
        backend = LocalBackend(loaded)
        closing = threading.Timer(delay, backend.close)
        closing.start()
        results = []
        for i in range(12):
            results.append(asyncio.ensure_future(backend.generate(ask(2, f"s{i}"))))
            await asyncio.sleep(0)
        found = await soon(asyncio.gather(*results, return_exceptions=True))
        closing.join()
        return found

    ends = [end for i in range(30) for end in asyncio.run(once(0.0003 * i))]
    errors = [end for end in ends if isinstance(end, BaseException)]
    assert errors and all(isinstance(e, ModelError) and "closed" in str(e) for e in errors)


def test_closing_tells_those_in_flight_before_it_waits(backend, monkeypatch):
    begun, let = hold(monkeypatch, backend)

    async def go():
        tasks = [asyncio.create_task(backend.generate(ask(scope=s))) for s in "abc"]
        await asyncio.to_thread(begun.wait, 20)
        closing = asyncio.create_task(asyncio.to_thread(backend.close))
        for end in await soon(asyncio.gather(*tasks, return_exceptions=True)):
            assert isinstance(end, ModelError) and "The backend is closed." in str(end)
        await soon(closing)  # although the forward pass is still under way
        assert backend.worker.thread.handle.is_alive()
        let.set()

    asyncio.run(go())
    backend.worker.thread.handle.join(20)
    assert not backend.worker.thread.handle.is_alive()


def test_closing_on_the_loop_and_twice(backend):
    async def go():
        task = asyncio.create_task(backend.generate(ask(1000)))
        await asyncio.sleep(0.05)
        backend.close()
        backend.close()
        with pytest.raises(ModelError, match="closed"):
            await soon(task)
        for request in (
            backend.generate(ask()),
            backend.choose(Choose("s", PROMPT, ("?",), ("A", "B"))),
        ):
            with pytest.raises(ModelError, match="closed"):
                await soon(request)
        with pytest.raises(ModelError, match="closed"):
            backend.estimate(ask())

    asyncio.run(go())


def test_closing_from_the_models_own_thread(loaded, monkeypatch):
    """A listener for notices runs there."""

    def close(_):
        backend.close()

    backend = LocalBackend(loaded, on_notice=close)
    monkeypatch.setattr(
        backend.worker.prefill, "run", lambda parts: backend.worker.notice("Look out.")
    )
    with pytest.raises(ModelError, match="closed"):
        asyncio.run(soon(backend.generate(ask())))
    backend.worker.thread.handle.join(20)
    assert not backend.worker.thread.handle.is_alive()


def test_a_listener_that_raises_is_heard_of(loaded):
    def broken(_):
        raise SystemExit(1)

    with LocalBackend(loaded, on_notice=broken) as backend:
        backend.worker.notice("One.")
        backend.worker.notice("Two.")
        assert [n.split()[0] for n in backend.info.notes[-3:]] == ["One.", "The", "Two."]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError, GeneratorExit])
def test_whatever_a_forward_pass_raises_the_next_request_is_answered(backend, monkeypatch, error):
    real = backend.adapter.forward
    failing = [True]

    def forward(*args, **kwargs):
        if failing[0]:
            raise error("stop")
        return real(*args, **kwargs)

    monkeypatch.setattr(backend.adapter, "forward", forward)

    async def go():
        both = (backend.generate(ask(scope=s)) for s in "ab")
        for end in await soon(asyncio.gather(*both, return_exceptions=True)):
            assert isinstance(end, ModelError)
        failing[0] = False
        assert len((await soon(backend.generate(ask()))).generations) == 2

    asyncio.run(go())


def test_a_thread_that_cannot_go_on_refuses(backend, monkeypatch):
    def broken(*_):
        raise SystemExit("not even this")

    monkeypatch.setattr(backend.worker.batch, "join", broken)
    monkeypatch.setattr(backend.worker.batch, "clear", broken)

    async def go():
        with pytest.raises(ModelError, match="SystemExit: not even this"):
            await soon(backend.generate(ask()))
        with pytest.raises(ModelError, match="thread has ended: SystemExit: not even this"):
            await soon(backend.generate(ask()))

    asyncio.run(go())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_refused_at_once(backend):
    asyncio.run(backend.generate(ask()))
    with backend.worker.lock, backend.worker.thread.guard:  # as another thread may while forking
        child = os.fork()
    if child == 0:
        signal.alarm(30)
        said = []
        for act in (
            lambda: asyncio.run(backend.generate(ask())),
            lambda: backend.estimate(ask()),
        ):
            try:
                act()
            except ModelError as error:
                said.append("forked" in str(error))
        backend.close()
        backend.close()
        os._exit(0 if said == [True, True] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(asyncio.run(backend.generate(ask())).generations) == 2


def test_a_backend_nobody_uses_goes_and_its_thread_with_it(folder):
    backend = Local(device="cpu").open(folder)
    asyncio.run(backend.generate(ask()))
    thread = backend.worker.thread.handle
    gone = [weakref.ref(it) for it in (backend, backend.worker, backend.adapter.model)]
    threads = threading.active_count()
    del backend
    ended = time.monotonic() + 20
    while thread.is_alive() and time.monotonic() < ended:  # it may be at the end of its turn still
        gc.collect()
        thread.join(0.1)
    assert not thread.is_alive()
    gc.collect()
    assert [it() for it in gone] == [None] * 3
    assert threading.active_count() < threads


def test_an_idle_thread_holds_nothing_of_the_last_request(backend):
    """By reference counts alone: a request holds the tree of its search."""

    def left():
        return sum(type(it) is Job for it in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before, ended = left(), time.monotonic() + 20
        asyncio.run(backend.generate(ask()))
        while left() > before and time.monotonic() < ended:
            time.sleep(0.01)
        assert left() == before
    finally:
        gc.enable()


def test_a_forward_pass_at_the_end_of_the_interpreter_does_not_take_it_down():
    """torch's frames do not let through what ends a daemon thread: the process was aborted."""
    code = """
from PIL import Image
from cot_engine import Engine
stream = Engine.from_pretrained().stream(Image.new("RGB", (64, 64), "red"), "How many?", n=16)
for _ in range(5):
    next(stream)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
