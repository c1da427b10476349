"""The decode batch: rows of all requests, one token each a step, joining and leaving at will."""

from __future__ import annotations

import time

import numpy as np
import torch

from cot_engine.backends.local.jobs import DecodeRow, Writing
from cot_engine.backends.local.kv import BLOCK, KVShape, RowCache, Slots
from cot_engine.backends.local.sampling import RowSampling, draw, keys, seed64
from cot_engine.backends.models.family import Adapter, Pass

SMALL_BYTES = 1 << 30
AHEAD = 32  # keys of random numbers are made for so many steps at once


def streams(rows: list[DecodeRow]) -> tuple[RowSampling, np.ndarray]:
    """The rows' sampling settings and seeds."""
    seeds = [seed64(row.job.request.seeds[row.index]) for row in rows]
    settings = RowSampling.of([row.job.request.sampling for row in rows])
    return settings, np.array(seeds, np.uint64)


class Batch:
    """Row i of `rows` has slot i. A row that leaves is replaced by the last one."""

    def __init__(self, adapter: Adapter, shape: KVShape) -> None:
        self.adapter = adapter
        self.shape = shape
        # An image's placeholder in a reply would stand for an image that is not there.
        vocabulary = adapter.head.weight.shape[0]
        self.banned = adapter.placeholder if adapter.placeholder < vocabulary else None
        self.slots = Slots(shape)
        self.room = 1 << 62  # tokens of slots there may be; see `memory`
        self.rows: list[DecodeRow] = []
        self.cache: RowCache | None = None
        self._changed()

    def _changed(self) -> None:
        self._state: tuple | None = None
        self._keys: list[np.ndarray] = []
        self.cache = None

    def join(self, rows: list[DecodeRow]) -> None:
        """Give each row a slot and copy into it what it shares and what it has."""
        if not rows:
            return
        self._reserve(len(self.rows) + len(rows), max(row.length for row in rows) + 1)
        at = 0
        while at < len(rows):  # the rows of one request stand together: copy their prefix at once
            first = rows[at]
            same = 1
            while at + same < len(rows) and rows[at + same].sequence is first.sequence:
                same += 1
            slot = len(self.rows)
            for node in first.sequence.end.path():
                self.slots.put(slot, same, node.start, node.kv)
            for i, row in enumerate(rows[at : at + same]):
                if row.tail is not None:
                    self.slots.put(slot + i, 1, row.start, row.tail)
                    row.tail = None
            self.rows += rows[at : at + same]
            at += same
        self._changed()

    def _reserve(self, rows: int, columns: int) -> None:
        """Growing copies everything, so while that is cheap more is taken than asked for."""
        slots, least = self.slots, (max(rows, self.slots.rows), max(columns, self.slots.columns))
        if rows <= slots.rows and columns <= slots.columns:
            return
        if rows * columns * self.shape.bytes_per_token < SMALL_BYTES:
            rows = rows if rows <= slots.rows else 2 * rows
            columns = columns if columns <= slots.columns else columns + 128
        elif columns > slots.columns:
            columns += columns // 8
        if max(rows, slots.rows) * (max(columns, slots.columns) + BLOCK) + slots.tokens > self.room:
            rows, columns = least
        slots.reserve(rows, columns, used=len(self.rows))
        self._changed()

    def copy(self, row: DecodeRow, start: int, end: int) -> torch.Tensor:
        """The keys and values of the row's tokens at start..end, in memory of their own."""
        if row.tail is not None:
            return row.tail[..., start - row.start : end - row.start, :].clone()
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
            self.slots.move(last, at, self.rows[last].length)
            self.rows[at] = self.rows[last]
        self.rows.pop()
        self._changed()

    def park(self, keep: int) -> list[DecodeRow]:
        """Take all but the first `keep` rows out, losing nothing; they can join again."""
        parked = self.rows[keep:]
        for row in parked:
            if row.tail is None and row.length > row.start:
                row.tail = self.copy(row, row.start, row.length).cpu()
        del self.rows[keep:]
        self.slots.shrink(keep)
        self._changed()
        return parked

    def trim(self) -> bool:
        """Give back the slots of rows that have left; whether there were any."""
        if self.slots.rows <= len(self.rows):
            return False
        self.slots.shrink(len(self.rows))
        self._changed()
        return True

    def clear(self) -> None:
        self.rows = []
        self.slots = Slots(self.shape)
        self._changed()

    def step(self) -> tuple[list[int], list[float]]:
        """Feed every row its last token; return each row's next one and its log-probability."""
        began = time.perf_counter()
        count = len(self.rows)
        self._reserve(count, max(row.length for row in self.rows) + 1)
        if self._state is None:
            self._state = self._prepare()
        lengths, offsets, settings, seeds, extra = self._state
        columns = max(row.length for row in self.rows) + 1
        if self.cache is None or self.cache.columns < columns:
            layers = self.cache.layers if self.cache else ()
            self.cache = RowCache(self.slots, count, columns)
            self.cache.layers = layers
        ids = torch.tensor([[row.ids[-1]] for row in self.rows], device=self.shape.device)
        positions = lengths[:, None]
        rows = Pass(ids, positions, positions + offsets, [], [])
        if extra is None:
            if self.adapter.prompt_depends_on_images:
                rows.pictures = [row.job.scope.pictures(row.sequence) for row in self.rows]
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
        lengths = torch.tensor([row.length for row in self.rows], device=device)
        offsets = torch.tensor([[row.sequence.delta] for row in self.rows], device=device)
        settings, seeds = streams(self.rows)
        return lengths, offsets, settings, seeds, None
