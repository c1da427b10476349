"""Pairs of a model's own candidates with different outcomes: what a judge is trained on.

Candidates are sampled as a search samples them, n at a time from one prefix, with a random judge in
between. Each is labelled by the truth: a caption by its facts where the data set knows them, a
response by its answer, all else by whether its likeliest continuation ends in the right answer.

A pairs file is JSON lines: first what it was made by, then one line for each problem that is done,
in the order in which they were finished, with its pairs (perhaps none):

    {"problem": "...", "index": 7, "images": ["<digest>"], "seen": {"CAPTION": [4, 1.75, 3]},
     "pairs": [{"stage": "CAPTION", "shared": "<SUMMARY>...", "first": {...}, "second": {...}}]}

`seen` is, by stage, how many candidates there were, the sum of their outcomes, and how many
different sound texts. `shared` is the turn up to where the candidates part, and each of them
{"text", "label" (0 to 1), "logprob" (nats, summed), "tokens", "marks"}: `marks` are [start, end,
true] of every claim in the text, in characters, or null where nobody knows. A problem that failed
has "error" instead of pairs.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cot_engine import scenes
from cot_engine.ablation.data import Item, SceneGrader
from cot_engine.ablation.worth import SENTENCE, WHOLE, continued, stages_of
from cot_engine.config import RunConfig
from cot_engine.errors import CotEngineError, InputError, ModelError, StoreError
from cot_engine.events import Selected, Trace
from cot_engine.judges import Case, RandomJudge
from cot_engine.prompts import judge_turn
from cot_engine.scenes.checking import mark_caption, mark_reasoning
from cot_engine.stages import Plan, conclusion, read
from cot_engine.strategy import Expand, Search, Select, Task
from cot_engine.types import Chain, Problem, Prompt, Step

if TYPE_CHECKING:
    from cot_engine.engine import Engine
    from cot_engine.prompts import Form

SCHEMA = "pairs-1"
Claim = tuple[int, int, bool]  # characters `start` to `end` of a text are one claim, true or not


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of a pair. `label` is its outcome, 0 to 1; `logprob` sums over its sampled `tokens`."""

    text: str
    label: float
    logprob: float = 0.0
    tokens: int = 0
    marks: tuple[Claim, ...] | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two candidates of one selection with different labels. `stage` is a tag, WHOLE or SENTENCE;
    `shared` the turn before the candidates ("" for whole responses)."""

    stage: str
    shared: str
    first: Candidate
    second: Candidate

    @property
    def better(self) -> int:
        """0 if the first is the better one, else 1."""
        return int(self.second.label > self.first.label)

    def swapped(self) -> Pair:
        return replace(self, first=self.second, second=self.first)

    def chains(self) -> tuple[Chain, Chain]:
        """The candidates as a judge is given them, with the ids "r.0.0" and "r.0.1"."""
        shared = (Step(self.shared, (), self.stage, 0.0, 0, "stop"),) if self.shared else ()
        whole = self.stage == WHOLE

        def chain(k: int, each: Candidate) -> Chain:
            step = Step(each.text, (), self.stage, each.logprob, each.tokens, "stop")
            return Chain(f"r.0.{k}", (*shared, step), whole)

        return chain(0, self.first), chain(1, self.second)

    def case(self, problem: Problem, plan: Plan) -> Case:
        """What a judge is told of the selection. `plan` is fitted to the problem."""
        closed = all(f"</{self.stage}>" in each.text for each in (self.first, self.second))
        staged = closed and self.stage in {stage.tag for stage in plan}
        about = "whole" if self.stage == WHOLE else "step"
        return Case(problem, plan, about, plan[self.stage] if staged else None, problem.images)

    def turn(self, problem: Problem, plan: Plan, form: Form) -> tuple[Prompt, str]:
        """The user's turn that asks for the verdict: what all pairs share, and the tail."""
        return judge_turn(self.case(problem, plan), self.chains(), form)

    def plain(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "shared": self.shared,
            **{name: _plain(getattr(self, name)) for name in ("first", "second")},
        }


def _plain(each: Candidate) -> dict[str, Any]:
    return {
        "text": each.text,
        "label": round(each.label, 6),
        "logprob": round(each.logprob, 4),
        "tokens": each.tokens,
        "marks": None if each.marks is None else [list(mark) for mark in each.marks],
    }


@dataclass(frozen=True, slots=True)
class Done:
    """One problem's line of a pairs file."""

    problem: str
    index: int
    images: tuple[str, ...] = ()
    seen: dict[str, tuple[int, float, int]] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    error: str = ""

    def line(self) -> str:
        found: dict[str, Any] = {"problem": self.problem, "index": self.index}
        if self.error:
            return json.dumps(found | {"error": self.error})
        found |= {"images": list(self.images), "seen": self.seen}
        return json.dumps(found | {"pairs": [pair.plain() for pair in self.pairs]})


def _read_line(line: str) -> Done:
    found = json.loads(line)

    def candidate(each: dict[str, Any]) -> Candidate:
        marks = each["marks"]
        told = None if marks is None else tuple((s, e, bool(t)) for s, e, t in marks)
        return Candidate(each["text"], each["label"], each["logprob"], each["tokens"], told)

    return Done(
        found["problem"],
        found["index"],
        tuple(found.get("images", ())),
        {at: (n, right, texts) for at, (n, right, texts) in found.get("seen", {}).items()},
        tuple(
            Pair(each["stage"], each["shared"], candidate(each["first"]), candidate(each["second"]))
            for each in found.get("pairs", ())
        ),
        found.get("error", ""),
    )


# --- sampling ------------------------------------------------------------------------------------


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
        for strategy, parameters in _strategies(sampler):
            config = replace(sampler.config, judge="random", budget=None, parameters=parameters)
            answer = await engine.asolve(
                problem, config=config, strategy=strategy, judge=RandomJudge(config.seed + 1)
            )
            trace: Trace = answer.trace  # type: ignore[assignment]
            await _collect(engine, item, problem, config, trace, sampler, seen, found)
    except ModelError:
        raise
    except CotEngineError as error:
        return Done(item.id, index, error=str(error))
    chosen = _chosen(found, sampler, item.id)
    return Done(item.id, index, tuple(i.digest for i in problem.images), seen, tuple(chosen))


def _strategies(sampler: Sampler) -> Iterator[tuple[Any, dict[str, Any]]]:
    tags = [name for name in sampler.stages if name not in (WHOLE, SENTENCE)]
    if tags:
        yield Staged(sampler.n, tags), {}
    if WHOLE in sampler.stages:
        yield "best-of-n", {"n": sampler.n}
    if SENTENCE in sampler.stages:
        yield "sentence-beam", {"n": sampler.n}


async def _collect(
    engine: Engine,
    item: Item,
    problem: Problem,
    config: RunConfig,
    trace: Trace,
    sampler: Sampler,
    seen: dict[str, tuple[int, float, int]],
    found: dict[str, list[Pair]],
) -> None:
    """Add what one search's selections show to `seen` and `found`, by stage."""
    plan, chains = trace.started.plan, trace.chains()
    held = [event for event in trace if isinstance(event, Selected)]
    selections = [
        (at, [chains[name] for name in event.ranking], len(event.candidates))
        for event, at in zip(held, stages_of(trace), strict=True)
        if at in sampler.stages
    ]
    labels = {c.id: outcome(item, at, c, plan) for at, among, _ in selections for c in among}
    unknown = [c for _, among, _ in selections for c in among if labels[c.id] is None]
    if unknown:
        onward = replace(config, mode=trace.started.mode)
        ends, _ = await continued(engine, problem, onward, unknown, 1)
        for name, (end,) in ends.items():
            labels[name] = item.grade(conclusion(end.text, plan))
    for at, among, count in selections:
        shared = "" if at == WHOLE else "".join(step.text for step in among[0].steps[:-1])
        made = [_candidate(item, at, chain, labels[chain.id]) for chain in among]  # type: ignore[arg-type]
        n, right, texts = seen.get(at, (0, 0.0, 0))
        right += sum(c.count * labels[c.id] for c in among)  # type: ignore[operator]
        seen[at] = (n + count, round(right, 6), texts + len(among))
        found.setdefault(at, []).extend(
            Pair(at, shared, a, b)
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
            right, there = scenes.grade_caption(text, item.grader.objects)
            return right / there
        if (facts := item.facts(at, text)) is not None:
            return facts
    return item.grade(conclusion(chain.text, plan)) if chain.done else None


def _candidate(item: Item, at: str, chain: Chain, label: float) -> Candidate:
    steps = chain.steps if at == WHOLE else chain.steps[-1:]
    text = "".join(step.text for step in steps)
    marks = None
    if isinstance(item.grader, SceneGrader) and at != SENTENCE:
        marks = tuple(scene_marks(text, item.grader.objects, item.grader.answer))
    logprob, tokens = sum(s.logprob for s in steps), sum(s.tokens for s in steps)
    return Candidate(text, label, logprob, tokens, marks)


_MARKED = re.compile(r"<(CAPTION|REASONING)>(.*?)</\1>", re.DOTALL)


def scene_marks(text: str, objects: Any, answer: str) -> Iterator[Claim]:
    """Which claims of the stages in a text are true of a scene."""
    for stage in _MARKED.finditer(text):
        tag, content = stage.groups()
        caption = tag == "CAPTION"
        marks = (
            mark_caption(content, objects) if caption else mark_reasoning(content, objects, answer)
        )
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


# --- the file ------------------------------------------------------------------------------------


class PairsFile:
    """A pairs file that is written, by one process at a time, or only read (`recipe` None).

    What a killed process left of its last line is cut off. Raises StoreError for a file that is
    none, is held or cannot be written, InputError for one that was made by another recipe.
    """

    def __init__(self, path: str | Path, recipe: dict[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.done: dict[int, Done] = {}
        self._file: Any = None
        try:
            if recipe is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a+b")
                self._hold()
            self._read(recipe)
        except OSError as error:
            self.close()
            raise self._broken(error.strerror or str(error)) from None
        except BaseException:
            self.close()
            raise

    def _hold(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(
                f"Another process is writing to {str(self.path)!r}.",
                "Wait for it to end, stop it, or name another output.",
            ) from None

    def _read(self, recipe: dict[str, Any] | None) -> None:
        data = self.path.read_bytes()
        whole, cut = data.rpartition(b"\n")[::2]
        if cut and self._file is not None:
            self._file.truncate(len(data) - len(cut))
        if not whole:
            if recipe is None:
                raise self._broken("it is empty")
            self._write(json.dumps({"pairs": SCHEMA, "recipe": recipe}))
            self.recipe = recipe
            return
        head, *lines = whole.split(b"\n")
        try:
            first = json.loads(head)
            if first["pairs"] != SCHEMA:
                raise self._broken(f"its schema is {first['pairs']!r}, not {SCHEMA}")
            self.recipe = first["recipe"]
            for line in lines:
                done = _read_line(line.decode())
                self.done[done.index] = done
        except (ValueError, KeyError, TypeError) as error:
            raise self._broken(f"it is no pairs file ({error})") from None
        if recipe is not None and self.recipe != json.loads(json.dumps(recipe)):
            keys = [k for k in {**self.recipe, **recipe} if self.recipe.get(k) != recipe.get(k)]
            said = ", ".join(f"{k} {self.recipe.get(k)!r} (now {recipe.get(k)!r})" for k in keys)
            raise InputError(
                f"The pairs in {str(self.path)!r} were made with {said}.",
                "Set it back, name another output, or start again with --restart.",
            )

    def add(self, done: Done) -> None:
        """Keep a problem: it is on the disk when this returns."""
        try:
            self._write(done.line())
        except OSError as error:
            raise StoreError(
                f"{str(self.path)!r} cannot be written: {error.strerror}.",
                "Free some space and give the same command again: what is done is kept.",
            ) from None
        self.done[done.index] = done

    def _write(self, line: str) -> None:
        self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _broken(self, why: str) -> StoreError:
        return StoreError(f"The pairs file {str(self.path)!r} cannot be used: {why}.")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> PairsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
