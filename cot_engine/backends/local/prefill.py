"""Computing what is planned: pending nodes of all requests, batched, each exactly once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from cot_engine.backends.local.attention import Seats
from cot_engine.backends.local.jobs import Job, Sequence
from cot_engine.backends.local.kv import KEPT_BYTES, Fork, KVShape, RowCache, Slots, blocks
from cot_engine.backends.local.memory import Memory
from cot_engine.backends.local.prefix import Node, part_at_marks
from cot_engine.backends.models.family import Adapter, Features, Pass, Pixels


@dataclass(slots=True)
class Planned:
    """A pending node, and a request that needs it (which pays for it)."""

    node: Node
    job: Job
    sequence: Sequence

    @property
    def size(self) -> int:
        return len(self.node.keys)


def plan(jobs: list[Job], fits: Callable[[list[Planned]], bool]) -> list[Planned]:
    """Pending nodes whose parents are computed, of similar length, as many as `fits`.

    Similar, because a row costs as much as the longest beside it; and all behind a prefix, or none.
    At least one part is returned if any is pending.
    """
    parts: dict[int, Planned] = {}
    for job in jobs:
        for sequence in job.sequences:
            node = next((n for n in sequence.end.path() if n.pending), None)
            if node is not None and id(node) not in parts:
                parts[id(node)] = Planned(node, job, sequence)
    ordered = sorted(parts.values(), key=lambda part: part.size)
    chosen: list[Planned] = []
    for part in ordered:
        if chosen and bool(part.node.start) != bool(chosen[0].node.start):
            continue
        if chosen and (part.size > 1.4 * chosen[0].size + 8 or not fits([*chosen, part])):
            break
        chosen.append(part)
    return chosen


def columns_of(parts: list[Planned]) -> int:
    """Of all rows together, each as long as the longest, and of the prefixes that they stand on,
    each once: what takes memory."""
    prefixes = {id(p.node.parent): p.node.start for p in parts if p.node.start}
    own = len(parts) * blocks(max(part.size for part in parts))
    return own + len(prefixes) * blocks(max(prefixes.values(), default=0))


class Prefill:
    """Runs planned parts through the model and hands their keys and values to the tree."""

    def __init__(
        self, adapter: Adapter, shape: KVShape, lock: threading.Lock, memory: Memory
    ) -> None:
        self.adapter = adapter
        self.shape = shape
        self.memory = memory
        self.lock = lock
        self.clear()

    def clear(self) -> None:
        """Let go of the memory; zeros again, whatever was in it."""
        self.slots, self.shared = Slots(self.shape), Slots(self.shape)

    @property
    def tokens(self) -> int:
        """What the slots take."""
        return self.slots.tokens + self.shared.tokens

    def encode(self, part: Planned) -> None:
        """Encode the images that the part needs and its search does not hold."""
        if self.adapter.prompt_depends_on_images:
            self.pictures(part.job, part.sequence.images)
            return
        each = zip(part.sequence.images, part.sequence.places, strict=True)
        start, end = part.node.start, part.node.end
        needed = [i for i, places in each if bool(((places >= start) & (places < end)).any())]
        self.pictures(part.job, needed)

    def pictures(self, job: Job, images: Iterable[Pixels]) -> None:
        """Encode those that the job's search does not hold; each is charged once."""
        scope, tally = job.scope, job.tally
        for image in images:
            if image.digest in scope.features:
                continue
            began = time.perf_counter()
            scope.features[image.digest] = self.adapter.encode(image)
            if image.digest not in scope.encoded:
                scope.encoded.add(image.digest)
                tally.encodes += 1
                tally.flops += self.adapter.image_flops(image)
                tally.seconds += time.perf_counter() - began

    def run(self, parts: list[Planned]) -> None:
        """One forward pass over `parts`; each row is a node behind its own cached prefix."""
        for part in parts:
            self.encode(part)
        began = time.perf_counter()
        longest = max(part.size for part in parts)
        slots = self.slots
        slots.renew(len(parts), longest)
        cache = RowCache(slots, len(parts), longest, self.fork(parts))
        rows = self.rows(parts, longest)
        cache.place(rows.positions)
        hidden = self.adapter.forward(rows, cache)
        ends = torch.tensor([part.size - 1 for part in parts], device=hidden.device)
        last = hidden[torch.arange(len(parts), device=hidden.device), ends]
        kvs = [slots.take(row, 0, part.size) for row, part in enumerate(parts)]
        # What is masked still meets the softmax's 0, and 0 * nan is nan: not to be used again.
        if self.tokens * self.shape.bytes_per_token > KEPT_BYTES or not bool(last.isfinite().all()):
            self.clear()
        if self.shape.device.type == "cuda":
            torch.cuda.synchronize(self.shape.device)
        seconds = time.perf_counter() - began
        total = sum(part.size for part in parts)
        # What was let go of is computed again at nobody's cost; a final state that is asked for
        # later than its tokens were computed is not.
        charged = [part for part in parts if part.node.redo or not part.node.paid]
        self.memory.computed_again += total - sum(part.size for part in charged)
        with self.lock:
            for row, part in enumerate(parts):
                if part.node.kv is None:  # else it was computed again for its final state alone
                    part.node.kv = kvs[row]
                    self.memory.stored(part.size)
                part.node.redo, part.node.paid = False, True
                part.node.hidden = last[row].clone()
        for part in charged:
            tally = part.job.tally
            tally.prefilled += part.size
            tally.seconds += seconds * part.size / total
            tally.flops += self.adapter.flops.prefill(
                part.size, part.node.start, self.adapter.crossed(part.sequence.images)
            )
        with self.lock:  # last: a part is no longer the whole of its node then
            for row, part in enumerate(parts):
                if part.node.marks:
                    part_at_marks(part.node, hidden[row])

    def fork(self, parts: list[Planned]) -> Fork | None:
        """The prefixes of `parts`, each copied to a slot once."""
        if not parts[0].node.start:
            return None
        nodes = {id(part.node.parent): part.node.parent for part in parts}
        lengths = [node.end for node in nodes.values()]
        self.shared.renew(len(nodes), max(lengths))
        for slot, above in enumerate(nodes.values()):
            for node in above.path():
                self.shared.put(slot, node.start, node.kv)
        places = {name: slot for slot, name in enumerate(nodes)}
        group = np.array([places[id(part.node.parent)] for part in parts])
        device = self.shape.device
        seats = Seats.of(group, len(nodes), device)
        held = torch.tensor(lengths, device=device)
        return Fork(self.shared, seats, held, max(lengths), self.adapter.windows)

    def rows(self, parts: list[Planned], longest: int) -> Pass:
        """The batch: right-padded ids, positions that go on counting through the padding."""
        device = self.shape.device
        ids = torch.zeros(len(parts), longest, dtype=torch.long)
        rope = torch.zeros(3, len(parts), longest, dtype=torch.long)
        spots: list[tuple[int, torch.Tensor, Features, int]] = []
        pictures = []
        for row, part in enumerate(parts):
            start, end, sequence = part.node.start, part.node.end, part.sequence
            ids[row, : part.size] = torch.tensor(sequence.ids[start:end])
            rope[:, row, : part.size] = sequence.positions(start, end)
            for image, places in zip(sequence.images, sequence.places, strict=True):
                here = places[(places >= start) & (places < end)]
                if (
                    len(here)
                    and (features := part.job.scope.features[image.digest]).main is not None
                ):
                    ids[row, here - start] = 0  # some placeholders lie outside the vocabulary
                    first = int((places < start).sum())
                    spots.append((row, (here - start).to(device), features, first))
            if self.adapter.prompt_depends_on_images:
                pictures.append(part.job.scope.pictures(sequence))
        starts = torch.tensor([[part.node.start] for part in parts], device=device)
        positions = torch.arange(longest, device=device).expand(len(parts), -1)
        flat = all(part.sequence.rope is None for part in parts)
        rope = rope.to(device)
        rope = rope[0] if flat else rope
        return Pass(ids.to(device), positions, rope, spots, pictures, starts)
