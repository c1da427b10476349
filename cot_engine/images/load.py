"""Images from wherever they come: a path, a URL (if allowed), PIL, numpy, bytes; one RGB result.

Nothing here knows a model. What was done to a picture that its owner should know of (turned,
flattened, only the first frame read) is in `Image.notes`.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import io
import os
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cot_engine.errors import ImageError
from cot_engine.images import decoding
from cot_engine.images.download import AllowUrl, download

if TYPE_CHECKING:  # PIL is imported where it is used, so that `import cot_engine` stays quick
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage

    Source: TypeAlias = (
        str | os.PathLike[str] | bytes | bytearray | memoryview | PILImage | NDArray[Any]
    )

MAX_PIXELS = 100_000_000
"""The largest picture read by default. What decoding may take follows from it: see `decoding`."""
MIN_SIDE = 2
"""Processors enlarge a picture of one pixel without complaint, but there is nothing in it to ask
about, and it is nearly always a placeholder: it is refused."""
MAX_ASPECT = 200
"""Qwen2-VL's processor refuses longer strips, and the others squeeze them into one patch."""

# What is read. Not all that PIL can: EPS would start Ghostscript on a stranger's file, and TGA has
# no signature, so that any binary file might be one.
_FORMATS = "PNG JPEG GIF WEBP BMP TIFF PPM ICO JPEG2000 AVIF".split()
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)(?=://)|data(?=:)")
_BOMB_LOCK = threading.Lock()
_DECODING = threading.BoundedSemaphore(2)
"""Pictures decoded at once, each in up to `decoding.MEMORY`, whatever number of threads asks."""


@dataclass(frozen=True, eq=False, repr=False)
class Image:
    """A picture ready for a model. Equal and hashed by `digest`, that is by its pixels alone.

    `pixels` is a PIL image of mode RGB that must not be changed; `source` says where it came from
    (a path, a URL, or the kind of object); `notes` are sentences for the user.
    """

    pixels: PILImage
    digest: str
    source: str
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.size

    def to_png_base64(self) -> str:
        """The picture as a PNG file, in base64: as a trace and a page hold it."""
        buffer = io.BytesIO()
        # The fastest compression: a photograph of 12 megapixels takes seconds at the default.
        self.pixels.save(buffer, "PNG", compress_level=1)
        return base64.b64encode(buffer.getvalue()).decode("ascii")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        width, height = self.size
        return f"Image({self.source!r}, {width} x {height}, {self.digest})"


def load_image(
    source: Source | Image, *, allow_url: AllowUrl = False, max_pixels: int = MAX_PIXELS
) -> Image:
    """Read a picture. Raises ImageError, which says what to do, for anything that is not one.

    `source` is a path, an http(s) URL (only with `allow_url`; "inner" also of this machine and of
    inner networks), the bytes of an image file, a PIL
    image, a numpy array (H x W, or H x W x 1, 3 or 4; uint8, uint16, or float from 0 to 1), or an
    Image, which comes back as it is.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), "bytes", "The image given as bytes", max_pixels)
    if isinstance(source, str) and (match := _SCHEME.match(source)):
        data, name = download(source, match[0].lower(), allow_url)
        return _decode(io.BytesIO(data), name, f"The image at {name}", max_pixels)
    if isinstance(source, (str, os.PathLike)):
        path = Path(os.fsdecode(source))
        with _open(path) as file:
            return _decode(file, str(path), f"The image {str(path)!r}", max_pixels)

    import numpy
    from PIL import Image as pil

    if isinstance(source, pil.Image):
        return _decode(source, "PIL image", "The PIL image", max_pixels)
    if isinstance(source, numpy.ndarray):
        return _decode(_from_array(source), "numpy array", "The numpy array", max_pixels)
    raise ImageError(
        f"An image cannot be read from a {type(source).__name__}.",
        "Give a path, bytes, a PIL image or a numpy array.",
    )


def _open(path: Path) -> io.BufferedReader:
    """The file, opened; every way in which it can be missing, explained."""
    name = repr(str(path))
    try:
        if path.is_dir():
            inside = next((p.name for p in sorted(path.iterdir()) if _looks_like_image(p)), None)
            hint = f"Name a file in it, such as {inside!r}." if inside else "Name an image file."
            raise ImageError(f"The image {name} is a folder.", hint)
        if not path.exists():
            raise ImageError(f"The image {name} does not exist.", _near(path))
        if not path.is_file():
            raise ImageError(f"The image {name} is not a regular file.", "Name an image file.")
        if path.stat().st_size == 0:
            raise ImageError(f"The image {name} is empty (0 bytes).", "Copy or save it again.")
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"The image {name} cannot be opened: {reason}.", "Check its name and permissions."
        ) from None


def _looks_like_image(path: Path) -> bool:
    return path.suffix.lower() in {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tiff"}


def _near(path: Path) -> str:
    """A hint for a missing file: what its folder holds under a similar name."""
    parent = path.parent
    if not parent.is_dir():
        return f"There is no folder {str(parent)!r} either."
    names = {entry.name.lower(): entry.name for entry in parent.iterdir()}
    close = difflib.get_close_matches(path.name.lower(), names, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(str(parent / names[key]) for key in close)}?"
    return f"Nothing in {str(parent)!r} has a similar name."


# --- pixels --------------------------------------------------------------------------------------


def _decode(source: Any, name: str, subject: str, max_pixels: int) -> Image:
    """The RGB picture in `source` (a PIL image or a binary file). `subject` begins every error."""
    from PIL import Image as pil

    ours = not isinstance(source, pil.Image)
    notes: list[str] = []
    try:
        with _DECODING:
            picture = _opened(source, subject, max_pixels) if ours else source
            _check_size(picture.size, subject, max_pixels)  # only the header has been read so far
            if ours:
                decoding.check(picture, source, max_pixels)
                pages = picture.format == "TIFF"
                notes += (decoding.page_notes if pages else decoding.frame_notes)(picture)
            picture.load()  # damage to the pixels is an error of its own, before EXIF is read
            picture = decoding.upright(picture, notes, max_pixels)
            picture = decoding.rgb(picture, notes, ours)
    except decoding.Unfit as error:
        raise ImageError(f"{subject} {error.args[0]}", error.args[1]) from None
    except ImageError:
        raise
    except Exception as error:  # decoders raise many kinds for damaged contents
        raise ImageError(
            f"{subject} is damaged or cut off: {error}.", "Copy it again, or save it as PNG."
        ) from None
    return Image(picture, _digest(picture), name, tuple(notes))


def _opened(file: Any, subject: str, max_pixels: int) -> PILImage:
    """The picture in a file, of which only the header has been read."""
    from PIL import Image as pil

    for size in decoding.sizes_inside(file):
        if size[0] * size[1] > max_pixels:
            _check_size(size, subject, max_pixels)
        decoding.check_memory(size, "RGBA", 0, max_pixels)
    with _no_bomb_check():
        pil.init()
        try:
            return pil.open(file, formats=[f for f in _FORMATS if f in pil.OPEN])
        except Exception:  # decoders raise many kinds for damaged headers
            raise _unreadable(file, subject) from None


@contextmanager
def _no_bomb_check() -> Iterator[None]:
    """PIL refuses large pictures by a global limit of its own and does not tell their size. Only
    headers are read under this; `_check_size` follows before any pixel is."""
    from PIL import Image as pil

    with _BOMB_LOCK:
        before, pil.MAX_IMAGE_PIXELS = pil.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            pil.MAX_IMAGE_PIXELS = before


def _check_size(size: tuple[int, int], subject: str, max_pixels: int) -> None:
    width, height = size
    said = f"{subject} is {width} x {height} pixels"
    if width * height > max_pixels:
        raise ImageError(
            f"{said}, {width * height:,} in all; the limit is {max_pixels:,}.",
            "Make it smaller, or raise the limit with load_image(..., max_pixels=...).",
        )
    if min(size) < MIN_SIDE:
        raise ImageError(
            f"{said}; the least is {MIN_SIDE} x {MIN_SIDE}.", "Give a picture that shows something."
        )
    if max(size) > MAX_ASPECT * min(size):
        raise ImageError(
            f"{said}; the longer side may be at most {MAX_ASPECT} times the shorter.", "Crop it."
        )


def _from_array(array: Any) -> PILImage:
    import numpy
    from PIL import Image as pil

    shape, kind = array.shape, array.dtype
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"The numpy array has shape {shape}.",
            "It must be height x width, or height x width x 1, 3 or 4, channels last.",
        )
    if 0 in shape:
        raise ImageError(
            f"The numpy array has shape {shape}: it is empty.", "Check how it was cut."
        )
    if kind not in (numpy.uint8, numpy.uint16) and kind.kind != "f":
        raise ImageError(
            f"The numpy array has dtype {kind}.", "Use uint8, uint16, or float from 0 to 1."
        )
    try:
        pixels = decoding.eight_bits(array)
    except decoding.Unfit as error:
        raise ImageError(f"The numpy array {error.args[0]}", error.args[1]) from None
    if len(shape) == 3 and shape[2] == 1:
        pixels = pixels[:, :, 0]
    return pil.fromarray(numpy.ascontiguousarray(pixels))


def _digest(picture: PILImage) -> str:
    width, height = picture.size
    sha = hashlib.sha256(f"{picture.mode} {width}x{height}\n".encode())
    for _, band in decoding.bands(picture):  # whole, it would be a copy of all pixels
        sha.update(band.tobytes())
    return sha.hexdigest()[:16]


def _unreadable(file: Any, subject: str) -> ImageError:
    """Say what the file seems to be instead of an image, or that it is a damaged one."""
    file.seek(0)
    head = file.read(64)
    begin = head.lstrip().lower()
    if not head:
        return ImageError(f"{subject} is empty (0 bytes).", "Copy or save it again.")
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"heif", b"msf1"):
        return ImageError(
            f"{subject} is HEIC, which is not read here.",
            "Convert it first, for example: magick photo.heic photo.png",
        )
    kinds = {b"%PDF": "a PDF", b"<svg": "an SVG drawing", b"<?xml": "an XML or SVG file"}
    kinds |= {b"<!do": "a web page", b"<htm": "a web page", b"PK\x03\x04": "a ZIP archive"}
    kind = next((said for magic, said in kinds.items() if begin.startswith(magic.lower())), None)
    words = head.decode("utf-8", "ignore")
    if (
        kind is None
        and len(words.encode()) > len(head) - 4
        and not re.search(r"[^\s\x20-\x7e\xa0-\U0010ffff]", words)
    ):
        kind = "a text file"
    if kind is None and head.startswith(
        (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*", b"MM\0*")
    ):
        return ImageError(
            f"{subject} is damaged or cut off in its header.",
            "Copy it again, or save it as PNG.",
        )
    return ImageError(
        f"{subject} is {kind or 'of no known image format'}, whatever its name says.",
        "Convert it to PNG or JPEG first.",
    )
