"""Measuring dialogues behind a chat server: each place is a question of its own.

A server tells the log-probabilities of what it would write next, and nothing else: a place in an
assistant's turn is asked for as if that turn went on there. What the places have in common the
server has in its cache.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from cot_engine.backends.server.messages import Message
from cot_engine.core.requests import Dialogue, Measure, Piece, Prompt, Turn
from cot_engine.errors import InputError
from cot_engine.images.load import Image

_BETWEEN = "\n<|im_end|>.\n<|im_start|>{speaker}:\n"
"""What a chat format writes between two turns, in the texts whose tokens are bounded."""
Plain = Callable[[str], Awaitable[str]]


def places(dialogue: Dialogue) -> Iterator[tuple[tuple[Turn, ...], tuple[Piece, ...]]]:
    """For each place the turns before it, and the begun turn of the assistant. Raises InputError
    for one that a server cannot be asked about."""
    marked = False
    for at, turn in enumerate(dialogue.turns):
        for end, piece in enumerate(turn.pieces, 1):
            if piece.mark:
                marked = True
                if turn.speaker != "assistant":
                    raise _unasked("A place in a turn of the user")
                yield dialogue.turns[:at], turn.pieces[:end]
    if not marked:
        if not dialogue.opens:
            raise _unasked("A place behind the assistant's last word")
        yield dialogue.turns, ()


def _unasked(what: str) -> InputError:
    return InputError(
        f"{what} has no log-probabilities that a chat server tells.",
        "Load the verifier's model in this process, or mark places in the assistant's turns.",
    )


def prompt_of(turns: Sequence[Turn]) -> Prompt:
    """The turns as one text, for those who count what they cost."""
    images = tuple(image for turn in turns for image in turn.images)
    first, *rest = [turn.text for turn in turns] or [""]
    parts = zip(turns[1:], rest, strict=True)
    more = "".join(_BETWEEN.format(speaker=turn.speaker) + text for turn, text in parts)
    return Prompt(first + more + _BETWEEN.format(speaker="assistant") * bool(rest), images)


def asked_prompts(request: Measure) -> list[tuple[Prompt, str]]:
    """What each place of a request reads: as a prompt, and what of the reply stands before it."""
    return [
        (prompt_of(turns), "".join(piece.text for piece in begun))
        for dialogue in request.dialogues
        for turns, begun in places(dialogue)
    ]


async def messages(
    turns: Sequence[Turn],
    plain: Plain,
    pictures: Callable[[Sequence[Image]], Awaitable[list[Message]]],
) -> list[Message]:
    """The turns as a chat's messages; data in them with its special tokens taken apart."""
    made: list[Message] = []
    for turn in turns:
        text = await spelled(turn.pieces, plain)
        parts = await pictures(turn.images)
        content: Any = [*parts, {"type": "text", "text": text}] if parts else text
        made.append({"role": turn.speaker, "content": content})
    return made


async def spelled(pieces: Sequence[Piece], plain: Plain) -> str:
    """The text of pieces; data with its special tokens taken apart."""
    return "".join([p.text if p.own else await plain(p.text) for p in pieces])


def begun(made: list[Message], prefix: str) -> dict[str, Any]:
    """The chat that goes on behind these messages, and what the assistant has said of its turn."""
    if not prefix:
        return {"messages": made}
    last = {"role": "assistant", "content": prefix}
    return {
        "messages": [*made, last],
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
