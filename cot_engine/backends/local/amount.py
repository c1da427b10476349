"""How a user says what keys and values may take. Loads no torch: it is checked before that."""

from __future__ import annotations

from cot_engine.errors import ConfigError, shown

SHARE = 0.9
"""Of what is free once the model is loaded."""
_SCALE = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def parse_memory(value: float | str) -> float:
    """0.9 is a share of what is free, "20GB" an amount in bytes. Raises ConfigError."""
    wrong = ConfigError(
        f"memory is {shown(value)}.",
        "Give a share of what is free once the model is loaded, above 0 and at most 1, or an amount"
        ' such as "20GB".',
    )
    text = str(value).strip().upper().removesuffix("B").strip()
    scale = next((n for name, n in _SCALE.items() if name and text.endswith(name.upper())), 1)
    try:
        amount = float(text.rstrip("KMG").strip()) * scale
    except ValueError:
        raise wrong from None
    if isinstance(value, bool) or not 0 < amount < 1e15 or (scale > 1 and amount < 1):
        raise wrong
    return amount
