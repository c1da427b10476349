"""The world of scenes-1: coloured shapes on a 4x4 grid, and how they are drawn.

A scene is a tuple of 2 to 6 `Thing`s in reading order (row by row, left to right), at most one per
cell. Columns are the letters A to D, rows the digits 1 to 4, so the top left cell is A1 and the one
to its right B1. A scene is drawn as a 64x64 RGB image: cells of 16 pixels, jittered positions,
sizes and colours, a random light background, and pixel noise.
"""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

VERSION = "scenes-1"
GRID = 4  # cells a side
CELL = 16  # pixels a side of a cell
SIDE = GRID * CELL  # pixels a side of the image
MIN_THINGS, MAX_THINGS = 2, 6

SHAPES = ("circle", "square", "triangle", "diamond", "star")
SIZES = ("small", "large")
COLOURS = {  # sRGB before jitter; the backgrounds are light, so black is in and white is not
    "red": (215, 35, 35),
    "orange": (245, 135, 20),
    "yellow": (240, 215, 30),
    "green": (40, 155, 55),
    "cyan": (50, 200, 215),
    "blue": (40, 70, 205),
    "purple": (140, 50, 165),
    "black": (30, 30, 30),
}
FAMILIES = {"size": SIZES, "colour": tuple(COLOURS), "shape": SHAPES}  # in the order of speech

# Which scenes belong to which split is a property of the scene itself, so no two splits can share
# one, whatever their seeds: crc32 of the caption, modulo 16.
SPLIT_BUCKETS = {"test": (0, 1), "val": (2, 3), "train": tuple(range(4, 16))}


@dataclass(frozen=True)
class Thing:
    """One object: `column` and `row` count from 0 at the top left."""

    column: int
    row: int
    size: str
    colour: str
    shape: str

    @property
    def cell(self) -> str:
        """The coordinate, a letter and a digit: "B1"."""
        return "ABCD"[self.column] + "1234"[self.row]

    def __str__(self) -> str:
        return f"{self.cell} {self.size} {self.colour} {self.shape}"


def caption(things: tuple[Thing, ...]) -> str:
    """The staged CAPTION: "B1 large green triangle, D2 small red diamond."."""
    return ", ".join(map(str, things)) + "."


def split_of(things: tuple[Thing, ...]) -> str:
    """The one split ("train", "val" or "test") this scene may appear in."""
    bucket = zlib.crc32(caption(things).encode()) % 16
    return next(name for name, buckets in SPLIT_BUCKETS.items() if bucket in buckets)


def place(rng: random.Random, looks: list[dict[str, str]]) -> tuple[Thing, ...]:
    """Put things of the given looks (size, colour, shape) on random cells, in reading order."""
    cells = sorted(rng.sample(range(GRID * GRID), len(looks)))
    looks = rng.sample(looks, len(looks))
    return tuple(Thing(c % GRID, c // GRID, **look) for c, look in zip(cells, looks, strict=True))


def _outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Corners of a shape of radius `r` around (x, y); a circle is drawn apart."""
    if shape == "square":
        h = 0.82 * r
        return [(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]
    if shape == "diamond":
        return [(x, y - r), (x + r, y), (x, y + r), (x - r, y)]
    if shape == "triangle":
        return [(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)]
    corners = []
    for i in range(10):
        radius = r * 1.05 if i % 2 == 0 else r * 0.45
        angle = math.pi * (i / 5 - 0.5)
        corners.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return corners


def render(things: tuple[Thing, ...], seed: int, side: int = SIDE) -> Image.Image:
    """Draw a scene as an RGB image of `side` x `side` pixels, the same for the same seed.

    It is drawn four times larger and reduced, which smooths the edges; the filter varies, because
    the pictures a user brings have been reduced by some other program's.
    """
    rng = random.Random(seed)
    unit = 4 * side / SIDE  # drawn pixels per world pixel
    grey = rng.uniform(195, 250)
    back = tuple(int(min(255, grey + rng.uniform(-12, 12))) for _ in range(3))
    image = Image.new("RGB", (4 * side, 4 * side), back)
    draw = ImageDraw.Draw(image)
    for thing in things:
        small = thing.size == "small"
        r = rng.uniform(3.4, 4.2) if small else rng.uniform(6.1, 7.0)
        jitter = 2.5 if small else 0.9
        x = (thing.column + 0.5) * CELL + rng.uniform(-jitter, jitter)
        y = (thing.row + 0.5) * CELL + rng.uniform(-jitter, jitter)
        fill = tuple(max(0, min(255, c + rng.randint(-12, 12))) for c in COLOURS[thing.colour])
        x, y, r = x * unit, y * unit, r * unit
        if thing.shape == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        else:
            draw.polygon(_outline(thing.shape, x, y, r), fill=fill)
    filters = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    image = image.resize((side, side), rng.choice(filters))
    pixels = np.asarray(image, dtype=np.float32)
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(pixels.shape, np.float32)
    pixels = pixels + rng.uniform(0, 10) * noise  # standard deviation in 8-bit steps
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
