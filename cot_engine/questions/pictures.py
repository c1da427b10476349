"""The pictures of a data file: found when it is loaded, decoded when they are needed."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cot_engine.errors import ImageError, shown
from cot_engine.images.download import AllowUrl, download
from cot_engine.images.load import Image, load_image
from cot_engine.questions.row import QuestionRow, Source, wrong

_SHOWN = 3  # of what is missing, before "and 14 more"


@dataclass(frozen=True, slots=True)
class FilePicture:
    """A picture in a file; `digest` is the SHA-256 of what it held when the data was loaded."""

    path: Path
    digest: str

    def load(self) -> Image:
        """Raises ImageError, also where the file has changed: a result must be about the picture
        that its digest names."""
        try:
            data = self.path.read_bytes()
        except OSError:
            data = None
        if data is not None and _sha(data) != self.digest:
            raise ImageError(
                f"The image {str(self.path)!r} has changed since the data was loaded.",
                "Load the data again.",
            )
        return load_image(self.path)


@dataclass(frozen=True, slots=True)
class BytesPicture:
    """A picture that came inside the data file (or from a URL)."""

    data: bytes = field(repr=False)
    digest: str

    def load(self) -> Image:
        return load_image(self.data)


def pictures_of(
    path: Path, rows: list[QuestionRow], every: Mapping[str, QuestionRow], allow_url: AllowUrl
) -> list[tuple[FilePicture | BytesPicture, ...]]:
    """The pictures of each of `rows`, all there and unchanged from here on, none decoded. `every`
    row of the file may be referred to. Raises ImageError; of missing files it names the first."""
    made: dict[Source, FilePicture | BytesPicture | None] = {}
    missing: dict[str, str] = {}
    found = []
    for row in rows:
        sources = [s for p in row.pictures for s in _followed(path, row, p, every)]
        for source in sources:
            if source not in made:
                made[source] = _picture(path, row.place, *source, allow_url)
            if made[source] is None:
                missing.setdefault(source[1], row.place)
        found.append(tuple(there for source in sources if (there := made[source]) is not None))
    if missing:
        named = [f"{shown(name)} ({place})" for name, place in list(missing.items())[:_SHOWN]]
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        count = "1 image" if len(missing) == 1 else f"{len(missing)} images"
        raise ImageError(
            f"{count} of {str(path)!r} cannot be found: {', '.join(named)}{more}.",
            f"Paths are relative to {str(path.parent)!r}.",
        )
    return found


def _followed(
    path: Path, row: QuestionRow, source: Source, every: Mapping[str, QuestionRow]
) -> tuple[Source, ...]:
    """What a picture that is the index of another row stands for; others stand for themselves."""
    seen = [row.id]
    found: tuple[Source, ...] = (source,)
    while len(found) == 1 and found[0][0] == "row":
        other = found[0][1]
        if other in seen:
            chain = " -> ".join([*seen, other])
            raise wrong(path, row.place, f"its image goes round in a circle: {chain}.", "Break it.")
        if other not in every:
            said = f"its image is {other!r}, which is no row's index and too short for base64."
            raise wrong(path, row.place, said, "Paths belong into a column image_path.")
        if not every[other].pictures:
            raise wrong(path, row.place, f"row {other!r}, its image, has none.", "Give it one.")
        seen.append(other)
        found = every[other].pictures
    if len(found) > 1 and any(kind == "row" for kind, _ in found):
        said = f"row {seen[-1]!r}, its image, names other rows itself."
        raise wrong(path, row.place, said, "Name the rows that hold the pictures.")
    return found


def _picture(
    path: Path, place: str, kind: str, text: str, allow_url: AllowUrl
) -> FilePicture | BytesPicture | None:
    """None if it is a file that is not there."""
    if kind == "path":
        return _file(path, place, text)
    if kind == "url":
        try:
            data, _ = download(text, text.partition(":")[0].lower(), allow_url)
        except ImageError as error:
            raise ImageError(f"{str(path)!r}, {place}: {error.message}", error.hint) from None
        return BytesPicture(data, _sha(data))
    head, comma, body = text.partition(",") if text.startswith("data:") else ("", "", text)
    try:
        if head and not (comma and head.endswith(";base64")):
            raise ValueError("only data: addresses with ;base64 are read")
        data = base64.b64decode("".join(body.split()), validate=True)
        if not data:
            raise ValueError("it is empty")
    except (ValueError, binascii.Error) as error:
        raise ImageError(
            f"{str(path)!r}, {place}: the image {shown(text)} ({len(text):,} characters) is no "
            f"readable base64: {error}.",
            "Write the picture's file in base64, whole.",
        ) from None
    return BytesPicture(data, _sha(data))


def _file(path: Path, place: str, name: str) -> FilePicture | None:
    image = Path(path.parent, name).absolute()
    try:
        if not image.exists():
            return None
        if not image.is_file():
            raise ValueError("it is not a regular file")
        data = image.read_bytes()
        if not data:
            raise ValueError("it is empty (0 bytes)")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"{str(path)!r}, {place}: the image {shown(name)} cannot be read: {reason}.",
            "Name an image file.",
        ) from None
    return FilePicture(image, _sha(data))


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
