"""Whatever another one's part raises: its search fails with an error that names the part, and the
rest goes on."""

from __future__ import annotations

import asyncio
import threading

import pytest
from beams import Beam
from broken_parts import RAISED, Doing, Raising, Scoring, broken, names, recursing, three, throwing

from cot_engine import Engine, plugins
from cot_engine.core.events import Event, Failed
from cot_engine.core.problem import Problem
from cot_engine.errors import ConfigError, StrategyError
from cot_engine.judging.judges import RandomJudge, SelfJudge
from cot_engine.search.loop import Named, search
from cot_engine.search.rejudge import rejudge
from cot_engine.search.session import Settings
from cot_engine.testing import ScriptedBackend, solve_scripted


@pytest.mark.parametrize("error", RAISED, ids=names)
def test_whatever_a_part_raises_names_it(error):
    said = f"raised {names(error)}"
    assert "The judge likelihood (Raising)" in broken(said, judge=Raising(error))
    scorer = {"strategy": Scoring(), "scorers": lambda name: Raising(error)}
    assert "The scorer mine (Raising)" in broken(said, **scorer)
    for late in (False, True):
        text = broken(said, strategy=Doing(throwing(error), late))
        assert "The strategy Doing" in text
    if isinstance(error, ConfigError):
        assert "no such" in text and "Hint." in text


@pytest.mark.parametrize("error", RAISED, ids=names)
@pytest.mark.parametrize("at", ["Started", "Grown", "Progress", "Judged", "Finished", "Failed"])
def test_whatever_a_listener_raises_names_it_and_hides_no_other_error(error, at):
    def hearing(event):
        if type(event).__name__ == at:
            raise error

    if at == "Failed":  # what went wrong first is what counts
        assert "yielded 3" in broken("The strategy", strategy=Doing(three), listen=hearing)
    else:
        assert f"The listener hearing raised {names(error)}" in broken("", listen=hearing)


def test_deep_recursion_and_a_loop_of_ones_own():
    class Deep(SelfJudge):
        async def compare(self, pairs, case, ask):
            recursing()

    class Own(SelfJudge):  # cancels a task of its own, and nobody cancelled the search
        async def compare(self, pairs, case, ask):
            task = asyncio.ensure_future(asyncio.sleep(60))
            task.cancel()
            await task

    broken("raised RecursionError", judge=Deep())
    broken("raised CancelledError", judge=Own())


def test_an_async_listener_is_refused():
    async def hearing(event):
        pass

    broken("The listener hearing is an async function", listen=hearing)


def test_real_cancellation_and_real_interrupts_pass():
    events: list[Event] = []

    class Waiting(SelfJudge):
        async def compare(self, pairs, case, ask):
            waiting.set()
            await asyncio.sleep(60)

    async def cancelled():
        nonlocal waiting
        waiting = asyncio.Event()
        part = Named("Beam", Beam(3))
        task = asyncio.ensure_future(
            search(
                Problem("p", "?"), part, Named("w", Waiting()), backend, Settings(),
                scorers=lambda name: None, listen=events.append,
            )
        )  # fmt: skip
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    waiting, backend = None, ScriptedBackend()
    asyncio.run(cancelled())
    assert isinstance(events[-1], Failed) and events[-1].error == "CancelledError"
    assert backend.released == ["p"]
    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(KeyboardInterrupt):
        solve_scripted(Beam(3), judge=Raising(KeyboardInterrupt()), listen=events.append)
    assert isinstance(events[-1], Failed) and events[-1].error == "KeyboardInterrupt"


def test_a_search_that_nobody_awaits_any_longer_ends_quietly():
    class Waiting(SelfJudge):
        async def compare(self, pairs, case, ask):
            waiting.set()
            await asyncio.Event().wait()

    loop, waiting, backend = asyncio.new_event_loop(), asyncio.Event(), ScriptedBackend()
    made = search(
        Problem("p", "?"), Named("Beam", Beam(3)), Named("w", Waiting()), backend, Settings(),
        scorers=lambda name: None, listen=(events := []).append,
    )  # fmt: skip
    task = loop.create_task(made)
    loop.run_until_complete(waiting.wait())
    task._log_destroy_pending = False
    loop.close()
    made.close()  # raises if the end was taken for an error of the judge's
    assert isinstance(events[-1], Failed) and events[-1].error == "GeneratorExit"
    assert backend.released == ["p"]


class Some(SelfJudge):
    """Fails for some problems, in a way of its own for each."""

    async def compare(self, pairs, case, ask):
        failing = {"How many 1?": SystemExit(1), "How many 3?": KeyboardInterrupt()}
        if (error := failing.get(case.problem.question)) is not None:
            raise error
        if case.problem.question == "How many 5?":
            return [None] * len(pairs)
        return await SelfJudge.compare(self, pairs, case, ask)


def test_one_problem_fails_the_rest_goes_on_and_the_engine_answers_the_next():
    questions = [(None, f"How many {k}?") for k in range(7)]
    with Engine(ScriptedBackend()) as engine:
        answers = list(
            engine.solve_many(questions, judge=Some(), strategy="best-of-n", on_error="keep")
        )
        failed = {k: str(a) for k, a in enumerate(answers) if isinstance(a, StrategyError)}
        assert list(failed) == [1, 3, 5]
        assert all("The judge Some" in text for text in failed.values())
        assert all(a.text for k, a in enumerate(answers) if k not in failed)

        def leaving(event):
            raise SystemExit(1)

        def nested(event):
            engine.solve(*questions[0])

        with pytest.raises(StrategyError, match="The listener leaving raised SystemExit: 1"):
            engine.solve(*questions[0], on_event=leaving)
        with pytest.raises(StrategyError, match=r"listener nested raised Strat.*never"):
            engine.solve(*questions[0], on_event=nested)
        with pytest.raises(StrategyError, match="The strategy Doing raised KeyboardInterrupt"):
            engine.solve(*questions[0], strategy=Doing(throwing(KeyboardInterrupt())))
        assert engine.solve(*questions[0], judge=Some()).text


def test_judging_a_record_again_guards_judge_and_listener():
    trace = solve_scripted(Beam(4), judge=RandomJudge()).trace
    named = Named("mine", Raising(SystemExit(2)))
    with pytest.raises(StrategyError, match=r"The judge mine \(Raising\) raised SystemExit: 2"):
        asyncio.run(rejudge(trace, named))
    with pytest.raises(StrategyError, match=r"The listener .* raised ValueError: odd"):
        asyncio.run(rejudge(trace, Named("r", RandomJudge()), listen=throwing_at(ValueError)))


def throwing_at(kind):
    def hear(event):
        raise kind("odd")

    return hear


@pytest.mark.parametrize("error", ["SystemExit(3)", "GeneratorExit()", "asyncio.CancelledError()"])
def test_a_plug_in_that_ends_the_program_is_only_named(install, error):
    source = f"import asyncio\nclass Mine:\n  def __init__(self): raise {error}\n"
    install("ending", source, mine="ending:Mine")
    with pytest.raises(StrategyError, match="'mine' cannot be made"):
        plugins.make("strategy", "mine", {})
    install("leaving", f"import asyncio\nraise {error}", other="leaving:Mine")
    with pytest.raises(StrategyError, match="of package 'leaving' cannot be imported"):
        plugins.make("strategy", "other", {})


def test_a_value_that_is_refused_is_cut():
    with pytest.raises(ConfigError) as refused:
        plugins.make("strategy", "stage-beam", {"n": "x" * 10**6})
    assert len(str(refused.value)) < 200
