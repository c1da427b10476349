"""What one response costs, and whether a greedy one is better: searches beside those that a probe
is fitted on.

Responses of one problem share its prompt and pictures, so their usage does not say what one costs
alone, nor what one more does. Both are measured: the first response alone (the same that is the
first of many), and the first two. Seconds are not: they are those of a machine and its load.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cot_engine.errors import CotEngineError, ModelError, StoreError
from cot_engine.files.reading import read_json
from cot_engine.files.writing import write_whole
from cot_engine.judging.rows import Sample, Unit
from cot_engine.questions.data import Item
from cot_engine.search.budget import Budget
from cot_engine.search.budget import Unit as Counted
from cot_engine.statistics import Interval, accuracy
from cot_engine.training.probe_samples import Samples

if TYPE_CHECKING:
    from cot_engine.engine.facade import Engine
    from cot_engine.options.config import RunConfig

FILE = "cost.json"
PART = 16
"""Problems after which what was measured is written."""
COSTED = 64
"""Problems on which costs are measured; greedy responses are on all."""
_UNITS: tuple[Counted, ...] = ("flops", "tokens", "new tokens", "calls")


@dataclass(frozen=True, slots=True)
class Costs:
    """`sample`: what one response costs alone, by unit. `further`: what one more costs, of that.
    `greedy`: by problem, what its greedy response earned."""

    sample: Sample
    further: float
    greedy: Mapping[int, float]

    def plain(self) -> dict[str, Any]:
        """The same as values of JSON, of greedy responses how many they are."""
        return {"sample": self.sample, "further": self.further, "greedy": len(self.greedy)}


def measure_costs(
    engine: Engine,
    items: Sequence[Item],
    places: Sequence[int],
    config: RunConfig,
    folder: Path,
) -> Costs | None:
    """Of the problems at `places`: the costs of the first COSTED, and all greedy responses. What
    `folder` has is not searched again. None if every search failed. Raises StoreError for a file
    that cannot be written."""
    path = folder / FILE
    found: dict[str, Any] = read_json(path, "record", StoreError) if path.exists() else {}
    costed = set(list(places)[:COSTED])

    async def one(place: int) -> None:
        item, row = items[place], dict[str, Any]()
        greedy = replace(config, strategy="greedy", parameters={}, budget=None)
        try:
            answer = await engine.asolve(item.problem(), config=greedy)
            row["greedy"] = item.grade(answer.text)
            for n in (1, 2) if place in costed else ():
                some = replace(config, strategy="majority", parameters={"n": n}, budget=None)
                usage = (await engine.asolve(item.problem(), config=some)).total
                row[str(n)] = {unit: Budget(1.0, unit).of(usage) for unit in _UNITS}
        except ModelError:
            raise
        except CotEngineError as error:
            row = {"error": str(error)}
        found[str(place)] = row

    async def part(indices: Sequence[int]) -> None:
        await asyncio.gather(*map(one, indices))

    todo = [place for place in places if str(place) not in found]
    for at in range(0, len(todo), PART):
        asyncio.run(part(todo[at : at + PART]))
        text = json.dumps(found) + "\n"
        write_whole(path, text, "The costs", StoreError, "Free some space, or give another --out.")
    return costs_of({int(k): v for k, v in found.items() if int(k) in set(places)})


def costs_of(found: Mapping[int, Mapping[str, Any]]) -> Costs | None:
    """What was found of each problem, together; None if nothing was."""
    both = [row for row in found.values() if "2" in row]
    if not both:
        return None
    mean: dict[str, dict[Unit, float]] = {
        n: {u: float(np.mean([row[n][u] for row in both])) for u in _UNITS} for n in ("1", "2")
    }
    sample: Sample = {unit: value for unit, value in mean["1"].items() if value > 0}
    unit: Unit = "flops" if "flops" in sample else "tokens"
    further = max(mean["2"][unit] / mean["1"][unit] - 1, 1e-3)
    greedy = {place: float(row["greedy"]) for place, row in found.items() if "greedy" in row}
    return Costs(sample, further, greedy)


def better_greedy(costs: Costs, samples: Samples, rows: np.ndarray) -> Interval | None:
    """The accuracy of greedy responses, if it is above that of sampled ones on the same problems
    (of which some `rows` are)."""
    mine = {place: samples.label[rows & (samples.problem == place)] for place in costs.greedy}
    both = [(costs.greedy[place], own.mean()) for place, own in mine.items() if len(own)]
    if not both:
        return None
    greedy, sampled = np.array(both).T
    return accuracy(greedy[:, None]) if greedy.mean() > sampled.mean() else None
