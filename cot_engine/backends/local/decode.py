"""The decode batch: rows of all requests, one token each a step, joining and leaving at will."""

from __future__ import annotations

import time
from collections.abc import Hashable

import numpy as np
import torch

from cot_engine.backends.local.jobs import DecodeRow, Writing
from cot_engine.backends.local.kv import BLOCK, Fork, KVShape, RowCache, Slots, blocks
from cot_engine.backends.local.sampling import RowSampling, draw, keys, seed64
from cot_engine.backends.local.shared import Shared
from cot_engine.backends.models.family import Adapter, Features, Looking, Pass

SMALL_BYTES = 1 << 30
AHEAD = 32  # keys of random numbers are made for so many steps at once


def streams(rows: list[DecodeRow]) -> tuple[RowSampling, np.ndarray]:
    """The rows' sampling settings and seeds."""
    seeds = [seed64(row.job.request.seeds[row.index]) for row in rows]
    settings = RowSampling.of([row.job.request.sampling for row in rows])
    return settings, np.array(seeds, np.uint64)


class Batch:
    """Row i of `rows` has slot i of `slots` for what is its own; a row that leaves is replaced by
    the last one. What rows stand on is in `prefixes`, the pictures that they look at through
    cross-attention layers in `pictures` (None: there are no such layers)."""

    def __init__(self, adapter: Adapter, shape: KVShape) -> None:
        self.adapter = adapter
        self.shape = shape
        # An image's placeholder in a reply would stand for an image that is not there.
        vocabulary = adapter.head.weight.shape[0]
        self.banned = adapter.placeholder if adapter.placeholder < vocabulary else None
        self.room = 1 << 62  # tokens of slots there may be; see `memory`
        self.rows: list[DecodeRow] = []
        self.slots = Slots(shape)
        self.prefixes = Shared(shape)
        crossing = adapter.crossing_shape()
        self.pictures = None if crossing is None else Shared(crossing)
        self._changed()

    def _changed(self) -> None:
        self._state: tuple | None = None
        self._keys: list[np.ndarray] = []
        self.cache: RowCache | None = None

    @property
    def tokens(self) -> int:
        """What the slots take."""
        beside = 0 if self.pictures is None else self.pictures.slots.data.nbytes
        return self.slots.tokens + self.prefixes.slots.tokens + self.shape.tokens(beside)

    def takes(self, rows: list[DecodeRow], beside: bool = False) -> int:
        """What slots for these take, with some columns to grow into; or, `beside` what there is,
        once the slots there are have grown for them."""
        total = 0
        for slots, count, columns in self._sizes(rows, BLOCK):
            if beside and (count > slots.rows or columns > slots.columns):
                count, columns = max(count, slots.rows), max(columns, slots.columns)
            elif beside:
                count, columns = slots.rows, slots.columns
            total += slots.shape.bytes_per_token * count * blocks(columns)
        return self.shape.tokens(total)

    def _sizes(self, rows: list[DecodeRow], more: int = 0) -> list[tuple[Slots, int, int]]:
        """Rows and columns that each of the slots needs for these rows."""
        prefixes = dict(map(_prefix, rows))
        sizes = [
            (self.slots, len(rows), max(row.own for row in rows) + 1 + more),
            (self.prefixes.slots, len(prefixes), max(prefixes.values())),
        ]
        if self.pictures is not None:
            pictures = dict(map(self._picture, rows))
            sizes.append((self.pictures.slots, len(pictures), max(pictures.values())))
        return sizes

    def join(self, rows: list[DecodeRow]) -> None:
        """Give each row a slot, and what it stands on one, if it is the first that does."""
        if not rows:
            return
        self._reserve(self._sizes([*self.rows, *rows]))
        prefixes, pictures = self.prefixes, self.pictures
        for row in rows:
            if row.tail is not None:
                self.slots.put(len(self.rows), 0, row.tail)
                row.tail = None
            self.rows.append(row)
            row.group = prefixes.join(*_prefix(row))
            if row.group.rows == 1:
                for node in row.sequence.end.path():
                    prefixes.slots.put(row.group.slot, node.start, node.kv)
            if pictures is not None:
                row.pictures = pictures.join(*self._picture(row))
                if row.pictures.rows == 1 and row.pictures.length:
                    cross, row.pictures.seen = self.adapter.beside(*_looked(row))
                    pictures.slots.put(row.pictures.slot, 0, cross)
        self._changed()

    def _picture(self, row: DecodeRow) -> tuple[Hashable, int]:
        """Which pictures a row looks at, from where, and how many columns they take."""
        digests = tuple(image.digest for image in row.sequence.images)
        key = id(row.job.scope), digests, _looked(row)[1]
        return key, self.adapter.crossed(row.sequence.images)

    def _reserve(self, sizes: list[tuple[Slots, int, int]]) -> None:
        """Growing copies everything, so while that is cheap more is taken than asked for; on a CPU
        more rows, but exactly the columns that are read."""
        exact = self.shape.device.type == "cpu"
        least, generous = [], []
        for slots, rows, columns in sizes:
            had, columns = (slots.rows, slots.columns), blocks(columns)
            if rows <= had[0] and (columns == had[1] if exact else columns <= had[1]):
                continue
            rows, columns = max(rows, had[0]), columns if exact else max(columns, had[1])
            least.append((slots, rows, columns))
            if rows * columns * slots.shape.bytes_per_token < SMALL_BYTES:
                rows += rows if rows > had[0] else 0
                columns += 0 if exact or columns == had[1] else 128
            elif columns > had[1] and not exact:
                columns += columns // 8
            generous.append((slots, rows, columns))
        if not least:
            return
        taken = sum(s.shape.bytes_per_token * rows * (cols + BLOCK) for s, rows, cols in generous)
        fits = self.shape.tokens(taken) + self.tokens <= self.room
        for slots, rows, columns in generous if fits else least:
            slots.fit(rows, columns)
        self._changed()

    def copy(self, row: DecodeRow, start: int, end: int) -> torch.Tensor:
        """The keys and values of the row's tokens at start..end, in memory of their own."""
        start, end = start - row.start, end - row.start
        if row.tail is not None:
            return row.tail[..., start:end, :].clone()
        return self.slots.take(self.rows.index(row), start, end)

    def wipe(self, row: DecodeRow) -> None:
        """Zero the row's slot: what is masked still meets the softmax's 0, and 0 * nan is nan, so
        the row that has this slot next would not be a number either."""
        if row in self.rows:
            self.slots.data[:, :, self.rows.index(row)] = 0

    def leave(self, row: DecodeRow) -> None:
        if row not in self.rows:
            return
        at, last = self.rows.index(row), len(self.rows) - 1
        if at != last:
            self.slots.move(last, at, self.rows[last].own)
            self.rows[at] = self.rows[last]
        self.rows.pop()
        self._left(row)

    def _left(self, row: DecodeRow) -> None:
        self.prefixes.leave(row.group)
        if self.pictures is not None:
            self.pictures.leave(row.pictures)
        row.group = row.pictures = None
        self._changed()

    def park(self, keep: int) -> list[DecodeRow]:
        """Take all but the first `keep` rows out, losing nothing; they can join again."""
        parked = self.rows[keep:]
        for row in parked:
            if row.tail is None and row.own:
                row.tail = self.copy(row, row.start, row.length).cpu()
        del self.rows[keep:]
        for row in parked:
            self._left(row)
        self.trim()
        return parked

    def trim(self) -> bool:
        """Give back the slots of rows that have left; whether there were any."""
        held = [(self.slots, len(self.rows)), (self.prefixes.slots, len(self.prefixes.groups))]
        if self.pictures is not None:
            held.append((self.pictures.slots, len(self.pictures.groups)))
        spare = [(slots, used) for slots, used in held if slots.rows > used]
        for slots, used in spare:
            slots.shrink(used)
            self._changed()
        return bool(spare)

    def clear(self) -> None:
        self.rows = []
        self.slots = Slots(self.shape)
        self.prefixes.clear()
        if self.pictures is not None:
            self.pictures.clear()
        self._changed()

    def step(self) -> tuple[list[int], list[float]]:
        """Feed every row its last token; return each row's next one and its log-probability."""
        began = time.perf_counter()
        count = len(self.rows)
        columns = max(row.own for row in self.rows) + 1
        self._reserve([(self.slots, count, columns)])
        if self._state is None:
            self._state = self._prepare()
        lengths, starts, offsets, fork, looking, settings, seeds, extra = self._state
        if self.cache is None or self.cache.columns < columns:
            layers = self.cache.layers if self.cache else ()
            self.cache = RowCache(self.slots, count, columns, fork)
            self.cache.layers = layers
        ids = torch.tensor([[row.ids[-1]] for row in self.rows], device=self.shape.device)
        positions = lengths[:, None]
        rows = Pass(ids, positions, positions + offsets, [], [], starts, looking)
        if extra is None:
            extra = self.adapter.extra(rows, self.cache)
            self._state = (*self._state[:-1], extra)
        self.cache.place(positions)
        hidden = self.adapter.forward(rows, self.cache, extra=extra)
        if not self._keys:
            self._keys = self._ahead(seeds)
        logits = self.adapter.logits(hidden[:, 0])
        tokens, logprobs = draw(logits, settings, self._keys.pop(), self.banned)
        lengths += 1
        seconds = (time.perf_counter() - began) / count
        for row in self.rows:
            tally = row.job.tally
            tally.seconds += seconds
            crossed = self.adapter.crossed(row.sequence.images)
            tally.flops += self.adapter.flops.step(row.length, crossed)
            row.length += 1
        return tokens, logprobs

    def first(self, jobs: list[Writing], rows: list[DecodeRow]) -> tuple[list[int], list[float]]:
        """The first tokens of new `rows`, from the final states of their jobs' prompts: logits are
        computed once for each prompt, as they are charged, however many rows begin there."""
        hidden = torch.stack([job.sequences[0].end.state for job in jobs])
        at = {id(job): i for i, job in enumerate(jobs)}
        settings, seeds = streams(rows)
        first = keys(seeds, np.zeros_like(seeds))
        of = np.array([at[id(row.job)] for row in rows])
        return draw(self.adapter.logits(hidden), settings, first, self.banned, of)

    def _ahead(self, seeds: np.ndarray) -> list[np.ndarray]:
        """The rows' keys for the next steps, the first step's last: token i of a row is drawn with
        key i of its own stream."""
        written = np.array([len(row.ids) for row in self.rows], np.uint64)
        steps = np.arange(AHEAD, dtype=np.uint64)[::-1, None]
        return list(keys(seeds, written + steps))

    def _prepare(self) -> tuple:
        """What changes only when rows come or go, as tensors [rows]."""
        device = self.shape.device
        lengths = torch.tensor([row.own for row in self.rows], device=device)
        starts = torch.tensor([[row.start] for row in self.rows], device=device)
        offsets = starts + torch.tensor([[row.sequence.delta] for row in self.rows], device=device)
        settings, seeds = streams(self.rows)
        prefixes = self.prefixes
        held = torch.tensor([group.length for group in prefixes.groups], device=device)
        seats = prefixes.seats([row.group for row in self.rows])
        fork = Fork(prefixes.slots, seats, held, prefixes.longest, self.adapter.windows)
        return lengths, starts, offsets, fork, self._looking(), settings, seeds, None

    def _looking(self) -> Looking | None:
        """What the rows see of their pictures; None if none has any."""
        pictures = self.pictures
        if pictures is None or not pictures.longest:
            return None
        count, columns = len(pictures.groups), blocks(pictures.longest)
        seen = torch.zeros(count, 1, 1, columns, dtype=torch.bool, device=self.shape.device)
        for group in pictures.groups:
            if group.seen is not None:
                seen[group.slot, ..., : group.length] = group.seen
        some = torch.tensor([bool(row.pictures.length) for row in self.rows])
        return Looking(
            pictures.slots.data[:, :, :count, :, :columns],
            torch.zeros_like(seen, dtype=self.shape.dtype).masked_fill_(~seen, float("-inf")),
            some.to(self.shape.device, self.shape.dtype),
            pictures.seats([row.pictures for row in self.rows]),
        )


def _prefix(row: DecodeRow) -> tuple[Hashable, int]:
    """What a row stands on, and how long that is."""
    return row.sequence.end, row.start


def _looked(row: DecodeRow) -> tuple[tuple[Features, ...], tuple[int, ...]]:
    return row.job.scope.pictures(row.sequence)
