"""HallusionBench: how often a single answer, all about a figure, all to a question are right.

After `Hallusion_rating` in `vlmeval/dataset/utils/yorn.py` of open-compass/VLMEvalKit at e42058a1
and e8e78f05. An index, such as VD_illusion_1_0_2_1, ends in numbers of set, figure and question:
aAcc is per row, fAcc per figure (all of its questions right), qAcc per question (right on all
of its figures), each within its l2-category. Leaderboards show the mean of the three.
"""

from __future__ import annotations

from typing import NamedTuple

MEASURES = ("aAcc", "fAcc", "qAcc")


class Place(NamedTuple):
    """Where an index belongs; each name is unique over the benchmark."""

    set: str
    figure: str
    question: str


def place_of(index: str, l2_category: str) -> Place:
    """The set, the figure and the question of an index. Raises ValueError if it does not end in
    their numbers."""
    parts = index.split("_")
    if len(parts) < 6:
        raise ValueError("it does not name set, figure and question")
    begin = f"{l2_category}_{parts[3]}"
    return Place(begin, f"{begin}_{parts[4]}", f"{begin}/{parts[5]}")
