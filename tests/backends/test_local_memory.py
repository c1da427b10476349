"""What is held, and how long: a search's tree, what eviction frees, what a failed attempt made."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import weakref

import pytest
import torch
from tiny_models import picture

from cot_engine.backends.local.prefix import Node, evict, insert, recompute_end, walk
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Choose, Generate, Prompt, Sampling, Segment
from cot_engine.errors import ModelError

PROMPT = Prompt("how many circle are there?", (picture(0),))


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def ask(tokens=9, scope="s", prefix=(), seeds=range(6)):
    how = Sampling(1.0, 1.0, 0)
    return Generate(scope, PROMPT, prefix, Until(("never",)), tuple(seeds), tokens, how)


async def stages(backend, scope, count=3):
    """A search whose candidates and judges part everywhere in the tree."""
    prefix = ()
    for _ in range(count):
        found = (await backend.generate(ask(scope=scope, prefix=prefix))).generations
        tails = tuple(f" {a.text} or {b.text}?" for a in found[:3] for b in found[:3] if a != b)
        await backend.choose(Choose(scope, PROMPT, tails, ("A", "B")))
        prefix = (*prefix, Segment(found[1].text, found[1].ids), Segment("</SUMMARY>"))


def trees(backend):
    return [root for scope in backend._scopes.values() for root in scope.roots.values()]


def stored(roots):
    """Bytes of all memory that nodes hold, each storage once."""
    kept = [node.kv.untyped_storage() for root in roots for node in walk(root)]
    return sum({s.data_ptr(): s.nbytes() for s in kept}.values())


def said(roots):
    """Bytes that the nodes' own tokens take."""
    return sum(node.kv.nbytes for root in roots for node in walk(root))


def eventually(true):
    """The model's thread may be at the end of its turn still."""
    ended = time.monotonic() + 10
    while not true() and time.monotonic() < ended:
        time.sleep(0.01)
    assert true()


def test_a_released_search_is_gone_at_once(backend, no_collector):
    asyncio.run(stages(backend, "s"))
    nodes = [weakref.ref(node) for root in trees(backend) for node in walk(root)]
    features = list(map(weakref.ref, (f.main for f in backend._scopes["s"].features.values())))
    assert len(nodes) > 20 and features
    backend.release("s")
    eventually(lambda: not any(ref() is not None for ref in [*nodes, *features]))


def test_rows_of_a_released_search_end_as_they_would(backend, no_collector):
    """Released in the middle of writing: the same is written, and then nothing is left of it."""
    wanted = asyncio.run(backend.generate(ask(60, "other"))).generations
    backend.release("other")
    reached, go_on = threading.Event(), threading.Event()
    real = backend.worker.batch.step

    def step():
        if backend.worker.batch.rows[0].length > backend.worker.batch.rows[0].start + 20:
            reached.set()
            go_on.wait(20)
        return real()

    backend.worker.batch.step = step

    async def go():
        task = asyncio.create_task(backend.generate(ask(60)))
        await asyncio.to_thread(reached.wait, 20)
        held.extend(weakref.ref(node) for root in trees(backend) for node in walk(root))
        backend.release("s")
        go_on.set()
        return (await task).generations

    held = []
    assert [g.ids for g in asyncio.run(go())] == [g.ids for g in wanted]
    assert held
    eventually(lambda: not any(ref() is not None for ref in held))


@pytest.mark.parametrize("limit", [10**6, 150, 60])
def test_what_is_held_is_what_the_nodes_say(backend, limit):
    backend.worker.scope_tokens = limit
    asyncio.run(stages(backend, "s"))
    roots = trees(backend)
    per_token = backend.worker.batch.shape.bytes_per_token
    assert stored(roots) == said(roots) <= limit * per_token
    if limit == 10**6:
        evict(roots[0], 40, set())
        assert stored(roots) == said(roots) <= 40 * per_token


def test_evicting_what_was_split_frees_it():
    """On trees of every shape, whatever was split, evicted down to any size."""
    rng = random.Random(0)
    for _ in range(50):
        root = Node((), 0, None)
        for _ in range(12):
            keys = tuple(rng.randrange(2) for _ in range(rng.randrange(1, 12)))
            end = insert(root, keys)
            if rng.random() < 0.3:
                recompute_end(end)
            for node in end.path():
                if node.kv is None:
                    node.kv = torch.full((1, 2, 1, len(node.keys), 1), 1.0)
                node.redo = False
        held = sum(len(node.keys) for node in walk(root))
        spared = {id(node) for node in end.path()}
        evict(root, rng.randrange(held + 1), spared)
        assert stored([root]) == said([root])
        assert all(node in list(walk(root)) for node in end.path())


def test_nodes_go_in_the_order_of_their_use():
    root = Node((), 0, None)
    for keys in ((1, 2, 3), (1, 2, 4), (5, 6), (7,)):
        for node in insert(root, keys).path():
            node.kv = torch.zeros(1, 2, 1, len(node.keys), 1)
    insert(root, (1, 2, 3))
    evict(root, 4, set())
    # Seven tokens: (4,), (5, 6) are the oldest leaves; (7,) and the path that was just used stay.
    assert sorted(node.keys for node in walk(root)) == [(1, 2), (3,), (7,)]


class Failing:
    """Raises in some forward passes, and watches what it had made before by a weak reference."""

    def __init__(self, monkeypatch, backend, when, error=torch.OutOfMemoryError):
        self.real, self.when, self.error = backend.adapter.forward, when, error
        self.made: list[weakref.ref] = []
        self.held: list[bool] = []
        monkeypatch.setattr(backend.adapter, "forward", self.forward)
        # Making room is part of the retry: it copies, and asks the device for what is free.
        park, free = backend.worker.batch.park, backend.worker._free
        monkeypatch.setattr(backend.worker.batch, "park", lambda n: (self.look(), park(n))[1])
        monkeypatch.setattr(backend.worker, "_free", lambda: (self.look(), free()))

    def look(self):
        self.held += [ref() is not None for ref in self.made]

    def forward(self, rows, *args, **kwargs):
        self.look()
        if self.when(rows):
            activations = torch.zeros(1000)
            self.made.append(weakref.ref(activations))
            try:
                raise ValueError("a library's own")
            except ValueError:
                raise self.error("out of memory") from None
        return self.real(rows, *args, **kwargs)


@pytest.mark.parametrize("where", ["prompts", "rows"])
def test_nothing_of_a_failed_attempt_is_held_while_it_is_retried(
    backend, monkeypatch, no_collector, where
):
    prompts = where == "prompts"
    failing = Failing(
        monkeypatch,
        backend,
        lambda rows: (rows.ids.shape[1] > 1) == prompts and len(rows.ids) > 1,
    )

    async def go():
        await asyncio.gather(*(backend.generate(ask(scope=s, seeds=(1, 2))) for s in "abc"))

    asyncio.run(go())
    assert failing.made
    assert not any(failing.held)
    assert all(ref() is None for ref in failing.made)


def test_nor_by_the_error_that_is_told(backend, monkeypatch, no_collector):
    failing = Failing(monkeypatch, backend, lambda rows: True, RuntimeError)
    failing.error = lambda words: RuntimeError("something else")
    with pytest.raises(ModelError, match="something else") as caught:
        asyncio.run(backend.generate(ask()))
    assert [ref() for ref in failing.made] == [None]
    assert caught.value.__cause__.__traceback__ is not None  # where it was can still be read


def test_what_a_failed_prefill_reserved_is_given_back(backend, monkeypatch):
    sizes = []
    Failing(
        monkeypatch,
        backend,
        lambda rows: sizes.append(len(rows.ids)) or (rows.ids.shape[1] > 1 and len(rows.ids) > 2),
    )

    async def go():
        await asyncio.gather(*(backend.generate(ask(scope=s, seeds=(1,))) for s in "abcd"))

    asyncio.run(go())
    assert max(sizes) == 4
    assert backend.worker.prefill.slots.rows <= 2


def test_slots_that_nobody_uses_make_room(backend, monkeypatch):
    """Rows of searches that are over must not keep the next one from being read."""
    asyncio.run(backend.generate(ask(seeds=range(8))))
    slots = backend.worker.batch
    Failing(monkeypatch, backend, lambda rows: slots.slots.rows > max(1, len(slots.rows)))
    found = asyncio.run(backend.generate(ask(scope="next", seeds=(1,)))).generations
    assert len(found) == 1
    assert slots.slots.rows <= 1
    assert not backend.info.notes or "memory" not in backend.info.notes[-1]
