"""How a user names a device, or several. Loads no torch: it is checked before that."""

from __future__ import annotations

import re

from cot_engine.errors import ConfigError, shown

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def device_list(value: str) -> tuple[str, ...]:
    """The devices of "cuda:0,cuda:1", each with a replica of the model; mostly it is one.

    All must be GPUs with their numbers, each once, or all cpu. Raises ConfigError.
    """
    found = tuple(part.strip() for part in value.split(","))
    kinds = {part.partition(":")[0] for part in found}
    if not all(map(_DEVICE.fullmatch, found)):
        why = "It must be auto, cpu, mps, cuda or cuda:N, or several: cuda:0,cuda:1."
    elif len(found) == 1 or kinds == {"cpu"}:
        return found
    elif kinds != {"cuda"} or "cuda" in found:
        why = (
            "Several are GPUs with their numbers (cuda:0,cuda:1) or replicas on a CPU (cpu,cpu): "
            "on unlike devices answers would depend on which of them gives them."
        )
    elif len(set(found)) < len(found):
        why = "Give each GPU once: one replica keeps it busy, two would share its memory."
    else:
        return found
    raise ConfigError(f"device is {shown(value)}.", why)
