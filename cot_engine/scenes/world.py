"""The world of scenes-2: coloured shapes on a 4x4 grid, and how they are drawn.

A scene is a tuple of `Thing`s in reading order (row by row, left to right), at most one per cell.
Columns are the letters A to D, rows the digits 1 to 4, so the top left cell is A1 and the one to
its right B1. A scene is drawn as a 64x64 RGB image: cells of 16 pixels, jittered positions, sizes
and colours, a light background with specks and hairlines on it, and pixel noise. The other kind of
picture, the bar chart, is in `charts.py`.
"""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

VERSION = "scenes-2"
GRID = 4  # cells a side
CELL = 16  # pixels a side of a cell
SIDE = GRID * CELL  # pixels a side of the image

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

# Combinations that no split but "ood" ever shows; each colour and each shape is seen with others.
UNSEEN = {("red", "diamond"), ("green", "star"), ("blue", "square"), ("black", "triangle")}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a split may show: how many things and bars (least, most), and whether it is the
    out-of-distribution one, with unseen combinations and unseen wordings."""

    things: tuple[int, int] = (3, 7)
    bars: tuple[int, int] = (4, 6)
    unseen: bool = False


USUAL = Setting()
OOD = Setting(things=(8, 10), bars=(7, 7), unseen=True)

# Which pictures belong to which split is a property of the picture itself, so no two splits can
# share one, whatever their seeds: crc32 of the caption, modulo 16.
SPLIT_BUCKETS = {"test": (0, 1), "val": (2, 3), "train": tuple(range(4, 16))}


@dataclass(frozen=True, slots=True)
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

    def wordings(self) -> tuple[str, str, str]:
        """Ways to name it, from the most to the least usual."""
        return (
            f"{self.cell} {self.size} {self.colour} {self.shape}",
            f"{self.cell} {self.colour} {self.shape}, {self.size}",
            f"{self.cell} {self.shape}, {self.colour}, {self.size}",
        )


def split_of(facts: str) -> str:
    """The one split ("train", "val" or "test") that a picture with this caption may appear in."""
    bucket = zlib.crc32(facts.encode()) % 16
    return next(name for name, buckets in SPLIT_BUCKETS.items() if bucket in buckets)


def random_look(rng: random.Random, setting: Setting) -> dict[str, str]:
    """A size, a colour and a shape; one of the unseen combinations half the time where allowed."""
    look = {family: rng.choice(values) for family, values in FAMILIES.items()}
    if setting.unseen and rng.random() < 0.5:
        look["colour"], look["shape"] = rng.choice(sorted(UNSEEN))
    return look


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


class Canvas:
    """A 64x64 picture in the making, drawn four times larger and reduced, which smooths the edges.

    The same seed gives the same picture. Lengths are in pixels of the 64x64 picture.
    """

    def __init__(self, seed: int, side: int = SIDE) -> None:
        self.rng = random.Random(seed)
        self.side, self.unit = side, 4 * side / SIDE
        grey = self.rng.uniform(190, 250)
        self.back = tuple(int(min(255, grey + self.rng.uniform(-12, 12))) for _ in range(3))
        self.image = Image.new("RGB", (4 * side, 4 * side), self.back)
        self.draw = ImageDraw.Draw(self.image)

    def clutter(self) -> None:
        """Specks and hairlines that mean nothing."""
        rng = self.rng
        for _ in range(rng.randint(0, 10)):
            x, y, r = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(0.4, 1.1)
            self.oval(x, y, r, tuple(rng.randint(40, 220) for _ in range(3)))
        for _ in range(rng.randint(0, 3)):
            ends = [rng.uniform(0, SIDE) * self.unit for _ in range(4)]
            shade = tuple(c - rng.randint(15, 70) for c in self.back)
            self.draw.line(ends, fill=shade, width=max(1, round(0.6 * self.unit)))

    def colour(self, name: str) -> tuple[int, ...]:
        """The colour as this picture's light shows it."""
        return tuple(max(0, min(255, c + self.rng.randint(-22, 22))) for c in COLOURS[name])

    def oval(self, x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
        box = [v * self.unit for v in (x - r, y - r, x + r, y + r)]
        self.draw.ellipse(box, fill=fill)

    def polygon(self, corners: list[tuple[float, float]], fill: tuple[int, ...]) -> None:
        self.draw.polygon([(x * self.unit, y * self.unit) for x, y in corners], fill=fill)

    def finish(self) -> Image.Image:
        """Reduced and noisy; the filter varies, because the pictures a user brings have been
        reduced by some other program's."""
        rng = self.rng
        filters = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
        image = self.image.resize((self.side, self.side), rng.choice(filters))
        pixels = np.asarray(image, dtype=np.float32)
        noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(pixels.shape, np.float32)
        pixels = pixels + rng.uniform(0, 18) * noise  # standard deviation in 8-bit steps
        return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def draw_things(things: tuple[Thing, ...], seed: int, side: int = SIDE) -> Image.Image:
    """A scene as an RGB image of `side` x `side` pixels."""
    canvas = Canvas(seed, side)
    canvas.clutter()
    rng = canvas.rng
    for thing in things:
        small = thing.size == "small"
        r = rng.uniform(3.0, 4.0) if small else rng.uniform(5.0, 6.6)
        jitter = 3.0 if small else 1.2
        x = (thing.column + 0.5) * CELL + rng.uniform(-jitter, jitter)
        y = (thing.row + 0.5) * CELL + rng.uniform(-jitter, jitter)
        fill = canvas.colour(thing.colour)
        if thing.shape == "circle":
            canvas.oval(x, y, r, fill)
        else:
            canvas.polygon(_outline(thing.shape, x, y, r), fill)
    return canvas.finish()
