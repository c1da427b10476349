"""From a prompt and a reply so far to the messages of a chat: text stays text, pictures are sent as
they are."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from cot_engine.backends.models.places import smaller
from cot_engine.images.load import Image

Message = dict[str, Any]

_KEPT_BYTES = 64 << 20  # of pictures as they are sent, kept for the next request
_SPECIAL = re.compile(
    r"<[|｜]?/?[\w▁][\w▁|｜:.\-]{0,40}>"  # <image>, </s>, <|im_end|>, <start_of_turn>, <｜User｜>
    r"|<\|[^<>\s]{1,40}\|?>|\[/?[A-Z][A-Z_]{2,30}\]"  # [INST], [IMG_END]
    r"|<<SYS>>|<</SYS>>"
)
_TAG = re.compile(r"</?[A-Z][A-Z0-9_]*>")  # a stage's: those must work
_KNOWN = 4096  # pieces of which we remember whether they are special tokens


class Pictures:
    """Pictures as data URLs, encoded once and kept as long as there is room. Of one with more than
    `most` pixels a smaller one is sent."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self._urls: OrderedDict[str, str] = OrderedDict()
        self._bytes = 0

    async def parts(self, images: Sequence[Image]) -> list[Message]:
        """A message's part for each."""
        return [
            {"type": "image_url", "image_url": {"url": await self._url(image)}} for image in images
        ]

    async def _url(self, image: Image) -> str:
        found = self._urls.get(image.digest)
        if found is None:
            png = await asyncio.to_thread(self._png, image)  # a large one takes a while
            found = self._urls[image.digest] = f"data:image/png;base64,{png}"
            self._bytes += len(found)
        self._urls.move_to_end(image.digest)
        while self._bytes > _KEPT_BYTES and len(self._urls) > 1:
            self._bytes -= len(self._urls.popitem(last=False)[1])
        return found

    def _png(self, image: Image) -> str:
        size = image.size if self.most is None else smaller(*image.size, self.most)
        if size != image.size:
            image = replace(image, pixels=image.pixels.resize(size, resample=3))  # bicubic
        return image.to_png_base64()


class Plain:
    """Takes special tokens that stand in a text apart, as a server would read them as such: the
    place of a picture, the end of a turn. A space behind their first character does it.

    `lone` says whether a piece is one token to the server; None: it does not say, and whatever
    looks like one is taken apart.
    """

    def __init__(self, lone: Callable[[str], Awaitable[bool]] | None) -> None:
        self._lone = lone
        self._known: OrderedDict[str, bool] = OrderedDict()

    async def __call__(self, text: str) -> str:
        found = {m[0] for m in _SPECIAL.finditer(text) if not _TAG.fullmatch(m[0])}
        special = [piece for piece in sorted(found) if await self._is_special(piece)]
        if not special:
            return text
        each = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        return each.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    async def _is_special(self, piece: str) -> bool:
        if self._lone is None:
            return True
        if piece not in self._known:
            self._known[piece] = await self._lone(piece)
            if len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        return self._known[piece]


def conversation(text: str, pictures: Sequence[Message], prefix: str) -> dict[str, Any]:
    """The messages, and how they are to be taken: a new turn, or the one that is begun."""
    content = [*pictures, {"type": "text", "text": text}] if pictures else text
    messages: list[Message] = [{"role": "user", "content": content}]
    if not prefix:
        return {"messages": messages}
    # A plain string: SGLang continues no other.
    messages.append({"role": "assistant", "content": prefix})
    return {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
