"""How a report writes its numbers: amounts, shares, intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable

from cot_engine.show import words
from cot_engine.statistics import Interval


def amount(value: float | None, unit: str) -> str:
    """ "4.2 Gflops", "120 new tokens"; "–" for None."""
    return "–" if value is None else words.amount(value, f"1 {unit}")


def axis(values: Iterable[float], unit: str) -> tuple[float, str]:
    """What amounts on one axis are divided by, and what they are in then: (1e9, "Gflops")."""
    most = max(values, default=0.0)
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if most >= size:
            return size, f"{prefix}flops" if unit == "flops" else f"million {unit}"
    return 1.0, unit


def figures(value: float) -> str:
    """Three figures, more only before the point: 0.120, 4.56, 1,234; 0."""
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:#.3g}".replace("-", "−")


def percent(value: float | None) -> str:
    """ "12 %"; "0.4 %" below one; "–" for what is not known."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{100 * value:.0f}" if abs(value) >= 0.00995 or value == 0 else f"{100 * value:.1f}"
    return f"{text} %".replace("-", "−")


def share(value: float | None, *, sign: bool = False) -> str:
    """ "0.976"; "−0.010" with a sign; "–" for what is not known."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    if float(text) == 0:
        text = "0.000"
    return text.replace("-", "−")


def interval(found: Interval, *, sign: bool = False) -> str:
    """ "0.976 (0.874 to 0.996)", "–" where there is no estimate."""
    if math.isnan(found.estimate):
        return "–"
    return f"{share(found.estimate, sign=sign)} ({bounds(found, sign=sign)})"


def bounds(found: Interval, *, sign: bool = False) -> str:
    """ "0.874 to 0.996"."""
    return f"{share(found.low, sign=sign)} to {share(found.high, sign=sign)}"


def points(difference: float, form: str = "+.1f") -> str:
    """A difference of shares in points: "+3.2", "−0.4", "0.0"."""
    text = format(100 * difference, form)
    return text.replace("-", "−") if float(text) else text.lstrip("+-")


def probability(p: float) -> str:
    """A p value: "0.012", "< 0.001"; never rounded across 0.05."""
    if p < 0.001:
        return "< 0.001"
    text = f"{p:.2g}"
    return text if (float(text) < 0.05) == (p < 0.05) else f"{p:.5f}"
