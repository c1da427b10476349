"""Attention of rows that share a prefix: read once for all of them, merged with what is their own.

A group of rows stands on one prefix, whose keys and values lie in one shared slot. Their queries go
to it together; each row's own tokens are attended to apart; the two are merged by the logarithms of
their sums of exponentials, as flash attention merges its blocks (Dao et al., 2022; for shared
prefixes Juravsky et al., "Hydragen", 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "cot_engine"
BLOCKS = 128  # a GPU is busy with so many at once


@runtime_checkable
class Attending(Protocol):
    """Stands where a layer's attention expects its keys, and says how they are attended to."""

    def attend(
        self, query: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> torch.Tensor:
        """query [rows, heads, tokens, dim], mask [rows, 1, tokens, columns] of the rows' own
        columns; returns [rows, tokens, heads, dim]."""


def attend(module: Any, query: torch.Tensor, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
    """What every layer calls: sdpa, but where the cache gave what is `Attending`, and no keys."""
    if not isinstance(key, Attending):
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    scaling = kwargs.get("scaling")
    return key.attend(query, mask, query.shape[-1] ** -0.5 if scaling is None else scaling), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@dataclass(frozen=True, slots=True)
class Seats:
    """Which rows stand on the same thing: `groups` of at most `width` rows.

    `row` [groups * width] says which row sits where (any, where nobody does), `seat` [rows] where
    each sits.
    """

    groups: int
    width: int
    row: torch.Tensor
    seat: torch.Tensor

    @classmethod
    def of(cls, group: np.ndarray, groups: int, device: torch.device) -> Seats:
        """`group` [rows]: of which group each row is."""
        row, seat, width = seating(group, groups)
        return cls(
            groups, width, torch.from_numpy(row).to(device), torch.from_numpy(seat).to(device)
        )

    def gather(self, query: torch.Tensor, heads: int) -> torch.Tensor:
        """[rows, query heads, tokens, dim] -> [groups, `heads`, queries of a group, dim]; query
        heads that share a head of keys are further queries of it."""
        _, asking, tokens, dim = query.shape
        parts = (self.groups, self.width, heads, asking // heads, tokens, dim)
        grouped = query.index_select(0, self.row).view(parts).permute(0, 2, 3, 1, 4, 5)
        return grouped.reshape(self.groups, heads, -1, dim)

    def scatter(self, found: torch.Tensor, tokens: int) -> torch.Tensor:
        """[groups, heads, queries of a group, ...] -> [rows, query heads, tokens, ...]."""
        rest = found.shape[3:]
        parts = found.reshape(self.groups, found.shape[1], -1, self.width, tokens, *rest)
        turned = parts.permute(0, 3, 1, 2, 4, *range(5, parts.ndim))
        return turned.reshape(self.groups * self.width, -1, tokens, *rest)[self.seat]


def seating(group: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray, int]:
    """`row`, `seat` and `width` of `Seats`."""
    counts = np.bincount(group, minlength=groups)
    width = int(counts.max())
    order = np.argsort(group, kind="stable")
    first = np.repeat(counts.cumsum() - counts, counts)
    seat = np.empty(len(group), np.int64)
    seat[order] = group[order] * width + np.arange(len(group)) - first
    row = np.zeros(groups * width, np.int64)
    row[seat] = np.arange(len(group))
    return row, seat, width


@dataclass(frozen=True, slots=True)
class Forked:
    """A layer's keys and values of rows behind shared prefixes.

    `keys`, `values` [rows, heads, columns, dim] are the rows' own; `shared_keys`, `shared_values`
    [groups, heads, columns, dim] their groups'; `mask` [groups, 1, 1 or queries, columns] is of the
    latter, of which those queries that are `blind` [groups, 1, queries] see nothing any more.
    """

    keys: torch.Tensor
    values: torch.Tensor
    shared_keys: torch.Tensor
    shared_values: torch.Tensor
    mask: torch.Tensor
    blind: torch.Tensor | None
    seats: Seats

    def attend(
        self, query: torch.Tensor, mask: torch.Tensor | None, scaling: float
    ) -> torch.Tensor:
        """See `Attending`."""
        rows, asking, tokens, dim = query.shape
        heads = self.keys.shape[1]
        if tokens == 1 and query.device.type == "cpu" and query.dtype == torch.float32:
            return self._plainly(query * scaling, mask)
        together = self.seats.gather(query, heads)
        seen, blind = self.mask, self.blind
        if blind is not None:  # what one query of a row sees, it sees with all heads
            same = together.shape[2] // blind.shape[2]
            seen, blind = seen.repeat(1, 1, same, 1), blind.repeat(1, 1, same)
        shared, weight = with_sums(together, self.shared_keys, self.shared_values, seen, scaling)
        if blind is not None:
            shared = shared.masked_fill(blind[..., None], 0)
            weight = weight.masked_fill(blind, float("-inf"))
        shared, weight = self.seats.scatter(shared, tokens), self.seats.scatter(weight, tokens)
        folded = query.reshape(rows, heads, -1, dim)
        if mask is not None and tokens > 1:
            mask = mask.repeat(1, 1, asking // heads, 1)
        own, beside = with_sums(folded, self.keys, self.values, mask, scaling)
        own, beside = own.reshape(query.shape), beside.reshape(rows, asking, tokens)
        share = torch.sigmoid(weight - beside)[..., None].to(own.dtype)
        return torch.lerp(own, shared, share).transpose(1, 2).contiguous()

    def _plainly(self, query: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Of rows of one token in float32 on a CPU, by plain products and one softmax: a kernel for
        long queries takes twice the time, as long as keys and values lie close to each other (see
        `Slots.fit`)."""
        rows, asking, _, dim = query.shape
        heads, columns = self.keys.shape[1:3]
        seats, held = self.seats, self.shared_keys.shape[2]
        asked = seats.gather(query, heads)
        seen = self.mask
        if seen.shape[2] > 1:
            seen = seen.repeat(1, 1, asked.shape[2] // seen.shape[2], 1)
        before = seats.scatter(asked @ self.shared_keys.mT + seen, 1)
        size = (rows, heads, asking // heads, columns)
        hidden = query.new_zeros(()) if mask is None else mask.expand(size).flatten(0, 1)
        folded = query.reshape(rows * heads, -1, dim)
        own = torch.baddbmm(hidden, folded, self.keys.flatten(0, 1).mT)
        share = torch.cat((before, own.view(rows, asking, 1, columns)), -1).softmax(-1)
        found = share[..., held:].reshape(own.shape) @ self.values.flatten(0, 1)
        told = seats.scatter(seats.gather(share[..., :held], heads) @ self.shared_values, 1)
        return (found.view(query.shape) + told).transpose(1, 2).contiguous()


def with_sums(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [batch, heads, queries, dim], and the logarithm of the sum of each query's
    exponentials [batch, heads, queries], in float32.

    By the kernels that scaled_dot_product_attention chooses, which keep these sums and do not
    return them.
    """
    if query.device.type == "cuda":
        return split(query, keys, values, mask, scaling, _efficient)
    if query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, attn_mask=mask, scale=scaling
        )
    return plainly(query, keys, values, mask, scaling)


def plainly(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by plain products, where no kernel gives the sums."""
    scores = query.float() @ keys.float().mT * scaling
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ values.float()).to(query.dtype), scores.logsumexp(-1)


Kernel = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def split(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    kernel: Kernel,
) -> tuple[torch.Tensor, torch.Tensor]:
    """By a `kernel` that goes through a head's columns with one block of a GPU: where there are few
    heads, parts of the columns are heads of their own, merged afterwards."""
    batch, heads, queries, _ = query.shape
    columns, parts = keys.shape[2], 1
    # A part is a multiple of 16 columns: masks must lie where a GPU reads them at once.
    while batch * heads * parts < BLOCKS and columns % (32 * parts) == 0 and columns > 128 * parts:
        parts *= 2
    if mask is not None:
        mask = mask.expand(batch, 1, queries, columns)
    if parts == 1:
        whole = None if mask is None else mask.expand(-1, heads, -1, -1)
        return kernel(query, keys, values, whole, scaling)
    each = columns // parts
    query = query[:, :, None].expand(-1, -1, parts, -1, -1).flatten(1, 2)
    keys, values = (x.unflatten(2, (parts, each)).flatten(1, 2) for x in (keys, values))
    if mask is not None:
        mask = mask.unflatten(3, (parts, each))[:, 0].transpose(1, 2)
        mask = mask[:, None].expand(-1, heads, -1, -1, -1).flatten(1, 2)
    found, sums = kernel(query, keys, values, mask, scaling)
    sums = sums.unflatten(1, (heads, parts))
    # A part whose columns are all hidden has no sum, whatever its kernel gives for it.
    if mask is not None:
        hidden = torch.isneginf(mask).all(-1).unflatten(1, (heads, parts))
        sums = sums.masked_fill(hidden, float("-inf"))
    share = sums.softmax(2)[..., None]
    found = torch.where(share > 0, found.unflatten(1, (heads, parts)).float() * share, 0)
    return found.sum(2).to(query.dtype), sums.logsumexp(2)


def _efficient(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel of CUDA that takes a mask."""
    found, sums = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, keys, values, mask, True, scale=scaling
    )[:2]
    return found, sums[..., : query.shape[2]]  # it is padded
