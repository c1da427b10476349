"""Attention in parts and over shared prefixes, against all of it at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cot_engine.backends.local import attention
from cot_engine.backends.local.attention import Forked, Seats, split, with_sums

G = torch.Generator().manual_seed(0)


def random(*size, dtype=torch.float32):
    return torch.randn(size, generator=G).to(dtype)


def hidden(*size):
    """An additive mask that shows at least the first column."""
    mask = torch.where(torch.rand(size, generator=G) < 0.3, -torch.inf, 0.0)
    mask[..., 0] = 0
    return mask


@pytest.mark.parametrize("columns", [32, 160, 544, 1024])
@pytest.mark.parametrize("masked", [True, False])
def test_few_heads_are_split_by_columns(columns, masked):
    """As on a GPU, with the CPU's kernel in place of its; one part is hidden whole."""
    query, keys, values = random(2, 3, 5, 16), random(2, 3, columns, 16), random(2, 3, columns, 16)
    mask = hidden(2, 1, 1, columns) if masked else None
    if masked:
        mask[..., columns // 2 :] = -torch.inf
    calls = []

    def kernel(query, keys, values, mask, scaling):
        calls.append(keys.shape)
        return with_sums(query, keys, values, mask, scaling)

    found, sums = split(query, keys, values, mask, 0.3, kernel)
    scores = query @ keys.mT * 0.3 + (mask if masked else 0)
    assert torch.allclose(found, scores.softmax(-1) @ values, atol=1e-5)
    assert torch.allclose(sums, scores.logsumexp(-1), atol=1e-5)
    ((_, heads, each, _),) = calls
    assert heads * each == 3 * columns and each % 16 == 0
    assert (heads > 3) == (columns > 128)


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_unequal_groups_see_their_own_prefix(dtype, tokens):
    """Grouped queries (4 heads of 2), groups of 1, 3 and 2 rows that are not in order."""
    group, heads, dim, own, before = np.array([1, 0, 2, 1, 2, 1]), 2, 16, 32, 64
    keys, values = (random(6, heads, own, dim, dtype=dtype) for _ in range(2))
    shared_keys, shared_values = (random(3, heads, before, dim, dtype=dtype) for _ in range(2))
    query, mask = random(6, 4, tokens, dim, dtype=dtype), hidden(6, 1, tokens, own).to(dtype)
    shown = hidden(3, 1, 1, before).to(dtype)
    seats = Seats.of(group, 3, torch.device("cpu"))
    forked = Forked(keys, values, shared_keys, shared_values, shown, None, seats)
    found = forked.attend(query, mask, 0.25).transpose(1, 2)
    whole = torch.cat([shared_keys[group], keys], 2).repeat_interleave(2, 1).float()
    told = torch.cat([shared_values[group], values], 2).repeat_interleave(2, 1).float()
    seen = torch.cat([shown[group].expand(-1, -1, tokens, -1), mask], -1).float()
    wanted = (query.float() @ whole.mT * 0.25 + seen).softmax(-1) @ told
    assert torch.allclose(found.float(), wanted, atol=1e-5 if dtype == torch.float32 else 3e-2)
    # The control: with rows in each other's seats it is something else.
    mixed = Forked(
        *(keys, values, shared_keys, shared_values, shown, None),
        Seats.of(np.roll(group, 1), 3, torch.device("cpu")),
    )
    assert not torch.allclose(
        mixed.attend(query, mask, 0.25).transpose(1, 2).float(), wanted, atol=0.1
    )


def test_other_devices_have_the_sums_too(monkeypatch):
    """The plain products, which are for devices without such a kernel."""
    query, keys, values = random(2, 3, 5, 16), random(2, 3, 32, 16), random(2, 3, 32, 16)
    mask = hidden(2, 1, 1, 32)
    wanted = with_sums(query, keys, values, mask, 0.3)
    found = attention.plainly(query, keys, values, mask, 0.3)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))
