"""Checks and small sums of parameters, for strategies and whatever else a user configures."""

from __future__ import annotations

import math

from cot_engine.errors import ConfigError, shown


def check_range(name: str, value: int, low: int = 1, high: int = 1024) -> None:
    """Raises ConfigError unless `value` is an integer of low to high."""
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(
            f"{name} is {shown(value)}.", f"It must be an integer from {low} to {high}."
        )


def check_extra(value: float) -> None:
    """Raises ConfigError unless `value`, the fraction of an n, is at least 0 and below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(
            f"extra is {shown(value)}.", "It must be a number, at least 0 and below 1."
        )


def spread(n: int, extra: float, k: int) -> int:
    """n or n + 1: the k-th (from 0) of numbers whose mean is n + `extra`, evenly spread."""
    return n + math.floor((k + 1) * extra + 0.5) - math.floor(k * extra + 0.5)
