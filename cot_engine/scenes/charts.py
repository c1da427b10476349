"""Bar charts of scenes-2: bars of different colours, heights 1 to 12, no labels, faint grid lines.

A chart is a tuple of `Bar`s from left to right. It is drawn on the same 64x64 canvas as a scene.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from cot_engine.scenes.world import COLOURS, SIDE, Canvas, Setting

TALLEST = 12  # units
UNIT = 4.7  # pixels of height a unit
FLOOR = 61.0  # pixels from the top to the foot of the bars


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its colour, which no other bar of the chart has, and its height in units."""

    colour: str
    height: int

    def __str__(self) -> str:
        return f"{self.colour} {self.height}"

    def wordings(self) -> tuple[str, str, str]:
        """Ways to name it, from the most to the least usual."""
        return (
            f"{self.colour} {self.height}",
            f"{self.colour} is {self.height}",
            f"{self.colour} bar {self.height}",
        )


def random_bars(rng: random.Random, setting: Setting) -> tuple[Bar, ...]:
    """Bars of different colours; heights may repeat."""
    n = rng.randint(*setting.bars)
    return tuple(Bar(c, rng.randint(1, TALLEST)) for c in rng.sample(list(COLOURS), n))


def draw_bars(bars: tuple[Bar, ...], seed: int, side: int = SIDE) -> Image.Image:
    """A chart as an RGB image of `side` x `side` pixels."""
    canvas = Canvas(seed, side)
    canvas.clutter()
    rng = canvas.rng
    line = tuple(c - 35 for c in canvas.back)
    for level in range(0, TALLEST + 1, 3):
        y = FLOOR - level * UNIT
        canvas.polygon([(1, y), (SIDE - 1, y), (SIDE - 1, y + 0.5), (1, y + 0.5)], line)
    slot = (SIDE - 4) / len(bars)
    for i, bar in enumerate(bars):
        middle = 2 + (i + 0.5) * slot + rng.uniform(-0.08, 0.08) * slot
        half = slot * rng.uniform(0.24, 0.38)
        top = FLOOR - bar.height * UNIT + rng.uniform(-0.7, 0.7)
        corners = [
            (middle - half, top),
            (middle + half, top),
            (middle + half, FLOOR),
            (middle - half, FLOOR),
        ]
        canvas.polygon(corners, canvas.colour(bar.colour))
    return canvas.finish()
