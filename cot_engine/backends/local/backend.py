"""The local backend: a vision-language model in this process, through torch and transformers.

    backend = Local(device="cpu").open("path/to/model")
    generated = await backend.generate(Generate(...))

See `worker` for the thread that runs the model, `prefill`, `decode` and `prefix` for how it avoids
computing anything twice, `shared` and `attention` for what rows have in common, `step` for what a
GPU repeats without Python, `models` beside this folder for what differs between families, `text`
for the chat format and boundaries, `loading` for checkpoints.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from cot_engine.backends.local.amount import SHARE
from cot_engine.backends.local.dialogue import Dialogues
from cot_engine.backends.local.jobs import Choosing, Job, Measuring, Scope, Sequence, Writing
from cot_engine.backends.local.loading import Loaded
from cot_engine.backends.local.prefix import Node, in_chunks, insert, matched
from cot_engine.backends.local.states import Marking
from cot_engine.backends.local.worker import Worker
from cot_engine.backends.models.family import Pixels
from cot_engine.core.requests import (
    BackendInfo,
    Choose,
    Chosen,
    Dialogue,
    Generate,
    Generated,
    Measure,
    Measured,
    Prompt,
)
from cot_engine.core.usage import Usage
from cot_engine.errors import InputError
from cot_engine.images.load import Image

_KEPT = 256  # preprocessed images kept for reuse
_KEPT_TOKENS = 500_000  # of tokenised prompts kept for reuse: what is estimated is then asked
_MANY = 32  # tails; tokenising more takes long enough to leave the event loop

Made = TypeVar("Made")


@dataclass(slots=True)
class Notes:
    """What a user should know of: called in the model's thread, which must not hold the backend."""

    said: list[str]
    listener: Callable[[str], None] | None

    def __call__(self, note: str) -> None:
        self.said.append(note)
        if self.listener is not None:
            try:
                self.listener(note)
            except BaseException as error:  # it is no part of what is computed
                self.listener = None
                self.said.append(
                    f"The listener for notices raised {type(error).__name__} and hears no more."
                )


class LocalBackend:
    """Implements `Measuring`. `opener.Local` makes one; `close` it, or use it in a `with`.

    `max_rows` candidates are written at once; `on_notice` is told when a limit was met.
    """

    def __init__(
        self,
        loaded: Loaded,
        max_rows: int | None = None,
        prefill_columns: int | None = None,
        on_notice: Callable[[str], None] | None = None,
        memory: float | str = SHARE,
    ) -> None:
        self.adapter = loaded.adapter
        self.text = loaded.text
        self.dialogues = Dialogues(loaded.text)
        self._loaded = loaded
        self._notes = Notes(list(loaded.notes), on_notice)
        self._context = int(self.adapter.text.max_position_embeddings)
        self._scopes: dict[str, Scope] = {}
        self._pixels: OrderedDict[tuple[str, bool], Pixels] = OrderedDict()
        self._turns: OrderedDict[tuple, Sequence] = OrderedDict()
        self._turn_tokens = 0
        self._keeping = threading.Lock()  # guards the two: requests are made ready in threads
        gpu = self.adapter.device.type != "cpu"
        self.worker = Worker(
            self.adapter,
            self.text,
            max_rows or 256,
            prefill_columns or (65536 if gpu else 16384),
            self._context,
            self._notes,
            memory,
        )

    def __enter__(self) -> LocalBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def info(self) -> BackendInfo:
        return BackendInfo(
            name="local",
            model=self._loaded.name,
            digest=self._loaded.digest,
            architecture=self._loaded.architecture,
            device=str(self.adapter.device),
            dtype=str(self.adapter.dtype).removeprefix("torch."),
            context=self._context,
            max_images=self.adapter.max_images,
            notes=tuple(self._notes.said),
            max_pixels=self.adapter.max_pixels,
        )

    @property
    def holds(self) -> tuple[int, tuple[int, ...]]:
        """How wide the model's states are, and the layers that have them."""
        return int(self.adapter.head.weight.shape[-1]), tuple(self.adapter.self_layers())

    # --- requests --------------------------------------------------------------------------------

    async def generate(self, request: Generate) -> Generated:
        self.worker.thread.check()
        if not request.seeds or request.max_new_tokens < 1:
            raise InputError("A request to write needs at least one seed and one new token.")
        sequence = await self._ready(self._reply, request)
        room = self._room(len(sequence.ids))
        request = replace(request, max_new_tokens=min(request.max_new_tokens, room))
        watch = self.text.watch(request.until)
        marking = None
        if request.states is not None:
            marking = Marking(self.text, request.states, self.adapter.self_layers())
        scope = self._scope(request)
        return await self._run(
            Writing(
                request=request, scope=scope, sequences=[sequence], watch=watch, marking=marking
            )
        )

    async def choose(self, request: Choose) -> Chosen:
        self.worker.thread.check()
        if not request.tails or not request.choices:
            raise InputError("A request to choose needs at least one tail and one choice.")
        sequences = await self._ready(self._questions, request)
        self._room(max(len(s.ids) for s in sequences))
        choices = self._first_tokens(request)
        scope = self._scope(request)
        return await self._run(
            Choosing(request=request, scope=scope, sequences=sequences, choices=choices)
        )

    async def measure(self, request: Measure) -> Measured:
        self.worker.thread.check()
        if not request.dialogues or not all(dialogue.turns for dialogue in request.dialogues):
            raise InputError("A request to measure needs at least one dialogue, each with a turn.")
        told = await self._ready(self._told, request)
        self._room(max(len(sequence.ids) for sequence, _ in told))
        sequences, places = map(list, zip(*told, strict=True))
        choices = self.dialogues.first(request.choices)
        job = Measuring(
            request=request,
            scope=self._scope(request),
            sequences=sequences,
            places=places,
            choices=choices,
        )
        return await self._run(job)

    def estimate(self, request: Generate | Choose | Measure) -> Usage:
        self.worker.thread.check()
        again: list[list[int]] = []
        if isinstance(request, Generate):
            sequences = [self._reply(request)]
        elif isinstance(request, Measure):
            told = self._told(request)
            sequences, again = [sequence for sequence, _ in told], [places for _, places in told]
        else:
            sequences = self._questions(request)
        scope = self._scopes.get(request.scope)
        # Tails share among themselves too: they go one after the other into a mock history.
        had, counted, mock = [], 0, Node((), 0, None)
        for sequence in sequences:
            had.append(max(self._held(scope, sequence), matched(mock, sequence.keys)))
            insert(mock, sequence.keys)
            counted += len(sequence.keys) - had[-1]
        longest, costs = sequences[0], self.adapter.flops
        crossed = self.adapter.crossed(longest.images)
        # A prompt that is held whole may have to compute its last token again.
        counted = max(counted, 1)
        heads = len(sequences)
        if isinstance(request, Measure):
            heads = sum(map(len, again)) if request.choices else 0
        flops = costs.head(heads)
        for places, at in zip(again, had, strict=False):
            for place in places:
                if place <= at:  # its final state may not have been kept
                    counted += 1
                    flops += costs.prefill(1, place - 1, crossed)
        for sequence, at in zip(sequences, had, strict=True):
            new = max(1, len(sequence.keys) - at)
            for size in in_chunks(new) if self.adapter.in_parts else [new]:
                flops += costs.prefill(size, at, crossed)
                at += size
        encoded = scope.encoded if scope else ()
        pictures = (image for sequence in sequences for image in sequence.images)
        images = {i.digest: i for i in pictures if i.digest not in encoded}
        flops += sum(self.adapter.image_flops(image) for image in images.values())
        decoded = 0
        if isinstance(request, Generate):
            room = self._room(len(longest.ids))
            count, length = min(request.max_new_tokens, room), len(longest.keys)
            decoded = count * len(request.seeds)
            flops += len(request.seeds) * costs.steps(length, count, crossed)
        return Usage(
            encodes=len(images),
            prefilled=counted,
            cached=sum(had),
            decoded=decoded,
            flops=flops,
            calls=1,
        )

    def release(self, scope: str) -> None:
        if (found := self._scopes.pop(scope, None)) is not None:
            with self.worker.lock:  # what is in flight holds its own tree
                found.released, found.roots = True, {}
            if not self.adapter.prompt_depends_on_images:  # else rows in flight look at them
                found.features = {}

    def close(self) -> None:
        """Fail what is in flight at once; wait at most about a second for a forward pass to end."""
        self.worker.close()
        for scope in list(self._scopes):
            self.release(scope)
        with self._keeping:
            self._pixels.clear()
            self._turns.clear()
            self._turn_tokens = 0

    # --- from requests to token sequences --------------------------------------------------------

    async def _ready(
        self, make: Callable[[Any], Made], request: Generate | Choose | Measure
    ) -> Made:
        """`make(request)`, in another thread where it takes long: a new picture, many tails."""
        images = request.images if isinstance(request, Measure) else request.prompt.images
        crowded = self.adapter.apart and len(images) > 1
        with self._keeping:
            new = any((image.digest, crowded) not in self._pixels for image in images)
        many = 0
        if not isinstance(request, Generate):
            many = len(request.dialogues if isinstance(request, Measure) else request.tails)
        if new or many > _MANY:
            return await asyncio.to_thread(make, request)
        return make(request)

    def _scope(self, request: Generate | Choose | Measure) -> Scope:
        return self._scopes.setdefault(request.scope, Scope(request.scope))

    async def _run(self, job: Job) -> Any:
        self.worker.submit(job)
        try:
            return await job.done
        finally:
            self.worker.thread.forget(job)  # done, failed or given up: nothing more is wanted of it

    def _reply(self, request: Generate) -> Sequence:
        """The prompt and the reply so far, as the model sampled it or as its text is spelled."""
        more: list[int] = []
        for segment in request.prefix:
            more += segment.ids if segment.ids is not None else self.text.continuation(segment.text)
        return self._sequence(request.prompt, more)

    def _questions(self, request: Choose) -> list[Sequence]:
        more = self.text.continuation(request.prefix) if request.prefix else []
        turns = self._turns_of(
            [request.prompt.text + tail for tail in request.tails], request.prompt.images
        )
        return [_going_on(turn, more) for turn in turns]

    def _told(self, request: Measure) -> list[tuple[Sequence, list[int]]]:
        """Each dialogue, and behind how many of its tokens its places are."""
        return [self._dialogue(dialogue) for dialogue in request.dialogues]

    def _dialogue(self, dialogue: Dialogue) -> tuple[Sequence, list[int]]:
        pixels = self._pictures(dialogue.images)
        ids, places = self.dialogues.spelled(dialogue, [image.text for image in pixels])
        if ids.count(self.adapter.placeholder) != sum(image.tokens for image in pixels):
            raise InputError(
                "The dialogue has the place of a picture where there is none.",
                "Leave the model's token for pictures out of the verifier's words.",
            )
        (sequence,) = self._placed([ids], pixels)
        return sequence, places

    def _first_tokens(self, request: Choose) -> list[int]:
        """Each choice's first token as it is spelled after the prefix."""
        before = self.text.continuation(request.prefix) if request.prefix else []
        found: dict[int, str] = {}
        for choice in request.choices:
            both = self.text.continuation(request.prefix + choice)
            apart = both[: len(before)] == before and len(both) > len(before)
            first = both[len(before)] if apart else self.text.continuation(choice)[0]
            if first in found:
                raise InputError(
                    f"The choices {found[first]!r} and {choice!r} begin with the same token.",
                    "Choose words that this model's tokenizer tells apart at once.",
                )
            found[first] = choice
        return list(found)

    def _sequence(self, prompt: Prompt, more: list[int]) -> Sequence:
        (turn,) = self._turns_of([prompt.text], prompt.images)
        return _going_on(turn, more)

    def _turns_of(self, texts: list[str], images: tuple[Image, ...]) -> list[Sequence]:
        """User turns with these texts behind these images."""
        pictures = tuple(image.digest for image in images)
        with self._keeping:
            found = {text: turn for text in texts if (turn := self._turns.get((text, pictures)))}
            for text in found:
                self._turns.move_to_end((text, pictures))
        if missing := [text for text in dict.fromkeys(texts) if text not in found]:
            made = dict(zip(missing, self._tokenised(missing, images), strict=True))
            found |= made
            with self._keeping:
                for text, turn in made.items():
                    if self._turns.setdefault((text, pictures), turn) is turn:
                        self._turn_tokens += len(turn.ids)
                while self._turn_tokens > _KEPT_TOKENS:
                    self._turn_tokens -= len(self._turns.popitem(last=False)[1].ids)
        return [found[text] for text in texts]

    def _pictures(self, images: tuple[Image, ...]) -> tuple[Pixels, ...]:
        if len(images) > self.adapter.max_images:
            raise InputError(
                f"{len(images)} images were given; this model takes at most "
                f"{self.adapter.max_images}."
            )
        return tuple(self._prepared(image, len(images)) for image in images)

    def _tokenised(self, texts: list[str], images: tuple[Image, ...]) -> list[Sequence]:
        pixels = self._pictures(images)
        return self._placed(self.text.turns(texts, tuple(i.text for i in pixels)), pixels)

    def _placed(self, spelled: list[list[int]], pixels: tuple[Pixels, ...]) -> list[Sequence]:
        """Prompts with these pictures, and where each of them is."""
        placeholder, turns = self.adapter.placeholder, []
        before: list[int] | None = None
        for ids in spelled:
            where = [i for i, token in enumerate(ids) if token == placeholder]
            if where != before:  # texts stand behind the images: else all this is as it was
                before, at, places, names = where, 0, [], []
                for image in pixels:
                    mine = where[at : at + image.tokens]
                    at += image.tokens
                    places.append(torch.tensor(mine, dtype=torch.long))
                    names += [(i, -int(image.digest[:15], 16) - 1) for i in mine]
                rope, delta = self.adapter.rope(ids, list(pixels))
                # Behind the last image positions just go on counting.
                rope = None if rope is None else rope[:, : where[-1] + 1]
            keys = list(ids)
            for i, name in names:
                keys[i] = name
            turns.append(Sequence(tuple(ids), tuple(keys), pixels, tuple(places), rope, delta))
        return turns

    def _prepared(self, image: Image, together: int = 1) -> Pixels:
        key = (image.digest, self.adapter.apart and together > 1)
        with self._keeping:
            found = self._pixels.get(key)
        if found is None:
            found = self.adapter.prepare(image.pixels, image.digest, together)
        with self._keeping:
            self._pixels[key] = found
            self._pixels.move_to_end(key)
            while len(self._pixels) > _KEPT:
                self._pixels.popitem(last=False)
        return found

    def _room(self, tokens: int) -> int:
        """How many tokens the model can still hold behind `tokens`; at least one, or an error."""
        if tokens >= self._context:
            raise InputError(
                f"The prompt and the reply so far take {tokens} tokens; "
                f"the model holds {self._context}.",
                "Shorten the question, use fewer or smaller images, or ask for fewer tokens.",
            )
        return self._context - tokens

    def _held(self, scope: Scope | None, sequence: Sequence) -> int:
        if scope is None:
            return 0
        with self.worker.lock:
            key = tuple(image.digest for image in sequence.images)
            root = scope.roots.get(key if self.adapter.prompt_depends_on_images else ())
            return matched(root, sequence.keys) if root is not None else 0


def _going_on(turn: Sequence, more: list[int]) -> Sequence:
    return Sequence(
        (*turn.ids, *more), (*turn.keys, *more), turn.images, turn.places, turn.rope, turn.delta
    )
