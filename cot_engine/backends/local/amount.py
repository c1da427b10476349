"""How a user says what keys and values may take. Loads no torch: it is checked before that."""

from __future__ import annotations

import re

from cot_engine.errors import ConfigError, shown

SHARE = 0.9
"""Of what is free once the model is loaded."""
LEAST = 1 << 16  # bytes; what is less was meant as something else
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([kKMG]?)([bB]?)\s*")
_SCALE = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}


def parse_memory(value: float | str) -> float:
    """0.9 is a share of what is free, "20GB" an amount in bytes. Raises ConfigError."""
    match = _AMOUNT.fullmatch(str(value))
    amount = float(match[1]) * _SCALE[match[2]] if match else 0.0
    share = match is not None and not (match[2] or match[3]) and 0 < amount <= 1
    if isinstance(value, bool) or not (share or LEAST <= amount < 1e15):
        raise ConfigError(
            f"memory is {shown(value)}.",
            "Give a share of what is free once the model is loaded, above 0 and at most 1, or an"
            ' amount of at least 64 kB such as "20GB".',
        )
    return amount
