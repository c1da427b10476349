"""Drawing tokens: which distribution, from which random numbers, and the same as ever."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cot_engine.backends.local.sampling import RowSampling, draw, keys, seed64, uniforms
from cot_engine.core.requests import GREEDY, Sampling

INF, NAN = float("inf"), float("nan")


def settings(*rows):
    return RowSampling.of(rows)


def many_keys(count):
    return keys(torch.arange(count), torch.zeros(count, dtype=torch.long))


def test_random_numbers_are_uniform_and_independent_of_neighbours():
    seeds = torch.arange(20000)
    now, later = (keys(seeds, torch.full_like(seeds, i)) for i in range(2))
    drawn = {
        (i, j): uniforms(k, torch.tensor(j)).numpy()
        for i, k in enumerate((now, later))
        for j in range(3)
    }
    for numbers in drawn.values():
        assert numbers.min() > 0 and numbers.max() < 1
        assert np.histogram(numbers, 20, (0, 1))[0] == pytest.approx(1000, abs=150)
    apart = np.corrcoef(list(drawn.values())) - np.eye(6)
    assert np.abs(apart).max() < 0.03
    along = uniforms(now[:1], torch.arange(20000))  # of one key, over token ids
    assert np.histogram(along, 20, (0, 1))[0] == pytest.approx(1000, abs=150)
    assert keys(seeds[7:8], torch.ones(1, dtype=torch.long))[0] == later[7]
    assert [seed64(n) for n in (-1, 2**64 - 1, 2**63, 5)] == [-1, -1, -(2**63), 5]


@pytest.mark.parametrize("extreme", [0, -1])
def test_no_random_number_is_0_or_1(extreme, monkeypatch):
    """Either would be an endless or a zero time in the race."""
    monkeypatch.setattr(
        "cot_engine.backends.local.sampling._mix", lambda x: torch.full_like(x, extreme)
    )
    assert 0 < uniforms(*torch.zeros(2, 1, dtype=torch.long))[0] < 1


def test_draws_follow_the_distribution():
    """Temperature, then top-k, then top-p, against the definition."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.2, -1.0, -3.0])
    how = Sampling(temperature=0.7, top_p=0.85, top_k=4)
    count = 20000
    tokens, logprobs = draw(logits.expand(count, -1), settings(*[how] * count), many_keys(count))
    shares = (logits / 0.7).softmax(-1)[:4]
    shares = shares / shares.sum()
    kept = int((shares.cumsum(0) < 0.85).sum()) + 1
    wanted = shares[:kept] / shares[:kept].sum()
    seen = torch.bincount(tokens, minlength=6) / count
    assert seen[:kept] == pytest.approx(wanted.tolist(), abs=0.015)  # four standard errors
    assert seen[kept:].sum() == 0
    assert logprobs[0].item() == pytest.approx(logits.log_softmax(-1)[tokens[0]].item())


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_uncut_draws_follow_the_distribution_in_and_between_blocks(temperature):
    logits = 2 * torch.randn(200, generator=torch.Generator().manual_seed(1))
    count = 40000
    many = settings(*[Sampling(temperature, 1.0, 0)] * count)
    tokens, _ = draw(logits.expand(count, -1), many, many_keys(count))
    wanted = count * (logits / temperature).softmax(-1)
    seen = torch.bincount(tokens, minlength=200)
    often = wanted > 20
    away = (seen - wanted)[often] / wanted[often].sqrt()
    assert away.abs().max() < 4.5 and 0.7 < away.square().mean() < 1.4


def test_a_draw_does_not_hang_on_the_last_digits():
    """Another batch rounds otherwise. Of 20,000 draws from 960 equally likely tokens, noise of 1e-4
    in the logits changed 4; it changed 18 while a number was held against cumulated shares."""
    count, size = 20000, 960
    shaken = 1 + 1e-4 * torch.randn(1, size, generator=torch.Generator().manual_seed(0))
    for how in (Sampling(1.0, 1.0, 0), Sampling(2.0, 1.0, size), Sampling(0.6, 1.0, 0)):
        many = settings(*[how] * count)
        once, _ = draw(torch.ones(1, size).expand(count, -1), many, many_keys(count))
        again, _ = draw(shaken.expand(count, -1), many, many_keys(count))
        assert (once != again).sum() <= 10


def test_rows_of_different_settings_do_not_mix():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    mixed = settings(GREEDY, Sampling(1.0, 1.0, 0), Sampling(0.5, 0.9, 10))
    together, _ = draw(logits, mixed, many_keys(3))
    assert together[0] == int(logits[0].argmax())
    for i, how in enumerate((GREEDY, Sampling(1.0, 1.0, 0), Sampling(0.5, 0.9, 10))):
        assert draw(logits[i : i + 1], settings(how), many_keys(3)[i : i + 1])[0] == together[i]


def test_banned_is_never_drawn():
    logits = torch.tensor([[5.0, 1.0]])
    assert draw(logits, settings(GREEDY), many_keys(1), banned=0)[0].tolist() == [1]


@pytest.mark.parametrize("how", [GREEDY, Sampling(1.0, 1.0, 0), Sampling(0.6, 0.9, 3)])
def test_what_is_masked_is_never_drawn_and_what_is_no_number_is_told(how):
    rows = torch.tensor(
        [
            [1.0, -INF, -INF, 0.5],  # two words are masked
            [-INF, -INF, 0.0, -INF],  # all but one
            [1.0, NAN, 0.0, 0.0],
            [1.0, INF, 0.0, 0.0],
            [-INF] * 4,
            [-INF, 1.0, -INF, -INF],  # only the banned one is left
        ]
    )
    seeds = torch.arange(len(rows))
    tokens, logprobs = draw(rows, RowSampling.of([how] * 6), keys(seeds, seeds), banned=1)
    assert tokens[0] in (0, 3) and tokens[1] == 2
    assert logprobs.isfinite().tolist() == [True, True] + 4 * [False]


def test_several_draws_from_the_same_logits():
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    seeds, of = torch.arange(8), torch.tensor([0, 0, 0, 1, 1, 0, 1, 1])
    for how in (Sampling(1.0, 0.9, 10), Sampling(1.0, 1.0, 0), GREEDY):
        many = RowSampling.of([how] * 8)
        once = draw(logits, many, keys(seeds, seeds), None, of)
        again = draw(logits[of], many, keys(seeds, seeds))
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


# --- the same as ever ----------------------------------------------------------------------------


def mixed_bits(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def raced(share, key, ids):
    """Which is first, each after its own exponential time."""
    bits = mixed_bits(key + ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return (share / -np.log(uniform)).argmax()


def by_numpy(logits, sampling, seeds, counters, banned):
    """Each row by itself, by sorting and without torch."""
    stream = mixed_bits(seeds + np.uint64(0x9E3779B97F4A7C15))
    key = mixed_bits(stream + counters * np.uint64(0xD1342543DE82EF95)) ^ seeds
    logprobs = logits.log_softmax(-1)
    logprobs[:, banned] = -INF
    found = []
    for row, how, mine in zip(logprobs.numpy(), sampling, key, strict=True):
        if how.greedy:
            found.append(int(row.argmax()))
            continue
        if not how.top_k and how.top_p == 1:  # nothing is cut: blocks race, then one's tokens
            share = np.exp((row - row.max()) / np.float64(how.temperature))
            sums = np.add.reduceat(share, np.arange(0, len(row), 64))
            block = raced(sums, mine, ~np.arange(len(sums)))
            ids = np.arange(64 * block, min(64 * block + 64, len(row)))
            found.append(int(ids[raced(share[ids], mine, ids)]))
            continue
        ids = np.argsort(-row, kind="stable")[: how.top_k or None]
        share = np.exp((row[ids] - row[ids[0]]) / np.float64(how.temperature))
        share /= share.sum()
        below = share.cumsum()
        ids = ids[: max(1, int(((below - share < how.top_p) & (share > 0)).sum()))]
        found.append(int(ids[raced(share[: len(ids)], mine, ids)]))
    return found


HOW = (
    *(Sampling(1.0, 1.0, 0), Sampling(0.7, 1.0, 50), Sampling(0.6, 0.9, 50), Sampling(1.5, 0.5, 0)),
    *(Sampling(1.0, 1.0, 2), Sampling(1.0, 1e-9, 50), Sampling(1.0, 1.0, 1), GREEDY),
)


@pytest.mark.parametrize("size", [50, 960, 20000])
def test_the_same_draws_as_by_numpy(size):
    """Of one kind of row, and of all kinds mixed; a whole vocabulary in chunks too."""
    count = 400
    logits = 3 * torch.randn(count, size, generator=torch.Generator().manual_seed(size))
    seeds = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C1)
    counters = np.arange(count, dtype=np.uint64)
    key = keys(*(torch.from_numpy(x.view(np.int64)) for x in (seeds, counters)))
    kinds = [[how] * count for how in HOW] + [[*HOW] * (count // len(HOW))]
    kinds.append(
        [HOW[0], GREEDY, HOW[1], HOW[4]] * (count // 4)
    )  # all words and few, top-p nowhere
    for sampling in kinds:
        tokens, logprobs = draw(logits, RowSampling.of(sampling), key, banned=3)
        assert tokens.tolist() == by_numpy(logits, sampling, seeds, counters, 3)
        wanted = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        assert torch.equal(logprobs, wanted)


def test_a_draw_waits_for_nothing_and_has_one_shape():
    """What a graph can hold: no number of a tensor is asked for."""

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func not in (
                torch.ops.aten._local_scalar_dense.default,
                torch.ops.aten.nonzero.default,
            ), func
            return func(*args, **(kwargs or {}))

    logits, key = torch.randn(16, 100), many_keys(16)
    for sampling in [[how] * 16 for how in HOW] + [[*HOW] * 2]:
        rows = RowSampling.of(sampling)
        with Watched():
            tokens, logprobs = draw(logits, rows, key, banned=3)
        assert tokens.shape == logprobs.shape == (16,)
        # Tensors without numbers: as on a GPU, in a vocabulary that is not sorted without need.
        rows, meta = RowSampling.of(sampling, torch.device("meta")), key.to("meta")
        tokens, _ = draw(torch.empty(16, 5000, device="meta"), rows, meta, banned=3)
        assert tokens.shape == (16,)
