"""Small pictures: whatever their size and number, a file that opens, within its bytes."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image as pil

from cot_engine.images import thumbnails
from cot_engine.images.load import load_image
from cot_engine.images.thumbnails import MOST, SIDE, thumbnail


def noise(width: int, height: int):
    """The worst there is to compress."""
    pixels = random.Random(f"{width} {height}").randbytes(3 * width * height)
    return load_image(pil.frombytes("RGB", (width, height), pixels))


def plain(width: int, height: int):
    return load_image(pil.new("RGB", (width, height), (200, 30, 30)))


@pytest.mark.parametrize(
    ("pictures", "size", "kind"),
    [
        ([plain(64, 64)], (64, 64), "png"),  # not enlarged, and exact
        ([plain(3000, 2000)], (SIDE, 213), "png"),
        ([noise(900, 900)], None, "jpeg"),
        ([noise(300, 400)], None, "jpeg"),  # which Pillow cannot encode with "optimize"
        ([noise(2, 2)], (2, 2), "png"),
        ([noise(1600, 8)], (SIDE, 2), None),
        ([plain(8, 1600)], (2, SIDE), "png"),
        ([plain(200, 100), noise(300, 300)], None, None),
        ([plain(100, 100)] * 9, (4 * 100 + 3 * 6, 100), "png"),
        ([noise(500, 3), plain(3, 500), plain(3, 500)], None, None),
    ],
)
def test_a_thumbnail_is_small_and_opens(pictures, size, kind):
    made = thumbnail(pictures)
    assert 0 < len(made.data) <= MOST
    assert (made.of, made.shown) == (len(pictures), min(len(pictures), thumbnails.TOGETHER))
    opened = pil.open(io.BytesIO(made.data))
    opened.load()
    assert opened.format == made.kind.upper() and opened.size == (made.width, made.height)
    assert max(opened.size) <= (SIDE if len(pictures) == 1 else SIDE * 3 // 2)
    assert size in (None, opened.size) and kind in (None, made.kind)
    assert thumbnail(pictures) == made


def test_pictures_stand_in_their_order():
    red, blue = plain(40, 40), load_image(pil.new("RGB", (80, 80), (0, 0, 250)))
    opened = pil.open(io.BytesIO(thumbnail([red, blue]).data)).convert("RGB")
    assert opened.size == (166, 80)
    assert opened.getpixel((5, 40)) == (200, 30, 30) and opened.getpixel((160, 40)) == (0, 0, 250)


def test_a_question_of_text_has_none():
    assert thumbnail([]) == thumbnails.Thumbnail(0)
