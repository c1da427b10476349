"""What a builder does for one row: what to ask, how to read the reply, what to doubt."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Protocol

from cot_engine.images.load import Image
from cot_engine.training.rows import TrainingRow
from cot_engine.training.teacher import Message

REASONS: dict[str, str] = {
    "input": "the row of the input cannot be read",
    "image": "its picture is missing or cannot be read",
    "rejected": "the server would not answer the request",
    "refused": "the teacher refused",
    "length": "the reply was cut off at --max-tokens",
    "empty": "the reply is empty",
    "garbage": "the reply is not what the protocol says",
    "stages": "the stages, or turns, are not as asked for",
    "gives away": "it mentions what only the teacher was shown",
    "wrong": "the conclusion is not the standard answer",
    "unclear": "the check said neither yes nor no",
    "unanswered": "no answer after all retries",
    "stopped": "not asked any more",
}
"""Why a row was set aside or, the last two, left for a later run."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one reply: a reason of REASONS, and the details."""

    reason: str
    said: str


@dataclass(frozen=True, slots=True)
class RowDraft:
    """A row that is kept if there is no `doubt`, or if a checker answers that with yes."""

    row: TrainingRow
    doubt: list[Message] | None = None


class TeacherTask(Protocol):
    """One row to make. `digest` is over all that decides what is asked; `question`, `answer` and
    `image` are for the record of what was set aside."""

    @property
    def id(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def image(self) -> str | None: ...
    def messages(self) -> list[Message]:
        """What the teacher is asked. Raises ImageError."""
        ...

    def read(self, text: str) -> RowDraft | Fault: ...
    def save(self) -> None:
        """Called when the row is kept: write what it needs beside it. Raises StoreError."""
        ...


def data_url(image: Image) -> str:
    """The picture in an address: as PNG, or where that takes more than a megabyte as JPEG, which
    photographs are sent as."""
    data, kind = image.to_png_base64(), "png"
    if len(data) > 1_400_000:
        buffer = io.BytesIO()
        image.pixels.save(buffer, "JPEG", quality=92)
        data, kind = base64.b64encode(buffer.getvalue()).decode("ascii"), "jpeg"
    return f"data:image/{kind};base64,{data}"
