"""How a user says what keys and values may take, and what there is. Loads no torch: it is checked
before that."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from cot_engine.errors import ConfigError, shown

SHARE = 0.9
"""Of what is free once the model is loaded."""
LEAST = 1 << 16  # bytes; what is less was meant as something else
UNKNOWN = 8 << 30  # bytes that are taken for free where the system does not say
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([kKMG]?)([bB]?)\s*")
_SCALE = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}


LEAST_PIXELS = 28 * 28  # what many models make one token of
MOST_PIXELS = 1_000_000_000


def check_pixels(value: Any) -> None:
    """Of a picture: None (as many as it has) or a whole number. Raises ConfigError."""
    if value is None or (type(value) is int and LEAST_PIXELS <= value <= MOST_PIXELS):
        return
    raise ConfigError(
        f"max_pixels is {shown(value)}.",
        f"Give a whole number of pixels, width times height, from {LEAST_PIXELS} (28 x 28) to"
        f" {MOST_PIXELS}, such as 1000000 for one megapixel.",
    )


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


def free_ram() -> int:
    """Bytes that this process may still take of the machine's own memory."""
    known = []
    # Each system has some of these; a container's limit is below what its machine has.
    with suppress(OSError, ValueError, AttributeError):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        known += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError, AttributeError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text("ascii"))  # "max" is no limit
        known.append(limit - int((group / "memory.current").read_text("ascii")))
    with suppress(OSError, ValueError, AttributeError):
        if not known:
            known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return max(1 << 20, min(known, default=UNKNOWN))
