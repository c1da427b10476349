"""What one response costs: searches beside those that a probe is fitted on.

Responses of one problem share its prompt and pictures, so their usage does not say what one costs
alone, nor what one more does. Both are measured: the first response alone (the same that is the
first of many), and the first two; and the likeliest alone. Seconds are not: they are those of a
machine and its load.
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
from cot_engine.files.reading import named, read_json
from cot_engine.files.writing import write_whole
from cot_engine.judging.rows import Sample, Unit
from cot_engine.questions.data import Item
from cot_engine.search.budget import Budget
from cot_engine.search.budget import Unit as Counted

if TYPE_CHECKING:
    from cot_engine.engine.facade import Engine
    from cot_engine.options.config import RunConfig

FILE = "cost.json"
PART = 16
"""Problems after which what was measured is written."""
COSTED = 64
"""Problems on which costs are measured, at most."""
_MEASURED: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("greedy", {}),
    "1": ("majority", {"n": 1}),
    "2": ("majority", {"n": 2}),
}
"""The searches of a problem, by what they are called in the file."""
_UNITS: tuple[Counted, ...] = ("flops", "tokens", "new tokens", "calls")


@dataclass(frozen=True, slots=True)
class Costs:
    """`sample`: what one response costs alone, by unit. `further`: what one more costs, of that,
    and `greedy` what the likeliest response does, alone."""

    sample: Sample
    further: float
    greedy: float


def measure_costs(
    engine: Engine,
    items: Sequence[Item],
    places: Sequence[int],
    config: RunConfig,
    folder: Path,
) -> Costs | None:
    """Of the first COSTED problems at `places`. What `folder` has is not searched again. None if
    every search failed. Raises StoreError for a file that cannot be written."""
    path = folder / FILE
    found: dict[str, Any] = read_json(path, "record", StoreError) if path.exists() else {}
    if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
        said = f"The record {named(path)} holds no costs."
        raise StoreError(said, "Delete that file: they are measured again.")
    costed = places[:COSTED]

    async def one(place: int) -> None:
        row = dict[str, Any]()
        try:
            for name, (strategy, parameters) in _MEASURED.items():
                some = replace(config, strategy=strategy, parameters=parameters, budget=None)
                usage = (await engine.asolve(items[place].problem(), config=some)).total
                row[name] = {unit: Budget(1.0, unit).of(usage) for unit in _UNITS}
        except ModelError:
            raise
        except CotEngineError as error:
            row = {"error": str(error)}
        found[str(place)] = row

    async def part(indices: Sequence[int]) -> None:
        await asyncio.gather(*map(one, indices))

    todo = [place for place in costed if str(place) not in found]
    for at in range(0, len(todo), PART):
        asyncio.run(part(todo[at : at + PART]))
        text = json.dumps(found) + "\n"
        write_whole(path, text, "The costs", StoreError, "Free some space, or give another --out.")
    return costs_of([row for place, row in found.items() if int(place) in costed])


def costs_of(found: Sequence[Mapping[str, Any]]) -> Costs | None:
    """What was found of each problem, together; None if nothing was."""
    whole = [row for row in found if "error" not in row]
    if not whole:
        return None
    mean: dict[str, dict[Unit, float]] = {
        n: {u: float(np.mean([row[n][u] for row in whole])) for u in _UNITS} for n in _MEASURED
    }
    sample: Sample = {unit: value for unit, value in mean["1"].items() if value > 0}
    unit: Unit = "flops" if "flops" in sample else "tokens"
    further = max(mean["2"][unit] / mean["1"][unit] - 1, 1e-3)
    return Costs(sample, further, mean["greedy"][unit] / mean["1"][unit])
