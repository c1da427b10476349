"""Where keys and values live while rows are computed: preallocated slots behind a cache object.

A row may start at any length and writes at its own position, so rows of different lengths share
one forward pass. Columns beyond a row's length hold old numbers; the mask hides them.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """Keys and values of several rows: one tensor [layers, 2, rows, columns, heads * dim]."""

    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self.data = self._new(0, 0)

    def _new(self, rows: int, columns: int) -> torch.Tensor:
        # Zeros, not empty: a masked column still meets the softmax's 0, and 0 * nan is nan.
        size = (len(self.shape.layers), 2, rows, columns, self.shape.width)
        return torch.zeros(size, dtype=self.shape.dtype, device=self.shape.device)

    @property
    def rows(self) -> int:
        return self.data.shape[2]

    @property
    def columns(self) -> int:
        return self.data.shape[3]

    def reserve(self, rows: int, columns: int, used: int = 0) -> None:
        """Grow to at least that size, keeping what the first `used` rows hold."""
        if rows <= self.rows and columns <= self.columns:
            return
        columns = -(-max(columns, self.columns) // BLOCK) * BLOCK
        old, self.data = self.data, self._new(max(rows, self.rows), columns)
        if used:
            self.data[:, :, :used, : old.shape[3]] = old[:, :, :used]

    def shrink(self, rows: int) -> None:
        """Give back the memory of all but the first `rows` rows."""
        if rows < self.rows:
            self.data = self.data[:, :, :rows].clone()

    def put(self, row: int, count: int, start: int, kv: torch.Tensor) -> None:
        """Write `kv` [layers, 2, tokens, width] into `count` rows from `row` on, at `start`."""
        end = start + kv.shape[2]
        self.data[:, :, row : row + count, start:end] = kv.unsqueeze(2)

    def take(self, row: int, start: int, end: int) -> torch.Tensor:
        """A copy of a row's columns: [layers, 2, end - start, width]."""
        return self.data[:, :, row, start:end].clone()

    def move(self, source: int, target: int, length: int) -> None:
        self.data[:, :, target, :length] = self.data[:, :, source, :length]


class RowCache:
    """What a transformers language model sees as its cache: `rows` rows of `slots`.

    `index` [rows * tokens] says into which flat column (row * columns + position) each new token
    goes. `layers` holds what Mllama's cross-attention layers look up; see `adapters`.
    """

    is_compileable = False

    def __init__(self, slots: Slots, rows: int, columns: int) -> None:
        self.slots = slots
        self.rows = rows
        self.columns = -(-columns // BLOCK) * BLOCK if columns <= slots.columns else columns
        self.columns = min(self.columns, slots.columns)
        self.index: torch.Tensor | None = None
        self.layers: dict[int, object] | _NoLayers = _NoLayers()
        shape, data = slots.shape, slots.data
        flat = data.view(len(shape.layers), 2, -1, shape.width)
        seen = data[:, :, :rows, : self.columns]
        seen = seen.unflatten(-1, (shape.heads, shape.dim)).transpose(3, 4)
        self._of = {
            layer: (flat[i, 0], flat[i, 1], seen[i, 0], seen[i, 1])
            for i, layer in enumerate(shape.layers)
        }

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store [rows, heads, tokens, dim]; return all columns [rows, heads, columns, dim]."""
        flat_keys, flat_values, seen_keys, seen_values = self._of[layer]
        width = flat_keys.shape[1]
        flat_keys.index_copy_(0, self.index, keys.transpose(1, 2).reshape(-1, width))
        flat_values.index_copy_(0, self.index, values.transpose(1, 2).reshape(-1, width))
        return seen_keys, seen_values

    def get_seq_length(self, layer: int = 0) -> int:
        """Asked for only to guess positions and masks, which are always given explicitly."""
        return 0


class _NoLayers(tuple):
    """No layer holds anything besides the slots."""


def visible(
    columns: int, positions: torch.Tensor, dtype: torch.dtype, window: int | None = None
) -> torch.Tensor:
    """The additive mask [rows, 1, tokens, columns] of queries at cache `positions` [rows, tokens].

    A query sees the columns up to its own; with a sliding `window`, the last `window` of those.
    0 and -inf rather than booleans: eager attention adds the mask.
    """
    column = torch.arange(columns, device=positions.device)
    seen = column <= positions.unsqueeze(-1)
    if window is not None:
        seen &= column > positions.unsqueeze(-1) - window
    mask = torch.zeros(seen.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(~seen, float("-inf")).unsqueeze(1)
