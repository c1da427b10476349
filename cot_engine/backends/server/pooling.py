"""The backend for a server that does not write but gives numbers: a reward model's, a reranker's.

    backend = Server(task="pooling").open("http://127.0.0.1:8000/v1")

`pooling` and `classify` get the dialogue as a chat (vLLM's /pooling and /classify); `score` and
`rerank` its first turn of the user as the query, its last one as the document. The numbers are the
server's own: it has applied its head. What it would lay on them by itself, a norm, a sigmoid or a
softmax, it is asked to leave out where it pools (`use_activation`, vLLM's word): what an ordinary
model gives at the LAST token is then its final state, on which a `head` can be laid here.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from cot_engine.backends.server.asking import Asking, all_of
from cot_engine.backends.server.dialect import Task
from cot_engine.backends.server.http import usage_of
from cot_engine.backends.server.measuring import messages, prompt_of, spelled
from cot_engine.backends.server.messages import Message, Pictures, Plain
from cot_engine.core.parts import finite
from cot_engine.core.requests import (
    BackendInfo,
    Choose,
    Chosen,
    Dialogue,
    Generate,
    Generated,
    Measure,
    Measured,
    Turn,
)
from cot_engine.core.usage import Usage
from cot_engine.errors import InputError, ModelError, shown

if TYPE_CHECKING:
    from cot_engine.backends.server.sizes import Sizes

_TURN = 64  # tokens that a chat format writes around a turn, at most
_PAIR = 256  # and what a server's template for a query and its document says besides


class PoolingBackend:
    """Implements `Measuring`, and refuses to write and to choose. `opener.Server` makes one."""

    def __init__(
        self,
        asking: Asking,
        task: Task,
        model: str,
        context: int,
        name: str,
        sizes: Sizes | None = None,
        max_pixels: int | None = None,
        notes: tuple[str, ...] = (),
        activation: bool | None = None,
    ) -> None:
        self.asking, self.task, self.model, self.sizes = asking, task, model, sizes
        self._context, self._name, self._notes = context, name, notes
        self._pictures = Pictures(max_pixels)
        self._plain = Plain(None)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        if activation is None and task == "pooling":
            activation = False
        self._asked: dict[str, Any] = {"model": model}
        if activation is not None:
            self._asked["use_activation"] = activation

    def __enter__(self) -> PoolingBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def info(self) -> BackendInfo:
        sizes = self.sizes
        return BackendInfo(
            name="server",
            model=self._name,
            digest=f"{self.model}{'' if sizes is None else f' {sizes.digest}'}",
            architecture="not known" if sizes is None else sizes.architecture,
            device=urlsplit(self.asking.line.base_url).netloc,
            dtype="its own dtype",
            context=self._context,
            max_images=16,
            notes=self._notes,
            max_pixels=self._pictures.most,
        )

    async def generate(self, request: Generate) -> Generated:
        self._refuse()

    async def choose(self, request: Choose) -> Chosen:
        self._refuse()

    async def measure(self, request: Measure) -> Measured:
        """Raises InputError for log-probabilities, which such a server does not tell."""
        if request.choices:
            raise InputError(
                f"A server asked for its {self.task} tells no log-probabilities.",
                "A verifier of kind head reads its numbers.",
            )
        if self._closed:
            raise ModelError("The backend is closed.", "Open the server again.")
        task = asyncio.ensure_future(self._measure(request))
        self._tasks.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            mine = asyncio.current_task()
            if not self._closed or (mine is not None and mine.cancelling()):
                raise
            raise ModelError("The backend was closed.", "Open the server again.") from None
        finally:
            self._tasks.discard(task)

    def estimate(self, request: Generate | Choose | Measure) -> Usage:
        """By bytes, of which a token has one at least; pictures may fill the context."""
        if not isinstance(request, Measure):
            self._refuse()
        total = Usage()
        for dialogue in request.dialogues:
            prompt = prompt_of(dialogue.turns)
            around = _TURN * len(dialogue.turns) + _PAIR * (self.task in ("score", "rerank"))
            tokens = len(prompt.text.encode()) + around
            if self.sizes is not None:
                tokens = self.sizes.tokens(prompt, "") + around
            elif dialogue.images:
                tokens = self._context
            tokens = min(tokens, self._context)
            total += Usage(
                prefilled=tokens,
                encodes=len(dialogue.images),
                flops=self._flops(dialogue, tokens),
                calls=1,
            )
        return total

    def release(self, scope: str) -> None:
        pass

    def close(self) -> None:
        """Fail what is in flight, and let go of the connections."""
        self._closed = True
        for task in list(self._tasks):
            loop = task.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)
        self.asking.line.close()

    # --- inside ----------------------------------------------------------------------------------

    def _refuse(self) -> NoReturn:
        raise InputError(
            f"The server is asked for its {self.task}: it writes nothing, and nothing can be"
            " searched with it.",
            "It is for a verifier of kind head; a model that searches needs a chat server.",
        )

    def _flops(self, dialogue: Dialogue, tokens: int) -> int:
        if self.sizes is None:
            return 0
        images = sum(map(self.sizes.image, dialogue.images))
        return images + self.sizes.text(prompt_of(dialogue.turns), tokens, 0, 0)

    async def _measure(self, request: Measure) -> Measured:
        began = time.monotonic()
        found = await all_of(*map(self._one, request.dialogues))
        usage = sum((used for _, used in found), Usage())
        seconds = time.monotonic() - began
        return Measured(tuple(rows for rows, _ in found), replace(usage, seconds=seconds))

    async def _one(self, dialogue: Dialogue) -> tuple[tuple[tuple[float, ...], ...], Usage]:
        chat = self.task in ("pooling", "classify")
        payload = await (self._chat(dialogue) if chat else self._pair(dialogue))
        reply = await self.asking.value(f"/{self.task}", self._asked | payload)
        rows = self._rows(reply, dialogue.places)
        tokens, *_ = usage_of(reply)
        if tokens is None:
            tokens = self.estimate(Measure("", (dialogue,))).prefilled
        images = len(dialogue.images)
        flops = self._flops(dialogue, tokens)
        return rows, Usage(encodes=images, prefilled=tokens, flops=flops, calls=1)

    async def _chat(self, dialogue: Dialogue) -> dict[str, Any]:
        made = await messages(dialogue.turns, self._plain, self._pictures.parts)
        return {"messages": made, "add_generation_prompt": dialogue.opens}

    async def _pair(self, dialogue: Dialogue) -> dict[str, Any]:
        user = next((turn for turn in dialogue.turns if turn.speaker == "user"), None)
        last = dialogue.turns[-1]
        if user is None or last is user:
            raise InputError(
                f"A server asked for its {self.task} takes a query and a document.",
                "Give the verifier two turns: the question, and the response.",
            )
        query, document = await self._side(user), await self._side(last)
        if self.task == "score":
            return {"queries": query, "documents": document}
        return {"query": query, "documents": [document] if isinstance(document, str) else document}

    async def _side(self, turn: Turn) -> Any:
        text = await spelled(turn.pieces, self._plain)
        parts: list[Message] = await self._pictures.parts(turn.images)
        return {"content": [*parts, {"type": "text", "text": text}]} if parts else text

    def _rows(self, reply: dict[str, Any], places: int) -> tuple[tuple[float, ...], ...]:
        """The numbers at each place; of one, the last that there are. Raises ModelError."""
        key = "results" if self.task == "rerank" else "data"
        entries = reply.get(key)
        if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
            self._odd(reply)
        name = {"pooling": "data", "classify": "probs", "score": "score"}
        found = entries[0].get(name.get(self.task, "relevance_score"))
        if not isinstance(found, list) and found is not None:
            found = [found]
        if not isinstance(found, list) or not found:
            self._odd(reply)
        rows = found if isinstance(found[0], list) else [found]
        if places == 1:
            rows = rows[-1:]
        if len(rows) != places:
            raise ModelError(
                f"The server gave {len(rows)} rows of numbers to {places} places.",
                "Does it pool at the places that the verifier marks? Score the whole, without"
                " {mark}, or load the model in this process.",
            )
        if not all(isinstance(row, list) and row for row in rows):
            self._odd(reply)
        if odd := [value for row in rows for value in row if not _is_number(value)]:
            raise ModelError(
                f"The server's reply to /{self.task} holds {shown(odd[0], 40)} where a number is"
                " needed.",
                "A score is a finite number: its weights or its number format may be broken.",
            )
        return tuple(tuple(map(float, row)) for row in rows)

    def _odd(self, reply: dict[str, Any]) -> NoReturn:
        raise ModelError(
            f"The server's reply to /{self.task} has no numbers: {shown(reply, 120)}.",
            "Is it started for that task, such as vllm serve MODEL --runner pooling?",
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and finite(value) is not None
