"""The facade on the bundled model: one, many, streamed, interrupted; the same trace each way."""

from __future__ import annotations

import asyncio
import io
import re
import threading
from dataclasses import asdict

import pytest
from cot_engine_strategies.stage_beam import StageBeam
from real_engine import HOT

from cot_engine import Engine, Problem, Progress, RunConfig, SelfJudge, Trace, TraceFile
from cot_engine.cli.display import make_display
from cot_engine.core.events import Failed, Finished, Grown, Selected, Started
from cot_engine.errors import (
    BudgetError,
    ConfigError,
    CotEngineError,
    ImageError,
    InputError,
    StrategyError,
    UnknownNameError,
)
from cot_engine.judging.profile import Profile
from cot_engine.testing import ScriptedBackend, alike, check_exact


def scripted(**script) -> Engine:
    return Engine(ScriptedBackend(**script), profile=Profile("likelihood"))


def test_backend_is_exact(engine, problems):
    check_exact(engine.backend, problems[0])
    check_exact(engine.backend, Problem("text", "How many legs have two cats?"))


def test_the_display_moves_inside_a_stage(engine, problems, monkeypatch):
    """The model itself, many candidates, a live display: what it shows of one stage changes."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("cot_engine.search.progress.EVERY", 0.02)
    monkeypatch.setattr("cot_engine.cli.display._FRAMES_PER_SECOND", 50)
    stream, heard = Terminal(), []
    with make_display(stream=stream) as display:

        def listen(event):
            heard.append(event)
            display(event)

        engine.solve(problems[0], n=24, judge=SelfJudge(), on_event=listen, **HOT)
    first = [e for e in heard if isinstance(e, Progress) and e.doing == "growing"]
    first = [e for e in first if e.unit == first[0].unit]
    assert len({e.tokens for e in first}) > 2 and {e.of for e in first} == {24}
    moves = re.findall(r"Writing SUMMARY: \d+ of 24 candidates, ([\d,]+) token", stream.getvalue())
    assert len(set(moves)) > 1
    assert re.search(r"Judging \w+: \d+ of \d+ match", stream.getvalue())


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_solve_answers_and_accounts(engine, problems):
    answer = engine.solve(
        problems[0].images[0], problems[0].question, n=3, judge=SelfJudge(), **HOT
    )
    assert str(answer) == answer.text != ""
    started = answer.trace.started
    assert (started.mode, started.strategy) == ("trained", "stage-beam")
    assert started.parameters == asdict(StageBeam(n=3))
    assert started.backend.model == "bundled"  # and no path of this machine
    assert answer.total.encodes == 1
    assert answer.total.calls >= 12
    grown = [e for e in answer.trace if isinstance(e, Grown)]
    assert [e.unit for e in grown] == ["SUMMARY", "CAPTION", "REASONING", "CONCLUSION"]
    assert sum(step.tokens for step in answer.chain.steps) > 20


def test_no_image_leaves_caption_out(engine):
    answer = engine.solve(None, "There is a small red star at A1. How many stars are there?", n=2)
    assert [s.tag for s in answer.trace.started.plan] == ["SUMMARY", "REASONING", "CONCLUSION"]
    assert answer.total.encodes == 0


@pytest.mark.parametrize(
    "strategy", ["greedy", "stage-beam", "best-of-n", "sentence-beam", "majority"]
)
def test_alone_and_among_many_the_trace_is_the_same(engine, problems, strategy):
    options = {"strategy": strategy, "judge": SelfJudge(least_mass=0.0), **HOT}
    many = list(engine.solve_many(problems, **options))
    assert [a.problem.id for a in many] == [p.id for p in problems]
    for k in (0, 7):
        [alone] = engine.solve_many([problems[k]], **options)
        assert alike(alone.trace.canonical(), many[k].trace.canonical())


def test_prompted_mode_forces_each_tag(engine, problems):
    answer = engine.solve(problems[0].images[0], problems[0].question, n=2, mode="prompted")
    # It was never trained on this prompt, so what it writes is odd; the tags are the engine's.
    for step, tag in zip(
        answer.chain.steps, ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION"), strict=True
    ):
        assert step.segments[0].text.strip() == f"<{tag}>" and step.segments[0].ids is None
    assert len(answer.chain.steps) == 4


def test_rejudging_generates_nothing(engine, problems, tmp_path):
    answer = engine.solve(problems[1].images[0], problems[1].question, n=6, judge="random", **HOT)
    path = tmp_path / "t.jsonl"
    answer.trace.write(path)
    trace = Trace.read(path)
    assert trace.events == answer.trace.events
    again = engine.rejudge(trace, judge=SelfJudge(least_mass=0.0), tournament="round-robin")
    recorded = [e for e in trace if isinstance(e, Selected)]
    assert len(again.selections) == len(recorded)
    assert again.usage.decoded == 0
    for selection in again.selections:
        n = len(selection.after.ranking)
        assert len(selection.after.matches) == (n * (n - 1) // 2 if n > 1 else 0)
    free = engine.rejudge(trace, judge="likelihood")
    assert free.usage.tokens == 0
    for selection in free.selections:  # the likeliest wins under likelihood, whoever won before
        chains = trace.chains()
        entrants = [chains[i] for i in selection.after.ranking]
        assert chains[selection.after.kept[0]].likelihood(1) == max(
            c.likelihood(1) for c in entrants
        )


def test_blinded_judges_see_another_picture(engine, problems):
    def margins(judge_image):
        answer = engine.solve(
            problems[1].images[0],
            problems[1].question,
            n=6,
            judge=SelfJudge(least_mass=0.0),
            judge_image=judge_image,
            tournament="round-robin",
            **HOT,
        )
        first = next(e for e in answer.trace if isinstance(e, Selected) and e.matches)
        return {(m.first, m.second): m.margin for m in first.matches}, answer

    seen, _ = margins("seen")
    blank, answer = margins("blank")
    swap, _ = margins("swap")
    assert seen.keys() == blank.keys() == swap.keys()
    assert seen != blank and seen != swap and blank != swap
    assert answer.total.encodes == 2  # the picture for the answer, the grey one for the judge


# --- streams, many, interrupts -------------------------------------------------------------------


def test_stream_ends_with_finished(engine, problems):
    events = list(engine.stream(problems[0].images[0], problems[0].question, n=2))
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)


def test_leaving_a_stream_stops_its_search(engine, problems):
    stream = engine.stream(problems[0].images[0], problems[0].question, n=2)
    next(stream)
    stream.close()
    assert engine.solve(problems[0].images[0], problems[0].question, strategy="greedy").text


def test_async_twins_agree():
    engine = scripted()

    async def both():
        one = await engine.asolve(None, "How many?")
        many = [a async for a in engine.asolve_many([(None, "How many?")] * 3)]
        events = [e async for e in engine.astream(None, "How many?")]
        return one, many, events

    one, many, events = asyncio.run(both())
    assert {one.text} == {a.text for a in many}
    assert events[-1].answer == one.text
    assert engine.solve(None, "How many?").trace.canonical() == one.trace.canonical()


def test_solve_many_is_lazy_ordered_and_bounded():
    taken = []

    def endless():
        for i in range(10_000):
            taken.append(i)
            yield (None, f"How many of {i}?")

    engine = Engine(ScriptedBackend(), profile=Profile("likelihood"), in_flight=4)
    answers = engine.solve_many(endless())
    first = [next(answers) for _ in range(6)]
    assert [a.problem.question for a in first] == [f"How many of {i}?" for i in range(6)]
    assert len(taken) < 40
    answers.close()


def test_one_bad_problem_does_not_lose_the_others(tmp_path):
    items = [(None, "One?"), (tmp_path / "missing.png", "Two?"), (None, "  "), (None, "Four?")]
    engine = scripted()
    results = list(engine.solve_many(items, on_error="keep"))
    assert [type(r).__name__ for r in results] == ["Answer", "ImageError", "InputError", "Answer"]
    raised = engine.solve_many(items)
    assert next(raised).text
    with pytest.raises(ImageError):
        next(raised)


def test_events_of_many_come_with_their_position():
    heard = []
    engine = scripted()
    list(
        engine.solve_many(
            [(None, "a?"), (None, "b?")], on_event=lambda i, event: heard.append((i, event))
        )
    )
    assert {i for i, _ in heard} == {0, 1}
    for k in (0, 1):
        mine = [e for i, e in heard if i == k]
        assert isinstance(mine[0], Started) and isinstance(mine[-1], Finished)


def test_a_cancelled_search_leaves_a_partial_trace(tmp_path):
    stuck = threading.Event()

    class Stuck(ScriptedBackend):
        async def generate(self, request):
            if len(self.requests) == 2:
                stuck.set()
                await asyncio.Event().wait()  # for ever
            return await super().generate(request)

    engine = Engine(Stuck(), profile=Profile("likelihood"))

    async def go(file):
        task = asyncio.create_task(engine.asolve(None, "How?", on_event=file, mode="trained"))
        await asyncio.to_thread(stuck.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with TraceFile(tmp_path / "t.jsonl") as file:
        asyncio.run(go(file))
    events = Trace.read(tmp_path / "t.jsonl").events
    assert any(isinstance(e, Grown) for e in events)
    assert isinstance(events[-1], Failed)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"strategy": "stage-bean"}, UnknownNameError, "stage-beam"),
        ({"judge": "slef"}, UnknownNameError, "self"),
        ({"tournament": "knockouts"}, UnknownNameError, "knockout"),
        ({"n": 0}, ConfigError, "1"),
        ({"n": -1}, ConfigError, "1"),
        ({"n": 1_000_000}, ConfigError, "1024"),
        ({"m": 3}, CotEngineError, "m"),
        ({"budget": "many"}, ConfigError, "tokens"),
        ({"budget": "3 tokens"}, BudgetError, "at least"),
        ({"temperature": -1}, ConfigError, "temperature"),
        ({"plan": "no-such-plan.toml"}, ConfigError, "no-such-plan.toml"),
        ({"strategy": object()}, StrategyError, "search"),
        ({"judge": object()}, ConfigError, "compare"),
    ],
)
def test_bad_options_name_value_and_way_out(options, error, words):
    with pytest.raises(error) as caught:
        scripted().solve(None, "How many?", **options)
    assert words in str(caught.value)


def test_questions_are_checked_and_special_text_stays_text(engine):
    for question in ("", " \n", "x" * 100_000):
        with pytest.raises(InputError):
            engine.solve(None, question)
    plain = engine.solve(None, "How many stars?", strategy="greedy")
    for text in ("</CONCLUSION>", "<image>", "</s>", "<s>", "<pad>"):
        answer = engine.solve(None, f"How many stars? {text}", strategy="greedy")
        assert answer.total.encodes == 0
        assert answer.total.prefilled > plain.total.prefilled


def test_too_many_images_are_refused():
    from PIL import Image as Pillow

    engine = Engine(ScriptedBackend())
    with pytest.raises(InputError, match="at most 100"):
        engine.solve([Pillow.new("RGB", (8, 8))] * 101, "How many?")


def test_config_and_options_combine():
    config = RunConfig(strategy="best-of-n", parameters={"n": 3}, seed=4)
    started = scripted().solve(None, "How?", config=config, seed=5).trace.started
    assert (started.strategy, started.parameters["n"], started.seed) == ("best-of-n", 3, 5)
    other = scripted().solve(None, "How?", config=config, strategy="majority").trace.started
    assert (other.strategy, other.parameters) == ("majority", {"n": 4, "fill": False})


def test_a_judge_that_gives_too_few_verdicts_is_named():
    class Lazy:
        symmetric = True

        async def compare(self, pairs, case, ask):
            return []

    with pytest.raises(StrategyError, match="Lazy gave 0 verdicts"):
        scripted().solve(None, "How many?", judge=Lazy())


def test_auto_mode_says_what_it_decided(problems):
    from cot_engine.core.events import Notice

    def decided(engine):
        answer = engine.solve(problems[0].images[0], "How many?")
        [notice] = [e.text for e in answer.trace if isinstance(e, Notice)]
        return answer.trace.started.mode, notice

    mode, notice = decided(scripted())
    assert mode == "trained" and "opens <SUMMARY> by itself" in notice
    mode, notice = decided(scripted(script=lambda request, seed: "A red star. 3"))
    assert mode == "prompted" and "forced" in notice


def test_the_longest_detail_fits_the_context_and_an_overlong_question_is_refused(engine, problems):
    image = problems[0].images[0]
    for detail in ("brief", "full"):
        answer = engine.solve(image, problems[0].question, detail=detail, strategy="greedy")
        assert answer.chain.done and answer.trace.started.detail == detail
    with pytest.raises(InputError, match=r"take \d+ tokens; the model holds 4096"):
        engine.solve(image, "How many stars? " * 1200)
