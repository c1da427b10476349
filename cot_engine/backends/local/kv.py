"""Where keys and values live while rows are computed: preallocated slots behind a cache object.

What rows share lies in slots of its own, once for all of them. A row writes at its own columns, so
rows of different lengths share one forward pass. Columns beyond a row's length hold old numbers;
the mask hides them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from cot_engine.backends.local.attention import Forked, Seats

BLOCK = 32  # columns are handed to attention in multiples of this, so that views can be kept


KEPT_BYTES = 1 << 30  # fresh memory costs more than copying: up to this much is used again


@dataclass(frozen=True, slots=True)
class KVShape:
    """Self-attention layers only, in order: `layers[i]` is the model's index of the i-th."""

    layers: tuple[int, ...]
    heads: int
    dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def width(self) -> int:
        return self.heads * self.dim

    @property
    def bytes_per_token(self) -> int:
        return 2 * len(self.layers) * self.width * self.dtype.itemsize

    def tokens(self, size: int) -> int:
        """How many tokens take so many bytes."""
        return -(-size // max(1, self.bytes_per_token))


def blocks(tokens: int) -> int:
    """Columns that so many tokens take."""
    return -(-tokens // BLOCK) * BLOCK


class Slots:
    """Keys and values of several rows: one tensor [layers, 2, rows, heads, columns, dim].

    Heads before columns: attention over many rows is a third faster when a head's columns lie
    next to each other.
    """

    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self.data = self._new(0, 0)
        # Of a small one on a CPU: all the memory that `data` is the first of, and as much again.
        self._whole: torch.Tensor | None = None
        self._spare: torch.Tensor | None = None

    def _new(self, rows: int, columns: int) -> torch.Tensor:
        # Zeros, not empty: a masked column still meets the softmax's 0, and 0 * nan is nan.
        size = (len(self.shape.layers), 2, rows, self.shape.heads, columns, self.shape.dim)
        dtype = self.shape.dtype
        if self.shape.device.type == "cpu" and rows and columns:
            # numpy's zeros take no time and no memory before they are used; torch's do.
            memory = np.zeros(math.prod(size) * dtype.itemsize, np.uint8)
            return torch.from_numpy(memory).view(dtype).view(size)
        return torch.zeros(size, dtype=dtype, device=self.shape.device)

    @property
    def rows(self) -> int:
        return self.data.shape[2]

    @property
    def columns(self) -> int:
        return self.data.shape[4]

    @property
    def tokens(self) -> int:
        """What it takes, however much of it is used."""
        return self.rows * self.columns

    def fit(self, rows: int, columns: int, used: int) -> None:
        """Exactly so many columns, and so many rows, keeping what the first `used` rows hold as far
        as there is a place for it. Products over rows that lie close together take half the time.

        What it was in is used again the next time: fresh memory costs more than copying.
        """
        old, reused = self.data, self.shape.device.type == "cpu"
        size = (*old.shape[:2], rows, old.shape[3], blocks(columns), old.shape[5])
        count = math.prod(size)
        if reused and count * old.itemsize <= KEPT_BYTES:
            whole = self._spare
            if whole is None or whole.numel() < count:
                # Twice as large: what is not used of it takes no memory, only addresses.
                whole = self._new(2 * rows, size[4]).view(-1)
            self._spare, self._whole = self._whole, whole
            self.data = whole[:count].view(size)
        else:
            self.data, self._spare, self._whole = self._new(rows, size[4]), None, None
        kept = min(size[4], old.shape[4])
        self.data[:, :, :used, :, :kept] = old[:, :, :used, :, :kept]

    def renew(self, rows: int, columns: int) -> None:
        """At least that size, whatever there was."""
        if rows > self.rows or columns > self.columns:
            rows, columns = max(rows, self.rows), max(columns, self.columns)
            self.data = self._new(0, 0)  # the old one goes before there is a new one
            self.data = self._new(rows, blocks(columns))

    def shrink(self, rows: int) -> None:
        """Give back the memory of all but the first `rows` rows; asks the device for none."""
        if rows < self.rows:
            size = (*self.data.shape[:2], rows, *self.data.shape[3:])
            kept = torch.empty(size, dtype=self.data.dtype)
            for layer, data in zip(kept, self.data, strict=True):
                layer.copy_(data[:, :rows])
            self.data, self._whole, self._spare = self._new(0, 0), None, None
            self.data = kept.to(self.shape.device)

    def put(self, row: int, start: int, kv: torch.Tensor | None) -> None:
        """Write `kv` [layers, 2, heads, tokens, dim] to a row, at `start`."""
        assert kv is not None  # what comes before a row was computed before
        self.data[:, :, row, :, start : start + kv.shape[3]] = kv

    def take(self, row: int, start: int, end: int) -> torch.Tensor:
        """A copy of a row's columns: [layers, 2, heads, end - start, dim]."""
        return self.data[:, :, row, :, start:end].clone()

    def saved(self, row: int, start: int, end: int) -> torch.Tensor:
        """The same in host memory, layer by layer: a device that is full need not hold it twice."""
        return torch.stack([layer[:, row, :, start:end].cpu() for layer in self.data])

    def move(self, source: int, target: int, length: int) -> None:
        self.data[:, :, target, :, :length] = self.data[:, :, source, :, :length]


class RowCache:
    """What a transformers language model sees as its cache: `rows` rows of `slots`, all of them at
    `columns` columns, and behind which prefixes they stand, if behind any (`fork`).

    `place` says where in the slots each new token goes. `layers` holds what Mllama's
    cross-attention layers look up; see `mllama`.
    """

    is_compileable = False

    def __init__(self, slots: Slots, rows: int, columns: int, fork: Fork | None = None) -> None:
        self.slots = slots
        self.columns = blocks(columns)
        self.fork = fork
        self.layers: Sequence[object] = ()
        self.index: torch.Tensor
        shape, data = slots.shape, slots.data
        # The flat index of column 0 of every row and head: [rows, heads, 1].
        heads = torch.arange(rows * shape.heads, device=shape.device)
        self._first = heads.view(rows, shape.heads, 1) * slots.columns
        self._flat = data.view(len(shape.layers), 2, -1, shape.dim)
        self._seen = data[:, :, :rows, :, : self.columns]
        self._of = {layer: i for i, layer in enumerate(shape.layers)}

    def place(self, positions: torch.Tensor) -> None:
        """The next forward pass's tokens go to these columns [rows, tokens]."""
        self.index = (self._first + positions[:, None]).flatten()
        if self.fork is not None:
            self.fork.look(positions)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Any, Any]:
        """Store [rows, heads, tokens, dim]; return all columns [rows, heads, columns, dim], or what
        knows how to attend to these and to the prefix."""
        i = self._of[layer]
        flat, seen = self._flat[i], self._seen[i]
        flat[0].index_copy_(0, self.index, keys.reshape(-1, keys.shape[-1]))
        flat[1].index_copy_(0, self.index, values.reshape(-1, values.shape[-1]))
        if self.fork is None:
            return seen[0], seen[1]
        return self.fork.keys(i, seen), None

    def get_seq_length(self, layer: int = 0) -> int:
        """Asked for only to guess positions and masks, which are always given explicitly."""
        return 0


class Fork:
    """The prefixes that rows stand on, as one forward pass sees them: group g's is in slot g of
    `slots`, `lengths[g]` [groups] tokens of `columns`. `windows[i]` is the sliding window of the
    i-th layer, if it has one."""

    def __init__(
        self,
        slots: Slots,
        seats: Seats,
        lengths: torch.Tensor,
        columns: int,
        windows: Sequence[int | None],
    ) -> None:
        self.seats, self.lengths, self.windows = seats, lengths, windows
        columns = blocks(columns)
        self._seen = slots.data[:, :, : seats.groups, :, :columns]
        self._column, seen, hidden = constants(columns, slots.shape.dtype, lengths.device)
        self._values = seen, hidden
        self._masks: dict[int | None, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def look(self, positions: torch.Tensor) -> None:
        """What tokens at these own positions [rows, tokens] see of their prefixes."""
        lengths = self.lengths[:, None, None, None]
        held = self._column < lengths
        self._masks[None] = torch.where(held, *self._values), None
        for window in {w for w in self.windows if w is not None}:
            at = positions[self.seats.row].view(self.seats.groups, 1, -1, 1)
            see = held & (self._column > at + lengths - window)
            self._masks[window] = torch.where(see, *self._values), ~see.any(-1)

    def keys(self, layer: int, own: torch.Tensor) -> Forked:
        """Of the i-th layer, with the rows' `own` [2, rows, heads, columns, dim]."""
        shared, masks = self._seen[layer], self._masks[self.windows[layer]]
        return Forked(own[0], own[1], shared[0], shared[1], *masks, self.seats)


def visible(
    columns: int, positions: torch.Tensor, dtype: torch.dtype, window: int | None = None
) -> torch.Tensor:
    """The additive mask [rows, 1, tokens, columns] of queries at cache `positions` [rows, tokens].

    A query sees the columns up to its own; with a sliding `window`, the last `window` of those.
    0 and -inf rather than booleans: eager attention adds the mask.
    """
    column, seen, hidden = constants(columns, dtype, positions.device)
    at = positions[:, None, :, None]
    see = column <= at
    if window is not None:
        see &= column > at - window
    return torch.where(see, seen, hidden)


@lru_cache(maxsize=64)
def constants(columns: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    """0, 1, ..., columns - 1; and what the mask is made of. Kept: they are needed every step."""
    with torch.inference_mode(False):
        mask = torch.tensor([0.0, float("-inf")], dtype=dtype, device=device)
        return torch.arange(columns, device=device), mask[0], mask[1]
