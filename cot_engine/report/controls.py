"""What a judge's looking at the picture, and asking it at all, is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cot_engine.report.judging import (
    Measure,
    Shown,
)
from cot_engine.statistics import Paired

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Control:
    """What the picture is worth to a judge: how much more often its margin leans to the better
    candidate where it sees the picture than where it sees `image`, on the same pairs."""

    judge: str
    stage: str
    measure: Measure
    image: Shown
    difference: Paired


@dataclass(frozen=True, slots=True)
class OverLikelihood:
    """What asking the model is worth: how much more often this judge's margin leans to the better
    candidate than likelihood does, which is free, on the same pairs."""

    judge: str
    stage: str
    measure: Measure
    difference: Paired
