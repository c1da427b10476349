"""The loop that drives a strategy: what it records, releases, concludes and never overspends."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import math
import warnings
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import pytest
from attentive import Attentive
from cot_engine_strategies.best_of_n import BestOfN
from cot_engine_strategies.greedy import Greedy
from cot_engine_strategies.majority import Majority
from cot_engine_strategies.sentence_beam import SentenceBeam
from cot_engine_strategies.stage_beam import StageBeam
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cot_engine.core.events import Failed, Finished, Grown, Notice, Scored, Selected, Started
from cot_engine.core.problem import Problem
from cot_engine.core.requests import Generate, Prompt, Sampling
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.core.usage import Usage
from cot_engine.errors import (
    BudgetError,
    CotEngineError,
    InputError,
    ModelError,
    StrategyError,
    UnknownNameError,
)
from cot_engine.images.load import load_image
from cot_engine.judging.judges import LikelihoodScorer, OutOfBudget, ScorerJudge, SelfJudge
from cot_engine.search.budget import Budget
from cot_engine.search.loop import Named, _versions, search
from cot_engine.search.session import Settings
from cot_engine.search.strategy import Expand, Score
from cot_engine.testing import ScriptedBackend, solve_scripted, staged_reply

UNITS = ("flops", "new tokens", "tokens", "calls")


def run(strategy, *, backend=None, problem=None, judge=None, scorers=None, **more):
    settings = more.pop("settings", Settings())
    fitted = replace(settings, plan=settings.plan.fit(0, settings.detail))
    options = {"settings": fitted} | more
    return asyncio.run(
        search(
            problem or Problem("p", "How many are there?"),
            Named("mine", strategy),
            Named("self", judge or SelfJudge()),
            backend or ScriptedBackend(),
            options.pop("settings"),
            scorers=scorers or (lambda name: None),
            **options,
        )
    )


def asking(body):
    """A strategy of one generator function."""

    @dataclass(frozen=True)
    class Mine:
        n: int = 3

        def search(self, task):
            return (yield from body(task))

    return Mine()


# --- never overspent -----------------------------------------------------------------------------


def late(request: Generate, seed: int) -> str:
    """Parents of very different length: every second one writes twenty times as much."""
    text = staged_reply(request, seed)
    return text.replace("About", "About" + " so" * 40) if seed % 2 else text


@given(
    st.sampled_from(UNITS),
    st.floats(0.02, 1.1),
    st.sampled_from(
        [
            *(StageBeam(3, keep=2), StageBeam(2, fill=True), SentenceBeam(2, keep=2)),
            *(SentenceBeam(2, fill=True), BestOfN(4), BestOfN(2, fill=True)),
            *(Majority(3, fill=True), StageBeam(4), Greedy()),
        ]
    ),
    st.sampled_from(["trained", "prompted"]),
    st.sampled_from(["knockout", "random-pairs", "round-robin", "swiss"]),
    st.sampled_from(["both", "one"]),
    st.sampled_from([SelfJudge, ScorerJudge]),
)
@settings(max_examples=60)
def test_no_budget_is_overspent_where_a_token_costs_more_the_later_it_stands(
    unit, share, strategy, mode, tournament, orders, judge
):
    one = Settings(mode=mode, tournament=tournament, orders=orders)
    plain = replace(strategy, fill=False) if hasattr(strategy, "fill") else strategy
    full = run(plain, backend=Attentive(late), settings=one, judge=judge())
    budget = Budget(max(1, int(Budget(1, unit).of(full.total) * share)), unit)
    try:
        answer = run(
            strategy, backend=Attentive(late), settings=replace(one, budget=budget), judge=judge()
        )
    except BudgetError as error:
        assert "at least" in str(error)
        return
    assert budget.of(answer.total) <= budget.amount
    assert answer.left == budget.amount - budget.of(answer.total)
    assert answer.text and answer.chain.done
    told = {"generate": Usage(), "judge": Usage(), "score": Usage()}
    for event in answer.trace:
        role = "generate" if isinstance(event, Grown) else "judge"
        if isinstance(event, (Grown, Selected)):
            told[role] += event.usage
    assert {role: usage for role, usage in told.items() if usage != Usage()} == answer.usage


@pytest.mark.parametrize("unit", UNITS)
def test_what_the_error_asks_for_is_enough_and_less_is_refused_before_the_model_is_asked(unit):
    with pytest.raises(BudgetError) as error:
        run(Greedy(), settings=Settings(budget=Budget(0.5, unit)))
    assert f"0.5 {unit}" in str(error.value)
    needed = float(str(error.value).split("takes up to ")[1].split()[0])
    tokens = 4 + 32 + 24  # the question's, a conclusion's, its tags'
    assert needed == {"flops": 1000 * tokens, "new tokens": 56, "tokens": tokens, "calls": 1}[unit]
    backend = ScriptedBackend()
    assert run(Greedy(), backend=backend, settings=Settings(budget=Budget(needed, unit))).text
    backend.requests.clear()
    with pytest.raises(BudgetError):
        run(Greedy(), backend=backend, settings=Settings(budget=Budget(needed - 0.1, unit)))
    assert not backend.requests and len(backend.released) == 2


# --- what is recorded ----------------------------------------------------------------------------


def test_the_beginning_says_everything_that_decides_the_search():
    strategy = StageBeam(2, keep=2)
    chosen = Settings(
        mode="prompted",
        detail="brief",
        sampling=Sampling(0.3, 0.7, 11),
        seed=9,
        budget=Budget(9000, "tokens"),
        tournament="swiss",
        orders="one",
        judge_image="blank",
    )
    heard = []
    answer = run(strategy, settings=chosen, listen=heard.append, notes=("one", "two"))
    assert [e for e in heard if type(e).__name__ != "Progress"] == answer.trace.events
    started, *rest = answer.trace.events
    assert isinstance(started, Started) and rest[:2] == [Notice("one"), Notice("two")]
    assert (started.problem, started.question) == ("p", "How many are there?")
    assert (started.strategy, started.parameters) == ("mine", asdict(strategy))
    assert (started.judge, started.tournament, started.orders) == ("self", "swiss", "one")
    assert (started.judge_image, started.mode, started.detail) == ("blank", "prompted", "brief")
    assert (started.seed, started.sampling, started.budget) == (9, chosen.sampling, "9000 tokens")
    assert started.plan == DEFAULT_PLAN.fit(0, "brief") and started.backend.name == "scripted"
    assert {"cot-engine", "torch", "transformers"} == set(started.versions)
    assert run(strategy).trace.started.budget is None


def test_what_there_is_to_say_of_the_pictures_is_said_and_they_are_recorded():
    image = load_image(Image.new("RGB", (20, 10), "red"))
    image = replace(image, notes=("It is animated.", "It is upside down."))
    answer = run(Greedy(), problem=Problem("p", "?", (image, image)), notes=("first",))
    notices = [e.text for e in answer.trace if isinstance(e, Notice)]
    assert notices == ["first", *image.notes, *image.notes]
    (record, _) = answer.trace.started.images
    assert (record.digest, record.source, record.size) == (image.digest, image.source, (20, 10))
    assert record.notes == image.notes and "CAPTION" in answer.chain.text


def test_the_end_counts_every_fault_once_by_name():
    def script(request, seed):
        written = "".join(s.text for s in request.prefix)
        if "<REASONING>" in written or "</SUMMARY>" not in written:
            return staged_reply(request, seed)
        return "stray <REASONING></REASONING>"

    answer = run(StageBeam(2), backend=ScriptedBackend(script))
    finished = answer.trace.events[-1]
    assert isinstance(finished, Finished) and finished.faults == {"empty": 2, "stray": 2}
    assert (finished.answer, finished.chain) == (answer.text, answer.chain.id)
    assert (finished.usage, finished.left) == (answer.usage, None)
    assert finished.seconds == answer.seconds > 0 and answer.problem.id == "p"


@pytest.mark.parametrize("error", [ModelError("why not"), StrategyError("oh"), OSError("why not")])
def test_however_a_search_fails_it_says_so_and_lets_go_of_its_scope(error):
    class Fails(ScriptedBackend):
        async def generate(self, request):
            raise error

    backend, heard = Fails(), []
    with pytest.raises(CotEngineError, match=str(error)) as raised:
        run(Greedy(), backend=backend, listen=heard.append, scope="mine alone")
    assert heard[-1] == Failed(type(raised.value).__name__, str(raised.value))
    assert backend.released == ["mine alone"]


def test_a_search_that_is_cancelled_says_so_and_lets_go_of_its_scope():
    class Hangs(ScriptedBackend):
        async def generate(self, request):
            await asyncio.sleep(60)

    backend, heard = Hangs(), []

    async def cancelled():
        made = search(
            *(Problem("p", "?"), Named("mine", Greedy()), Named("self", SelfJudge())),
            *(backend, Settings()),
            scorers=lambda name: None,
            listen=heard.append,
        )
        task = asyncio.ensure_future(made)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    failed = [event for event in heard if isinstance(event, Failed)]
    assert [event.error for event in failed] == ["CancelledError"] and backend.released == ["p"]


def test_every_request_is_made_in_the_scope_of_the_search():
    for scope, expected in (("", "p"), ("other", "other")):
        backend = ScriptedBackend()
        run(StageBeam(3), backend=backend, scope=scope)
        assert {request.scope for request in backend.requests} == {expected}
        assert backend.released == [expected]


# --- what is asked -------------------------------------------------------------------------------


def test_expand_carries_all_that_the_strategy_said():
    def body(task):
        stage = task.plan.stages[0]
        first = yield Expand(task.start, until=stage, n=2, greedy=True)
        more = yield Expand(task.start, until=stage, n=3, upto=0.9)
        assert [c.id for c in first] == ["r.0", "r.1"] and len(more) == 3
        none = yield Expand(task.start, until=stage, n=3, upto=0.001)
        assert none == ()
        (best,) = yield Expand([first[0]], until="end")  # a list is a beam, too
        return best

    backend = ScriptedBackend()
    run(asking(body), backend=backend, settings=Settings(budget=Budget(9000, "tokens")))
    assert [r.sampling.greedy for r in backend.requests] == [True, False, False]
    assert [len(r.seeds) for r in backend.requests] == [2, 3, 1]


def test_scores_come_in_the_order_of_the_beam_and_are_charged():
    class Length:
        async def score(self, chains, case, ask):
            await ask.choose(Prompt("How long?"), ["a"], ["1", "2"])
            assert (case.about, case.stage, case.images) == (
                "step",
                case.plan.stages[0],
                ("shown",),
            )
            return [float(-k % 3) for k, _ in enumerate(chains)]

    def body(task):
        beam = yield Expand(task.start, until=task.plan.stages[0], n=3)
        scores = yield Score(beam, "length")
        assert scores == (0.0, 2.0, 1.0)
        (best,) = yield Expand(beam[1:2], until="end")
        return best

    asked = []
    answer = run(
        asking(body),
        scorers=lambda name: asked.append(name) or Length(),
        judge_images=("shown",),
    )
    assert asked == ["length"]
    (told,) = [e for e in answer.trace if isinstance(e, Scored)]
    assert told.scorer == "length" and told.scores == {"r.0": 0.0, "r.1": 2.0, "r.2": 1.0}
    assert told.usage == answer.usage["score"] and told.usage.calls == 1


def test_a_score_that_cannot_be_paid_is_likelihood_and_says_so():
    class Dear:
        async def score(self, chains, case, ask):
            raise OutOfBudget

    def body(task):
        beam = yield Expand(task.start, until=task.plan.stages[0], n=3)
        scores = yield Score(beam, "dear")
        assert scores == tuple(chain.likelihood() for chain in beam) and len(set(scores)) > 1
        return beam[0]

    answer = run(asking(body), scorers=lambda name: Dear())
    (notice,) = [e.text for e in answer.trace if isinstance(e, Notice)]
    assert notice == "Scored by likelihood: the budget left no room for dear."


def scored(scale, numbers, **asked):
    """What a strategy gets of a scorer that gives these numbers, and the trace's Scored of it."""

    class Given:
        async def score(self, chains, case, ask):
            assert case.about == asked.get("about", "step")
            if numbers is None:
                raise InputError("It is not to be read.")
            return numbers

    def body(task):
        beam = yield Expand(task.start, until="end", n=3)
        got.extend((yield Score(beam, "mine", **asked)))
        return beam[0]

    got, scorer = [], Given()
    if scale:
        scorer.scale = scale
    answer = run(asking(body), scorers=lambda name: scorer)
    (told,) = [e for e in answer.trace if isinstance(e, Scored)]
    assert list(told.scores.values()) == got
    assert (told.about, told.probability) == (asked.get("about", "step"), len(asked) > 1)
    return got, answer


def test_probabilities_are_made_of_what_a_scorer_says_its_numbers_are():
    for scale, numbers, expected in [
        ("probability", [0.0, 0.25, 1.0], [0.0, 0.25, 1.0]),
        ("log", [-99.0, math.log(0.25), 0.0], [math.exp(-99), 0.25, 1.0]),
        ("logit", [-1e6, math.log(0.2 / 0.8), 1e6], [0.0, 0.2, 1.0]),
    ]:
        got, _ = scored(scale, numbers, about="whole", probability=True)
        assert got == pytest.approx(expected, abs=1e-12)
        assert scored(scale, numbers)[0] == numbers, "unless they are asked for as they are"
    for scale in ("any", None):
        with pytest.raises(StrategyError, match=r"asked for probabilities .* Give it a scale"):
            scored(scale, [1.0, 2.0, 3.0], about="step", probability=True)
    with pytest.raises(StrategyError, match=r"gave the score 1\.5, and its scale is probability"):
        scored("probability", [0.0, 1.5, 1.0])


def test_likelihood_stands_in_as_what_was_asked_for():
    got, answer = scored("logit", None, about="whole", probability=True)
    chains = [chain for event in answer.trace if isinstance(event, Grown) for chain in event.chains]
    assert got == [math.exp(chain.likelihood()) for chain in chains]
    assert ["Scored by likelihood" in e.text for e in answer.trace if isinstance(e, Notice)] == [
        True
    ]


def test_auto_is_the_verifier_of_the_models_profile():
    def body(task):
        beam = yield Expand(task.start, until="end", n=2)
        yield Score(beam, "auto")
        return beam[0]

    def scorers(name):
        asked.append(name)
        return LikelihoodScorer()

    asked = []
    for more in ({}, {"verifier": "mine"}):
        answer = run(asking(body), scorers=scorers, **more)
        assert [e.scorer for e in answer.trace if isinstance(e, Scored)] == asked[-1:]
    assert asked == ["likelihood", "mine"]


def test_an_unfinished_chain_is_concluded_and_a_finished_one_is_not_touched():
    def early(task):
        (chain,) = yield Expand(task.start, until=task.plan.stages[0])
        return chain

    backend = ScriptedBackend()
    answer = run(asking(early), backend=backend)
    assert answer.chain.done and answer.chain.id == "r.0.0"
    assert [r.sampling.greedy for r in backend.requests] == [False, True]
    assert backend.requests[1].prefix[-1].text == "<CONCLUSION>"
    backend.requests.clear()
    run(Greedy(), backend=backend)
    assert len(backend.requests) == 1


def test_where_the_budget_ends_the_strategy_is_closed_and_the_answer_concluded():
    closed = []

    def body(task):
        try:
            while True:
                yield Expand(task.start, until=task.plan.stages[0], n=5)
        finally:
            closed.append(len(backend.requests))

    @dataclass(frozen=True)
    class Kept:  # somebody holds the generator, so that nothing but the core closes it
        def search(self, task):
            kept.append(body(task))
            return kept[0]

    kept, backend, budget = [], ScriptedBackend(), Budget(130, "new tokens")
    answer = run(Kept(), backend=backend, settings=Settings(budget=budget))
    assert closed == [len(backend.requests) - 1], "before the answer is concluded"
    assert answer.chain.done and answer.text
    assert [e.what for e in answer.trace if type(e).__name__ == "Cut"][-1] == "search"


def test_a_strategy_that_asks_without_an_end_is_ended():
    def body(task):
        beam = yield Expand(task.start, until="end")
        while True:
            yield Expand(beam, until="end")

    with pytest.raises(StrategyError, match=r"mine \(Mine\) asked 10000 times without an end"):
        run(asking(body))


def test_a_search_that_is_a_coroutine_is_refused_and_not_left_unawaited():
    @dataclass(frozen=True)
    class Async:
        async def search(self, task):
            return task.start[0]

    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        with pytest.raises(StrategyError, match="must be a generator"):
            run(Async())
        gc.collect()
    assert not [w for w in complaints if "never awaited" in str(w.message)]


def test_a_scorer_that_there_is_not_is_the_strategys_fault():
    def body(task):
        yield Score(task.start, "nosuch")

    def scorers(name):
        raise UnknownNameError("scorer", name, ["likelihood"])

    with pytest.raises(StrategyError, match=r"mine \(Mine\).*Score\(scorer='nosuch'\).*scorer"):
        run(asking(body), scorers=scorers)


def test_an_answer_that_the_budget_cut_names_the_budget():
    endless = ScriptedBackend(lambda request, seed: "<CONCLUSION>" + " w" * 999)
    answer = run(Greedy(), backend=endless, settings=Settings(budget=Budget(99, "new tokens")))
    assert "99 new tokens" in answer.incomplete == answer.trace.finished.incomplete
    assert run(Greedy()).incomplete == ""


def test_versions_are_read_once_and_of_what_is_installed(monkeypatch):
    assert _versions() is _versions()
    real = importlib.metadata.version

    def version(name):
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert set(_versions.__wrapped__()) == {"cot-engine", "transformers"}


def test_where_nobody_listens_nothing_is_counted():
    for listen in (None, lambda event: None):
        backend = ScriptedBackend()
        run(StageBeam(2), backend=backend, listen=listen)
        assert {request.headway is None for request in backend.requests} == {listen is None}


def test_others_run_between_two_requests():
    steps = []

    def body(task):
        beam = yield Expand(task.start, until="end")
        for _ in range(5):
            yield Expand(beam, until="end")
            steps.append("asked")
        return beam[0]

    async def both():
        async def beside():
            while True:
                steps.append("beside")
                await asyncio.sleep(0)

        other = asyncio.ensure_future(beside())
        await search(
            *(Problem("p", "?"), Named("mine", asking(body)), Named("self", SelfJudge())),
            *(ScriptedBackend(), Settings()),
            scorers=lambda name: None,
        )
        other.cancel()

    asyncio.run(both())
    asked = [k for k, step in enumerate(steps) if step == "asked"]
    assert len(asked) == 5 and all("beside" in steps[a:b] for a, b in pairwise(asked))


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from(["trained", "prompted"]))
@settings(max_examples=25)
def test_candidates_do_not_depend_on_how_many_there_are(n, more, mode):
    def texts(count):
        answer = solve_scripted(BestOfN(count), settings=Settings(mode=mode, seed=n))
        return [c.steps[-1] for e in answer.trace if isinstance(e, Grown) for c in e.chains]

    assert texts(n + more)[:n] == texts(n)
