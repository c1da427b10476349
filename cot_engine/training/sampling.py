"""Pairs sampled from a model: candidates as a search samples them, labelled by the truth."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cot_engine import scenes
from cot_engine.ablation.worth import SENTENCE, WHOLE, continued, stages_of
from cot_engine.core.chain import Chain
from cot_engine.core.grammar import conclusion, read
from cot_engine.core.problem import Problem
from cot_engine.core.stages import Plan
from cot_engine.core.trace import Trace
from cot_engine.errors import CotEngineError, InputError, ModelError
from cot_engine.judging.judges import RandomJudge
from cot_engine.options.config import RunConfig
from cot_engine.questions.data import Item, SceneGrader
from cot_engine.scenes.checking import mark_caption, mark_reasoning
from cot_engine.search.strategy import Expand, Search, Select, Task
from cot_engine.training.pairs import Candidate, Claim, Done, Pair, PairsFile

if TYPE_CHECKING:
    from cot_engine.engine.facade import Engine


@dataclass(frozen=True, slots=True)
class Sampler:
    """How candidates are made. `stages` are tags, WHOLE or SENTENCE; `n` candidates of each
    selection; at most `per_problem` pairs, the stages taking turns. With `graded`, two wrong
    captions of which one has more right are a pair, too."""

    config: RunConfig
    stages: tuple[str, ...]
    n: int = 4
    per_problem: int = 6
    graded: bool = True

    def recipe(self) -> dict[str, Any]:
        """All that decides what is sampled, but for model and data."""
        c = self.config
        return {
            "stages": list(self.stages),
            "n": self.n,
            "per_problem": self.per_problem,
            "graded": self.graded,
            "sampling": [c.temperature, c.top_p, c.top_k],
            "seed": c.seed,
            "plan": repr(c.plan),
        }


class Staged:
    """A strategy that samples `n` candidates of the stages in `tags` and one of each other."""

    def __init__(self, n: int, tags: Iterable[str]) -> None:
        self.n, self.tags = n, frozenset(tags)

    def search(self, task: Task) -> Search:
        beam = task.start
        for stage in task.plan:
            wanted = stage.tag in self.tags
            beam = yield Expand(beam, until=stage, n=self.n if wanted else 1)
            if wanted:
                beam = yield Select(beam, keep=1)
        return beam[0]


async def sampled(engine: Engine, item: Item, index: int, sampler: Sampler) -> Done:
    """One problem's pairs. What is wrong with the problem is kept; a failing model raises."""
    try:
        problem = item.problem()
        seen: dict[str, tuple[int, float, int]] = {}
        found: dict[str, list[Pair]] = {}
        for strategy in _strategies(sampler):
            config = replace(sampler.config, judge="random", budget=None, parameters={})
            # Not the coin of a random judge that may be measured.
            between = RandomJudge(config.seed + 1)
            more: dict[str, Any] = {"n": sampler.n} if isinstance(strategy, str) else {}
            answer = await engine.asolve(
                problem, config=config, strategy=strategy, judge=between, **more
            )
            trace = answer.trace
            places = _places(trace, strategy, sampler)
            await _collect(engine, item, problem, config, trace, places, sampler, seen, found)
    except ModelError:
        raise
    except CotEngineError as error:
        return Done(item.id, index, error=str(error))
    chosen = _chosen(found, sampler, item.id)
    return Done(item.id, index, tuple(i.digest for i in problem.images), seen, tuple(chosen))


def _strategies(sampler: Sampler) -> Iterator[Staged | str]:
    tags = [name for name in sampler.stages if name not in (WHOLE, SENTENCE)]
    if tags:
        yield Staged(sampler.n, tags)
    if WHOLE in sampler.stages:
        yield "best-of-n"
    if SENTENCE in sampler.stages:
        yield "sentence-beam"


def _places(trace: Trace, strategy: Staged | str, sampler: Sampler) -> list[str]:
    """What each selection of a search is a sample of, "" for those that nobody asked for."""
    if strategy == "sentence-beam":
        return [SENTENCE if held.about == "step" else "" for _, held in trace.fold().selections]
    return [at if at in sampler.stages else "" for at in stages_of(trace)]


async def _collect(
    engine: Engine,
    item: Item,
    problem: Problem,
    config: RunConfig,
    trace: Trace,
    places: list[str],
    sampler: Sampler,
    seen: dict[str, tuple[int, float, int]],
    found: dict[str, list[Pair]],
) -> None:
    """Add what one search's selections show to `seen` and `found`, by stage."""
    plan, fold = trace.started.plan, trace.fold()
    selections = [
        (at, event, [fold.chains[name] for name in event.ranking])
        for (_, event), at in zip(fold.selections, places, strict=True)
        if at
    ]
    labels = {c.id: outcome(item, at, c, plan) for at, _, among in selections for c in among}
    unknown = [c for _, _, among in selections for c in among if labels[c.id] is None]
    if unknown:
        onward = replace(config, mode=trace.started.mode)
        ends, _ = await continued(engine, problem, onward, unknown, 1)
        for name, (end,) in ends.items():
            labels[name] = item.grade(conclusion(end.text, plan))
    known = {name: label for name, label in labels.items() if label is not None}
    for at, event, among in selections:
        shared = "" if at == WHOLE else "".join(step.text for step in among[0].steps[:-1])
        made = [_candidate(item, at, chain, known[chain.id]) for chain in among]
        n, right, texts = seen.get(at, (0, 0.0, 0))
        # A trace's chain does not know how many were merged into it: its selection does.
        right += sum((1 + len(event.merged.get(c.id, ()))) * known[c.id] for c in among)
        seen[at] = (n + len(event.candidates), round(right, 6), texts + len(among))
        found.setdefault(at, []).extend(
            Pair(at, shared, a, b, event.stage)
            for a, b in itertools.combinations(made, 2)
            if (a.label != b.label if sampler.graded else (a.label == 1) != (b.label == 1))
        )


def outcome(item: Item, at: str, chain: Chain, plan: Plan) -> float | None:
    """What is known of a candidate without going on from it; None if that is nothing.

    A caption of a scene counts by the share of the objects that it names rightly, 1 if all.
    """
    if at not in (WHOLE, SENTENCE):
        text = read(chain.text, plan).contents.get(at, "")
        if at == "CAPTION" and isinstance(item.grader, SceneGrader):
            right, there = scenes.grade_caption(text, item.grader.scene.objects)
            return right / there
        if (facts := item.facts(at, text)) is not None:
            return facts
    return item.grade(conclusion(chain.text, plan)) if chain.done else None


def _candidate(item: Item, at: str, chain: Chain, label: float) -> Candidate:
    steps = chain.steps if at == WHOLE else chain.steps[-1:]
    text = "".join(step.text for step in steps)
    marks = None
    if isinstance(item.grader, SceneGrader) and at != SENTENCE:
        marks = tuple(scene_marks(text, item.grader.scene))
    logprob, tokens = sum(s.logprob for s in steps), sum(s.tokens for s in steps)
    return Candidate(text, label, logprob, tokens, marks)


_MARKED = re.compile(r"<(CAPTION|REASONING)>(.*?)</\1>", re.DOTALL)


def scene_marks(text: str, scene: scenes.SceneProblem) -> Iterator[Claim]:
    """Which claims of the stages in a text are true of a scene."""
    for stage in _MARKED.finditer(text):
        tag, content = stage.groups()
        caption = tag == "CAPTION"
        marks = mark_caption(content, scene.objects) if caption else mark_reasoning(content, scene)
        for mark in marks:
            yield stage.start(2) + mark.start, stage.start(2) + mark.end, mark.true


def _chosen(found: dict[str, list[Pair]], sampler: Sampler, problem: str) -> list[Pair]:
    """At most `per_problem` of a problem's pairs, drawn, the stages taking turns; which of a pair
    comes first is drawn too."""
    rng = random.Random(f"{sampler.config.seed}|{problem}|pairs")
    queues = [rng.sample(found[at], len(found[at])) for at in sampler.stages if at in found]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    taken = itertools.islice((pair for pair in turns if pair is not None), sampler.per_problem)
    return [pair if rng.random() < 0.5 else pair.swapped() for pair in taken]


# --- many problems ---


def sample_pairs(
    engine: Engine,
    items: Sequence[Item],
    wanted: Iterable[int],
    sampler: Sampler,
    file: PairsFile,
    on_done: Callable[[Done], None] = lambda done: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Do the problems of `items` at the places `wanted` that the file does not have, the engine's
    number of them at a time. When `stop` says so, those in flight are lost and it returns."""

    def waiting_done(jobs: set[asyncio.Task]) -> None:
        for job in jobs:
            done = job.result()
            file.add(done)
            on_done(done)

    async def everything() -> None:
        waiting: set[asyncio.Task] = set()
        try:
            for index in wanted:
                if index in file.done:
                    continue
                if stop():
                    return
                one = sampled(engine, items[index], index, sampler)
                waiting.add(asyncio.ensure_future(one))
                if len(waiting) >= engine.in_flight:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    waiting_done(done)
            while waiting and not stop():
                done, waiting = await asyncio.wait(
                    waiting, return_when=asyncio.FIRST_COMPLETED, timeout=1.0
                )
                waiting_done(done)
        finally:
            for job in waiting:
                job.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(everything())


def check_enough(done: Iterable[Done], stages: Sequence[str], what: str) -> list[str]:
    """Sentences about stages without pairs. Raises InputError if there is no pair at all, saying
    what the candidates were like."""
    done = list(done)
    counts = {at: sum(p.stage == at for d in done for p in d.pairs) for at in stages}
    notes = []
    for at in stages:
        if counts[at]:
            continue
        n = sum(d.seen[at][0] for d in done if at in d.seen)
        right = sum(d.seen[at][1] for d in done if at in d.seen)
        texts = sum(d.seen[at][2] for d in done if at in d.seen)
        notes.append(f"{at}: {_why(n, right / n if n else 0.0, texts)}")
    if any(counts.values()):
        return [f"No {what} pairs at {note}" for note in notes]
    failed = [d for d in done if d.error]
    if failed and len(failed) == len(done):
        raise InputError(f"All {len(done):,} problems failed, the first thus: {failed[0].error}")
    raise InputError(
        f"Among the candidates of {len(done):,} {what} problems no two that were sampled together "
        f"have different outcomes. {' '.join(notes)}",
        "Sample at a higher pairs.temperature or more of them (pairs.n), or take harder problems "
        "for a model that is always right, easier ones or more training for one that never is.",
    )


def _why(n: int, right: float, texts: int) -> str:
    if not n:
        return "there were no candidates."
    if texts < 0.3 * n:
        return f"of {n:,} candidates only {texts:,} were different sound texts."
    if right > 0.9:
        return f"{right:.0%} of {n:,} candidates were right: the model is too good here."
    if right < 0.1:
        return f"only {right:.0%} of {n:,} candidates were right: the model is too bad here."
    return f"{right:.0%} of {n:,} candidates were right, but whole selections at a time."
