"""The engine inside somebody else's program: iterators left half-way, closing under load, calls
from the wrong place, forks. Nothing hangs, no answer is lost, the next call is answered."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import pytest

from cot_engine import Engine, Problem, RunConfig
from cot_engine.core.events import Finished, Notice
from cot_engine.errors import ConfigError, InputError, ModelError, StrategyError, UnknownNameError
from cot_engine.judging.profile import Profile
from cot_engine.search.strategy import Expand
from cot_engine.testing import ScriptedBackend

LONG = 30  # seconds after which something hangs; none of this takes one


class Gated(ScriptedBackend):
    """Answers questions with the word "wait" in them only once `gate` is open."""

    def __init__(self, **script):
        super().__init__(**script)
        self.gate = threading.Event()
        self.waiting = threading.Semaphore(0)

    async def generate(self, request):
        if "wait" in request.prompt.text and not self.gate.is_set():
            self.waiting.release()
            while not self.gate.is_set():
                await asyncio.sleep(0.005)
        return await super().generate(request)


def engine_of(backend=None, **options) -> Engine:
    return Engine(backend or ScriptedBackend(), profile=Profile("likelihood"), **options)


def in_threads(*acts):
    """What each of these returned or raised, all running at once; fails where one hangs."""
    results: list = [None] * len(acts)

    def run(k, act):
        try:
            results[k] = act()
        except BaseException as error:
            results[k] = error

    threads = [
        threading.Thread(target=run, args=(k, act), daemon=True) for k, act in enumerate(acts)
    ]
    for thread in threads:
        thread.start()
    return threads, results


def joined(threads):
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive(), "hangs"


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )


# --- iterators left half-way ---------------------------------------------------------------------

LEFT = """
    import sys
    from cot_engine import Engine
    from cot_engine.judging.profile import Profile
    from cot_engine.testing import ScriptedBackend

    def engine():
        return Engine(ScriptedBackend(), profile=Profile("likelihood"), in_flight=2)

    questions = [(None, f"How many of {i}?") for i in range(6)]
    with engine() as closed:  # zip leaves the iterator one step before its end
        answers = closed.solve_many(questions[:2])
        print(*(a.text for q, a in zip(questions, answers)))
    left = engine()  # never closed; its iterators are garbage when the interpreter ends
    stream = left.stream(None, "How many?")
    next(stream)
    many = left.solve_many(questions)
    next(many)
    for answer in left.solve_many(questions):
        break
    gone = left.solve_many(questions)
    next(gone)
    del gone
    with engine() as broken:
        try:
            for event in (kept := broken.stream(None, "How many?")):
                raise KeyError
        except KeyError:
            pass
    print("end")
"""


def test_no_iterator_holds_up_the_end_of_the_interpreter():
    ended = python(LEFT)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.split()) == 3 and ended.stdout.endswith("end\n")


def test_what_was_answered_before_the_engine_closed_is_not_thrown_away():
    backend = Gated()
    engine = engine_of(backend, in_flight=3)
    asked = [(None, "One?"), (None, "Two?"), (None, "wait?"), (None, "Four?"), (None, "Five?")]
    over = threading.Event()  # "Two?" was answered, and not only begun before "wait?"

    def heard(index, event):
        if index == 1 and isinstance(event, Finished):
            over.set()

    answers = engine.solve_many(iter(asked), on_event=heard)
    first = next(answers)
    assert over.wait(LONG)
    engine.solve(None, "Behind it?")  # the loop does what was begun before this
    engine.close()
    assert first.problem.question == "One?"
    assert next(answers).problem.question == "Two?"
    with pytest.raises(ModelError, match="closed"):
        next(answers)
    assert list(answers) == []


def test_an_error_of_the_problems_comes_in_its_turn():
    def problems():
        yield None, "One?"
        yield None, "Two?"
        raise OSError("the file broke off")

    answers = engine_of().solve_many(problems())
    assert [next(answers).problem.question for _ in range(2)] == ["One?", "Two?"]
    with pytest.raises(OSError, match="broke off"):
        next(answers)


def test_cleaning_up_starts_no_thread_and_waits_for_nothing(monkeypatch):
    backend = Gated()
    engine = engine_of(backend)
    left = [engine.stream(None, "wait?"), engine.solve_many([(None, "wait?")] * 3)]
    next(left[0])
    threads, results = in_threads(lambda: next(left[1]))
    assert backend.waiting.acquire(timeout=LONG)
    engine.close()
    joined(threads)
    assert isinstance(results[0], ModelError)
    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("started a thread"))
    left.clear()
    gc.collect()


# --- closing -------------------------------------------------------------------------------------


def test_closing_answers_everybody_in_flight():
    backend = Gated()
    engine = engine_of(backend)
    stream, many = engine.stream(None, "wait?"), engine.solve_many([(None, "wait?")] * 2)

    async def all_async():
        async def streamed():
            async for _ in engine.astream(None, "wait?"):
                pass

        async def of_many():
            async for _ in engine.asolve_many([(None, "wait?")] * 2):
                pass

        asked = (engine.asolve(None, "wait?"), streamed(), of_many())
        return await asyncio.gather(*asked, return_exceptions=True)

    threads, results = in_threads(
        lambda: engine.solve(None, "wait?"),
        lambda: engine.solve(None, "wait?"),
        lambda: list(stream),
        lambda: list(many),
        lambda: asyncio.run(all_async()),
    )
    for _ in range(9):
        assert backend.waiting.acquire(timeout=LONG)
    engine.close()
    joined(threads)
    *plain, together = results
    assert all(isinstance(error, ModelError) for error in (*plain, *together)), results
    assert all("closed" in str(error) for error in (*plain, *together))
    assert sorted(backend.released) == sorted(set(backend.released))  # each search let go, once


def test_a_judge_that_will_not_be_cancelled_holds_nobody_up():
    class Deaf:
        symmetric = True
        asked = threading.Event()

        async def compare(self, pairs, case, ask):
            self.asked.set()
            until = time.monotonic() + 3
            while time.monotonic() < until:
                try:
                    await asyncio.sleep(10)
                except asyncio.CancelledError:
                    continue

    engine = engine_of()
    threads, results = in_threads(lambda: engine.solve(None, "How many?", judge=Deaf(), n=3))
    assert Deaf.asked.wait(LONG)
    engine.close()
    joined(threads)
    assert isinstance(results[0], ModelError)


def test_closing_again_and_use_afterwards():
    engine = engine_of()
    assert engine.solve(None, "How many?").text
    engine.close()
    engine.close()
    for use in (
        lambda: engine.solve(None, "How many?"),
        lambda: next(engine.stream(None, "How many?")),
        lambda: next(engine.solve_many([(None, "How many?")])),
        lambda: next(engine.solve_many([(None, "How many?")], on_error="keep")),
        lambda: asyncio.run(engine.asolve(None, "How many?")),
        lambda: asyncio.run(anext(engine.astream(None, "How many?"))),
    ):
        with pytest.raises(ModelError, match="is closed"):
            use()


def test_closing_from_a_listener():
    engine = engine_of()
    with pytest.raises(ModelError, match="closed"):
        engine.solve(None, "How many?", on_event=lambda _: engine.close())
    with pytest.raises(ModelError, match="is closed"):
        engine.solve(None, "How many?")


def test_many_threads_send_while_one_closes():
    """Whatever comes behind the closing mark is refused or answered: nobody waits for ever."""
    for _ in range(20):
        engine = engine_of()
        engine.solve(None, "How many?", strategy="greedy")
        go = threading.Barrier(5)

        def ask(engine=engine, go=go):
            go.wait()
            while True:
                engine.solve(None, "How many?", strategy="greedy")

        def close(engine=engine, go=go):
            go.wait()
            engine.close()

        threads, results = in_threads(*[ask] * 4, close)
        joined(threads)
        assert all(isinstance(error, ModelError) for error in results[:4])


def test_an_engine_that_is_dropped_leaves_no_thread():
    engine = engine_of()
    engine.solve(None, "How many?", strategy="greedy")
    thread, kept = engine._loop._thread, weakref.ref(engine)
    del engine
    gc.collect()
    assert kept() is None
    thread.join(LONG)
    assert not thread.is_alive()


# --- calls from the wrong place ------------------------------------------------------------------


@pytest.mark.parametrize("call", ["solve", "stream", "solve_many"])
def test_asking_the_engine_from_its_own_thread_is_refused(call):
    engine = engine_of()

    def listen(_):
        match call:
            case "solve":
                engine.solve(None, "Again?")
            case "stream":
                next(engine.stream(None, "Again?"))
            case "solve_many":
                next(engine.solve_many([(None, "Again?")]))

    with pytest.raises(StrategyError, match="never end"):
        engine.solve(None, "How many?", on_event=listen)
    assert engine.solve(None, "How many?").text


def test_a_judge_may_await_its_engine():
    engine = engine_of()

    class Asks:
        symmetric = True

        async def compare(self, pairs, case, ask):
            from cot_engine.core.match import Verdict

            answer = await engine.asolve(None, "Which is better?", strategy="greedy")
            return [Verdict("first" if answer.text else "second", 1.0)] * len(pairs)

    assert engine.solve(None, "How many?", judge=Asks(), n=3).text


class _Exits:
    symmetric = True

    def __init__(self, error):
        self.error = error

    async def compare(self, pairs, case, ask):
        raise self.error

    def search(self, task):
        yield Expand(task.start, until="end", n=1)
        raise self.error

    def __call__(self, event):
        raise self.error


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("part", ["judge", "strategy", "on_event"])
def test_a_part_that_would_end_the_process_ends_its_search(part, error):
    engine = engine_of()
    with pytest.raises(StrategyError, match=type(error).__name__):
        engine.solve(None, "How many?", **{part: _Exits(error)})
    assert engine.solve(None, "How many?").text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_is_told():
    ended = python("""
        import os, sys
        from cot_engine import Engine
        from cot_engine.errors import ModelError
        from cot_engine.judging.profile import Profile
        from cot_engine.testing import ScriptedBackend
        engine = Engine(ScriptedBackend(), profile=Profile("likelihood"))
        print(engine.solve(None, "How many?").text, flush=True)
        stream, many = engine.stream(None, "How many?"), engine.solve_many([(None, "How many?")])
        next(stream)
        if child := os.fork():
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(status, engine.solve(None, "Two?").text)
        else:
            told = []
            for act in (lambda: list(stream), lambda: next(many), lambda: engine.solve(None, "?")):
                try:
                    act()
                except ModelError as error:
                    told.append(error)
            print(told[-1], flush=True)
            engine.close()
            os._exit(7 if len(told) == 3 else 8)
    """)
    assert ended.returncode == 0, ended.stderr
    first, told, last = ended.stdout.splitlines()
    assert "forked" in told and "after the fork" in told
    assert last.split()[0] == "7" and first and len(last.split()) == 2


# --- the caller's loop ---------------------------------------------------------------------------


def test_nothing_of_a_search_runs_in_the_callers_loop(tmp_path):
    """Neither reading a picture, nor tokenising, nor a strategy, a judge or a listener."""
    from PIL import Image

    from cot_engine.images import load as images

    seen = {}
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 40), "red").save(path)

    class Backend(ScriptedBackend):
        async def generate(self, request):
            seen.setdefault("backend", threading.current_thread())
            return await super().generate(request)

    class Judge:
        symmetric = True

        async def compare(self, pairs, case, ask):
            from cot_engine.core.match import Verdict

            seen["judge"] = threading.current_thread()
            return [Verdict("first", 1.0) for _ in pairs]

    decode = images._decode

    def decoding(*args, **options):
        seen.setdefault("picture", threading.current_thread())  # the first, not the probe's
        return decode(*args, **options)

    engine = engine_of(Backend())

    async def main():
        return await engine.asolve(
            path,
            "How many?",
            judge=Judge(),
            n=3,
            on_event=lambda _: seen.setdefault("listener", threading.current_thread()),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cot_engine.images.load._decode", decoding)
        asyncio.run(main())
    own = engine._loop._thread
    picture = seen.pop("picture")
    assert picture is not own and picture is not threading.current_thread()
    assert seen == {"backend": own, "judge": own, "listener": own}


def test_events_of_astream_come_in_the_loop_that_asks():
    async def main():
        return [e async for e in engine_of().astream(None, "How many?")]

    assert isinstance(asyncio.run(main())[-1], Finished)


def test_cancelling_a_task_stops_its_search_alone():
    backend = Gated()
    engine = engine_of(backend)

    async def main():
        task = asyncio.ensure_future(engine.asolve(None, "wait?", mode="trained"))
        await asyncio.to_thread(backend.waiting.acquire)
        other = asyncio.ensure_future(engine.asolve(None, "How many?"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(backend.released) >= 1  # it was over before the task was
        return await other

    assert asyncio.run(main()).text


def test_the_mode_is_asked_for_once(monkeypatch):
    class Slow(ScriptedBackend):
        async def generate(self, request):
            if "What is shown?" in request.prompt.text:
                probes.append(request.scope)
                await asyncio.sleep(0.05)
            return await super().generate(request)

    probes: list[str] = []
    engine = engine_of(Slow())
    answers = list(engine.solve_many([(None, f"How many of {i}?") for i in range(12)]))
    assert len(probes) == 1
    assert all(
        any("by itself" in e.text for e in a.trace if isinstance(e, Notice)) for a in answers
    )


def test_a_failed_probe_is_asked_again():
    class Failing(ScriptedBackend):
        async def generate(self, request):
            if "What is shown?" in request.prompt.text and not failed:
                failed.append(1)
                raise ModelError("Not now.")
            return await super().generate(request)

    failed: list[int] = []
    engine = engine_of(Failing())
    with pytest.raises(ModelError, match="Not now"):
        engine.solve(None, "How many?")
    assert engine.solve(None, "How many?").text


# --- what is asked -------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["model", "device", "dtype", "quantize", "adapter", "in_flight"])
def test_an_option_of_the_engine_is_refused_for_one_call(option):
    with pytest.raises(ConfigError, match=rf"{option} is an option of the engine.*{option}="):
        engine_of().solve(None, "How many?", **{option: "cpu"})


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"bugdet": "3 calls"}, "budget"),
        ({"temprature": 1}, "temperature"),
        ({"tornament": "swiss"}, "tournament"),
        ({"kep": 2}, "keep"),
        ({"strategy": "majority", "keep": 2}, "called 'keep'"),
    ],
)
def test_a_slip_is_told_what_was_meant(options, meant):
    with pytest.raises(UnknownNameError, match=meant):
        engine_of().solve(None, "How many?", **options)


def test_a_listener_of_many_is_named():
    def careless(index, event):
        raise ZeroDivisionError

    with pytest.raises(StrategyError, match=r"listener \S*careless.* raised ZeroDivisionError"):
        list(engine_of().solve_many([(None, "How many?")], on_event=careless))


def test_a_part_that_cannot_be_shown_is_still_refused():
    class Silent:
        def __repr__(self):
            raise ValueError

    for part, error in (("judge", ConfigError), ("strategy", StrategyError)):
        with pytest.raises(error, match=f"is not a {part}"):
            engine_of().solve(None, "How many?", **{part: Silent()})


def test_garbage_among_many_yields_an_error_in_its_place():
    items = [
        (None, "One?"),
        *(None, 7, "a text", (None,), (None, "a", "b"), {"question": "x"}, (None, None)),
        *(Problem("p", 3), Problem("", "q?"), Problem("p", "q?", ("picture.png",))),
        *(Problem("p", "q?", None), (object(), "q?"), (None, "\ud800")),
        (None, "Last?"),
    ]
    results = list(engine_of().solve_many(items, on_error="keep"))
    assert len(results) == len(items)
    assert results[0].text and results[-1].text
    assert all(isinstance(error, InputError) for error in results[1:-1]), results
    for bad in items[1:-1]:
        with pytest.raises(InputError):
            next(engine_of().solve_many([bad]))
    with pytest.raises(InputError, match="problems are a NoneType"):
        next(engine_of().solve_many(None))
    with pytest.raises(ConfigError, match="on_event is 5"):
        engine_of().solve(None, "How many?", on_event=5)
    with pytest.raises(ConfigError, match="on_error is 'skip'"):
        next(engine_of().solve_many(items, on_error="skip"))
    with pytest.raises(ConfigError, match="config is a dict"):
        engine_of().solve(None, "How many?", config={"n": 3})
    assert engine_of().solve(None, "How many?", config=RunConfig(seed=2)).text
