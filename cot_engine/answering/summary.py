"""How well it went: what was answered, how much of it is right, what it cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cot_engine.answering.predictions import Prediction
from cot_engine.questions.data import rule_of
from cot_engine.statistics import Interval, accuracy


@dataclass(frozen=True, slots=True)
class Share:
    """How many of the graded are right."""

    right: int
    graded: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Over the lines of a predictions file. `accuracy` is over the graded: what was answered and
    has a standard answer (None without any); `rule` says how. `failed` are the errors, each naming
    its question."""

    questions: int
    answered: int
    incomplete: int
    score: Share
    accuracy: Interval | None
    types: dict[str, Share] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    rule: str = ""
    new_tokens: int = 0
    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def summarise(predictions: Iterable[Prediction], kinds: Iterable[str] = ()) -> Summary:
    """The summary of all lines, each question once, graded as these kinds."""
    lines = list(predictions)
    graded = [float(line.right) for line in lines if line.right is not None]
    types: dict[str, list[bool]] = {}
    for line in lines:
        if line.right is not None and line.type:
            types.setdefault(line.type, []).append(line.right)
    return Summary(
        questions=len(lines),
        answered=sum(not line.error for line in lines),
        incomplete=sum(bool(line.incomplete) for line in lines),
        score=Share(int(sum(graded)), len(graded)),
        accuracy=accuracy(np.array(graded)[:, None]) if graded else None,
        types={kind: Share(sum(types[kind]), len(types[kind])) for kind in sorted(types)},
        rule=rule_of(sorted(kinds)),
        failed=tuple(line.error for line in lines if line.error),
        new_tokens=sum(line.new_tokens for line in lines),
        tokens=sum(line.tokens for line in lines),
        flops=sum(line.flops for line in lines),
        seconds=round(sum(line.seconds for line in lines), 3),
    )


def told(summary: Summary, out: str) -> list[str]:
    """The summary in lines, the headline first."""
    counts = [f"{summary.answered:,} of {summary.questions:,} questions are answered in {out}"]
    if summary.failed:
        counts.append(f"{len(summary.failed):,} failed")
    if summary.incomplete:
        counts.append(f"{summary.incomplete:,} incomplete")
    lines = [", ".join(counts)]
    score, found = summary.score, summary.accuracy
    if found is not None:
        of = "" if score.graded == summary.answered else " with a known answer"
        lines.append(
            f"right: {score.right:,} of {score.graded:,}{of}, {found.estimate:.3f} "
            f"(95 % interval {found.low:.3f} to {found.high:.3f})"
        )
        lines.append(summary.rule)
    if summary.answered:
        each = summary.new_tokens / summary.answered
        flops = f", {summary.flops / 1e12:.3g} Tflops" if summary.flops else ""
        lines.append(f"cost: {summary.new_tokens:,} new tokens ({each:,.0f} a question){flops}")
    if len(summary.types) > 1:
        width = max(map(len, summary.types))
        lines += [
            f"  {kind:<{width}}  {share.right:,} of {share.graded:,}"
            for kind, share in summary.types.items()
        ]
    return lines
