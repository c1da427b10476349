"""The teacher of LLaVA-CoT (arXiv 2411.10440, section 3): it is shown question, picture and
standard answer, writes the four stages, and the CONCLUSION is held against the answer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cot_engine.core.grammar import read, tier
from cot_engine.core.stages import DEFAULT_PLAN, Plan
from cot_engine.errors import InputError, StoreError, shown
from cot_engine.files.writing import write_whole
from cot_engine.images.load import load_image
from cot_engine.questions.data import Item, Picture
from cot_engine.questions.entries import Entry
from cot_engine.questions.grading import verdict
from cot_engine.questions.pictures import BytesPicture, FilePicture
from cot_engine.training.rows import TrainingRow
from cot_engine.training.tasks import Fault, RowDraft, data_url
from cot_engine.training.teacher import Message

Check = Literal["rules", "teacher", "both"]
CHECKS: tuple[Check, ...] = ("rules", "teacher", "both")
"""Who is to find a conclusion right: the rules; the teacher; or the teacher where the rules leave
it open. What the rules find wrong is wrong whoever checks (`grading.verdict`)."""

_RULES = """\
You are writing a worked example from which a smaller model will learn to think about pictures. \
Answer the question below in tagged parts, in this order, each written exactly once, with nothing \
outside the tags:
{parts}

For your eyes only, a correct answer is noted at the end. Use it to be sure that what you see and \
work out leads there; if your own reasoning does not, look again. Write as somebody who has only \
{seen}: no part may mention, cite or hint at the note, and the answer must not come before \
it has been worked out. The last part gives that same answer, in the form that the question asks \
for, and nothing else."""

_CHECK = """\
Somebody answered a question, and the right answer is known. Does the answer say the same as the \
right one? Other words for it, a unit, or more detail that does not contradict it are all fine; \
naming several answers, or none, is not.

Question: {question}

Right answer: {right}

Answer: {given}

Reply with one word, yes or no."""

_GIVEN = r"(?:standard|reference|given|provided|noted|known|expected|supplied|ground[- ]truth)"
_GIVES_AWAY = re.compile(
    rf"\b{_GIVEN} (?:correct |right |final )?(?:answer|solution|conclusion)\b(?! (?:choice|option))"
    r"|\bground[- ]truth\b|\banswer key\b|\b(?:the|this|that|your) note (?:says|states|gives)"
    r"|\baccording to the note\b|\bthe answer (?:I|we) (?:was|were|am|are) (?:given|told|shown)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class StagedTask:
    """One question to be answered in stages. `images` are its pictures' paths as rows name them."""

    item: Item
    images: tuple[str, ...]
    check: Check
    plan: Plan
    folder: Path

    @property
    def id(self) -> str:
        return self.item.id

    @property
    def digest(self) -> str:
        return self.item.digest

    @property
    def image(self) -> str | None:
        return ", ".join(self.images) or None

    @property
    def question(self) -> str:
        return self.item.question

    @property
    def answer(self) -> str:
        """The standard answer, an option with its text."""
        texts = dict(getattr(self.item.grader, "choices", ()))
        return f"{self.item.answer}. {texts[x]}" if (x := self.item.answer) in texts else x

    def messages(self) -> list[Message]:
        parts = "\n".join(f"{stage.open}{stage.purpose}{stage.close}" for stage in self.plan)
        seen = "the picture and the question" if self.item.pictures else "the question"
        rules = _RULES.format(parts=parts, seen=seen)
        asked = f"Question:\n{self.question}\n\nThe note: {self.answer}"
        content: list[Message] = [{"type": "text", "text": rules}]
        for image in self.item.problem().images:
            content.append({"type": "image_url", "image_url": {"url": data_url(image)}})
        content.append({"type": "text", "text": asked})
        return [{"role": "user", "content": content}]

    def read(self, text: str) -> RowDraft | Fault:
        reading = read(text, self.plan, complete=True)
        if tier(reading.faults) or len(reading.contents) < len(self.plan):
            return Fault("stages", ", ".join(reading.faults))
        if found := _GIVES_AWAY.search(" ".join(reading.contents.values())):
            return Fault("gives away", f"it says {found[0]!r}")
        given = reading.contents[self.plan.last.tag]
        ruled = verdict(self.item.grader, given)
        if ruled is False or (self.check == "rules" and not ruled):
            said = f"it concludes {shown(given, 200)}; the answer is {shown(self.answer, 200)}"
            return Fault("wrong", f"by rule: {said}")
        right = ruled is True and self.check != "teacher"
        # Written anew: what was repaired (a preface, a missing last tag) must not be learnt.
        response = "\n\n".join(f"<{tag}>{said}</{tag}>" for tag, said in reading.contents.items())
        accepted = getattr(self.item.grader, "accepted", ()) or (self.item.answer,)
        standard = {
            "answer": accepted[0] if len(accepted) == 1 else list(accepted),
            "decided_by": "rule" if right else "teacher",
        }
        image, *more = self.images or (None,)
        row = TrainingRow(self.id, image, self.question, response, standard, tuple(more))
        return RowDraft(row, None if right else self._doubt(given))

    def _doubt(self, given: str) -> list[Message]:
        said = _CHECK.format(question=self.question, right=self.answer, given=given)
        return [{"role": "user", "content": said}]

    def save(self) -> None:
        """A picture that came inside the data becomes a file; nothing else is copied."""
        for picture, name in zip(self.item.pictures, self.images, strict=True):
            if isinstance(picture, BytesPicture):
                _write_once(self.folder / name, picture.data)


def staged_entries(
    entries: list[Entry[Item]], out: str | Path, check: Check
) -> list[Entry[StagedTask]]:
    """The tasks of the questions, for rows in the file `out`: pictures are named relative to its
    folder, those that came inside the data go into `OUT.images`."""

    def entry(one: Entry[Item]) -> Entry[StagedTask]:
        return Entry(one.place, one.id, lambda: _task(one.make, Path(out), check))

    return [entry(one) for one in entries]


def _task(make: Callable[[], Item], out: Path, check: Check) -> StagedTask:
    item = make()
    images = tuple(_named(picture, out) for picture in item.pictures)
    folder = out.absolute().parent
    return StagedTask(item, images, check, DEFAULT_PLAN.fit(len(item.pictures)), folder)


def _named(picture: Picture, out: Path) -> str:
    if isinstance(picture, FilePicture):
        return relative(picture.path, out)
    if isinstance(picture, BytesPicture):
        return f"{out.stem}.images/{picture.digest[:24]}.{_kind(picture.data)}"
    raise InputError("A drawn picture has no file.", "Save it, and name the file.")


def relative(picture: Path, out: Path) -> str:
    """A picture's path as the rows of `out` name it."""
    here = out.absolute().parent
    try:
        return Path(os.path.relpath(picture.absolute(), here)).as_posix()
    except ValueError:  # on another drive
        return picture.absolute().as_posix()


def _kind(data: bytes) -> str:
    """The usual ending of such a picture's name. Raises ImageError."""
    for magic, ending in ((b"\x89PNG", "png"), (b"\xff\xd8", "jpg"), (b"GIF8", "gif")):
        if data.startswith(magic):
            return ending
    load_image(data)
    return "webp" if data[8:12] == b"WEBP" else "img"


def _write_once(path: Path, data: bytes) -> None:
    """The name holds the content's digest: a file of that size is that file."""
    if not (path.is_file() and path.stat().st_size == len(data)):
        write_whole(path, data, "The picture", StoreError, "Free some space.")
