"""How far a search is inside a stage: told to listeners, recorded nowhere, free with none."""

import asyncio
import itertools
import random

import pytest
from cot_engine_strategies.best_of_n import BestOfN
from cot_engine_strategies.stage_beam import StageBeam

from cot_engine import (
    LikelihoodScorer,
    Problem,
    Progress,
    RationaleJudge,
    ScorerJudge,
    SelfJudge,
    TraceFile,
)
from cot_engine.core.events import Grown, Judging, event_from_json, event_to_json
from cot_engine.core.trace import Trace
from cot_engine.errors import StrategyError, TraceError
from cot_engine.search.loop import Named, search
from cot_engine.search.session import Settings
from cot_engine.search.tournament import TOURNAMENTS, matches_of, play
from cot_engine.testing import ScriptedBackend, solve_scripted, staged_reply


def slow():
    """Writes a word at a time, and judges a pair at a time, and says so while it does."""

    def wordy(request, seed):
        return staged_reply(request, seed).replace("About", "About" + " so" * (2 + seed % 7))

    return ScriptedBackend(wordy, pause=0.005)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr("cot_engine.search.progress.EVERY", 0.001)


def stages(heard):
    """The Progress events, those of one stage together."""
    found = []
    for event in heard:
        if not isinstance(event, Progress):
            continue
        if not found or (found[-1][0].doing, found[-1][0].unit) != (event.doing, event.unit):
            found.append([])
        found[-1].append(event)
    return found


def test_what_moves_inside_a_stage():
    heard = []
    solve_scripted(StageBeam(n=4), backend=slow(), judge=SelfJudge(), listen=heard.append)
    grown, judged, *_ = stages(heard)
    assert [grown[0].doing, grown[0].unit, grown[0].of] == ["growing", "SUMMARY", 4]
    assert [judged[0].doing, judged[0].unit] == ["judging", "SUMMARY"]
    entrants = next(len(e.candidates) for e in heard if isinstance(e, Judging))
    assert {event.of for event in judged} == {entrants - 1}
    for stage in (grown, judged):
        assert len(stage) > 1
        assert stage[0].done == stage[0].tokens == 0
        for one, two in itertools.pairwise(stage):
            assert one.done <= two.done <= two.of and one.tokens <= two.tokens
            assert one.seconds <= two.seconds
    assert len({event.tokens for event in grown}) > 3
    assert {0, 1, 2} <= {event.done for event in grown}
    assert max(event.tokens_per_second for event in grown) > 0
    assert max(event.done for event in judged) > 0


@pytest.mark.parametrize("mode", ["trained", "prompted"])
@pytest.mark.parametrize("strategy", [StageBeam(n=3), BestOfN(n=2)])
def test_who_listens_reads_what_is_being_written(mode, strategy):
    """Each candidate by the id that it will have, growing towards its step."""
    heard, now, seen = [], {}, set()
    backend, settings = slow(), Settings(mode=mode)
    solve_scripted(strategy, backend=backend, settings=settings, listen=heard.append)
    for event in heard:
        if isinstance(event, Progress):
            assert all(text.startswith(now.get(id, "")) for id, text in event.texts.items())
            now = event.texts
            seen |= {(id, text) for id, text in now.items() if text}
        elif isinstance(event, Grown) and now:
            steps = {chain.id: chain.last.text for chain in event.chains}
            assert now.keys() == steps.keys()
            assert all(steps[id].startswith(text) for id, text in now.items())
            assert {id for id, _ in seen} >= steps.keys()
            now = {}
    ids = [id for id, _ in seen]
    assert max(map(ids.count, ids)) > 2, "they grow"


def test_a_listener_changes_no_trace_and_none_records_it(tmp_path):
    alone = solve_scripted(StageBeam(n=3), backend=slow(), listen=lambda event: None).trace
    heard = []
    with TraceFile(tmp_path / "trace.jsonl") as file:

        def listen(event):
            heard.append(event)
            file(event)

        trace = solve_scripted(StageBeam(n=3), backend=slow(), listen=listen).trace
    progress = [event for event in heard if isinstance(event, Progress)]
    assert len(progress) > 6 and not any(isinstance(event, Progress) for event in trace)
    assert trace.canonical() == alone.canonical()
    assert Trace(heard) == trace == Trace.read(tmp_path / "trace.jsonl")
    line = event_to_json(progress[0])  # a page may want it
    assert line.startswith('{"event":"progress","doing":"growing"')
    with pytest.raises(TraceError):
        event_from_json(line)


def test_nothing_is_counted_where_nobody_listens():
    backend = ScriptedBackend()
    solve_scripted(StageBeam(n=3), backend=backend, judge=SelfJudge())
    assert backend.requests and all(request.headway is None for request in backend.requests)


@pytest.mark.parametrize("mode", ["trained", "prompted"])
def test_a_backend_that_never_counts_works_too(mode):
    """Answered requests count; of a response that takes several, only the last finishes it."""

    class Waiting(ScriptedBackend):
        async def generate(self, request):
            await asyncio.sleep(0.005 * len(self.requests))  # one after the other
            return await super().generate(request)

    heard = []
    solve_scripted(
        BestOfN(n=5),
        backend=Waiting(),
        judge=RationaleJudge(),
        settings=Settings(mode=mode),
        listen=heard.append,
    )
    grown, judged = stages(heard)
    assert {event.of for event in grown} == {5}
    if mode == "prompted":  # trained: one request for all
        done = [event.done for event in grown]
        assert done == sorted(done) and len(set(done)) > 1
        assert max(event.tokens for event in grown) > 0
    assert judged[0].doing == "judging" and judged[0].unit == ""
    assert max(event.tokens for event in judged) > 0, "this judge writes"


def test_a_stage_that_is_sampled_once_more_counts_anew():
    def lost(request, seed):
        text = "".join(segment.text for segment in request.prefix)
        if text.endswith("<REASONING>"):
            return "Forced.</REASONING>"
        return "<CONCLUSION>1</CONCLUSION>" if text else "<SUMMARY>Look.</SUMMARY>"

    heard = []
    solve_scripted(StageBeam(n=2), backend=ScriptedBackend(script=lost), listen=heard.append)
    told = [e for e in heard if isinstance(e, (Progress, Grown)) and e.unit == "REASONING"]
    first, again = (k for k, event in enumerate(told) if isinstance(event, Grown))
    assert told[again].forced and again > first + 1
    assert all((e.done, e.tokens) == (0, 0) for e in (told[0], told[first + 1]))


def test_a_listener_that_raises_while_a_stage_runs_ends_the_search():
    """At once: the model is not asked for the rest of the stage."""

    class Endless(ScriptedBackend):
        async def generate(self, request):
            while True:
                await asyncio.sleep(0.001)
                request.headway.tokens += 1

    def listen(event):
        if isinstance(event, Progress) and event.tokens > 2:
            raise OSError("no space left")

    with pytest.raises(StrategyError, match="no space left"):
        solve_scripted(StageBeam(n=4), backend=Endless(), listen=listen)

    async def several():  # the caller's own task goes on
        with pytest.raises(StrategyError):
            await searched(listen)
        await asyncio.sleep(0)
        return "went on"

    async def searched(listen):
        named = Named("x", StageBeam(n=2)), Named("likelihood", ScorerJudge())
        return await search(
            *(Problem("p", "How many?"), *named, Endless(), Settings()),
            scorers=lambda name: LikelihoodScorer(), listen=listen,
        )  # fmt: skip

    assert asyncio.run(several()) == "went on"


@pytest.mark.parametrize("name", TOURNAMENTS)
def test_how_many_matches_there_will_be(name):
    rng = random.Random(3)
    for n in range(2, 20):
        for keep in range(1, n):
            held = []

            def judge(i, j, held=held):
                held.append((i, j))
                return rng.choice((i, j)), 0.0

            play(TOURNAMENTS[name], n, keep, rng, judge)
            most, exact = matches_of(name, n, keep)
            assert len(held) == most if exact else len(held) <= most, (n, keep)
    assert matches_of("somebody's own", 4, 1) == (0, False)
