"""Where keys and values live while rows are computed: preallocated slots behind a cache object.

A row may start at any length and writes at its own columns, so rows of different lengths share
one forward pass. Columns beyond a row's length hold old numbers; the mask hides them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

BLOCK = 32  # columns are handed to attention in multiples of this, so that views can be kept


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


class Slots:
    """Keys and values of several rows: one tensor [layers, 2, rows, heads, columns, dim].

    Heads before columns: attention over many rows is a third faster when a head's columns lie
    next to each other.
    """

    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self.data = self._new(0, 0)

    def _new(self, rows: int, columns: int) -> torch.Tensor:
        # Zeros, not empty: a masked column still meets the softmax's 0, and 0 * nan is nan.
        size = (len(self.shape.layers), 2, rows, self.shape.heads, columns, self.shape.dim)
        dtype = self.shape.dtype
        if self.shape.device.type == "cpu" and rows and columns:
            # numpy's zeros take no time and no memory before they are used; torch's do.
            memory = np.zeros((*size[:-1], size[-1] * dtype.itemsize), np.uint8)
            return torch.from_numpy(memory).view(dtype)
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

    def reserve(self, rows: int, columns: int, used: int = 0) -> None:
        """Grow to at least that size, keeping what the first `used` rows hold."""
        if rows <= self.rows and columns <= self.columns:
            return
        columns = -(-max(columns, self.columns) // BLOCK) * BLOCK
        old, self.data = self.data, self._new(max(rows, self.rows), columns)
        if used:
            self.data[:, :, :used, :, : old.shape[4]] = old[:, :, :used]

    def shrink(self, rows: int) -> None:
        """Give back the memory of all but the first `rows` rows; asks the device for none."""
        if rows < self.rows:
            size = (*self.data.shape[:2], rows, *self.data.shape[3:])
            kept = torch.empty(size, dtype=self.data.dtype)
            for layer, data in zip(kept, self.data, strict=True):
                layer.copy_(data[:, :rows])
            self.data = self._new(0, 0)
            self.data = kept.to(self.shape.device)

    def put(self, row: int, count: int, start: int, kv: torch.Tensor | None) -> None:
        """Write `kv` [layers, 2, heads, tokens, dim] to `count` rows from `row` on, at `start`."""
        assert kv is not None  # what comes before a row was computed before
        end = start + kv.shape[3]
        self.data[:, :, row : row + count, :, start:end] = kv.unsqueeze(2)

    def take(self, row: int, start: int, end: int) -> torch.Tensor:
        """A copy of a row's columns: [layers, 2, heads, end - start, dim]."""
        return self.data[:, :, row, :, start:end].clone()

    def move(self, source: int, target: int, length: int) -> None:
        self.data[:, :, target, :, :length] = self.data[:, :, source, :, :length]


class RowCache:
    """What a transformers language model sees as its cache: `rows` rows of `slots`.

    `place` says where in the cache each new token goes. `layers` holds what Mllama's
    cross-attention layers look up; see `mllama`.
    """

    is_compileable = False

    def __init__(self, slots: Slots, rows: int, columns: int) -> None:
        self.slots = slots
        self.columns = -(-columns // BLOCK) * BLOCK
        self.layers: Sequence[object] = ()
        self.index: torch.Tensor
        shape, data = slots.shape, slots.data
        # The flat index of column 0 of every row and head: [rows, heads, 1].
        heads = torch.arange(rows * shape.heads, device=shape.device)
        self._first = heads.view(rows, shape.heads, 1) * slots.columns
        flat = data.view(len(shape.layers), 2, -1, shape.dim)
        seen = data[:, :, :rows, :, : self.columns]
        self._of = {
            layer: (flat[i, 0], flat[i, 1], seen[i, 0], seen[i, 1])
            for i, layer in enumerate(shape.layers)
        }

    def place(self, positions: torch.Tensor) -> None:
        """The next forward pass's tokens go to these columns [rows, tokens]."""
        self.index = (self._first + positions[:, None]).flatten()

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store [rows, heads, tokens, dim]; return all columns [rows, heads, columns, dim]."""
        flat_keys, flat_values, seen_keys, seen_values = self._of[layer]
        flat_keys.index_copy_(0, self.index, keys.reshape(-1, keys.shape[-1]))
        flat_values.index_copy_(0, self.index, values.reshape(-1, values.shape[-1]))
        return seen_keys, seen_values

    def get_seq_length(self, layer: int = 0) -> int:
        """Asked for only to guess positions and masks, which are always given explicitly."""
        return 0


def visible(
    columns: int, positions: torch.Tensor, dtype: torch.dtype, window: int | None = None
) -> torch.Tensor:
    """The additive mask [rows, 1, tokens, columns] of queries at cache `positions` [rows, tokens].

    A query sees the columns up to its own; with a sliding `window`, the last `window` of those.
    0 and -inf rather than booleans: eager attention adds the mask.
    """
    column, seen, hidden = _constants(columns, dtype, positions.device)
    at = positions[:, None, :, None]
    see = column <= at
    if window is not None:
        see &= column > at - window
    return torch.where(see, seen, hidden)


@lru_cache(maxsize=64)
def _constants(columns: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    """0, 1, ..., columns - 1; and what the mask is made of. Kept: they are needed every step."""
    with torch.inference_mode(False):
        mask = torch.tensor([0.0, float("-inf")], dtype=dtype, device=device)
        return torch.arange(columns, device=device), mask[0], mask[1]
