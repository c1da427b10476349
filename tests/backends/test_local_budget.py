"""Memory is budgeted: whatever is in flight, nothing ends a run or changes what is written, and
nobody pays for what gave way to others."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
import torch
from tiny_models import build, picture

from cot_engine.backends.local.amount import parse_memory
from cot_engine.backends.local.backend import LocalBackend
from cot_engine.backends.local.kv import BLOCK
from cot_engine.backends.local.loading import load
from cot_engine.backends.local.memory import budget_tokens
from cot_engine.backends.local.opener import Local
from cot_engine.backends.local.prefix import walk
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Choose, Generate, Prompt, Sampling, Segment
from cot_engine.errors import ConfigError, ModelError

HOW = Sampling(1.0, 1.0, 0)
TOKENS = 24


class Near(tuple):
    """Log-probabilities, equal to within what another batch rounds."""

    __slots__ = ()
    __hash__ = None

    def __eq__(self, other):
        return all(abs(a - b) < 1e-3 for a, b in zip(self, other, strict=True))


async def search(backend, name, n=8, stages=3):
    """As a stage-level search asks: candidates, verdicts on some of them, on from the second."""
    prompt = Prompt(f"how many circle are there in {name}?", (picture(hash(name) % 3),))
    prefix, texts, cost = (), [], []
    for stage in range(stages):
        request = Generate(
            *(name, prompt, prefix, Until(("never",))),
            *(tuple(range(stage, stage + n)), TOKENS, HOW),
        )
        cost.append(backend.estimate(request))
        found = await backend.generate(request)
        texts += [g.ids for g in found.generations]
        some = found.generations[:3]
        tails = tuple(f" {a.text} or {b.text}?" for a in some for b in some if a is not b)
        judged = await backend.choose(Choose(name, prompt, tails, ("A", "B")))
        texts += map(Near, judged.logprobs)
        for usage in (found.usage, judged.usage):
            cost.append((usage.encodes, usage.prefilled, usage.cached, usage.decoded, usage.flops))
        one = found.generations[1]
        prefix = (*prefix, Segment(one.text, one.ids), Segment("</SUMMARY>"))
    backend.release(name)
    return texts, cost


def needed(loaded):
    """The tokens that one search takes at its largest."""
    with LocalBackend(loaded) as backend:
        most = []
        real = backend.release
        backend.release = lambda scope: (most.append(held(backend)), real(scope))
        asyncio.run(search(backend, "p0"))
    return max(most)


def held(backend):
    return sum(
        len(node.keys)
        for scope in backend._scopes.values()
        for root in scope.roots.values()
        for node in walk(root)
        if node.kv is not None
    )


def eventually(true):
    """The model's thread may be at the end of its turn still."""
    ended = time.monotonic() + 10
    while not true() and time.monotonic() < ended:
        time.sleep(0.01)
    assert true()


async def crowd(backend, count, in_flight):
    gate = asyncio.Semaphore(in_flight)

    async def one(k):
        async with gate:
            return await search(backend, f"p{k}")

    return await asyncio.gather(*(one(k) for k in range(count)))


class Watched(LocalBackend):
    """Notes the most that keys and values took, counted anew after every turn."""

    def __init__(self, loaded, tokens):
        per_token = loaded.adapter.kv_shape().bytes_per_token
        super().__init__(loaded, memory=tokens * per_token)
        self.most, turn, worker = 0, self.worker._turn, self.worker

        def watched(arrived):
            turn(arrived)
            slots = worker.batch.tokens + worker.prefill.tokens
            self.most = max(self.most, worker.memory.count() + slots)

        worker._turn = watched


@pytest.mark.parametrize("family", ["llava", "mllama"])
def test_any_number_in_flight_is_answered_as_it_is_alone(family, tmp_path):
    loaded = load(build(family, tmp_path), device="cpu")
    loaded.text.eos = frozenset()
    with LocalBackend(loaded) as backend:
        alone = [asyncio.run(search(backend, f"p{k}")) for k in range(12)]
    with LocalBackend(loaded) as backend:
        pictures = asyncio.run(_taken_by_pictures(backend))
    limit = 3 * (needed(loaded) + pictures)
    with Watched(loaded, limit) as tight:
        found = asyncio.run(crowd(tight, 12, 12))
        memory = tight.worker.memory
        assert memory.let_go and memory.computed_again, "it was too much for all at once"
        assert tight.most <= limit
        for (texts, cost), (wanted, price) in zip(found, alone, strict=True):
            assert texts == wanted
            assert cost == price, "what gave way to others is charged to nobody"
        eventually(lambda: memory.count() == 0)


async def _taken_by_pictures(backend):
    await backend.generate(
        Generate("x", Prompt("how many?", (picture(0),)), (), Until(("n",)), (0,), 1, HOW)
    )
    memory = backend.worker.memory
    return sum(memory.shape.tokens(f.nbytes) for s in memory.scopes for f in s.features.values())


def test_what_can_never_fit_is_refused_with_the_sum(loaded):
    shape = loaded.adapter.kv_shape()
    with LocalBackend(loaded, memory=16 * BLOCK * shape.bytes_per_token) as backend:
        prompt = Prompt("word " * 300)
        request = Generate("s", prompt, (), Until(("never",)), (0,), 9, HOW)
        with pytest.raises(ModelError, match=r"memory of 3,\d\d\d tokens.*room for 512"):
            asyncio.run(backend.generate(request))
        roots = backend._scopes["s"].roots.values()
        eventually(lambda: not [node for root in roots for node in walk(root)])  # it would be held
        short = Generate("t", Prompt("how many?"), (), Until(("never",)), (0, 1, 2), 9, HOW)
        assert len(asyncio.run(backend.generate(short)).generations) == 3


@pytest.mark.parametrize("seed", range(3))
def test_an_allocator_that_fails_anywhere_costs_no_more_than_what_it_says(
    loaded, seed, monkeypatch
):
    """And afterwards memory is back at its floor, and the next problem is solved."""
    rng = random.Random(seed)
    with LocalBackend(loaded) as backend:
        wanted = asyncio.run(search(backend, "p0"))
        real = backend.adapter.forward

        def failing(*args, **kwargs):
            if rng.random() < 0.15:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(*args, **kwargs)

        monkeypatch.setattr(backend.adapter, "forward", failing)

        async def go():
            searches = (search(backend, f"p{k}", n=4) for k in range(8))
            return await asyncio.gather(*searches, return_exceptions=True)

        for ended in asyncio.run(go()):
            assert isinstance(ended, (tuple, ModelError)), ended
            if isinstance(ended, ModelError):
                assert "memory" in str(ended)
        monkeypatch.setattr(backend.adapter, "forward", real)
        for k in range(8):
            backend.release(f"p{k}")
        assert asyncio.run(search(backend, "p0")) == wanted
        eventually(lambda: backend.worker.memory.count() == 0)
        backend.worker.calm = 10**6
        for _ in range(12):
            backend.worker._recovered()
            backend.worker.calm = 10**6
        assert (backend.worker.max_rows, backend.worker.prefill_columns) == backend.worker.usual


@pytest.mark.parametrize(
    "value",
    ["", "much", "0", 0, -1, "-3GB", "nan", "1e400", True, "20 GiB x", "1.5", "1B", 4096, "1e3"],
)
def test_nonsense_is_refused_before_anything_is_loaded(value):
    with pytest.raises(ConfigError, match="memory is"):
        parse_memory(value)
    with pytest.raises(ConfigError, match="memory is"):
        Local(memory=value).open("/nowhere")


def test_a_share_or_an_amount(loaded):
    shape = loaded.adapter.kv_shape()
    amounts = [parse_memory(v) for v in (0.9, 0.5, "0.5", "20GB", "1.5 M", 65536, "300kb")]
    assert amounts == [0.9, 0.5, 0.5, 20e9, 1.5e6, 65536, 3e5]
    assert budget_tokens("1MB", shape) == 10**6 // shape.bytes_per_token
    assert budget_tokens(0.5, shape) > 10**4
