"""For tests, ours and yours: a backend made of arithmetic, and the suites every part must pass.

from cot_engine.testing import check_strategy
check_strategy(MyStrategy(n=3))
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Literal

from cot_engine import plugins
from cot_engine.backends import Backend, BackendInfo
from cot_engine.boundaries import Until
from cot_engine.budget import Budget, Unit
from cot_engine.errors import BudgetError
from cot_engine.events import Event, Grown, Selected, from_json, to_json, usage_by_role
from cot_engine.judges import Case, Judge, Scorer, ScorerJudge
from cot_engine.search import Named, search
from cot_engine.session import Settings
from cot_engine.stages import DEFAULT_PLAN, Plan, next_stage, read
from cot_engine.strategy import Strategy
from cot_engine.types import (
    GREEDY,
    Answer,
    Chain,
    Choose,
    Chosen,
    Generate,
    Generated,
    Generation,
    Problem,
    Prompt,
    Sampling,
    Segment,
    Step,
    Usage,
)

_PIECE = re.compile(r"\s*\S+|\s+")
_COMPARED = re.compile(r"(?:Attempt 1:\n|1: )(.*?)\n(?:Attempt 2:\n|2: )(.*)", re.DOTALL)
_FLOPS_PER_TOKEN = 1000


def _number(*parts: object) -> int:
    text = "|".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())


def staged_reply(request: Generate, seed: int, plan: Plan = DEFAULT_PLAN) -> str:
    """What the scripted model writes by default: the stages still ahead, well formed.

    Each stage is a sentence of some words and a number in 0..4 drawn from the seed; the last one
    is that number alone.
    """
    written = "".join(segment.text for segment in request.prefix)
    plan = plan.fit(len(request.prompt.images))
    reading, text = read(written, plan), ""
    while True:
        stage = plan[reading.open] if reading.open else next_stage(reading, plan)
        if stage is None:
            return text
        draw = 0 if request.sampling.greedy else _number(seed, stage.tag) % 5
        content = str(draw) if stage == plan.last else f"About {stage.tag.lower()} {draw}."
        text += ("" if reading.open else stage.open) + content + stage.close
        reading = read(written + text, plan)


@dataclass
class ScriptedBackend:
    """A backend whose replies are a function of request and seed; no model, no clock.

    A token is a word with the whitespace before it. Prefixes are shared within a scope as a real
    backend does, so that costs can be tested. `requests` keeps everything that was asked.
    """

    script: Callable[[Generate, int], str] = staged_reply
    prefer: Callable[[str], float] = lambda text: float(len(text))
    requests: list[Generate | Choose] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    info: BackendInfo = BackendInfo(
        "scripted", "scripted", "0", "arithmetic", "none", "none", 1_000_000, 100
    )
    _known: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    _words: dict[int, str] = field(default_factory=dict)

    async def generate(self, request: Generate) -> Generated:
        self.requests.append(request)
        await asyncio.sleep(0)
        context = self._context(request)
        usage = self._read(request.scope, context, request.prompt)
        generations = []
        for seed in request.seeds:
            generation = self._generation(request, seed)
            words = [self._words[i] for i in generation.ids]
            self._remember(request.scope, (*context, *words))
            usage += Usage(decoded=len(words), flops=_FLOPS_PER_TOKEN * len(words))
            generations.append(generation)
        return Generated(tuple(generations), usage)

    def _generation(self, request: Generate, seed: int) -> Generation:
        text, finish = self.script(request, seed), "eos"
        if (end := request.until.end(text)) is not None:
            text, finish = text[:end], "stop"
        words = _PIECE.findall(text)
        if len(words) > request.max_new_tokens:
            words, finish = words[: request.max_new_tokens], "length"
        ids = tuple(_number(word) for word in words)
        self._words.update(zip(ids, words, strict=True))
        logprob = -sum(1 + i % 7 for i in ids) / 8
        return Generation("".join(words), ids, logprob, finish)  # type: ignore[arg-type]

    async def choose(self, request: Choose) -> Chosen:
        self.requests.append(request)
        await asyncio.sleep(0)
        usage, rows = Usage(), []
        for tail in request.tails:
            context = self._words_of(request.prompt.text + tail, request.prompt)
            usage += self._read(request.scope, context, request.prompt)
            compared = _COMPARED.search(tail)
            texts = compared.groups() if compared else ("", "")
            first, second = (self.prefer(text.strip()) for text in texts)
            margin = first - second
            rows.append((-0.7 + margin / 2, -0.7 - margin / 2))
        return Chosen(tuple(rows), usage)

    def estimate(self, request: Generate | Choose) -> Usage:
        known = self._known.get(request.scope, set())
        if isinstance(request, Choose):
            texts = [self._words_of(request.prompt.text + t, request.prompt) for t in request.tails]
        else:
            texts = [self._context(request)]
        fresh = sum(len(text) - _shared(known, text) for text in texts)
        decoded = (
            len(request.seeds) * request.max_new_tokens if isinstance(request, Generate) else 0
        )
        return Usage(
            encodes=len(request.prompt.images),
            prefilled=fresh,
            decoded=decoded,
            flops=_FLOPS_PER_TOKEN * (fresh + decoded),
        )

    def release(self, scope: str) -> None:
        self.released.append(scope)
        self._known.pop(scope, None)

    def close(self) -> None:
        self._known.clear()

    def _context(self, request: Generate) -> tuple[str, ...]:
        written = "".join(segment.text for segment in request.prefix)
        return (*self._words_of(request.prompt.text, request.prompt), *_PIECE.findall(written))

    def _words_of(self, text: str, prompt: Prompt) -> tuple[str, ...]:
        return (*(f"<{image.digest}>" for image in prompt.images), *_PIECE.findall(text))

    def _read(self, scope: str, words: tuple[str, ...], prompt: Prompt) -> Usage:
        known = self._known.setdefault(scope, set())
        shared = _shared(known, words)
        encodes = sum((f"<{image.digest}>",) not in known for image in prompt.images)
        known.update((f"<{image.digest}>",) for image in prompt.images)
        self._remember(scope, words)
        fresh = len(words) - shared
        return Usage(encodes, fresh, shared, 0, _FLOPS_PER_TOKEN * fresh)

    def _remember(self, scope: str, words: tuple[str, ...]) -> None:
        known = self._known.setdefault(scope, set())
        known.update(words[:k] for k in range(1, len(words) + 1))


def _shared(known: set[tuple[str, ...]], words: tuple[str, ...]) -> int:
    k = 0
    while k < len(words) and words[: k + 1] in known:
        k += 1
    return k


def solve_scripted(
    strategy: Strategy,
    *,
    backend: Backend | None = None,
    judge: Judge | None = None,
    problem: Problem | None = None,
    settings: Settings | None = None,
    listen: Callable[[Event], None] | None = None,
    scorers: Callable[[str], Scorer] | None = None,
) -> Answer:
    """Run one search from synchronous code, on the scripted backend unless told otherwise.
    `scorers` gives the scorer of a name, if not plug-ins do."""
    return asyncio.run(
        search(
            problem or Problem("p", "How many are there?"),
            Named(type(strategy).__name__, strategy),
            Named("likelihood", judge or ScorerJudge()),
            backend or ScriptedBackend(),
            settings or Settings(),
            scorers=scorers or (lambda name: plugins.make("scorer", name, {})),
            listen=listen,
        )
    )


# --- conformance suites --------------------------------------------------------------------------


def alike(a: Any, b: Any, tolerance: float = 1e-3) -> bool:
    """Whether two canonical traces are equal, numbers to a tolerance: sums of log-probabilities
    differ in their last digits from batch to batch."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(alike(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return a == b


def check_strategy(strategy: Strategy) -> None:
    """Raises AssertionError, naming the rule, if a strategy breaks what the core relies on."""
    assert is_dataclass(strategy), "a strategy is a frozen dataclass: its fields are its parameters"
    assert strategy.__dataclass_params__.frozen, "the dataclass must be frozen"  # type: ignore[attr-defined]
    first, second = solve_scripted(strategy), solve_scripted(strategy)
    assert first.text.strip(), "a search ends with an answer"
    assert first.chain.done, "the returned chain is a finished one"
    assert first.trace.canonical() == second.trace.canonical(), "same inputs, same trace"
    assert [from_json(to_json(e)) for e in first.trace] == first.trace.events, "traces round-trip"
    spent = usage_by_role(first.trace)
    assert spent == first.usage, "every token is in the trace"
    grown = {c.id for e in first.trace if isinstance(e, Grown) for c in e.chains}
    assert first.chain.id in grown, "the answer is one of the chains that were grown"
    for event in first.trace:
        if isinstance(event, Selected):
            assert set(event.kept) <= set(event.candidates), "only candidates are kept"
    units: tuple[Unit, ...] = ("flops", "new tokens", "tokens", "calls")
    for unit, share in itertools.product(units, (0.2, 0.5, 0.9, 3.0)):
        amount = max(1, round(Budget(1, unit).of(first.total) * share))
        _check_budget(strategy, Budget(amount, unit), "trained")
        _check_budget(strategy, Budget(amount, unit), "prompted")
    broken = ScriptedBackend(script=lambda request, seed: "no tags at all")
    assert solve_scripted(strategy, backend=broken).text, "malformed output still gives an answer"
    no_end = ScriptedBackend(script=lambda request, seed: "")
    for budget in (None, Budget(1000, "new tokens")):  # an empty reply must not loop or raise
        solve_scripted(strategy, backend=no_end, settings=Settings(budget=budget))


def _check_budget(strategy: Strategy, budget: Budget, mode: Literal["trained", "prompted"]) -> None:
    try:
        answer = solve_scripted(strategy, settings=Settings(budget=budget, mode=mode))
    except BudgetError:
        return
    spent = budget.of(answer.total)
    assert spent <= budget.amount, f"spent {spent} of {budget}"
    assert answer.left == budget.amount - spent, "what is left is reported"


def check_judge(judge: Judge) -> None:
    """Raises AssertionError if a judge breaks its contract on the scripted backend."""
    assert isinstance(judge.symmetric, bool), "a judge says whether it is symmetric"
    chains = [_chain(i, text) for i, text in enumerate(("one", "two two", "three three three"))]
    pairs = [(a, b) for a in chains for b in chains if a is not b]
    case = Case(Problem("p", "Which?"), DEFAULT_PLAN.fit(0), "step", None, ())

    def verdicts():
        ask = _ScriptedAsk()
        return asyncio.run(judge.compare(pairs, case, ask))

    given = verdicts()
    assert len(given) == len(pairs), "one verdict for each pair, in order"
    assert given == verdicts(), "same pairs, same verdicts"
    for verdict in given:
        assert verdict.outcome in ("first", "second", "tie")
        assert verdict.readable or verdict.outcome == "tie", "what cannot be read is a tie"
        signs = {"first": verdict.margin > 0, "second": verdict.margin < 0, "tie": True}
        assert signs[verdict.outcome], "the margin's sign is the outcome"
    if judge.symmetric:
        by_pair = dict(zip(((a.id, b.id) for a, b in pairs), given, strict=True))
        for (a, b), verdict in by_pair.items():
            assert by_pair[b, a].margin == -verdict.margin, "symmetric: (b, a) reverses (a, b)"


def _chain(index: int, text: str) -> Chain:
    step = Step(
        f"<SUMMARY>{text}</SUMMARY>",
        (Segment(f"<SUMMARY>{text}</SUMMARY>", (index,)),),
        "SUMMARY",
        -1.0 - index,
        1 + index,
        "stop",
    )
    return Chain().grow(index, step, False)


class _ScriptedAsk:
    def __init__(self) -> None:
        self.backend = ScriptedBackend()

    async def choose(self, prompt, tails, choices, prefix=""):
        request = Choose("s", prompt, tuple(tails), tuple(choices), prefix)
        return list((await self.backend.choose(request)).logprobs)

    async def write(self, prompt, tails, until, length, sampling):
        return [f"The first is longer. Choice: {1 + len(tail) % 2}" for tail in tails]


def check_backend(backend: Backend, problem: Problem, tolerance: float = 1e-4) -> None:
    """Raises AssertionError if a real backend breaks what searches rely on.

    `problem` is any that the model can read. `tolerance` is on summed log-probabilities.
    """
    asyncio.run(_check_backend(backend, problem, tolerance))


async def _check_backend(backend: Backend, problem: Problem, tolerance: float) -> None:
    prompt = Prompt(problem.question, problem.images)
    until = Until()
    ask = Generate("a", prompt, (), until, (1, 2, 3), 8, Sampling(1.0, 1.0, 0))
    estimate = backend.estimate(ask)
    three = await backend.generate(ask)
    one = await backend.generate(replace(ask, scope="b", seeds=(2,)))
    mine, alone = three.generations[1], one.generations[0]
    assert mine.ids == alone.ids, "a candidate depends on its seed and prefix alone"
    assert abs(mine.logprob - alone.logprob) < tolerance, "and so does its log-probability"
    assert three.usage.flops <= estimate.flops, "an estimate is an upper bound (flops)"
    assert three.usage.decoded <= estimate.decoded, "an estimate is an upper bound (decoded)"
    assert three.usage.prefilled <= estimate.prefilled, "an estimate is an upper bound (prefilled)"
    assert three.usage.encodes == len(problem.images), "each image is encoded once"
    again = await backend.generate(ask)
    assert again.usage.encodes == 0, "an image is encoded once per scope"
    assert again.usage.prefilled == 0, "no token is prefilled twice"
    assert [g.ids for g in again.generations] == [g.ids for g in three.generations]

    prefix = (Segment(mine.text, mine.ids), Segment(" <CONCLUSION>"))
    greedy = replace(ask, prefix=prefix, seeds=(0,), sampling=GREEDY)
    carried = await backend.generate(greedy)
    scratch = await backend.generate(replace(greedy, scope="c"))
    assert carried.generations[0].ids == scratch.generations[0].ids, "forked equals recomputed"
    difference = carried.generations[0].logprob - scratch.generations[0].logprob
    assert abs(difference) < tolerance, f"forked equals recomputed (differs by {difference})"
    assert carried.usage.prefilled < scratch.usage.prefilled, "a carried prefix is not prefilled"

    tails = ("\nAttempt 1:\nred\nAttempt 2:\nblue\n", "\nAttempt 1:\nblue\nAttempt 2:\nred\n")
    question = Choose("a", prompt, tails, ("1", "2"))
    both = await backend.choose(question)
    single = await backend.choose(replace(question, scope="d", tails=tails[1:]))
    for x, y in zip(both.logprobs[1], single.logprobs[0], strict=True):
        assert abs(x - y) < tolerance, "a verdict does not depend on the others in its batch"
    assert both.usage.encodes == 0, "a judge reuses the encoded image"
    for scope in "abcd":
        backend.release(scope)
    backend.release("never seen")
