"""Selections against a second account of them, written out here: which matches, in which order,
who wins, who is set aside, what is remembered and what is charged."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from attentive import Attentive
from hypothesis import given, settings
from hypothesis import strategies as st

from cot_engine.core.chain import Chain, Step
from cot_engine.core.events import Cut, Judged, Judging, Notice, Selected
from cot_engine.core.grammar import FAULTS
from cot_engine.core.match import Verdict
from cot_engine.core.problem import Problem
from cot_engine.core.requests import Segment
from cot_engine.core.stages import DEFAULT_PLAN, Plan, Stage
from cot_engine.core.usage import Usage
from cot_engine.errors import InputError, StrategyError
from cot_engine.judging.judges import OutOfBudget, ScorerJudge, SelfJudge
from cot_engine.search.budget import Budget
from cot_engine.search.select import Arena, combine, merge
from cot_engine.search.session import Session, Settings
from cot_engine.search.strategy import Select
from cot_engine.search.tournament import TOURNAMENTS, Result, play
from cot_engine.testing import ScriptedBackend

PLAN = DEFAULT_PLAN.fit(0)
TURNED = {"first": "second", "second": "first", "tie": "tie"}


def step(text, logprob=-1.0, tokens=1, stage="SUMMARY", faults=()):
    return Step(text, (Segment(text, (1,)),), stage, logprob, tokens, "stop", faults)


def session(*, budget=None, problem="p", backend=None, images=(), **more):
    events = []
    made = Session(
        Problem(problem, "Which?"),
        backend or ScriptedBackend(),
        Settings(plan=PLAN, budget=budget, **more),
        events.append,
        "scope",
        images,
    )
    return made, events


class Table:
    """A judge whose verdict on an ordered pair of texts is drawn from that pair alone."""

    def __init__(self, symmetric=False, seed=0, kinds=("first", "second", "tie", "unreadable")):
        self.symmetric, self.seed, self.kinds, self.asked = symmetric, seed, kinds, []

    def verdict(self, a, b):
        rng = random.Random(f"{self.seed}|{a.text}|{b.text}")
        kind, size = rng.choice(self.kinds), rng.choice((0.5, 1.0, 2.0))
        margin = {"first": size, "second": -size, "tie": 0.0, "unreadable": size}[kind]
        outcome = "tie" if kind == "unreadable" else kind
        return Verdict(outcome, margin, kind != "unreadable", f"{a.text}>{b.text}")

    async def compare(self, pairs, case, ask):
        self.asked += [(a.id, b.id, case.about) for a, b in pairs]
        return [self.verdict(a, b) for a, b in pairs]


class Account:
    """What selections should come to: the rules of docs/decisions.md, in plain loops."""

    def __init__(self, judge, seed_of, tournament, both):
        self.judge, self.seed_of, self.tournament, self.both = judge, seed_of, tournament, both
        self.held, self.number, self.asked = {}, 0, []

    def likelihood(self, chain, about):
        steps = chain.steps if about == "whole" else chain.steps[-1:]
        tokens = sum(s.tokens for s in steps)
        return sum(s.logprob for s in steps) / tokens if tokens else -99.0

    def tier(self, chain, about):
        steps = chain.steps if about == "whole" else chain.steps[-1:]
        rank = {"repaired": 0, "penalised": 1, "dropped": 2}
        names = [fault.split(":")[0] for s in steps for fault in s.faults]
        return max((rank[FAULTS[name][0]] for name in names), default=0)

    def seen(self, a, b, about):
        """(verdicts as a sees them, outcome, winner's text, how broken) of two texts."""
        if (about, b.text, a.text) in self.held:
            verdicts, outcome, winner, broken = self.held[about, b.text, a.text]
            if len(verdicts) == 2:
                return (verdicts[1], verdicts[0]), TURNED[outcome], winner, broken, True
            v = verdicts[0]
            back = Verdict(TURNED[v.outcome], -v.margin, v.readable, v.text)
            return (back,), TURNED[outcome], winner, broken, True
        if (about, a.text, b.text) in self.held:
            return (*self.held[about, a.text, b.text], True)
        orders = [(a, b), (b, a)] if self.both else [(a, b)]
        self.asked += [(x.id, y.id, about) for x, y in orders]
        verdicts = tuple(self.judge.verdict(x, y) for x, y in orders)
        said = [v.outcome if v.readable else "tie" for v in verdicts]
        outcome = said[0] if len(said) == 1 or said[0] == TURNED[said[1]] else "tie"
        broken = ""
        if outcome == "tie":
            la, lb = self.likelihood(a, about), self.likelihood(b, about)
            if la != lb:
                winner, broken = (a if la > lb else b), "likelihood"
            else:
                low, high = sorted((a, b), key=lambda chain: chain.id)
                drawn = random.Random(self.seed_of("draw", low.id, high.id)).choice((0, 1))
                winner, broken = (low, high)[drawn], "draw"
        else:
            winner = a if outcome == "first" else b
        self.held[about, a.text, b.text] = verdicts, outcome, winner.text, broken
        return verdicts, outcome, winner.text, broken, False

    def select(self, beam, keep, about):
        self.number += 1
        distinct = {}
        for chain in beam:
            distinct.setdefault(chain.text.strip(), []).append(chain)
        firsts = [group[0] for group in distinct.values()]
        tiers = {chain.id: self.tier(chain, about) for chain in firsts}
        best = min(tiers.values())
        entrants = [c for c in firsts if tiers[c.id] == best]
        aside = [c for c in firsts if tiers[c.id] > best]
        aside.sort(key=lambda c: -self.likelihood(c, about))
        aside.sort(key=lambda c: tiers[c.id])
        matches, ranking = [], list(range(len(entrants)))
        if len(entrants) > 1 and keep < len(firsts):

            def judge(i, j):
                a, b = entrants[i], entrants[j]
                verdicts, outcome, winner, broken, known = self.seen(a, b, about)
                matches.append(
                    (
                        a.id,
                        b.id,
                        verdicts,
                        outcome,
                        (a if winner == a.text else b).id,
                        broken,
                        known,
                    )
                )
                margin = verdicts[0].margin
                if len(verdicts) == 2:
                    margin = (margin - verdicts[1].margin) / 2
                return Result(i if winner == a.text else j, margin)

            rng = random.Random(self.seed_of("tournament", self.number))
            ranking = play(TOURNAMENTS[self.tournament], len(entrants), keep, rng, judge)
        ranked = [entrants[i].id for i in ranking]
        return {
            "candidates": tuple(c.id for c in beam),
            "merged": {g[0].id: tuple(c.id for c in g[1:]) for g in distinct.values() if g[1:]},
            "counts": {g[0].id: sum(c.count for c in g) for g in distinct.values()},
            "unjudged": tuple(c.id for c in aside),
            "ranking": tuple(ranked),
            "kept": tuple((ranked + [c.id for c in aside])[:keep]),
            "matches": matches,
        }


PIECES = st.tuples(
    st.sampled_from(["red", "blue", "green", "red ", "grey", "a b", "c d"]),
    st.sampled_from([-1.0, -2.0, -3.0]),
    st.integers(0, 2),
    st.sampled_from(
        [(), (), (), ("ended:SUMMARY",), ("empty:SUMMARY",), ("echo:SUMMARY", "missing:X")]
    ),
    st.integers(1, 3),
)


def beam_of(pieces, at):
    """Chains of two steps; the first step's faults and likelihood matter for the whole only."""
    made = []
    for k, (text, logprob, tokens, faults, count) in enumerate(pieces):
        parent = Chain("r", (step("x", -5.0 - k % 2, 2, faults=("empty:SUMMARY",) * (k % 3 == 2)),))
        grown = parent.grow(at + k, step(text, logprob, tokens, faults=faults), False)
        made.append(grown.counted(count))
    return tuple(made)


@given(
    st.lists(st.lists(PIECES, min_size=1, max_size=7), min_size=1, max_size=3),
    st.sampled_from(sorted(TOURNAMENTS)),
    st.sampled_from(["both", "one"]),
    st.booleans(),
    st.lists(
        st.tuples(st.integers(1, 4), st.sampled_from(["step", "whole"])), min_size=3, max_size=3
    ),
    st.integers(0, 99),
)
@settings(max_examples=120)
def test_a_selection_is_what_the_rules_make_of_it(beams, tournament, orders, symmetric, how, seed):
    made, events = session(tournament=tournament, orders=orders, seed=seed)
    judge = Table(symmetric, seed)
    account = Account(
        Table(symmetric, seed), made.seed, tournament, orders == "both" and not symmetric
    )
    arena = Arena(made, judge)
    for pieces, (keep, about) in zip(beams, how, strict=False):
        beam = beam_of(pieces, 10)
        events.clear()
        kept = asyncio.run(arena.select(Select(beam, keep, about)))
        expected = account.select(beam, keep, about)
        (told,) = [e for e in events if isinstance(e, Selected)]
        assert told is events[-1] and told.about == about
        for name in ("candidates", "merged", "ranking", "kept"):
            assert getattr(told, name) == expected[name], name
        assert tuple(chain.id for chain in kept) == told.kept
        assert all(chain.count == expected["counts"][chain.id] for chain in kept)
        assert tuple(told.unjudged) == expected["unjudged"]
        got = [
            (m.first, m.second, m.verdicts, m.outcome, m.winner, m.broken_by) for m in told.matches
        ]
        assert got == [m[:-1] for m in expected["matches"]]
        judged = [e for e in events if isinstance(e, Judged)]
        assert [e.match for e in judged] == list(told.matches)
        assert [e.cached for e in judged] == [m[-1] for m in expected["matches"]]
        began = [e for e in events if isinstance(e, Judging)]
        held = bool(expected["matches"])
        assert [(e.about, e.candidates) for e in began] == [
            (about, tuple(c.id for c in merge(beam)[0] if c.id not in told.unjudged))
        ] * held
    assert judge.asked == account.asked, "each pair once, in its orders, and none a second time"


@pytest.mark.parametrize("orders", ["both", "one"])
def test_a_match_held_before_is_seen_from_whichever_stands_first_now(orders):
    made, events = session(orders=orders)
    for seed in range(8):
        judge, beam = Table(seed=seed), ending("a", "b")
        arena, seen = Arena(made, judge), set()
        for _ in range(12):
            (kept,) = asyncio.run(arena.select(Select(beam, 1)))
            (match,) = events[-1].matches
            assert match.winner == kept.id
            first, second = "ab" if match.first == "r.0" else "ba"
            seen.add((first, kept.id))
            assert match.outcome == combine(match.verdicts)
            if match.outcome != "tie":
                assert match.winner == (match.first if match.outcome == "first" else match.second)
            if orders == "both":
                assert [v.text for v in match.verdicts] == [
                    f"{first}>{second}",
                    f"{second}>{first}",
                ]
            elif match.verdicts[0].text != f"{first}>{second}":  # asked as the other order
                there = judge.verdict(*[beam[0], beam[1]] if first == "b" else [beam[1], beam[0]])
                (v,) = match.verdicts
                assert (v.margin, v.readable) == (-there.margin, there.readable)
                assert v.outcome == TURNED[there.outcome]
        assert len(seen) == 2, "seen from both, with one winner"
        asked = 2 if orders == "both" else 1
        assert len(judge.asked) == asked
        asyncio.run(arena.select(Select(beam, 1, "whole")))
        assert len(judge.asked) == 2 * asked, "as a whole they were not compared yet"


def test_the_worst_fault_is_what_a_candidate_is_set_aside_for():
    made, events = session()
    faults = [(), ("echo:SUMMARY", "skipped:SUMMARY", "ended:SUMMARY"), ("ended:X", "empty:X")]
    beam = tuple(
        Chain("r", (step("p", faults=("repeated:X",) * (k == 0)),)).grow(
            k, step(f"t{k}", faults=f), False
        )
        for k, f in enumerate(faults)
    )
    asyncio.run(Arena(made, Table()).select(Select(beam, 3)))
    assert events[-1].unjudged == {"r.2": "empty:X", "r.1": "skipped:SUMMARY"}
    assert events[-1].kept == ("r.0", "r.2", "r.1") and not events[-1].matches
    asyncio.run(Arena(made, Table()).select(Select(beam, 1, "whole")))
    # Of the whole, the first one's earlier fault counts, too: then the one of its middle tier wins.
    assert events[-1].unjudged == {"r.0": "repeated:X", "r.1": "skipped:SUMMARY"}
    assert events[-1].kept == ("r.2",)


def test_nothing_is_held_where_all_are_kept_and_one_alone_meets_nobody():
    made, events = session()
    beam = tuple(Chain().grow(k, step(text), False) for k, text in enumerate(("a", "b", "a ")))
    judge = Table()
    kept = asyncio.run(Arena(made, judge).select(Select(beam, 2)))
    assert [c.id for c in kept] == ["r.0", "r.1"] and [c.count for c in kept] == [2, 1]
    assert [type(e) for e in events] == [Selected] and not judge.asked
    asyncio.run(Arena(made, judge).select(Select(beam[::2], 1)))
    assert not judge.asked and events[-1].merged == {"r.0": ("r.2",)}


# --- what the judge is told ----------------------------------------------------------------------


def ending(*texts, stages=None):
    stages = stages or ["SUMMARY"] * len(texts)
    return tuple(
        Chain().grow(k, step(text, stage=stage), False)
        for k, (text, stage) in enumerate(zip(texts, stages, strict=True))
    )


WHOLE = ("<SUMMARY>a</SUMMARY>", "<SUMMARY>b</SUMMARY>")


@pytest.mark.parametrize(
    ("beam", "about", "tag"),
    [
        (ending(*WHOLE), "step", "SUMMARY"),
        (ending(*WHOLE), "whole", ""),
        (ending(WHOLE[0], "<SUMMARY>b"), "step", ""),  # one is inside its stage
        (ending("a", "b"), "step", ""),
        (ending(WHOLE[0], "<REASONING>b</REASONING>", stages=["SUMMARY", "REASONING"]), "step", ""),
        (
            ending("<CAPTION>a</CAPTION>", "<CAPTION>b</CAPTION>", stages=["CAPTION"] * 2),
            "step",
            "",
        ),
        (ending("a</SUMMARY>", "b", stages=["", ""]), "step", ""),
    ],
)
def test_a_stage_is_named_where_all_have_just_closed_it(beam, about, tag):
    cases = []

    class Looks(Table):
        async def compare(self, pairs, case, ask):
            cases.append(case)
            return await super().compare(pairs, case, ask)

    made, events = session(images=("swapped",))
    asyncio.run(Arena(made, Looks()).select(Select(beam, 1, about)))
    (case,) = cases
    assert case.stage == (PLAN[tag] if tag else None)
    assert (case.about, case.images, case.problem, case.plan) == (
        *(about, ("swapped",)),
        *(made.problem, PLAN),
    )
    assert {e.stage for e in events if isinstance(e, (Judging, Selected))} == {tag}


def test_the_only_stage_of_a_plan_is_named_too():
    made, events = session()
    made.settings = Settings(plan=Plan((Stage("SUMMARY", "", "Which?"),)))
    asyncio.run(Arena(made, Table()).select(Select(ending(*WHOLE), 1)))
    assert events[-1].stage == "SUMMARY"


def test_the_root_is_a_candidate_too():
    made, events = session()
    asyncio.run(Arena(made, Table()).select(Select((Chain(), *ending(WHOLE[0])), 1)))
    assert events[-1].stage == "" and events[-1].candidates == ("r", "r.0")


# --- what it costs, and where that cannot be paid ------------------------------------------------


def test_judging_keeps_in_mind_the_most_that_one_more_candidate_took():
    made, events = session(budget=Budget(10_000, "tokens"), tournament="round-robin")
    arena, reserved, cost = Arena(made, SelfJudge()), [], made.cost
    made.cost = lambda request: reserved.append(cost(request)) or reserved[-1]
    beams = [
        ending(*(f"<SUMMARY>{w * n}</SUMMARY>" for w in "abcd"[:many]))
        for n, many in ((9, 3), (1, 2))
    ]
    costs = []
    for beam in beams:
        before = made.meter.total
        asyncio.run(arena.select(Select(beam, 1)))
        spent = made.meter.total.tokens - before.tokens
        assert events[-1].usage.tokens == spent and spent > 0
        assert events[-1].usage.calls == 2 * len(events[-1].matches)
        costs.append(made.match)
        if len(costs) == 1:  # of two candidates more than one
            asked = [usage.tokens for usage in reserved if usage.calls > 1]
            assert made.match == sum(asked) / 2 >= made.meter.usage["judge"].tokens / 2
    assert costs[1] == costs[0]  # the latest took less; the most is what counts


def test_a_match_that_cannot_be_paid_is_a_tie_and_what_it_would_take_is_known():
    made, events = session(budget=Budget(150, "tokens"))
    arena, beam = Arena(made, SelfJudge()), ending(*WHOLE)
    made.meter.charge("generate", made.backend.estimate(made.growing((), None, (0,), 20)))
    left = made.meter.left
    asyncio.run(arena.select(Select(beam, 1)))
    (cut,) = [e for e in events if isinstance(e, Cut)]
    assert (cut.what, cut.asked, cut.granted, cut.left) == ("matches", 1, 0, left)
    (match,) = events[-1].matches
    assert match.outcome == "tie" and match.broken_by and not match.flipped
    assert {v.text for v in match.verdicts} == {"not judged: out of budget"}
    assert {(v.outcome, v.margin, v.readable) for v in match.verdicts} == {("tie", 0.0, False)}
    assert len(match.verdicts) == 2
    floor = made.floor(beam[0].segments, 0).tokens
    assert made.match + floor > left, "why it was refused"
    assert not events[-1].usage.tokens


@pytest.mark.parametrize("turned", [False, True])
def test_judging_leaves_what_concluding_the_longest_takes(turned):
    """Whichever wins must still be concluded; where late tokens cost more that is dearest behind
    the longest, not behind the one that came first."""
    beam = ending("<SUMMARY>a</SUMMARY>", "<SUMMARY>" + "b " * 300 + "</SUMMARY>")
    beam = tuple(
        Chain(c.id, (replace(c.last, tokens=len(c.text.split())),)) for c in beam[:: 1 - 2 * turned]
    )
    made, events = session(budget=Budget(1e15, "flops"), backend=Attentive())
    floor = max(made.ending(c.segments, 0).flops for c in beam)
    asyncio.run(Arena(made, SelfJudge()).select(Select(beam, 1)))
    cost, judged = made.match, []
    for share in (0.2, 0.5, 0.9, 0.99, 1.01, 1.5):
        budget = Budget(int(cost + floor * share), "flops")
        made, events = session(budget=budget, backend=Attentive())
        asyncio.run(Arena(made, SelfJudge()).select(Select(beam, 1)))
        judged.append(any(v.readable for m in events[-1].matches for v in m.verdicts))
        assert made.meter.left >= floor
    assert judged == [False] * 4 + [True] * 2


@pytest.mark.parametrize(
    ("error", "said"), [(InputError("Too long."), "2 matches were not judged. Too long.")]
)
def test_candidates_that_the_judge_cannot_read_are_ties_with_a_notice(error, said):
    class Fails(Table):
        async def compare(self, pairs, case, ask):
            raise error

    made, events = session(tournament="swiss")
    asyncio.run(Arena(made, Fails()).select(Select(ending("a", "b", "c", "d"), 1)))
    assert {e.text for e in events if isinstance(e, Notice)} == {said}
    for match in events[-1].matches:
        assert match.broken_by == "draw" and len(match.verdicts) == 2
        assert {(v.outcome, v.margin, v.readable, v.text) for v in match.verdicts} == {
            ("tie", 0.0, False, "not judged")
        }


@pytest.mark.parametrize("more", [-1, 1])
def test_a_judge_owes_a_verdict_for_each_pair(more):
    class Miscounts(Table):
        async def compare(self, pairs, case, ask):
            return [Verdict("first", 1.0)] * (len(pairs) + more)

    with pytest.raises(
        StrategyError, match=rf"Miscounts gave {2 + more} verdicts on 2 pairs.*each"
    ):
        asyncio.run(Arena(session()[0], Miscounts()).select(Select(ending("a", "b"), 1)))


def test_a_finished_winner_makes_the_answer_safe_and_an_unfinished_one_does_not():
    made, _ = session()
    arena = Arena(made, Table())
    asyncio.run(arena.select(Select(ending("a", "b"), 1)))
    assert made.safe is None
    done = tuple(Chain(c.id, c.steps, True) for c in ending("c", "d"))
    (first,) = asyncio.run(arena.select(Select(done, 1)))
    assert made.safe == first
    (other,) = asyncio.run(arena.select(Select((Chain("r.9", (step("e", -0.1),), True),), 1)))
    assert made.safe == other
    asyncio.run(arena.select(Select(ending("f", "g"), 1)))
    assert made.safe == other
    likely = Chain("r.8", (step("h", -0.1),), True), Chain("r.9", (step("i", -9.0),))
    unlikely = Chain("r.8", (step("k", -9.0),), True), Chain("r.9", (step("j", -0.1),))
    by_likelihood = Arena(made, ScorerJudge())
    kept = asyncio.run(by_likelihood.select(Select((*unlikely, *ending("z", "y")), 2)))
    assert kept[0] == unlikely[1] and made.safe == other, "the best is not finished"
    kept = asyncio.run(by_likelihood.select(Select((*likely, *ending("z", "y")), 2)))
    assert kept[0] == likely[0] == made.safe != kept[1]


@pytest.mark.parametrize(
    ("orders", "symmetric", "asked"), [("both", False, 2), ("both", True, 1), ("one", False, 1)]
)
@pytest.mark.parametrize(
    ("tournament", "most", "at_most"), [("swiss", 2 * 3, True), ("round-robin", 6, False)]
)
def test_listeners_are_told_how_many_matches_there_will_be(
    tournament, most, at_most, orders, symmetric, asked
):
    made, _ = session(tournament=tournament, orders=orders)
    told, doing = [], made.reporter.doing
    made.reporter.doing = lambda *a, **more: told.append((a, more)) or doing(*a, **more)
    asyncio.run(Arena(made, Table(symmetric)).select(Select(ending(*"abcd"), 2)))
    assert told == [(("judging", "", most), {"at_most": at_most, "orders": asked})]


def test_when_nothing_is_left_nothing_is_said_to_be_left():
    made, events = session(budget=Budget(150, "tokens"))
    made.meter.charge("generate", Usage(decoded=150))
    asyncio.run(Arena(made, SelfJudge()).select(Select(ending(*WHOLE), 1)))
    assert [e.left for e in events if isinstance(e, Cut)] == [0.0]


def test_out_of_budget_is_no_error_of_a_part():
    assert not issubclass(OutOfBudget, StrategyError)
