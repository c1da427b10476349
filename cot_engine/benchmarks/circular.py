"""CircularEval: a question is asked once for each turn of its options; right is what always is.

After `prefetch_circular_group` and `mcq_circular_eval` in
`vlmeval/dataset/utils/multiple_choice.py` of open-compass/VLMEvalKit at e42058a1 and e8e78f05: rows
whose indexes are the same modulo 1,000,000 are one group (or whose `g_index` is, where there is
one), and the group has the categories of the row whose index that is. They score a group of which
turns are missing by those that are there; here it is unscored and named, for it was asked less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cot_engine.benchmarks.questions import id_of

TURN = 1_000_000
"""What is added to the index for each turn of the options."""
_DIGITS = 18


class Turned(NamedTuple):
    """One row of a group: its id, how many options it has, what it is worth (None: open), and its
    g_index ("" if the file has none)."""

    id: str
    options: int
    score: float | None
    g_index: str = ""


def group_of(id: str, g_index: str = "") -> str:
    """The id of the group's first row. Raises ValueError for an id that is no whole number."""
    if not is_number(id):
        raise ValueError
    return id_of(g_index) if g_index else str(int(id) % TURN)


def is_number(id: str) -> bool:
    """Is it a whole number such as these indexes are?"""
    return id.isascii() and id.isdigit() and len(id) <= _DIGITS


def together(turns: Sequence[Turned]) -> float | None:
    """What a group is worth: 0.0 as soon as a turn is wrong, 1.0 if all are right, else None."""
    if any(turn.score == 0.0 for turn in turns):
        return 0.0
    return None if any(turn.score is None for turn in turns) else 1.0


def lacking(key: str, turns: Sequence[Turned]) -> str:
    """Which turns a group has not, in a sentence; "" if it is whole: one for each option."""
    if any(turn.g_index for turn in turns):
        wanted = max(turn.options for turn in turns)
        return "" if len(turns) >= wanted else f"it has {len(turns)} of {wanted} turns"
    there = {int(turn.id) for turn in turns}
    options = max(turn.options for turn in turns)
    missing = [int(key) + TURN * n for n in range(options) if int(key) + TURN * n not in there]
    if not missing:
        return ""
    return f"turns are missing: {', '.join(map(str, missing[:3]))}{', ...' * (len(missing) > 3)}"
