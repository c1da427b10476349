"""Growing chains: what is asked of the model for a unit, and how what it wrote becomes steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cot_engine.core.boundaries import Until
from cot_engine.core.chain import Beam, Chain, Step
from cot_engine.core.events import Cut, Growing, Grown
from cot_engine.core.grammar import Reading, new_faults, next_stage, read, tier
from cot_engine.core.requests import Generate, Generation, Segment
from cot_engine.core.stages import Plan, Stage
from cot_engine.core.usage import Usage
from cot_engine.judging import prompts
from cot_engine.search.concurrency import gather
from cot_engine.search.session import FLOOR_TOKENS, Session, longest

_COMFORT = 64  # tokens a candidate should have before the number of candidates is cut instead
LEAST = 8  # tokens below which growing is pointless and the floor is used
_SENTENCE = 256  # the longest sentence


class Exhausted(Exception):
    """The budget pays for no further growth: conclude from `chain`."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain


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

    async def expand(self, beam: Beam, until: Stage | str, n: int, greedy: bool = False) -> Beam:
        """Grow every chain `n` times by one unit. Raises Exhausted if the budget forbids it."""
        plan = self.session.plan
        growable = [chain for chain in beam if not has(chain, until, plan)]
        if not growable:
            return beam
        unit = until.tag if isinstance(until, Stage) else until
        n, share = self._within_budget(growable, until, n, forced=False)
        self.session.emit(Growing(tuple(chain.id for chain in growable), unit, n))
        grown, usage = await self.sample(growable, until, n, share, greedy, forced=False)
        self.session.emit(Grown(unit, tuple(record(c) for cs in grown for c in cs), usage))
        grown = await self._force_where_lost(growable, grown, until, n, greedy)
        by_parent = dict(zip((chain.id for chain in growable), grown, strict=True))
        return tuple(c for chain in beam for c in by_parent.get(chain.id, (chain,)))

    async def _force_where_lost(
        self, parents: list[Chain], grown: list[Beam], until: Stage | str, n: int, greedy: bool
    ) -> list[Beam]:
        """Where no child of a chain opened the stage asked for, sample again with it forced."""
        if not isinstance(until, Stage) or self.session.settings.mode == "prompted":
            return grown
        lost = [
            i
            for i, kids in enumerate(grown)
            if all(tier(c.last.faults) == 2 for c in kids)  # type: ignore[union-attr]
        ]
        if not lost:
            return grown
        try:
            n, share = self._within_budget([parents[i] for i in lost], until, n, forced=True)
        except Exhausted:
            return grown
        again, usage = await self.sample(
            [parents[i] for i in lost], until, n, share, greedy, forced=True
        )
        records = tuple(record(c) for chains in again for c in chains)
        self.session.emit(Grown(until.tag, records, usage, forced=True))
        for i, chains in zip(lost, again, strict=True):
            grown[i] = chains
        return grown

    # --- the budget ---

    def _within_budget(
        self, parents: list[Chain], until: Stage | str, n: int, forced: bool
    ) -> tuple[int, int]:
        """The number of candidates for each parent, and the most tokens for each of them.

        Tokens are cut first, down to a comfortable length; then candidates; then tokens again.
        """
        session = self.session
        asked = max(self.length(chain, until) for chain in parents)
        if session.meter.budget is None:
            return n, asked

        def fits(count: int, length: int) -> bool:
            cost = self.cost(parents, until, count, length, forced)
            if self.staged(until):
                cost += self.later_tags(parents, count)
            return session.meter.affords(cost, self.floor(parents, length))

        count = n
        while count > 1 and not fits(count, min(asked, _COMFORT)):
            count -= 1
        length = largest(asked, lambda tokens: fits(count, tokens))
        if length < min(asked, LEAST):
            left = session.meter.left or 0.0
            session.emit(Cut("search", n * len(parents), 0, left))
            raise Exhausted(session.safe or max(parents, key=lambda chain: chain.likelihood()))
        if count < n:
            session.emit(Cut("candidates", n, count, session.meter.left or 0.0))
        if length < asked:
            session.emit(Cut("tokens", asked, length, session.meter.left or 0.0))
        return count, length

    def payable(self, request: Generate, upto: float, final: bool = False) -> int:
        """The most tokens, of those it asks for, that `request` may now take; a `final` one may
        take the floor too."""
        session, of = self.session, self.session.meter.budget.of  # type: ignore[union-attr]

        def fits(tokens: int) -> bool:
            cost = of(session.cost(replace(request, max_new_tokens=tokens)))
            floor = Usage() if final else session.floor(request.prefix, tokens)
            return cost <= session.meter.room(floor, upto)

        return largest(request.max_new_tokens, fits)

    def cost(
        self, parents: list[Chain], until: Stage | str, count: int, length: int, forced: bool
    ) -> Usage:
        """The most that `count` children of each parent can cost, of `length` tokens each; where
        they take several requests, as if one did it all."""
        prefixes = (chain.segments + self.forced(chain, until, forced) for chain in parents)
        ends, seeds = self.boundary(until), range(count)
        costs = (self.session.cost(self.session.growing(p, ends, seeds, length)) for p in prefixes)
        return sum(costs, Usage())

    def later_tags(self, parents: list[Chain], count: int) -> Usage:
        """What opening all stages but the first by force can add: as many tokens as in the floor,
        and a call, for each."""
        one = self.session.ending(longest(parents).segments, 1)
        calls = (len(self.session.plan) - 1) * len(parents) * count
        return Usage(prefilled=one.decoded * calls, flops=one.flops * calls, calls=calls)

    def floor(self, parents: list[Chain], length: int) -> Usage:
        """What is held back while the longest of `parents` grows by `length` tokens."""
        return self.session.floor(longest(parents).segments, length)

    def length(self, chain: Chain, until: Stage | str) -> int:
        """The most new tokens the unit may take, budget aside."""
        if isinstance(until, Stage):
            return until.length
        reading = read(chain.text, self.session.plan)
        ahead = [s for s in self.session.plan if s.tag not in reading.contents]
        if until == "end":
            return sum(stage.length for stage in ahead)
        return min(_SENTENCE, ahead[0].length if ahead else _SENTENCE)

    # --- sampling ---

    async def sample(
        self,
        parents: list[Chain],
        until: Stage | str,
        n: int,
        share: int,
        greedy: bool,
        forced: bool,
        upto: float | None = None,
        guarded: bool = False,
    ) -> tuple[list[Beam], Usage]:
        """`n` children for each parent, in order, and what all of them cost.

        With `upto` they are optional (see `fill.py`). `guarded` ones were not reserved for, but
        for the first request of a single one: each request is cut to what the budget then pays.
        """
        unit = until.tag if isinstance(until, Stage) else until
        with self.session.reporter.doing("growing", unit, n * len(parents)):
            grown = await gather(
                self._children(chain, until, n, share, greedy, forced, upto, guarded)
                for chain in parents
            )
        for parent, (chains, _) in zip(parents, grown, strict=True):
            tokens = (chain.steps[-1].tokens for chain in chains)
            self.longest[parent.id] = max(self.longest.get(parent.id, 0), *tokens)
            self.known.update((chain.id, chain) for chain in chains)
        if until == "end" and self.session.safe is None:
            done = [chain for chains, _ in grown for chain in chains if chain.done]
            self.session.safe = min(
                done, key=lambda c: (tier(c.faults), -c.likelihood()), default=None
            )
        return [chains for chains, _ in grown], sum((usage for _, usage in grown), Usage())

    async def _children(
        self,
        chain: Chain,
        until: Stage | str,
        n: int,
        share: int,
        greedy: bool,
        forced: bool,
        upto: float | None,
        guarded: bool,
    ) -> tuple[Beam, Usage]:
        first = self.children.get(chain.id, 0)
        self.children[chain.id] = first + n
        indices = range(first, first + n)
        if self.staged(until):
            whole = await gather(
                self._by_stage(chain, i, share, greedy, upto or 1.0, guarded) for i in indices
            )
            return tuple(c for c, _ in whole), sum((usage for _, usage in whole), Usage())
        prefix = self.forced(chain, until, forced)
        seeds = [self.session.seed(f"{chain.id}.{i}") for i in indices]
        request = self.session.growing(
            chain.segments + prefix,
            self.boundary(until),
            seeds,
            min(share, self.length(chain, until)),
            greedy,
        )
        generated = await self.session.generate(request, upto or 1.0)
        cut = request.max_new_tokens < self.length(chain, until)
        children = (
            self.finish(chain, i, until, prefix, generation, cut, upto is not None)
            for i, generation in zip(indices, generated.generations, strict=True)
        )
        return tuple(children), generated.usage

    def staged(self, until: Stage | str) -> bool:
        """Whether a unit takes several requests: a whole response whose tags are all forced."""
        return until == "end" and self.session.settings.mode == "prompted"

    async def _by_stage(
        self, chain: Chain, index: int, share: int, greedy: bool, upto: float, guarded: bool
    ) -> tuple[Chain, Usage]:
        """All that remains, stage by stage with forced tags, as one step."""
        plan = self.session.plan
        whole, usage, path = chain, Usage(), f"{chain.id}.{index}"
        while not whole.done and share > 0:
            reading = read(whole.text, plan)
            stage = plan[reading.open] if reading.open else next_stage(reading, plan)
            if stage is None:
                break
            length = min(share, stage.length)
            prefix = self.forced(whole, stage, True)
            seeds = [self.session.seed(path, stage.tag)]
            request = self.session.growing(
                whole.segments + prefix, self.boundary(stage), seeds, length, greedy
            )
            if guarded:
                length = self.payable(request, upto)
                if not length:
                    share = 0
                    break
                request = replace(request, max_new_tokens=length)
            generated = await self.session.generate(request, upto, whole=False)
            usage += generated.usage
            generation = generated.generations[0]
            share -= len(generation.ids)
            part = self.finish(whole, 0, stage, prefix, generation, cut=length < stage.length)
            whole = Chain(path, part.steps, part.done)
        self.session.reporter.settle()
        new = whole.steps[len(chain.steps) :]
        ended = read(whole.text, plan, complete=not whole.done)
        missing = tuple(f for f in ended.faults if f.startswith("missing:"))
        step = Step(
            "".join(s.text for s in new),
            tuple(segment for s in new for segment in s.segments),
            new[-1].stage if new else "",
            sum(s.logprob for s in new),
            sum(s.tokens for s in new),
            new[-1].finish if new and (whole.done or share > 0) else "budget",
            tuple(fault for s in new for fault in s.faults) + missing,
        )
        return chain.grow(index, step, whole.done), usage

    def boundary(self, until: Stage | str) -> Until:
        plan = self.session.plan
        if until == "end" and self.session.settings.mode == "trained":
            return Until((plan.last.close,))
        # Any closing tag ends a step: a model that skips a stage must not write on unseen.
        return Until(tuple(stage.close for stage in plan), sentence=until == "sentence")

    def forced(self, chain: Chain, until: Stage | str, forced: bool) -> tuple[Segment, ...]:
        """The tags put in front of what is sampled: none for a model that opens stages itself,
        unless its last step ended the turn or went astray, and so would again."""
        session = self.session
        reading = read(chain.text, session.plan)
        last = chain.last
        astray = last is not None and (last.finish == "eos" or tier(last.faults) == 2)
        if reading.open or not (forced or astray or session.settings.mode == "prompted"):
            return ()
        stage = until if isinstance(until, Stage) else next_stage(reading, session.plan)
        if stage is None:
            return ()
        gap = prompts.separator(chain, session.settings.mode)
        return (Segment(gap + stage.open),)

    # --- reading ---

    def finish(
        self,
        parent: Chain,
        index: int,
        until: Stage | str,
        prefix: tuple[Segment, ...],
        generation: Generation,
        cut: bool,
        optional: bool = False,
    ) -> Chain:
        """The child chain that a generation makes: repaired where needed, its faults named.

        `cut`: it had fewer tokens than the unit may take, for the budget's sake. An `optional` one
        so cut is not written on.
        """
        plan = self.session.plan
        before = read(parent.text, plan)
        segments = (*prefix, Segment(generation.text, generation.ids))
        text = "".join(segment.text for segment in segments)
        after = read(parent.text + text, plan)
        finish = "budget" if cut and generation.finish == "length" else generation.finish
        faults: tuple[str, ...] = ()
        broken = optional and finish == "budget"
        if after.open and (broken or self._breaks_off(parent, until, generation, after)):
            stage = plan[after.open]
            if stage == plan.last and finish != "budget":
                faults = (f"unclosed-last:{stage.tag}",)
            elif generation.finish == "eos":
                faults = (f"ended:{stage.tag}",)
            else:
                faults = (f"unclosed:{stage.tag}",)
            segments = (*segments, Segment(stage.close))
            text += stage.close
            after = read(parent.text + text, plan)
        elif until == "end":
            after = read(parent.text + text, plan, complete=True)
        faults = new_faults(before, after) + faults
        if until == "sentence" and not after.open and after.contents == before.contents:
            ahead = next_stage(after, plan)
            faults += (f"missing:{ahead.tag}",) if ahead else ()
        if isinstance(until, Stage) and until.tag not in after.contents:
            lacking = f"missing:{until.tag}"
            optional = until.optional and after.contents.keys() - before.contents.keys()
            if not optional and lacking not in faults and f"skipped:{until.tag}" not in faults:
                faults += (lacking,)
        step = Step(
            text,
            segments,
            after.open or (list(after.contents) or [""])[-1],
            generation.logprob,
            len(generation.ids),
            finish,
            faults,
        )
        return parent.grow(index, step, plan.last.tag in after.contents)

    def _breaks_off(
        self, parent: Chain, until: Stage | str, generation: Generation, after: Reading
    ) -> bool:
        """Whether the open stage must be closed for the model: it will not be written on."""
        if generation.finish == "eos" or until != "sentence":
            return True
        stage = self.session.plan[after.open or ""]
        written = sum(s.tokens for s in parent.steps if s.stage == stage.tag)
        return written + len(generation.ids) >= stage.length or not generation.ids

    async def conclude(self, chain: Chain) -> tuple[Chain, Usage]:
        """Open the last stage by force and let the model answer at once: the floor. Where that
        was spent, the finished chain for whose sake it could be is the answer instead; where there
        is none, since time cannot be held back for certain, the chain as it is."""
        session, plan = self.session, self.session.plan
        reading = read(chain.text, plan)
        closing = plan[reading.open].close if reading.open else ""
        gap = prompts.separator(chain, session.settings.mode)
        prefix = (Segment(closing + gap + plan.last.open),)
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
        with session.reporter.doing("growing", plan.last.tag, 1):
            generated = await session.generate(request, final=True)
        index = self.children.get(chain.id, 0)
        self.children[chain.id] = index + 1
        child = self.finish(
            chain,
            index,
            plan.last,
            prefix,
            generated.generations[0],
            cut=length != plan.last.length,
        )
        self.known[child.id] = child
        session.emit(Grown(plan.last.tag, (record(child),), generated.usage, forced=True))
        return child, generated.usage


def largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number of 1 .. `most` that fits, 0 if none; all below one that fits do too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def has(chain: Chain, until: Stage | str, plan: Plan) -> bool:
    """Whether a chain needs no growing for this unit."""
    if chain.done:
        return True
    return isinstance(until, Stage) and until.tag in read(chain.text, plan).contents


def record(chain: Chain) -> Chain:
    """A chain as events carry it: with its new step only."""
    return Chain(chain.id, chain.steps[-1:], chain.done, chain.count)
