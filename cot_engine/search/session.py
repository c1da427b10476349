"""What one search has at hand: its problem, its settings, its meter, and the model behind them.

Growing (`expand.py`) and judging (`select.py`) reach the backend through a Session only, so that
every request is seeded, paid for and within the budget.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from cot_engine.backends.protocol import Backend, measuring
from cot_engine.core.binding import Binding
from cot_engine.core.boundaries import Until
from cot_engine.core.chain import Chain
from cot_engine.core.events import Event, Notice, OfRound
from cot_engine.core.options import SearchOptions
from cot_engine.core.parts import Part, guard
from cot_engine.core.problem import Problem
from cot_engine.core.requests import (
    GREEDY,
    Choose,
    Chosen,
    Generate,
    Generated,
    Generation,
    Measure,
    Measured,
    Prompt,
    Sampling,
    Segment,
)
from cot_engine.core.stages import DEFAULT_PLAN, Plan
from cot_engine.core.usage import Usage
from cot_engine.errors import BudgetError, InputError, shown
from cot_engine.judging import prompts
from cot_engine.judging.probe import Probe
from cot_engine.search import replies
from cot_engine.search.budget import Budget, Meter
from cot_engine.search.concurrency import gather
from cot_engine.search.lanes import Lane
from cot_engine.search.probing import Probing
from cot_engine.search.progress import Reporter

if TYPE_CHECKING:
    from cot_engine.images.load import Image

T = TypeVar("T")
R = TypeVar("R", Generate, Choose, Measure)
Models = Callable[[Binding], Awaitable[Backend]]
"""Opens what verifiers are bound to, each once."""

FLOOR_TOKENS = 32
"""New tokens that are held back for a conclusion when the budget is used up."""

_TAG_TOKENS = 24
"""Held back beside them for the forced tags, a multiple of what "</REASONING><CONCLUSION>" takes
in any tokenizer with byte fallback seen so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(SearchOptions):
    """How one search is run, whatever the strategy: its options, resolved for its problem. `plan`
    is fitted to that (`Plan.fit`)."""

    plan: Plan = DEFAULT_PLAN
    mode: Literal["trained", "prompted"] = "trained"
    sampling: Sampling = Sampling()
    budget: Budget | None = None


def longest(chains: Sequence[Chain]) -> Chain:
    """The one of the most tokens: concluding behind it is what costs the most."""
    return max(chains, key=lambda chain: sum(step.tokens for step in chain.steps))


@dataclass
class Session:
    """One search's dealings with the model. `scope` must be unique among searches in flight.

    `record` gets the events, which bear the number of the `round`: the strategy's request that is
    being carried out. `probe` reads the model's states from whatever it writes for this problem.
    `safe` is a finished chain to fall back on: once there is one, no floor is held back. `match` is
    the most that judging one more candidate took so far, `scored` what scoring one did, in the
    budget's unit. `models` opens those that verifiers are bound to; what was asked of this search's
    is forgotten with it (`elsewhere`).
    """

    problem: Problem
    backend: Backend
    settings: Settings
    record: Callable[[Event], None]
    scope: str
    judge_images: tuple[Image, ...] = ()
    reporter: Reporter = field(default_factory=Reporter)
    probe: Probe | None = None
    safe: Chain | None = None
    match: float = 0.0
    scored: float = 0.0
    released: bool = False
    round: int = 0
    lane: Lane | None = None
    models: Models | None = None
    elsewhere: list[Backend] = field(default_factory=list)
    away: bool = False  # whether it deals with another model than the search's own
    meter: Meter = field(init=False)
    prompt: Prompt = field(init=False)
    probing: Probing | None = field(init=False)
    model: Part = field(init=False)

    def __post_init__(self) -> None:
        s = self.settings
        self.meter = Meter(s.budget)
        self.model = Part("backend", self.backend)
        self.prompt = prompts.answer_prompt(self.problem, s.plan, s.mode, s.detail)
        self.probing = None if self.probe is None else Probing(self.probe, s.plan)

    @property
    def plan(self) -> Plan:
        return self.settings.plan

    def emit(self, event: OfRound | Notice) -> None:
        """Record an event of this round."""
        self.record(event if isinstance(event, Notice) else replace(event, round=self.round))

    # --- requests ---

    def growing(
        self,
        prefix: tuple[Segment, ...],
        until: Until,
        seeds: Sequence[int],
        length: int,
        greedy: bool = False,
    ) -> Generate:
        """The request to continue this problem's answer."""
        sampling = GREEDY if greedy else self.settings.sampling
        return Generate(
            *(self.scope, self.prompt, prefix, until, tuple(seeds), length, sampling),
            states=None if self.probing is None else self.probing.states,
        )

    async def generate(
        self,
        request: Generate,
        upto: float = 1.0,
        final: bool = False,
        whole: bool = True,
        ids: tuple[str, ...] = (),
        before: str = "",
    ) -> Generated:
        """Send a request that was found affordable; charge what it really cost.

        Of a budget in seconds it may use the fraction `upto`, and only the `final` one may use
        what is held back for it. `whole`: its continuations are what is being counted, not parts
        of it; `ids` and `before` say of which candidates, and what of them is there already, for
        those who watch. Raises ModelError for a reply that cannot be relied on, whatever the
        backend may raise, and what it raises on purpose.
        """
        floor = Usage() if final or self.safe else Usage(calls=1)
        headway = self.reporter.request(whole, ids, before)
        request = replace(request, deadline=self.meter.deadline(floor, upto), headway=headway)
        with guard(self.model):
            began = self.meter.seconds
            generated = await self._sent(self.backend.generate, request)
            took = self.meter.seconds - began
            used = replies.usage(self.model, getattr(generated, "usage", None))
            usage = replace(used, calls=len(request.seeds))
            self.meter.charge(request.role, usage)
            replies.generated(self.model, request, generated)
            if not self.away:
                self.meter.timed(took, max(len(each.ids) for each in generated.generations))
            texts = tuple(each.text for each in generated.generations)
            self.reporter.answered(headway, usage.decoded, len(request.seeds), texts)
            return replace(generated, usage=usage)

    async def choose(self, request: Choose) -> Chosen:
        """Send a question that was found affordable; charge what it really cost. Raises as
        `generate` does."""
        request = replace(request, headway=self.reporter.request())
        with guard(self.model):
            chosen = await self._sent(self.backend.choose, request)
            used = replies.usage(self.model, getattr(chosen, "usage", None))
            usage = replace(used, calls=len(request.tails))
            self.meter.charge(request.role, usage)
            replies.chosen(self.model, request, chosen)
            self.reporter.answered(request.headway, 0, len(request.tails))
            return replace(chosen, usage=usage)

    async def measure(self, request: Measure) -> Measured:
        """Send a request to measure that was found affordable; charge what it really cost. Raises
        as `generate` does, and InputError for a backend that cannot."""
        request = replace(request, headway=self.reporter.request())
        model = measuring(self.backend)
        with guard(self.model):
            measured = await self._sent(model.measure, request)
            used = replies.usage(self.model, getattr(measured, "usage", None))
            usage = replace(used, calls=len(request.dialogues))
            self.meter.charge(request.role, usage)
            replies.measured(self.model, request, measured)
            self.reporter.answered(request.headway, 0, len(request.dialogues))
            return replace(measured, usage=usage)

    async def at(self, model: Binding | Backend | None) -> Session:
        """These dealings with another model, out of the same budget; with this one, for None.
        Raises InputError where nobody can open it, and what opening it raises."""
        if model is None:
            return self
        if isinstance(model, Binding):
            if self.models is None:
                raise InputError(
                    f"The model {shown(model.model)} of a verifier is opened by an engine, and "
                    "there is none.",
                    "Ask Engine.solve, or give the verifier a backend that is open.",
                )
            model = await self.models(model)
        made = copy(self)
        made.backend, made.model, made.away = model, Part("backend", model), True
        made.probing = None
        if not any(each is model for each in self.elsewhere):
            self.elsewhere.append(model)
        return made

    async def _sent(self, method: Callable[[R], Awaitable[T]], request: R) -> T:
        if self.lane is None:
            return await method(request)
        return await self.lane.call(lambda: method(request))

    def probed(self, parent: Chain, chain: Chain, generation: Generation) -> Chain:
        """The chain, grown from `parent` by that, with what the probe read meanwhile."""
        return chain if self.probing is None else self.probing.read(parent, chain, generation)

    async def gather(self, coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """Await all of what asks the model at once; if one fails, cancel the others and raise its
        error."""
        return await (gather(coroutines) if self.lane is None else self.lane.gather(coroutines))

    def release(self) -> None:
        """Let the backend forget this search, once. Raises ModelError if it cannot."""
        if not self.released:
            self.released = True
            for other in self.elsewhere:
                with guard(Part("backend", other)):
                    other.release(self.scope)
            with guard(self.model):
                self.backend.release(self.scope)

    # --- the budget ---

    def cost(self, request: Generate | Choose | Measure) -> Usage:
        """The most a request can cost. Raises InputError where nobody counts it."""
        if isinstance(request, Measure):
            model = measuring(self.backend)
            with guard(self.model):
                used = replies.usage(self.model, model.estimate(request))
            return self._counted(replace(used, calls=len(request.dialogues)))
        calls = len(request.seeds if isinstance(request, Generate) else request.tails)
        with guard(self.model):
            used = replies.usage(self.model, self.backend.estimate(request))
        return self._counted(replace(used, calls=calls))

    def _counted(self, cost: Usage) -> Usage:
        """Raises InputError for what another model costs, where a budget cannot count it."""
        budget = self.meter.budget
        if self.away and budget is not None and budget.unit == "flops" and not cost.flops:
            error = uncounted(self.backend)
            raise InputError(error.message, error.hint)
        return cost

    def floor(self, prefix: tuple[Segment, ...], grown: int) -> Usage:
        """What concluding can cost at most, after `grown` more tokens behind `prefix`; nothing
        once a finished chain makes sure of an answer.

        The difference of two estimates: the tokens of a conclusion at that context length. Tags
        are counted as decoded, which never costs less than prefilling them.
        """
        if self.meter.budget is None or self.safe is not None:
            return Usage()
        return self.ending(prefix, grown)

    def ending(self, prefix: tuple[Segment, ...], grown: int) -> Usage:
        """The floor, whether it is held back or not."""
        until = Until((self.plan.last.close,))
        near = self.cost(self.growing(prefix, until, (0,), max(1, grown)))
        far = self.cost(
            self.growing(prefix, until, (0,), max(1, grown) + FLOOR_TOKENS + _TAG_TOKENS)
        )
        return Usage(
            decoded=far.decoded - near.decoded,
            prefilled=far.prefilled - near.prefilled,
            flops=far.flops - near.flops,
            calls=1,
        )

    def check_affordable(self) -> None:
        """Raises BudgetError if not even an immediate conclusion can be paid for."""
        if self.meter.budget is None or self.meter.budget.unit == "seconds":
            return  # nobody knows beforehand what a second buys
        until = Until((self.plan.last.close,))
        cost = self.cost(self.growing((), until, (0,), FLOOR_TOKENS + _TAG_TOKENS))
        if self.meter.budget.unit == "flops" and not cost.flops:
            raise uncounted(self.backend)
        if not self.meter.affords(cost, Usage()):
            budget = self.meter.budget
            raise BudgetError(
                f"The budget of {budget} cannot pay for an answer: reading the question and"
                f" concluding at once takes up to {Budget(budget.of(cost), budget.unit)}.",
                "Give at least that much; a search over all stages takes several times more.",
            )

    # --- several rounds at once ---

    def beside(
        self,
        lane: Lane,
        number: int,
        parts: int,
        record: Callable[[Event], None],
        reporter: Reporter,
    ) -> Session:
        """This search's dealings in round `number`, one of `parts` that run side by side: with its
        own part of the budget, and of what is `safe` only what was so before."""
        made = copy(self)
        made.lane, made.round, made.record, made.reporter = lane, number, record, reporter
        made.meter = self.meter.beside(parts)
        return made

    def join(self, others: Sequence[Session]) -> None:
        """Count what rounds side by side spent, and what they made safe."""
        safe = next((other.safe for other in others if other.safe is not self.safe), self.safe)
        for other in others:
            self.meter.join(other.meter)
        self.safe, self.match = safe, max(other.match for other in others)
        self.scored = max(other.scored for other in others)
        self.round = max(other.round for other in others)

    # --- seeds ---

    def seed(self, *path: object) -> int:
        """A 63-bit seed from (run seed, problem, path): the same whatever runs beside it."""
        text = "|".join(map(str, (self.settings.seed, self.problem.id, *path)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def uncounted(backend: Backend) -> BudgetError:
    """What to raise for a budget in FLOPs with a backend that counts none."""
    return BudgetError(
        f"The model {shown(backend.info.model)} is of unknown size, so that its floating-point "
        "operations are not counted and no budget in flops can be kept.",
        "Give the budget in tokens, or a server's address the folder of its model's config.json: "
        "http://host:8000/v1#sizes=FOLDER",
    )


def counts_flops(backend: Backend) -> bool:
    """Whether the backend knows what floating-point operations a request costs. Raises as its
    estimates do."""
    asked = Generate("sizes", Prompt("x"), (), Until(), (0,), 1)
    with guard(part := Part("backend", backend)):
        return replies.usage(part, backend.estimate(asked)).flops > 0
