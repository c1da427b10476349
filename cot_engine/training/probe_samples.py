"""What a probe is fitted on: responses of a model with its states while it wrote, and what is true.

Whole responses are sampled as a majority vote samples them; each is labelled by the standard
answer, a stage by its facts where the data set knows them, and by the answer where not. Of problems
that are only measured on, the likeliest response is written too: a vote may begin with it. They are
kept in a folder, a file of `PART` problems each (numpy's .npz, one row a response), so that what
was stopped goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cot_engine.core.answers import normalise_answer
from cot_engine.core.chain import Chain
from cot_engine.core.events import Grown
from cot_engine.core.grammar import conclusion, read
from cot_engine.core.stages import Plan
from cot_engine.errors import CotEngineError, InputError, ModelError, StoreError, said, shown
from cot_engine.files.reading import named, read_json
from cot_engine.files.writing import write_whole
from cot_engine.judging.probe import WHOLE, Probe
from cot_engine.judging.states import Held, Stretch
from cot_engine.questions.data import Item, SceneGrader
from cot_engine.scenes.checking import mark_caption

if TYPE_CHECKING:
    from cot_engine.engine.facade import Engine
    from cot_engine.options.config import RunConfig

PART = 16
"""Problems of one file."""


class Recorder(Probe):
    """In a probe's place: keeps what a probe would read, and gives each a number instead of a
    logit, by which it is found again."""

    def __init__(self, layers: Sequence[int], width: int, marks: Mapping[str, str]) -> None:
        super().__init__(tuple(layers), width, {}, marks)
        self.kept: dict[float, Stretch | Held] = {}
        self._next = 0

    def _keep(self, what: Stretch | Held) -> float:
        self._next += 1
        self.kept[float(self._next)] = what
        return float(self._next)

    def stage(self, stretch: Stretch) -> float:
        """The number under which the stage is kept."""
        return self._keep(stretch)

    def whole(self, held: Held) -> float:
        """The number under which the response is kept."""
        return self._keep(held)


@dataclass(frozen=True)
class Samples:
    """One row a response. `problem` [rows] are places in the data set; `greedy` [rows] says that it
    is a problem's likeliest response and no sample; `answer` [rows] numbers of
    equal conclusions within a problem; `label` [rows] what it earned; `nats` and `tokens` of the
    response; `mean` [rows, size] its mean state. By stage: `ends` and `means` [rows, size],
    `stage_nats`, `stage_tokens`, `facts` (NaN: unknown), and `closed` (was there such a stage).
    Of claims one row each: `claim` [claims, size], `claim_row`, `claim_stage`, `claim_true`
    (NaN: unknown)."""

    arrays: Mapping[str, np.ndarray]
    stages: tuple[str, ...]

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.arrays[name]
        except KeyError:
            raise AttributeError(name) from None

    def __len__(self) -> int:
        return len(self.arrays["label"])


@dataclass
class _Rows:
    """Responses being gathered."""

    stages: tuple[str, ...]
    size: int
    found: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, name: str, value: Any) -> None:
        self.found.setdefault(name, []).append(value)

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.array(values, np.float32) for name, values in self.found.items()}


async def sample(
    engine: Engine,
    recorder: Recorder,
    item: Item,
    index: int,
    configs: Sequence[RunConfig],
    rows: _Rows,
) -> str:
    """Add one problem's responses to `rows`, those of each search in turn. What is wrong with it is
    the result ("": nothing); a model that fails raises."""
    numbers = dict[str, int]()
    for config in configs:
        try:
            answer = await engine.asolve(item.problem(), config=config)
        except ModelError:
            raise
        except CotEngineError as error:
            return str(error)
        plan = answer.trace.started.plan
        chains = [c for event in answer.trace if isinstance(event, Grown) for c in event.chains]
        for chain in chains:
            scores = chain.steps[-1].scores
            kept = {name: recorder.kept.pop(number) for name, number in scores.items()}
            if WHOLE in kept:
                rows.add("greedy", config.strategy == "greedy")
                _add(rows, item, index, chain, plan, kept, numbers)
    return ""


def _add(
    rows: _Rows,
    item: Item,
    index: int,
    chain: Chain,
    plan: Plan,
    kept: Mapping[str, Any],
    numbers: dict[str, int],
) -> None:
    held, final = kept[WHOLE], conclusion(chain.text, plan)
    label, row = item.grade(final), len(rows.found.get("label", ()))
    number = numbers.setdefault(normalise_answer(final), len(numbers))
    zeros, contents = np.zeros(rows.size, np.float32), read(chain.text, plan).contents
    for name, value in {
        "problem": index,
        "answer": number,
        "label": label,
        "nats": held.whole.nats,
        "tokens": held.whole.tokens,
        "mean": zeros if held.whole.mean is None else held.whole.mean,
    }.items():
        rows.add(name, value)
    for tag in rows.stages:
        stretch: Stretch | None = kept.get(tag)
        facts = item.facts(tag, contents.get(tag, ""))
        rows.add(f"closed/{tag}", stretch is not None)
        rows.add(f"end/{tag}", zeros if stretch is None else stretch.end)
        mean = None if stretch is None else stretch.span.mean
        rows.add(f"mean/{tag}", zeros if mean is None else mean)
        rows.add(f"nats/{tag}", stretch.span.nats if stretch else 0.0)
        rows.add(f"tokens/{tag}", stretch.span.tokens if stretch else 0)
        rows.add(f"facts/{tag}", math.nan if facts is None else facts)
        if stretch is not None and stretch.claims:
            true = _claims(item, tag, contents.get(tag, ""))
            if true is None or len(true) != len(stretch.claims):
                true = [math.nan] * len(stretch.claims)
            for state, each in zip(stretch.claims, true, strict=True):
                rows.add("claim", state)
                rows.add("claim_row", row)
                rows.add("claim_stage", rows.stages.index(tag))
                rows.add("claim_true", each)


def _claims(item: Item, tag: str, text: str) -> list[float] | None:
    """Whether each claim of a stage is true; None where nobody knows."""
    if tag != "CAPTION" or not isinstance(item.grader, SceneGrader):
        return None
    return [float(mark.true) for mark in mark_caption(text, item.grader.scene.objects)]


class SampleFolder:
    """The files of a run. Raises StoreError for a folder that was made otherwise."""

    def __init__(self, folder: Path, made: Mapping[str, Any]) -> None:
        self.folder = folder
        path = folder / "samples.json"
        if path.exists():
            had, now = read_json(path, "record", StoreError), json.loads(json.dumps(made))
            had = had if isinstance(had, dict) else {}
            told = [
                f"{key} {shown(had.get(key))} (now {shown(now.get(key))})"
                for key in sorted({**had, **now})
                if had.get(key) != now.get(key)
            ]
            if told:
                raise StoreError(
                    f"{str(folder)!r} holds samples that were made otherwise: {', '.join(told)}.",
                    "Go on with what they were made with, give another --out, or delete it.",
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(made) + "\n"
            write_whole(path, text, "The record", StoreError, "Give another --out.")

    def path(self, part: int) -> Path:
        """The file of that part."""
        return self.folder / f"samples-{part:05d}.npz"

    def write(self, part: int, rows: _Rows) -> None:
        """Write a part, whole or not at all. Raises StoreError."""
        import io

        packed = io.BytesIO()
        np.savez(packed, **rows.arrays())  # type: ignore[arg-type]  # its stub wants one type
        hint = "Free some space, or give another --out."
        write_whole(self.path(part), packed.getvalue(), "The samples", StoreError, hint)

    def read(self, stages: tuple[str, ...]) -> Samples:
        """All of them, one behind the other. Raises InputError if there are none, and StoreError
        for a file that is damaged."""
        parts: list[dict[str, np.ndarray]] = []
        rows = 0
        for path in sorted(self.folder.glob("samples-*.npz")):
            try:
                with np.load(path, allow_pickle=False) as file:
                    part = {name: file[name] for name in file.files}
            except Exception as error:  # numpy, zipfile and zlib have classes of their own
                raise StoreError(
                    f"The samples {named(path)} cannot be read: {said(error)}.",
                    "Delete that file: its questions are sampled again.",
                ) from None
            if "label" not in part:
                continue
            if "claim_row" in part:
                part["claim_row"] = part["claim_row"] + rows
            rows += len(part["label"])
            parts.append(part)
        if not parts:
            raise InputError("Not one response was sampled.", "See what was said of the problems.")
        names = {name for part in parts for name in part}
        joined = {n: np.concatenate([part[n] for part in parts if n in part]) for n in names}
        return Samples(joined, stages)


def sample_all(
    engine: Engine,
    recorder: Recorder,
    items: Sequence[Item],
    config: RunConfig,
    folder: SampleFolder,
    stages: tuple[str, ...],
    measured: Collection[int] = (),
    on_done: Callable[[int, str], None] = lambda index, error: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Sample what the folder lacks, the engine's number of problems at a time; of those at the
    places `measured` the likeliest response too. When `stop` says so, the part that is under way is
    lost."""
    import asyncio

    size = len(recorder.layers) * recorder.width
    likeliest = replace(config, strategy="greedy", parameters={})

    async def part(indices: range, limit: asyncio.Semaphore) -> _Rows | None:
        rows = _Rows(stages, size)

        async def one(index: int) -> None:
            async with limit:
                if not stop():
                    configs = [config, likeliest] if index in measured else [config]
                    error = await sample(engine, recorder, items[index], index, configs, rows)
                    on_done(index, error)

        await asyncio.gather(*map(one, indices))
        return None if stop() else rows

    async def everything() -> None:
        # More parts at a time than are searched: the end of one leaves no room in the batch.
        most, limit = engine.in_flight // PART + 1, asyncio.Semaphore(engine.in_flight)
        todo = [p for p in _parts(len(items)) if not folder.path(p.start // PART).exists()]
        waiting: dict[asyncio.Task[_Rows | None], int] = {}
        for indices in [*todo, None]:
            if indices is not None:
                waiting[asyncio.ensure_future(part(indices, limit))] = indices.start // PART
            while waiting and (len(waiting) > most or indices is None):
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    number, rows = waiting.pop(task), task.result()
                    if rows is not None:
                        folder.write(number, rows)
            if stop():
                return

    asyncio.run(everything())


def _parts(count: int) -> Iterator[range]:
    for start in range(0, count, PART):
        yield range(start, min(start + PART, count))
