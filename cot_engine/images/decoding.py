"""A picture's file to RGB pixels, in bounded memory and time.

What a file claims is held against the limits before anything of that size is allocated. Pixels are
converted a band of rows at a time, so that the most that is held is the picture as it was decoded
and as it will be: PIL keeps four bytes of a coloured pixel of either.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

MEMORY = 6
"""Bytes that decoding may take for each of `max_pixels`: 600 MB at the default, which is enough for
100 megapixels of RGB, 75 with transparency or turned, 60 of a progressive JPEG."""
MAX_SCANS = 100
"""Of a progressive JPEG, each of which goes over all of its pixels. Encoders write about ten."""
MAX_PAGES = 100
"""Of a TIFF, that are counted: each must be looked for."""

_BAND = 1 << 20  # pixels converted at a time
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF's orientation: PIL's Transpose
# What decoders hold of a pixel beside what PIL does, in bytes, as measured: canvases, planes.
_HELD = {"WEBP": 12, "AVIF": 8, "JPEG2000": 16, "GIF": 1}
_PROGRESSIVE = 6  # the coefficients of all of a JPEG


class Unfit(Exception):
    """What is wrong with a picture, to stand behind its name, and what to do."""


# --- before anything is decoded ------------------------------------------------------------------


def sizes_inside(file: Any) -> list[tuple[int, int]]:
    """The true sizes of the pictures in an icon, which its directory does not tell: PIL decodes one
    in the act of opening it. None for other files. `file` is left at its beginning."""
    head, found = file.read(6), []
    if head[:4] == b"\0\0\1\0" and len(head) == 6:
        entries = file.read(16 * struct.unpack("<H", head[4:])[0])
        for at in range(0, len(entries) - 15, 16):
            file.seek(struct.unpack_from("<I", entries, at + 12)[0])
            inside = file.read(24)
            if len(inside) < 24:
                continue
            if inside[:8] == b"\x89PNG\r\n\x1a\n":
                found.append(struct.unpack(">II", inside[16:]))
            else:  # a bitmap, as high again for its mask
                old = struct.unpack("<I", inside[:4])[0] == 12
                width, height = struct.unpack_from("<HH" if old else "<ii", inside, 4)
                found.append((abs(width), abs(height) // 2))
    file.seek(0)
    return found


def check(picture: PILImage, file: Any, max_pixels: int) -> None:
    """Raises Unfit for an opened picture whose decoding would take too much memory or time."""
    kind, held = picture.format or "", _HELD.get(picture.format or "", 0)
    if picture.info.get("progressive"):
        held = _PROGRESSIVE
        if _count(file, b"\xff\xda", MAX_SCANS) > MAX_SCANS:
            raise Unfit(
                f"has more than {MAX_SCANS} scans, each over all of its pixels.",
                "Save it again, as PNG or as an ordinary JPEG.",
            )
    if kind == "TIFF":
        tags = getattr(picture, "tag_v2", {})  # only its kind of picture has them
        tile = [tags.get(tag, 0) for tag in (322, 323)]
        if all(isinstance(side, int) for side in tile):
            check_memory((tile[0], tile[1]), picture.mode, held, max_pixels)
    check_memory(picture.size, picture.mode, held, max_pixels)


def check_memory(size: tuple[int, int], mode: str, held: int, max_pixels: int) -> None:
    """Raises Unfit for pixels of a mode that take more than MEMORY * max_pixels bytes to decode and
    to convert, `held` being what is needed for each beside them."""
    kept = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4
    need = size[0] * size[1] * (kept + (0 if mode == "RGB" else 4) + held)
    if need > MEMORY * max_pixels:
        raise Unfit(
            f"is {size[0]} x {size[1]} pixels, of a kind (mode {mode}) that takes {need:,} bytes"
            f" to read; the limit is {MEMORY * max_pixels:,}.",
            "Make it smaller, or raise the limit with load_image(..., max_pixels=...).",
        )


def _count(file: Any, mark: bytes, most: int) -> int:
    """How often a file holds a mark of two bytes; counting ends beyond `most`."""
    at, found, rest = file.tell(), 0, b""
    file.seek(0)
    while found <= most and (chunk := file.read(1 << 20)):
        found += (rest + chunk).count(mark)
        rest = chunk[-1:]
    file.seek(at)
    return found


def frame_notes(picture: PILImage) -> list[str]:
    """What is to be said of a picture of several frames."""
    # A phone's MPO holds the same photograph in several versions, which is nobody's concern.
    frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    return [] if frames == 1 else [f"The image has {frames} frames; only the first is used."]


def page_notes(picture: PILImage) -> list[str]:
    """The same of a TIFF, whose pages are a chain; PIL holds each against all before it."""
    frames = 1
    try:
        while frames <= MAX_PAGES:
            picture.seek(frames)
            frames += 1
    except EOFError:
        pass
    picture.seek(0)
    said = f"more than {MAX_PAGES}" if frames > MAX_PAGES else f"{frames}"
    return [] if frames == 1 else [f"The image has {said} frames; only the first is used."]


# --- pixels --------------------------------------------------------------------------------------


def bands(picture: PILImage) -> Iterator[tuple[int, PILImage]]:
    """The picture in bands of rows, each with the row that it begins at."""
    width, height = picture.size
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        yield top, picture.crop((0, top, width, min(top + rows, height)))


def upright(picture: PILImage, notes: list[str], max_pixels: int) -> PILImage:
    """Turned as its EXIF orientation says; one whose EXIF is nonsense stays as it is. Raises Unfit
    where there is no memory for that."""
    from PIL import Image as pil

    try:
        turn = _TURNS.get(picture.getexif().get(0x0112, 1))
    except Exception:  # any: EXIF blocks are written by anyone, and are not needed
        return picture
    if turn is None:
        return picture
    check_memory(picture.size, "RGB", 4, max_pixels)
    notes.append("The image was turned as its EXIF orientation says.")
    return picture.transpose(pil.Transpose(turn))


def rgb(picture: PILImage, notes: list[str], ours: bool) -> PILImage:
    """A new image of mode RGB: deeper ones scaled to 8 bits, transparency laid on white. The pixels
    of one that is RGB already are only copied if they are not `ours` alone."""
    from PIL import Image as pil

    clear = picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info
    if picture.mode == "RGB" and not clear and ours:
        return pil.Image()._new(picture.im)  # without its file and its metadata
    deep = picture.mode.startswith("I") or picture.mode == "F"
    if deep:
        _check_range(picture)
    if deep and picture.mode != "F":  # PIL's own conversion would clip at 255
        notes.append("The image's 16-bit values were scaled to 8 bits.")
    made, opaque = pil.new("RGB", picture.size), True
    for top, band in bands(picture):
        if deep:
            band = pil.fromarray(eight_bits(_values(band)))
        if clear:
            layer = band.convert("RGBA")
            opaque = opaque and layer.getchannel("A").getextrema()[0] == 255
            band = pil.alpha_composite(pil.new("RGBA", layer.size, "white"), layer)
        made.paste(band.convert("RGB"), (0, top))
    if not opaque:
        notes.append("The image's transparent parts were laid on white.")
    return made


def _values(band: PILImage) -> Any:
    import numpy

    values = numpy.asarray(band)
    return values if band.mode == "F" else values.astype(numpy.uint16)


def _check_range(picture: PILImage) -> None:
    """Raises Unfit for values that have no 8 bits."""
    import numpy

    ends = [(v.min(), v.max()) for _, band in bands(picture) for v in [numpy.asarray(band)]]
    low, high = numpy.min(ends), numpy.max(ends)  # NaN, if there is one anywhere
    if picture.mode == "F":
        _check_float(float(low), float(high))
    elif low < 0 or high > 65535:
        raise Unfit(
            f"has grey values from {low} to {high}; the range is 0 to 65535.",
            "Scale them, or save it with 8 or 16 bits.",
        )


def eight_bits(values: Any) -> Any:
    """uint8 of the same meaning as the given uint8, uint16 or float (0 to 1) values."""
    import numpy

    if values.dtype == numpy.uint8:
        return values
    if values.dtype == numpy.uint16:
        return ((values.astype(numpy.uint32) + 128) // 257).astype(numpy.uint8)
    _check_float(float(values.min()), float(values.max()))
    return (values * 255 + 0.5).astype(numpy.uint8)


def _check_float(low: float, high: float) -> None:
    if not (low >= 0 and high <= 1):  # also for NaN
        raise Unfit(
            f"has float values from {low:g} to {high:g}; the range is 0 to 1.",
            "Divide by the largest value, or convert to uint8.",
        )
