"""What is asked: a question, with zero or more images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cot_engine.images.load import Image


@dataclass(frozen=True, slots=True)
class Problem:
    """One question, with zero or more images. `id` names it in seeds, traces and results."""

    id: str
    question: str
    images: tuple[Image, ...] = ()
