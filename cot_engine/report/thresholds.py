"""Thresholds for strategies that go back, calibrated on recorded searches."""

from __future__ import annotations

import math
from collections.abc import Iterable

from cot_engine.core.events import Scored
from cot_engine.core.trace import Trace
from cot_engine.errors import ConfigError


def calibrated(
    traces: Iterable[Trace], stage: str, quantile: float = 0.6, scorer: str = ""
) -> float:
    """The number that the fraction `quantile` of a stage's candidates does not reach, in these
    searches: as their strategies were given it, of the `scorer` (any, if there is one only).

    Raises ConfigError for a quantile that is none, where no candidate of that stage was scored, and
    where several scorers, or probabilities and plain numbers, are mixed.
    """
    if not 0 < quantile < 1:
        raise ConfigError(f"quantile is {quantile}.", "It must be above 0 and below 1.")
    found: dict[tuple[str, bool], list[float]] = {}
    for trace in traces:
        fold = trace.fold()
        for event in trace:
            if not isinstance(event, Scored) or event.about != "step":
                continue
            if scorer and event.scorer != scorer:
                continue
            for id, number in event.scores.items():
                chain = fold.chains.get(id)
                if chain is not None and chain.last and chain.last.stage == stage:
                    found.setdefault((event.scorer, event.probability), []).append(number)
    if len(found) > 1:
        kinds = ", ".join(f"{name}{', probability' * p}" for name, p in sorted(found))
        raise ConfigError(
            f"The candidates of {stage} have numbers of several kinds: {kinds}.",
            "Name the scorer, or give traces of searches that were led alike.",
        )
    for numbers in found.values():
        numbers.sort()
        return numbers[min(len(numbers) - 1, math.ceil(quantile * len(numbers)))]
    raise ConfigError(
        f"No candidate of {stage} has a number in these searches.",
        "Record searches by a strategy that scores that stage, such as swires with rounds=1.",
    )
