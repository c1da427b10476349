"""Whatever a judge or a scorer gives or asks: what it did is said, or it is sound."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from beams import Beam
from broken_parts import (
    NUMBERS,
    VERDICTS,
    Giving,
    Lost,
    Nameless,
    Raising,
    Scoring,
    broken,
    names,
    solved,
)

from cot_engine.core.boundaries import Until
from cot_engine.core.events import Notice, Selected
from cot_engine.core.match import Verdict
from cot_engine.core.requests import GREEDY, Prompt
from cot_engine.core.usage import Usage
from cot_engine.errors import InputError, ModelError
from cot_engine.judging.judges import OutOfBudget, ScorerJudge, SelfJudge
from cot_engine.testing import ScriptedBackend


@pytest.mark.parametrize("said", VERDICTS)
def test_whatever_a_judge_gives(said):
    assert "The judge likelihood (Giving)" in broken(said, judge=Giving(VERDICTS[said]))


@pytest.mark.parametrize("said", NUMBERS)
def test_whatever_a_scorer_gives(said):
    bad = Giving(NUMBERS[said])
    text = broken(said, strategy=Scoring(), scorers=lambda name: bad)
    assert "The scorer mine (Giving)" in text
    assert "The scorer Giving" in broken(said, judge=ScorerJudge(bad))  # not the judge's fault


def test_numbers_of_other_kinds_become_plain_ones():
    numbers = [np.float32(0.5), np.int64(2), 3, np.array(1.5)]
    strange = Giving(lambda n: [Verdict("first", numbers[k % 4]) for k in range(n)])
    error, heard, _, answer = solved(judge=strange)
    assert error is None
    margins = [v.margin for e in heard if isinstance(e, Selected) for m in e.matches
               for v in m.verdicts]  # fmt: skip
    assert margins and all(type(margin) is float for margin in margins)
    assert answer.trace.canonical()

    @dataclass(frozen=True)
    class More(Verdict):
        extra: Any = None

    error, _, _, answer = solved(judge=Giving(lambda n: [More("first", 1.0, extra=Nameless())] * n))
    assert error is None and answer.trace.canonical()


def test_what_is_no_coroutine():
    class Plain(SelfJudge):
        def compare(self, pairs, case, ask):
            return [Verdict("tie")] * len(pairs)

        score = compare

    class Asynchronous(SelfJudge):
        async def compare(self, pairs, case, ask):
            yield Verdict("tie")

        score = compare

    for kind in (Plain, Asynchronous):
        assert "async def compare" in broken("is awaited", judge=kind())
        text = broken("is awaited", strategy=Scoring(), scorers=lambda name, kind=kind: kind())
        assert "async def score" in text


def test_a_class_in_place_of_an_object_and_what_has_no_method():
    assert "Give an object of it: SelfJudge()" in broken("is a class", judge=SelfJudge)
    assert "Give an object of it: Beam()" in broken("is a class", strategy=Beam)

    class Mute:
        symmetric = True

    broken("has no method compare()", judge=Mute())
    broken("has no method score()", strategy=Scoring(), scorers=lambda name: Mute())
    broken("has no method search()", strategy=Mute())


@pytest.mark.parametrize("value", [None, 1, "no", Nameless()], ids=names)
def test_a_judge_says_whether_it_is_symmetric(value):
    class Strange(SelfJudge):
        symmetric = value

    backend = ScriptedBackend()
    broken("as symmetric", judge=Strange(), backend=backend)
    assert not backend.requests  # refused before the model is asked


def test_a_judge_may_do_with_its_list_of_pairs_what_it_likes():
    class Clearing(SelfJudge):
        async def compare(self, pairs, case, ask):
            n = len(pairs)
            pairs.clear()
            return [Verdict("tie")] * n

    assert solved(judge=Clearing())[0] is None


def test_an_error_of_the_model_is_not_the_judges():
    broken("The model is gone.", ModelError, backend=Lost(), judge=SelfJudge())

    class Wrapping(SelfJudge):
        async def compare(self, pairs, case, ask):
            try:
                return await SelfJudge.compare(self, pairs, case, ask)
            except Exception as error:
                raise RuntimeError("the judge gave up") from error

    broken("The model is gone.", ModelError, backend=Lost(), judge=Wrapping())


def test_what_a_judge_asked_wrongly_is_its_own_fault():
    class Wrong(Giving):
        async def compare(self, pairs, case, ask):
            return await self.make(ask)

    prompt, until = Prompt("?"), Until()
    for said, wrongly in {
        "tails is 3": lambda ask: ask.choose(prompt, 3, ("1", "2")),
        "tails is []": lambda ask: ask.choose(prompt, [], ("1", "2")),
        "choices is [1, 2]": lambda ask: ask.choose(prompt, ["a"], [1, 2]),
        "prompt is 'x'": lambda ask: ask.choose("x", ["a"], ["1", "2"]),
        "prefix is 3": lambda ask: ask.choose(prompt, ["a"], ["1", "2"], 3),
        "length is 0": lambda ask: ask.write(prompt, ["a"], until, 0, GREEDY),
        "None was given": lambda ask: ask.write(prompt, ["a"], None, 4, GREEDY),
        "missing 1 required": lambda ask: ask.write(prompt, ["a"], until, 4),
    }.items():
        assert "The judge" in broken(said, judge=Wrong(wrongly))


def test_a_judge_cannot_ask_after_its_answer():
    kept = []

    class Keeping(SelfJudge):
        async def compare(self, pairs, case, ask):
            kept.append(ask)
            if len(kept) > 1:
                await kept[0].choose(Prompt("?"), ["a"], ["1", "2"])
            return [Verdict("tie")] * len(pairs)

    broken("asked after it had given its answer", judge=Keeping())


def test_a_judge_that_runs_out_of_budget_or_cannot_judge_leaves_ties():
    for error in (OutOfBudget(), InputError("Too long.")):
        failed, _, _, answer = solved(judge=Raising(error))
        assert failed is None and answer.text
        failed, heard, _, answer = solved(
            strategy=Scoring(), scorers=lambda name, error=error: Raising(error)
        )
        assert failed is None and answer.text
        assert any("Scored by likelihood" in e.text for e in heard if isinstance(e, Notice))


def test_what_a_judge_spent_before_an_error_is_charged_and_in_the_trace():
    class Spending(SelfJudge):
        """Two of its three replies come, then it cannot go on."""

        async def compare(self, pairs, case, ask):
            await ask.choose(Prompt("?"), ["a", "b"], ["1", "2"])
            await ask.write(Prompt("?"), ["a", "b", "c"], Until(), 4, GREEDY)

    class Third(ScriptedBackend):
        async def generate(self, request):
            if request.role == "judge" and request.prompt.text.endswith("c"):
                for _ in range(5):
                    await asyncio.sleep(0)
                raise InputError("Too long.")
            return await super().generate(request)

    error, heard, _, answer = solved(judge=Spending(), backend=Third(), strategy=Beam(2))
    assert error is None
    judged = sum((e.usage for e in heard if isinstance(e, Selected)), Usage())
    held = [e for e in heard if isinstance(e, Selected) and e.matches]
    assert judged == answer.usage["judge"] and judged.calls == 4 * len(held) > 0
