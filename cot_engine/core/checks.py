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


def check_between(name: str, value: float, low: float, high: float, above: bool = False) -> None:
    """Raises ConfigError unless `value` is a number from low to high; with `above`, not low."""
    number = not isinstance(value, bool) and isinstance(value, (int, float))
    if not number or not low <= value <= high or (above and value == low):
        least = f"above {low:g}, at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise ConfigError(f"{name} is {shown(value)}.", f"It must be a number {least}.")


def read_widths(text: str) -> tuple[int, ...]:
    """The widths that a text such as "4,4,2,1" or "4 4 2 1" lists; none of an empty one. Raises
    ConfigError for anything but integers of 1 to 1024."""
    words = text.replace(",", " ").split() if isinstance(text, str) else [text]
    fine = all(isinstance(w, str) and w.isascii() and w.isdigit() for w in words)
    if not fine or (text and not words):
        raise ConfigError(
            f"widths is {shown(text)}.", 'List a number for each stage, such as "4,4,2,1".'
        )
    widths = tuple(int(word[:9]) for word in words)
    for width in widths:
        check_range("A width", width)
    return widths
