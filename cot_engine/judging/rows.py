"""What a profile says of strategies: which one pays at which budget, and what one response costs.

    "sample": {"flops": 1.1e8, "tokens": 190, "new tokens": 120, "calls": 1},
    "auto": [{"upto": 1.5, "strategy": "greedy"},
             {"upto": 4, "strategy": "weighted-vote", "parameters": {"n": 4, "stop": 0.8}}]

A row is for budgets up to so many times what one plain sampled response costs: a budget in any unit
that `sample` has becomes such a multiple. `options.auto` reads them; `train-verifier` writes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from cot_engine import plugins
from cot_engine.core.tables import Text, must
from cot_engine.errors import ConfigError, CotEngineError, UnknownNameError


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


Positive = Annotated[float, must("a number above 0", _is_positive)]
Unit = Literal["flops", "tokens", "new tokens", "calls", "seconds"]
Sample = dict[Unit, Positive]
"""What one plain sampled response cost on average, alone: its prompt and pictures read once, and
the response written. Seconds are those of the machine and the load that they were taken under."""


@dataclass(frozen=True, slots=True)
class Row:
    """For budgets worth up to `upto` samples: this strategy with these parameters."""

    upto: Positive
    strategy: Text
    parameters: dict[str, Any] = field(default_factory=dict, hash=False)


def check_rows(rows: Sequence[Row], sample: Mapping[Unit, float] | None) -> None:
    """Raises ConfigError for rows out of order, or without a sample to count budgets in, and for a
    row whose strategy is none, or cannot be made with these parameters."""
    if rows and not sample:
        raise ConfigError(
            "auto has rows, and sample is missing: nobody knows what budget they are for.",
            'Say what one response costs, such as "sample": {"new tokens": 120}.',
        )
    for at, row in enumerate(rows):
        if at and row.upto <= rows[at - 1].upto:
            raise ConfigError(
                f"auto[{at}].upto is {row.upto:g}, after {rows[at - 1].upto:g}.",
                "Each row is for larger budgets than the one before it.",
            )
        try:
            if row.strategy == plugins.AUTO:
                raise ConfigError("A row cannot be auto itself.", "Name the strategy it means.")
            if not plugins.exists("strategy", row.strategy):
                raise UnknownNameError("strategy", row.strategy, plugins.names("strategy"))
            plugins.make("strategy", row.strategy, row.parameters)
        except CotEngineError as error:
            raise ConfigError(f"auto[{at}] will not do: {error.message}", error.hint) from None
