"""From a dialogue to token ids, and to how many of them stand before each of its places.

The model's own template writes the turns, around sentinels; what comes in their place is tokenised
with it, as the model's makers do. Special tokens in data stay text; those in the words of whoever
asks are such: a verifier's step token is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cot_engine.backends.local.text import ChatText
from cot_engine.core.requests import Dialogue, Piece, Turn
from cot_engine.errors import InputError, said

_PAD = (" \n\t", "\t\n ")  # by which one sees whether a template trims
_FALLBACK = {"user": "USER: ", "assistant": "ASSISTANT: ", "system": ""}  # without a template


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a template writes before a turn's text, and whether it trims that on its left and on
    its right."""

    before: str
    left: bool
    right: bool


class Dialogues:
    """Spells dialogues for one model."""

    def __init__(self, chat: ChatText) -> None:
        self.chat = chat
        self._frames = lru_cache(maxsize=256)(self._rendered)

    def spelled(self, dialogue: Dialogue, images: Sequence[str]) -> tuple[list[int], list[int]]:
        """The ids, and how many of them stand before each place. `images` are the strings that the
        pictures expand to. Raises InputError for turns that the template will not write."""
        runs = self._runs(dialogue, images)
        text = "".join(run.text for run in runs)
        ends, at = [], 0
        for run in runs:
            at += len(run.text)
            if run.mark:
                ends.append(at)
        wanted = self._tally(
            self.chat.encode("".join(r.text if r.own else "x" * bool(r.text) for r in runs))
        )
        ids = self.chat.encode(text)
        if self._tally(ids) == wanted:
            before = [self.chat.encode(text[:end]) for end in ends]
            if all(ids[: len(each)] == each for each in before):
                return ids, [len(each) for each in before] or [len(ids)]
        ids, places = self._apart(runs)
        if self._tally(ids) != wanted:
            raise InputError(
                "This dialogue cannot be spelled: its special tokens do not stay text.",
                "Leave the model's special tokens out of the question and the answers.",
            )
        return ids, places or [len(ids)]

    def first(self, choices: Sequence[str]) -> list[int]:
        """Each choice's first token, as it stands behind other text; one of the model's special
        tokens is that. Raises InputError if two begin alike, or one has none."""
        found: dict[int, str] = {}
        for choice in choices:
            ids = self.chat.behind(choice)
            if not ids or ids[0] in found:
                other = found.get(ids[0], "") if ids else ""
                raise InputError(
                    f"The choices {other!r} and {choice!r} begin with the same token."
                    if ids
                    else f"The choice {choice!r} has no token.",
                    "Choose words that this model's tokenizer tells apart at once.",
                )
            found[ids[0]] = choice
        return list(found)

    # --- inside ----------------------------------------------------------------------------------

    def _tally(self, ids: Sequence[int]) -> Counter[int]:
        return Counter(i for i in ids if i in self.chat.protected)

    def _apart(self, runs: list[Piece]) -> tuple[list[int], list[int]]:
        """Each run tokenised by itself: where one token would reach over a place, or a special one
        would form."""
        ids: list[int] = []
        places = []
        for run in runs:
            if run.text:
                if not ids:
                    ids += self.chat.encode(run.text)
                else:
                    ids += (self.chat.behind if run.own else self.chat.continuation)(run.text)
            if run.mark:
                places.append(len(ids))
        return ids, places

    def _runs(self, dialogue: Dialogue, images: Sequence[str]) -> list[Piece]:
        """What is written, in order: the template's words, and the turns'."""
        key = tuple((turn.speaker, len(turn.images)) for turn in dialogue.turns)
        frames, end = self._frames(key, dialogue.opens)
        left, tag = list(images), self.chat.image_tag

        def expanded(before: str) -> Piece:
            parts = before.split(tag)
            text = parts[0]
            for part in parts[1:]:
                text += left.pop(0) + part
            return Piece(text, True)

        runs: list[Piece] = []
        for turn, frame in zip(dialogue.turns, frames, strict=True):
            if tag and any(piece.own and tag in piece.text for piece in turn.pieces):
                raise InputError(
                    f"The words of a turn hold {tag}, which stands for a picture.",
                    "Leave it out: pictures are put before a turn's text.",
                )
            runs.append(expanded(frame.before))
            runs += _trimmed(turn, frame)
        runs.append(expanded(end))
        return runs

    def _rendered(
        self, turns: tuple[tuple[str, int], ...], opens: bool
    ) -> tuple[list[_Frame], str]:
        """What the template writes before each turn's text, and behind the last."""
        names = [f"0cot{at}text0" for at in range(len(turns))]
        padded = [f"{_PAD[0]}{name}{_PAD[1]}" for name in names]
        whole = self._written(turns, padded, opens)
        frames, rest = [], whole
        tags = sum(images for _, images in turns)
        if self.chat.image_tag and whole.count(self.chat.image_tag) != tags:
            raise _unwritable("it does not write each picture once")
        for name in names:
            before, found, rest = rest.partition(name)
            if not found or name in rest:
                raise _unwritable("it does not write each turn once, in order")
            kept = before.endswith(_PAD[0]), rest.startswith(_PAD[1])
            frames.append(_Frame(before.removesuffix(_PAD[0]), not kept[0], not kept[1]))
            rest = rest.removeprefix(_PAD[1])
        return frames, self.chat.past_thought(rest) if opens else rest

    def _written(self, turns: tuple[tuple[str, int], ...], padded: list[str], opens: bool) -> str:
        tag = self.chat.image_tag
        if not self.chat.template:
            said_ = [
                f"{_FALLBACK[speaker]}{tag * images}{chr(10) * bool(images)}{text}"
                for (speaker, images), text in zip(turns, padded, strict=True)
            ]
            return " ".join(said_) + " ASSISTANT:" * opens
        why: BaseException | None = None
        for plain in (False, True):  # the latter is what templates of language models want
            messages: list[dict[str, Any]] = []
            for (speaker, images), text in zip(turns, padded, strict=True):
                parts = [{"type": "image"}] * images + [{"type": "text", "text": text}]
                content: Any = f"{tag}\n" * images + text if plain else parts
                messages.append({"role": speaker, "content": content})
            try:
                whole = str(
                    self.chat.tokenizer.apply_chat_template(
                        messages,
                        chat_template=self.chat.template,
                        add_generation_prompt=opens,
                        enable_thinking=False,
                        tokenize=False,
                    )
                )
            except Exception as error:  # it is a program of the model's maker
                why = why or error
                continue
            if (
                all(whole.count(text.strip()) == 1 for text in padded)
                and repr(_PAD[0]) not in whole
            ):
                return whole
        raise _unwritable(f"it raises {said(why)}" if why else "it does not write each turn once")


def _unwritable(why: str) -> InputError:
    return InputError(
        f"The model's chat template cannot write these turns: {why}.",
        "Some take no system turn, or want user and assistant in turn: change the turns.",
    )


def _trimmed(turn: Turn, frame: _Frame) -> list[Piece]:
    """A turn's pieces, without the white space at its ends that the template takes away."""
    pieces = list(turn.pieces)
    for trims, order, strip in (
        (frame.left, range(len(pieces)), str.lstrip),
        (frame.right, range(len(pieces) - 1, -1, -1), str.rstrip),
    ):
        for at in order if trims else ():
            piece = pieces[at]
            pieces[at] = Piece(strip(piece.text), piece.own, piece.mark)
            if pieces[at].text:
                break
    return pieces
