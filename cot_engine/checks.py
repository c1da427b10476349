"""Checks of parameters, for strategies and whatever else a user configures."""

from __future__ import annotations

from cot_engine.errors import ConfigError


def check_range(name: str, value: int, low: int = 1, high: int = 1024) -> None:
    """Raises ConfigError unless `value` is an integer of low to high."""
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}.", f"It must be an integer from {low} to {high}.")
