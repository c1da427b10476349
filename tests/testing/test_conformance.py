"""The suites that every part must pass: ours do, and one that is broken is found out, by the rule.

What `test_parts_*` show of the core is shown of the suites, on the same broken parts.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import dataclass, field, replace

import pytest
from beams import Beam
from broken_parts import (
    NUMBERS,
    RAISED,
    REPLIES,
    REQUESTS,
    RETURNED,
    VERDICTS,
    Doing,
    Giving,
    Raising,
    asking,
    changed,
    names,
    throwing,
)
from tiny_models import picture

from cot_engine import plugins
from cot_engine.core.boundaries import Until
from cot_engine.core.grammar import read
from cot_engine.core.match import Verdict
from cot_engine.core.problem import Problem
from cot_engine.core.requests import GREEDY, Prompt
from cot_engine.core.usage import Usage
from cot_engine.errors import InputError
from cot_engine.judging.judges import JUDGES, LikelihoodScorer, OracleJudge, ScorerJudge, SelfJudge
from cot_engine.judging.prompts import FORMS
from cot_engine.search.strategy import Expand, Score
from cot_engine.testing import (
    ScriptedBackend,
    check_backend,
    check_exact,
    check_judge,
    check_scorer,
    check_strategy,
)

# --- ours ----------------------------------------------------------------------------------------

PARAMETERS = {"self+likelihood": ({"weight": 1.5}, {"weight": -2.0, "prompt": "brief"})}


def worth(problem, chain, plan):
    return float(len(read(chain.text, plan).contents) + chain.text.count("t"))


@pytest.mark.parametrize(
    "judge",
    [
        *(JUDGES[name](**p) for name in JUDGES for p in PARAMETERS.get(name, ({},))),
        *(SelfJudge(prompt=form) for form in FORMS),
        *(OracleJudge("2"), OracleJudge(), OracleJudge(quality=worth)),
    ],
    ids=lambda judge: repr(judge).partition(" at 0x")[0][:60],  # an address is another each time
)
def test_all_our_judges_conform(judge):
    check_judge(judge)


def test_all_our_scorers_conform():
    for name in plugins.names("scorer"):
        check_scorer(plugins.make("scorer", name, {}))


def test_the_scripted_backend_conforms():
    backend = ScriptedBackend()
    for check in (check_exact, check_backend):
        check(backend, Problem("p", "How many are there?"))
    assert backend.closed


def test_the_suites_run_where_a_loop_runs():
    async def inside():
        check_judge(SelfJudge())
        check_scorer(LikelihoodScorer())
        check_backend(ScriptedBackend(), Problem("p", "How many are there?"))

    asyncio.run(inside())


# --- broken ones ---------------------------------------------------------------------------------


def found_out(check, part, said=""):
    with pytest.raises(AssertionError) as error:
        check(part)
    assert said in str(error.value), error.value


@pytest.mark.parametrize("error", RAISED, ids=names)
def test_whatever_is_raised(error):
    said = f"raised {names(error)}"
    found_out(check_judge, Raising(error), said)
    found_out(check_scorer, Raising(error), said)
    found_out(check_strategy, Doing(throwing(error)), said)


@pytest.mark.parametrize("said", VERDICTS)
def test_whatever_a_judge_gives(said):
    # How many pairs there are is another matter here than in a search.
    found_out(check_judge, Giving(VERDICTS[said]), said.replace("on 2 pairs", "on 6 pairs"))


@pytest.mark.parametrize("said", NUMBERS)
def test_whatever_a_scorer_gives(said):
    found_out(check_scorer, Giving(NUMBERS[said]), said.replace("for 2", "for 3"))


@pytest.mark.parametrize("said", REQUESTS)
def test_whatever_a_strategy_asks(said):
    # What exactly is yielded depends on the search; that it is refused does not.
    kind = said.partition(" ")[0] if said.startswith(("raised", "yielded")) else "yielded"
    found_out(check_strategy, Doing(asking(REQUESTS[said])), kind)


@pytest.mark.parametrize("said", RETURNED)
def test_whatever_a_strategy_returns(said):
    def act(task):
        grown = yield Expand(task.start, until="end", n=2)
        return RETURNED[said](grown)

    found_out(check_strategy, Doing(act), said)


@pytest.mark.parametrize("said", REPLIES)
def test_whatever_a_backend_answers(said):
    method, change = REPLIES[said]
    said = said.replace("3 seeds", "1 seeds") if "3 seeds" in said else said
    part = "gave" if "seeds" in said or "tokens where" in said else said
    found_out(lambda b: check_backend(b, Problem("p", "?")), changed(method, change), part)


def test_what_is_no_object_of_its_kind():
    found_out(check_judge, SelfJudge, "not its class")
    found_out(check_scorer, LikelihoodScorer, "not its class")
    found_out(check_strategy, Beam, "not its class")

    class Plain:
        def search(self, task):
            return (yield Expand(task.start, until="end"))[0]

    @dataclass
    class Thawed(Plain):
        pass

    found_out(check_strategy, Plain(), "a strategy is a frozen dataclass")
    found_out(check_strategy, Thawed(), "must be frozen")
    found_out(check_judge, object(), "as symmetric")
    found_out(check_scorer, object(), "has no method score()")


# --- broken in ways that the core cannot see -----------------------------------------------------


class Judging(SelfJudge):
    """The model itself, and then something done to its verdicts."""

    __slots__ = ("seen",)

    def __init__(self, symmetric=False):
        object.__setattr__(self, "seen", [])
        SelfJudge.__init__(self)

    async def compare(self, pairs, case, ask):
        return self.change(await SelfJudge.compare(self, pairs, case, ask), pairs)


def sign(margin):
    return Verdict("first" if margin > 0 else "second" if margin < 0 else "tie", margin)


JUDGED = {
    "same input, same verdict": lambda self, given, pairs: (
        self.seen.append(0),
        [sign(v.margin + len(self.seen)) for v in given],
    )[1],
    "does not depend on the others in its batch": lambda self, given, pairs: [
        sign(v.margin / len(pairs)) for v in given
    ],
    "the margin's sign is the outcome": lambda self, given, pairs: (
        [Verdict("first", 0.0)] * len(pairs)
    ),
    "it judges something": None,
}


@pytest.mark.parametrize("said", JUDGED)
def test_a_judge_that_breaks_a_rule(said):
    class Broken(Judging):
        def change(self, given, pairs):
            if JUDGED[said] is None:
                raise InputError("Nothing for me.")
            return JUDGED[said](self, given, pairs)

    found_out(check_judge, Broken(), said)


def test_a_judge_that_is_not_as_symmetric_as_it_says():
    class First(SelfJudge):
        symmetric = True

        async def compare(self, pairs, case, ask):
            return [Verdict("first", 1.0)] * len(pairs)

    found_out(check_judge, First(), "(b, a) reverses (a, b)")


def test_a_judge_that_swallows_the_loss_of_the_model_or_asks_wrongly():
    class Swallowing(SelfJudge):
        async def compare(self, pairs, case, ask):
            try:
                return await SelfJudge.compare(self, pairs, case, ask)
            except Exception:
                return [Verdict("tie")] * len(pairs)

    class Wrong(SelfJudge):
        async def compare(self, pairs, case, ask):
            await ask.write(Prompt("?"), "tails", Until(), 4, GREEDY)

    class Fragile(SelfJudge):
        async def compare(self, pairs, case, ask):
            [reply] = await ask.write(Prompt("?"), ["a"], Until(), 4, GREEDY)
            return [sign(float(reply.split("Choice: ")[1]))] * len(pairs)

    found_out(check_judge, Swallowing(), "the model is gone")
    found_out(check_judge, Wrong(), "tails is 'tails'")
    found_out(check_judge, Fragile(), "raised IndexError")  # at the first odd reply


def test_a_scorer_that_breaks_a_rule():
    class Counting:
        def __init__(self):
            self.count = itertools.count()

        async def score(self, chains, case, ask):
            return [float(next(self.count)) for _ in chains]

    class Ranking:
        async def score(self, chains, case, ask):
            return [float(len(chains))] * len(chains)

    class Scaled:
        def __init__(self, scale, number):
            self.scale, self.number = scale, number

        async def score(self, chains, case, ask):
            return [self.number] * len(chains)

    check_scorer(Scaled("probability", 1.0))
    found_out(check_scorer, Scaled("probability", 1.2), "gave the score 1.2, and its scale is prob")
    found_out(check_scorer, Scaled("probability", -0.1), "A probability is a number from 0 to 1")
    found_out(check_scorer, Scaled("log", 0.5), "The logarithm of a probability is 0 at most")
    found_out(check_scorer, Scaled("percent", 50.0), "gave 'percent' as its scale")
    found_out(check_scorer, Counting(), "same input, same score")
    found_out(check_scorer, Ranking(), "does not depend on the others")
    found_out(check_judge, ScorerJudge(Giving(NUMBERS["gave None"])), "The scorer Giving")


def test_a_strategy_that_breaks_a_rule():
    @dataclass(frozen=True)
    class Counting:
        """Grows more each time."""

        seen: list = field(default_factory=list)

        def search(self, task):
            self.seen.append(0)
            grown = yield Expand(task.start, until="end", n=len(self.seen))
            return grown[0]

    @dataclass(frozen=True)
    class Shared:
        """What one search has grown, another one at the same time asks for."""

        held: dict = field(default_factory=dict)

        def search(self, task):
            self.held["beam"] = yield Expand(task.start, until=task.plan.stages[0], n=2)
            yield Expand(self.held["beam"], until="sentence")
            return self.held["beam"][0]

    @dataclass(frozen=True)
    class FourStages:
        def search(self, task):
            beam = yield Expand(task.start, until=task.plan.stages[2])
            return beam[0]

    @dataclass(frozen=True)
    class Wasteful:
        """Relies on getting as many as it asked for."""

        def search(self, task):
            grown = yield Expand(task.start, until="end", n=4)
            return grown[3]

    @dataclass(frozen=True)
    class Scored:
        def search(self, task):
            grown = yield Expand(task.start, until="end", n=2)
            yield Score(grown, "no such scorer")
            return grown[0]

    found_out(check_strategy, Counting(), "same inputs, same trace")
    found_out(check_strategy, Shared())
    found_out(check_strategy, FourStages(), "IndexError")
    found_out(check_strategy, Wasteful(), "IndexError")
    found_out(check_strategy, Scored(), "no such scorer")


# --- backends ------------------------------------------------------------------------------------


def test_the_local_backend_conforms(backend):
    for problem in (Problem("p", "how many?", (picture(0),)), Problem("t", "how many?")):
        check_exact(backend, problem)
    check_backend(backend, Problem("p", "how many?", (picture(0),)))


class Late(ScriptedBackend):
    """Writes on after its boundary."""

    async def generate(self, request):
        return await super().generate(replace(request, until=Until()))


class Sure(ScriptedBackend):
    async def choose(self, request):
        reply = await super().choose(request)
        return replace(reply, logprobs=tuple((2.0, -2.0) for _ in reply.logprobs))


class Nobody(ScriptedBackend):
    def __init__(self, **_):
        super().__init__(info=None)


class Releasing(ScriptedBackend):
    def release(self, scope):
        del self._known[scope]


class Deaf(ScriptedBackend):
    """To its seeds."""

    def _generation(self, request, seed):
        return super()._generation(request, 0)


class Blind(ScriptedBackend):
    """To boundaries, where it says that it has seen none."""

    async def generate(self, request):
        reply = await super().generate(replace(request, until=Until()))
        cut = [request.until.end(each.text) for each in reply.generations]
        short = tuple(
            each if end is None else replace(each, text=each.text[: end - 1])
            for each, end in zip(reply.generations, cut, strict=True)
        )
        return replace(reply, generations=short)


class Hasty(ScriptedBackend):
    """Says that it had no room for more."""

    def _generation(self, request, seed):
        made = super()._generation(request, seed)
        ids = made.ids[:2]
        return replace(made, ids=ids, finish="length")


class Free(ScriptedBackend):
    """Does not count what it writes."""

    async def generate(self, request):
        reply = await super().generate(request)
        return replace(reply, usage=replace(reply.usage, decoded=0))


class Cheap(ScriptedBackend):
    """Estimates less than it writes."""

    def estimate(self, request):
        return replace(super().estimate(request), decoded=0)


class Boundless(ScriptedBackend):
    """Reads as much of what does not fit as does."""

    def _words_of(self, text, prompt, more=()):
        return super()._words_of(text[:1000], prompt, more)


class Mixed(ScriptedBackend):
    """Answers the request that came last."""

    async def _take(self, request):
        await super()._take(request)
        for _ in range(3):
            await asyncio.sleep(0)

    async def generate(self, request):
        self.last = request
        await self._take(request)
        return await ScriptedBackend.generate(self, self.last)


class Open(ScriptedBackend):
    """Goes on when it is closed."""

    def close(self):
        pass


class Forgotten(ScriptedBackend):
    """Leaves those waiting who wait when it is closed."""

    async def _take(self, request):
        was = self.closed
        await asyncio.sleep(0)
        if self.closed and not was:
            await asyncio.Event().wait()
        await super()._take(request)


class Drawing(ScriptedBackend):
    """A candidate depends on its place among the seeds."""

    def _generation(self, request, seed):
        self.place = getattr(self, "place", 0) + 1
        return super()._generation(request, seed + self.place)


class Guessing(ScriptedBackend):
    def estimate(self, request):
        return replace(super().estimate(request), flops=0)


class Forgetful(ScriptedBackend):
    """Reads everything again."""

    async def generate(self, request):
        self._known.pop(request.scope, None)
        return await super().generate(request)

    def estimate(self, request):
        self._known.pop(request.scope, None)
        return super().estimate(request)


class Keeping(ScriptedBackend):
    def release(self, scope):
        pass


class Crowded(ScriptedBackend):
    """What is asked at the same time has a part in it."""

    flying = 0

    async def generate(self, request):
        self.flying += 1
        await asyncio.sleep(0)
        try:
            seeds = tuple(seed + self.flying for seed in request.seeds)
            return await super().generate(replace(request, seeds=seeds))
        finally:
            self.flying -= 1


class Batched(ScriptedBackend):
    async def choose(self, request):
        reply = await super().choose(request)
        rows = tuple(tuple(value - len(request.tails) for value in row) for row in reply.logprobs)
        return replace(reply, logprobs=rows)


class Inexact(ScriptedBackend):
    """What it reads anew, it reads a little otherwise than what it has kept."""

    async def generate(self, request):
        reply = await super().generate(request)
        off = 0.01 * (reply.usage.prefilled > 3)
        rows = tuple(replace(each, logprob=each.logprob - off) for each in reply.generations)
        return replace(reply, generations=rows)


CONTRACT = {
    Late: "ends at its boundary",
    Sure: "a log-probability is not above 0",
    Nobody: "info is a BackendInfo",
    Releasing: "raised KeyError",
    Deaf: "seeds decide what is sampled",
    Blind: "a boundary that is often written is found",
    Hasty: "is as long as it may be",
    Free: "every token that is written is counted",
    Cheap: "an estimate is an upper bound (decoded)",
    Boundless: "is an InputError",
    Mixed: "seeds",
    Open: "a closed backend answers with a ModelError",
    Forgotten: "in flight when it is closed is answered",
}
EXACT = {
    Drawing: "a candidate depends on its seed and prefix alone",
    Guessing: "an estimate is an upper bound (flops)",
    Forgetful: "no token is prefilled twice",
    Keeping: "what was released is forgotten",
    Crowded: "searches at the same time do not touch each other",
    Batched: "a verdict does not depend on the others in its batch",
    Inexact: "forked equals recomputed",
}
HOW_MANY = Problem("p", "How many?")
SMALL = replace(ScriptedBackend.info, context=2000)  # what does not fit is soon read


@pytest.mark.parametrize("broken", CONTRACT)
def test_a_backend_that_breaks_the_contract(broken, monkeypatch):
    monkeypatch.setattr("cot_engine.testing.backends.PATIENCE", 0.2)
    found_out(lambda b: check_backend(b, HOW_MANY), broken(info=SMALL), CONTRACT[broken])


@pytest.mark.parametrize("broken", EXACT)
def test_a_backend_that_is_not_exact_still_keeps_the_contract(broken):
    found_out(lambda b: check_exact(b, HOW_MANY), broken(), EXACT[broken])
    check_backend(broken(info=SMALL), HOW_MANY)


def test_numbers_that_are_none_are_named_in_usage():
    bad = changed("generate", lambda r: replace(r, usage=Usage(flops=math.inf)))
    found_out(lambda b: check_backend(b, Problem("p", "?")), bad, "flops=inf")
