"""Small pictures of a problem's pictures, to be kept beside results and shown in a report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cot_engine.images.load import Image

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SIDE = 320
"""Pixels of the longer side: what a card of a report shows on a display of twice the density."""
MOST = 16_384
"""Bytes: 2,000 problems' are 32 MiB at the very most, a fifth of what their traces take."""
TOGETHER = 4
"""As many pictures of one problem stand side by side; of the others only the number is kept."""

_GAP = 6  # pixels between two
_QUALITIES = (82, 68, 50, 32)


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """An image file, PNG or JPEG, of at most MOST bytes and `width` x `height` pixels; `of` is how
    many pictures the problem has, of which `shown` are in it. None at all: no bytes."""

    of: int
    shown: int = 0
    width: int = 0
    height: int = 0
    kind: Literal["png", "jpeg", ""] = ""
    data: bytes = b""


def thumbnail(images: Sequence[Image]) -> Thumbnail:
    """The pictures of a problem, side by side and small. A picture that is small is not enlarged.

    Raises nothing of its own: whatever has pixels can be made small.
    """
    shown = [image.pixels for image in images[:TOGETHER]]
    if not shown:
        return Thumbnail(0)
    sheet = _beside(shown)
    longest = SIDE if len(shown) == 1 else SIDE * 3 // 2
    for side in (longest, longest * 2 // 3, longest // 2, longest // 4):
        small = _within(sheet, side)
        for quality in _QUALITIES:
            kind, data = _smaller(small, quality)
            if len(data) <= MOST:
                return Thumbnail(len(images), len(shown), *small.size, kind, data)
    raise AssertionError  # 120 x 120 pixels in JPEG of that quality


def _beside(pictures: Sequence[PILImage]) -> PILImage:
    """One as it is; several of one height, in a row on white."""
    if len(pictures) == 1:
        return pictures[0]
    from PIL import Image as pil

    height = min(SIDE, max(picture.height for picture in pictures))
    sizes = [(min(2 * SIDE, max(1, round(p.width * height / p.height))), height) for p in pictures]
    sheet = pil.new("RGB", (sum(w for w, _ in sizes) + _GAP * (len(sizes) - 1), height), "white")
    x = 0
    for picture, size in zip(pictures, sizes, strict=True):
        sheet.paste(picture.resize(size, reducing_gap=3.0), (x, 0))
        x += size[0] + _GAP
    return sheet


def _within(picture: PILImage, side: int) -> PILImage:
    """A copy that is no longer than `side` either way."""
    most = max(picture.size)
    if most <= side:
        return picture
    width, height = (max(1, round(length * side / most)) for length in picture.size)
    return picture.resize((width, height), reducing_gap=3.0)


def _smaller(picture: PILImage, quality: int) -> tuple[Literal["png", "jpeg"], bytes]:
    """As PNG, which is exact, unless JPEG takes less than two thirds of that."""
    exact, lossy = io.BytesIO(), io.BytesIO()
    # Not "optimize": Pillow gives its encoder a buffer that noise does not fit into.
    picture.save(lossy, "JPEG", quality=quality, subsampling=0)
    if picture.width * picture.height <= 2 * MOST or quality == _QUALITIES[0]:
        picture.save(exact, "PNG", optimize=True)
        if len(exact.getvalue()) * 2 <= 3 * len(lossy.getvalue()):
            return "png", exact.getvalue()
    return "jpeg", lossy.getvalue()
