"""Expand: what is asked of the model to grow chains by a unit, as much of it as the budget pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

from cot_engine.core.boundaries import Until
from cot_engine.core.chain import Beam, Chain
from cot_engine.core.events import Cut, Growing, Grown
from cot_engine.core.grammar import next_stage, read, tier
from cot_engine.core.requests import Generate, Segment
from cot_engine.core.stages import Stage
from cot_engine.core.usage import Usage
from cot_engine.judging import prompts
from cot_engine.search.session import FLOOR_TOKENS, Session, longest
from cot_engine.search.steps import boundary, child, has, joined, opening, unit_length
from cot_engine.search.strategy import Expand

_COMFORT = 64  # tokens a candidate should have before the number of candidates is cut instead
LEAST = 8  # tokens below which growing is pointless and the floor is used


class Exhausted(Exception):
    """The budget pays for no further growth: conclude from `chain`."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain


@dataclass(frozen=True, slots=True)
class Portion:
    """What is sampled in one go: `count` children of each of the `parents`, grown by one unit, of
    at most `length` tokens each.

    `forced`: the stage's opening tag is put there. `upto` makes it optional (see `fill.py`): within
    that fraction of the budget, and not written on where the budget cut it. `last` stands for a
    single one that gets all that is left, judging and later tags not held back: each of its
    requests is cut to what the budget then pays.
    """

    parents: tuple[Chain, ...]
    until: Stage | str
    count: int
    length: int
    greedy: bool = False
    forced: bool = False
    upto: float | None = None
    last: bool = False

    @property
    def unit(self) -> str:
        return self.until.tag if isinstance(self.until, Stage) else self.until


@dataclass
class Growth:
    """Carries out Expand requests. For each chain, `children` counts how many it has had and
    `longest` is the most tokens of one of them; `fills` counts those that were optional. `known`
    are the chains there are, by id, those given at the start included."""

    session: Session
    known: dict[str, Chain] = field(default_factory=lambda: {"r": Chain()})
    children: dict[str, int] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)
    fills: int = 0

    async def expand(self, request: Expand) -> Beam:
        """Grow every chain of the beam by one unit. Raises Exhausted if the budget forbids it."""
        if not (parents := self.growable(request.beam, request.until)):
            return request.beam
        asked = self.length(parents, request.until)
        portion = self.within_budget(
            Portion(parents, request.until, request.n, asked, request.greedy)
        )
        grown, _ = await self.sample(portion)
        grown = await self._force_where_lost(portion, grown)
        by_parent = dict(zip((chain.id for chain in parents), grown, strict=True))
        return tuple(c for chain in request.beam for c in by_parent.get(chain.id, (chain,)))

    def growable(self, beam: Beam, until: Stage | str) -> tuple[Chain, ...]:
        """Those of a beam that need growing for this unit."""
        return tuple(chain for chain in beam if not has(chain, until, self.session.plan))

    async def _force_where_lost(self, portion: Portion, grown: list[Beam]) -> list[Beam]:
        """Where no child of a chain opened the stage asked for, sample again with it forced."""
        if not isinstance(portion.until, Stage) or self.session.settings.mode == "prompted":
            return grown
        lost = [
            i
            for i, kids in enumerate(grown)
            if all(c.last is not None and tier(c.last.faults) == 2 for c in kids)
        ]
        if not lost:
            return grown
        parents = tuple(portion.parents[i] for i in lost)
        asked = self.length(parents, portion.until)
        try:
            again = self.within_budget(replace(portion, parents=parents, length=asked, forced=True))
        except Exhausted:
            return grown
        for i, kids in zip(lost, (await self.sample(again))[0], strict=True):
            grown[i] = kids
        return grown

    def beside(self, session: Session) -> Growth:
        """Growth for one of several rounds side by side."""
        made = copy(self)
        made.session = session
        return made

    def join(self, others: Sequence[Growth]) -> None:
        self.fills += sum(other.fills - self.fills for other in others)

    # --- the budget ---

    def within_budget(self, portion: Portion) -> Portion:
        """As many candidates of as many tokens as the budget pays. Raises Exhausted if too few.

        Tokens are cut first, down to a comfortable length; then candidates; then tokens again.
        """
        session, parents, asked = self.session, portion.parents, portion.length
        if session.meter.budget is None:
            return portion

        def fits(count: int, length: int) -> bool:
            cost = self.cost(replace(portion, count=count, length=length))
            return session.meter.affords(cost, self.floor(parents, length))

        count = portion.count
        while count > 1 and not fits(count, min(asked, _COMFORT)):
            count -= 1
        length = largest(asked, lambda tokens: fits(count, tokens))
        left = session.meter.left or 0.0
        if length < min(asked, LEAST):
            session.emit(Cut("search", portion.count * len(parents), 0, left))
            raise Exhausted(session.safe or max(parents, key=lambda chain: chain.likelihood()))
        if count < portion.count:
            session.emit(Cut("candidates", portion.count, count, left))
        if length < asked:
            session.emit(Cut("tokens", asked, length, left))
        return replace(portion, count=count, length=length)

    def payable(self, request: Generate, upto: float, final: bool = False) -> int:
        """The most tokens, of those it asks for, that `request` may now take; a `final` one may
        take the floor too."""
        session, budget = self.session, self.session.meter.budget
        assert budget is not None

        def fits(tokens: int) -> bool:
            cost = budget.of(session.cost(replace(request, max_new_tokens=tokens)))
            floor = Usage() if final else session.floor(request.prefix, tokens)
            return cost <= session.meter.room(floor, upto)

        return largest(request.max_new_tokens, fits)

    def cost(self, portion: Portion) -> Usage:
        """The most that a portion can cost; where its children take several requests, as if one
        did it all, and what opening the later stages by force adds."""
        total = Usage()
        for chain in portion.parents:
            prefix = chain.segments + self._opening(chain, portion)
            ends, seeds = self._boundary(portion.until), range(portion.count)
            total += self.session.cost(self.session.growing(prefix, ends, seeds, portion.length))
        if self._staged(portion.until) and not portion.last:
            total += self.later_tags(portion)
        return total

    def later_tags(self, portion: Portion) -> Usage:
        """What opening all stages but the first by force can add: as many tokens as in the floor,
        and a call, for each."""
        one = self.session.ending(longest(portion.parents).segments, 1)
        calls = (len(self.session.plan) - 1) * len(portion.parents) * portion.count
        return Usage(prefilled=one.decoded * calls, flops=one.flops * calls, calls=calls)

    def floor(self, parents: tuple[Chain, ...], length: int) -> Usage:
        """What is held back while the longest of `parents` grows by `length` tokens."""
        return self.session.floor(longest(parents).segments, length)

    def length(self, parents: tuple[Chain, ...], until: Stage | str) -> int:
        """The most new tokens the unit may take for any of them, budget aside."""
        return max(unit_length(chain, until, self.session.plan) for chain in parents)

    # --- sampling ---

    async def sample(self, portion: Portion) -> tuple[list[Beam], Usage]:
        """The children of each parent, in order, and what all of them cost."""
        session, parents = self.session, portion.parents
        if not portion.forced:
            ids = tuple(chain.id for chain in parents)
            session.emit(Growing(ids, portion.unit, portion.count))
        with session.reporter.doing("growing", portion.unit, portion.count * len(parents)):
            each = await self.session.gather(self._children(chain, portion) for chain in parents)
        grown, usage = [chains for chains, _ in each], sum((u for _, u in each), Usage())
        for parent, chains in zip(parents, grown, strict=True):
            tokens = (chain.steps[-1].tokens for chain in chains)
            self.longest[parent.id] = max(self.longest.get(parent.id, 0), *tokens)
            self.known.update((chain.id, chain) for chain in chains)
        if portion.until == "end" and session.safe is None:
            done = [chain for chains in grown for chain in chains if chain.done]
            session.safe = min(done, key=lambda c: (tier(c.faults), -c.likelihood()), default=None)
        records = tuple(record(chain) for chains in grown for chain in chains)
        session.emit(Grown(portion.unit, records, usage, portion.forced))
        return grown, usage

    async def _children(self, chain: Chain, portion: Portion) -> tuple[Beam, Usage]:
        first = self.children.get(chain.id, 0)
        self.children[chain.id] = first + portion.count
        indices = range(first, first + portion.count)
        if not self._staged(portion.until):
            return await self._at_once(chain, indices, portion)
        whole = await self.session.gather(self._by_stage(chain, i, portion) for i in indices)
        return tuple(c for c, _ in whole), sum((usage for _, usage in whole), Usage())

    async def _at_once(self, chain: Chain, indices: range, portion: Portion) -> tuple[Beam, Usage]:
        """Children that one request writes."""
        session, until = self.session, portion.until
        prefix = self._opening(chain, portion)
        ids = tuple(f"{chain.id}.{i}" for i in indices)
        seeds = [session.seed(id) for id in ids]
        asked = unit_length(chain, until, session.plan)
        length = min(portion.length, asked)
        request = session.growing(
            chain.segments + prefix, self._boundary(until), seeds, length, portion.greedy
        )
        generated = await session.generate(
            request, portion.upto or 1.0, ids=ids, before=_text(prefix)
        )
        beam = tuple(
            self.session.probed(
                chain,
                child(
                    *(chain, i, until, session.plan, prefix, generation),
                    cut=length < asked,
                    written_on=portion.upto is None,
                ),
                generation,
            )
            for i, generation in zip(indices, generated.generations, strict=True)
        )
        return beam, generated.usage

    async def _by_stage(self, chain: Chain, index: int, portion: Portion) -> tuple[Chain, Usage]:
        """All that remains, stage by stage with forced tags, as one step."""
        session, plan, upto = self.session, self.session.plan, portion.upto or 1.0
        whole, usage, path, left = chain, Usage(), f"{chain.id}.{index}", portion.length
        while not whole.done and left > 0:
            reading = read(whole.text, plan)
            stage = plan[reading.open] if reading.open else next_stage(reading, plan)
            if stage is None:
                break
            prefix = opening(whole, stage, plan, session.settings.mode, forced=True)
            seeds = [session.seed(path, stage.tag)]
            request = session.growing(
                whole.segments + prefix,
                self._boundary(stage),
                seeds,
                min(left, stage.length),
                portion.greedy,
            )
            if portion.last:
                if not (tokens := self.payable(request, upto)):
                    left = 0
                    break
                request = replace(request, max_new_tokens=tokens)
            before = whole.text[len(chain.text) :] + _text(prefix)
            generated = await session.generate(
                request, upto, whole=False, ids=(path,), before=before
            )
            usage += generated.usage
            generation = generated.generations[0]
            left -= len(generation.ids)
            cut = request.max_new_tokens < stage.length
            part = child(whole, 0, stage, plan, prefix, generation, cut=cut)
            part = self.session.probed(whole, Chain(path, part.steps, part.done), generation)
            whole = part
        session.reporter.settle()
        ended = whole.done or (left > 0 and len(whole.steps) > len(chain.steps))
        return joined(chain, index, whole, plan, None if ended else "budget"), usage

    def _staged(self, until: Stage | str) -> bool:
        """Whether a unit takes several requests: a whole response whose tags are all forced."""
        return until == "end" and self.session.settings.mode == "prompted"

    def _boundary(self, until: Stage | str) -> Until:
        return boundary(until, self.session.plan, self.session.settings.mode)

    def _opening(self, chain: Chain, portion: Portion) -> tuple[Segment, ...]:
        mode = self.session.settings.mode
        return opening(chain, portion.until, self.session.plan, mode, portion.forced)

    # --- the end ---

    async def conclude(self, chain: Chain) -> tuple[Chain, Usage]:
        """Open the last stage by force and let the model answer at once: the floor. Where that
        was spent, the finished chain for whose sake it could be is the answer instead; where there
        is none, since time cannot be held back for certain, the chain as it is."""
        session, plan = self.session, self.session.plan
        reading = read(chain.text, plan)
        closing = plan[reading.open].close if reading.open else ""
        gap = prompts.separator(chain, session.settings.mode)
        prefix: tuple[Segment, ...] = (Segment(closing + gap + plan.last.open),)
        if reading.open == plan.last.tag:
            prefix = ()
        until, length = Until((plan.last.close,)), plan.last.length
        request = session.growing(chain.segments + prefix, until, (0,), length, greedy=True)
        if session.meter.budget is not None:  # the floor, and what is left besides
            length = self.payable(request, 1.0, final=True)
            if length < (min(FLOOR_TOKENS, plan.last.length) if session.safe else 1):
                return session.safe or chain, Usage()
            request = replace(request, max_new_tokens=length)
        session.emit(Growing((chain.id,), plan.last.tag, 1))
        index = self.children.get(chain.id, 0)
        with session.reporter.doing("growing", plan.last.tag, 1):
            ids = (f"{chain.id}.{index}",)
            generated = await session.generate(request, final=True, ids=ids, before=_text(prefix))
        self.children[chain.id] = index + 1
        concluded = child(
            *(chain, index, plan.last, plan, prefix, generated.generations[0]),
            cut=length != plan.last.length,
        )
        concluded = self.session.probed(chain, concluded, generated.generations[0])
        self.known[concluded.id] = concluded
        session.emit(Grown(plan.last.tag, (record(concluded),), generated.usage, forced=True))
        return concluded, generated.usage


def largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number of 1 .. `most` that fits, 0 if none; all below one that fits do too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _text(segments: tuple[Segment, ...]) -> str:
    return "".join(segment.text for segment in segments)


def record(chain: Chain) -> Chain:
    """A chain as events carry it: with its new step only."""
    return Chain(chain.id, chain.steps[-1:], chain.done, chain.count)
