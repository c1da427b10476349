"""What is computed, and that neighbours, order and batch make no difference."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
from itertools import takewhile

import pytest
import torch
from tiny_models import BUILDERS, build, picture

from cot_engine.backends.local import prefix
from cot_engine.backends.local.kv import Slots
from cot_engine.backends.local.opener import Local
from cot_engine.core.boundaries import Until
from cot_engine.core.headway import Headway
from cot_engine.core.requests import GREEDY, Choose, Generate, Prompt, Sampling, Segment
from cot_engine.core.usage import Usage
from cot_engine.errors import InputError, ModelError

SAMPLING = Sampling(temperature=1.0, top_p=0.95, top_k=50)
PROMPT = Prompt("how many circle are there?", (picture(0),))


@pytest.fixture
def backend(folder):
    with Local(device="cpu").open(folder) as loaded:
        yield loaded


def ask(seeds=(1, 2, 3, 4), tokens=12, scope="s", prompt=PROMPT, prefix=(), until=None, **more):
    until = until or Until(("</SUMMARY>",))
    sampling = more.pop("sampling", SAMPLING)
    return Generate(scope, prompt, prefix, until, tuple(seeds), tokens, sampling, **more)


def run(coroutine):
    return asyncio.run(coroutine)


async def together(*coroutines):
    return await asyncio.gather(*coroutines)


def stages(backend, scope, prompt, count=3):
    """A small search. Returns a coroutine of (all generations, all usages)."""

    async def go():
        prefix, found, spent = (), [], []
        for number in range(count):
            request = ask(range(4 * number, 4 * number + 4), 7 + 2 * number, scope, prompt, prefix)
            done = await backend.generate(request)
            found.append(done.generations)
            spent.append(done.usage)
            best = done.generations[1]
            tails = (f" {best.text}?", f" {best.text}? so")
            chosen = await backend.choose(Choose(scope, prompt, tails, ("A", "B")))
            spent.append(chosen.usage)
            prefix = (*prefix, Segment(best.text, best.ids), Segment("</SUMMARY>"))
        return found, spent

    return go()


def same(first, second):
    """The same ids, and log-probabilities to rounding."""
    assert [g.ids for g in first] == [g.ids for g in second]
    assert [g.text for g in first] == [g.text for g in second]
    for a, b in zip(first, second, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


# --- nothing is computed twice --------------------------------------------------------------------


@pytest.mark.parametrize("architecture", sorted(BUILDERS))
def test_each_token_is_prefilled_once(tmp_path, architecture):
    """The distinct tokens of all prompts and prefixes, less those whose keys decoding left."""
    with Local(device="cpu").open(build(architecture, tmp_path)) as backend:
        encoded = []
        real = backend.adapter.encode
        backend.adapter.encode = lambda image: encoded.append(image.digest) or real(image)
        seen, decoded_into = set(), set()
        submit = backend.worker.submit

        def watched(job):
            for sequence in job.sequences:
                seen.update(sequence.keys[: i + 1] for i in range(len(sequence.keys)))
            submit(job)

        backend.worker.submit = watched
        finish = backend.worker._store

        def stored(row, ids):
            keys = row.sequence.keys
            decoded_into.update((*keys, *ids[: i + 1]) for i in range(len(ids)))
            finish(row, ids)

        backend.worker._store = stored
        _, spent = run(stages(backend, "s", PROMPT))
        total = sum(spent, Usage())
        assert total.prefilled == len(seen - decoded_into)
        assert encoded == [PROMPT.images[0].digest]
        assert total.encodes == 1


def test_same_prompt_again_costs_no_prompt(backend):
    first = run(backend.generate(ask()))
    again = run(backend.generate(ask()))
    same(first.generations, again.generations)
    assert again.usage.prefilled == 0
    assert again.usage.cached == first.usage.prefilled


def test_release_forgets(backend):
    first = run(backend.generate(ask()))
    backend.release("s")
    backend.release("unknown")
    again = run(backend.generate(ask()))
    assert (again.usage.prefilled, again.usage.encodes) == (first.usage.prefilled, 1)


def test_scopes_do_not_pay_for_each_other(backend):
    first = run(backend.generate(ask(scope="a")))
    second = run(backend.generate(ask(scope="b")))
    assert first.usage.prefilled == second.usage.prefilled
    assert first.usage.encodes == second.usage.encodes == 1


def test_requests_in_flight_share_what_they_plan(backend):
    """Two requests of one scope, asked at once: the prompt is computed once."""
    one, two = run(together(backend.generate(ask()), backend.generate(ask(seeds=(5, 6)))))
    alone = run(backend.generate(ask(scope="other")))
    assert one.usage.prefilled + two.usage.prefilled == alone.usage.prefilled


def test_estimate_bounds_what_is_charged(backend):
    prefix = ()
    for number in range(3):
        request = ask(range(4), 8, prefix=prefix)
        expected = backend.estimate(request)
        done = run(backend.generate(request))
        for kind in ("encodes", "prefilled", "decoded", "flops"):
            assert getattr(done.usage, kind) <= getattr(expected, kind), kind
        assert expected.decoded == 32
        best = done.generations[number]
        prefix = (*prefix, Segment(best.text, best.ids), Segment("<CAPTION>"))
        choose = Choose("s", PROMPT, (" A or B", " A or the square"), ("A", "B"))
        expected = backend.estimate(choose)
        spent = run(backend.choose(choose)).usage
        for kind in ("encodes", "prefilled", "decoded", "flops"):
            assert getattr(spent, kind) <= getattr(expected, kind), kind


def test_full_estimate_is_met(backend):
    """Where nothing stops early, the bound is what is paid."""
    backend.text.eos = frozenset()
    request = ask(until=Until(("never",)), tokens=10)
    expected, spent = backend.estimate(request), run(backend.generate(request)).usage
    assert spent.flops == expected.flops
    assert (spent.prefilled, spent.decoded) == (expected.prefilled, expected.decoded)
    assert spent.seconds > 0


def tails(count):
    """Every one shares something with others: what a round robin asks."""
    words = ["red", "circle", "blue", "the square", "two", "left of", "so", "because it is"]
    return tuple(f"1: {words[i % 8]} {i // 8}. 2: {words[i // 8 % 8]}?" for i in range(count))


def test_the_estimate_of_many_tails(backend):
    """What a tail shares with what is held or with any tail before it is not computed again."""
    run(backend.choose(Choose("s", PROMPT, tails(3), ("A", "B"))))
    asked = Choose("s", PROMPT, tails(60), ("A", "B"))
    keys = [sequence.keys for sequence in backend._questions(asked)]
    known, fresh = [*keys[:3]], 0

    def alike(pair):
        return pair[0] == pair[1]

    for one in keys:
        pairs = (zip(one, other, strict=False) for other in known)
        fresh += len(one) - max(sum(1 for _ in takewhile(alike, pair)) for pair in pairs)
        known.append(one)
    expected = backend.estimate(asked)
    spent = run(backend.choose(asked)).usage
    assert expected.prefilled == fresh
    assert (spent.prefilled, spent.encodes) == (fresh, 0) and spent.flops <= expected.flops


def test_an_estimate_takes_time_in_proportion_to_its_tails(backend):
    """In calls, not in seconds."""

    def calls(count):
        asked, seen = Choose("s", PROMPT, tails(count), ("A", "B")), []
        backend.estimate(asked)  # tokenised
        sys.setprofile(lambda frame, event, arg: seen.append(1) if "call" in event else None)
        try:
            backend.estimate(asked)
        finally:
            sys.setprofile(None)
        return len(seen)

    assert calls(200) < 3 * calls(100)


def test_what_takes_long_leaves_the_event_loop(backend, monkeypatch):
    """A new picture, and many tails; what is known already does not."""
    threads = []
    here = threading.current_thread()
    prepare, turns = backend.adapter.prepare, backend.text.turns

    def prepared(*args):
        threads.append(("picture", threading.current_thread() is here))
        return prepare(*args)

    def tokenised(texts, images):
        threads.append((len(texts), threading.current_thread() is here))
        return turns(texts, images)

    monkeypatch.setattr(backend.adapter, "prepare", prepared)
    monkeypatch.setattr(backend.text, "turns", tokenised)
    run(backend.generate(ask()))
    run(backend.choose(Choose("s", PROMPT, tails(200), ("A", "B"))))
    run(backend.choose(Choose("s", PROMPT, ("so?",), ("A", "B"))))
    assert threads == [("picture", False), (1, False), (200, False), (1, True)]


def test_prefixes_are_bounded(backend):
    backend.worker.scope_tokens = 60
    wanted, _ = run(stages(backend, "s", PROMPT))
    held = sum(
        len(node.keys) for root in backend._scopes["s"].roots.values() for node in _walk(root)
    )
    assert held <= 60
    backend.worker.scope_tokens = 10**6
    backend.release("s")
    again, _ = run(stages(backend, "s", PROMPT))
    for a, b in zip(wanted, again, strict=True):
        same(a, b)


def _walk(root):
    from cot_engine.backends.local.prefix import walk

    return walk(root)


# --- neighbours make no difference ----------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llava", "mllama", "qwen2_5_vl", "gemma3"])
def test_alone_and_among_others(tmp_path, architecture):
    """Searches with different pictures, with none, with two, all at once."""
    with Local(device="cpu").open(build(architecture, tmp_path)) as backend:
        prompts = [
            Prompt("how many circle are there?", (picture(0),)),
            Prompt("is the square left of the circle? so because", (picture(1, 70, 30),)),
            Prompt("one and two"),
            Prompt("the first", (picture(2), picture(3))),
            Prompt("how many circle are there?", (picture(4),)),
        ]
        alone = [run(stages(backend, f"alone{i}", p))[0] for i, p in enumerate(prompts)]
        crowd = run(together(*(stages(backend, f"crowd{i}", p) for i, p in enumerate(prompts))))
        for single, (found, _) in zip(alone, crowd, strict=True):
            for a, b in zip(single, found, strict=True):
                same(a, b)


def test_costs_do_not_depend_on_neighbours(backend):
    _, alone = run(stages(backend, "alone", PROMPT))
    crowd = run(together(*(stages(backend, f"c{i}", PROMPT) for i in range(5))))
    for _, spent in crowd:
        for a, b in zip(alone, spent, strict=True):
            assert (a.prefilled, a.cached, a.decoded, a.flops, a.encodes) == (
                b.prefilled,
                b.cached,
                b.decoded,
                b.flops,
                b.encodes,
            )


def test_few_candidates_are_the_first_of_many(backend):
    many = run(backend.generate(ask(range(8), scope="a"))).generations
    few = run(backend.generate(ask(range(2), scope="b"))).generations
    same(many[:2], few)
    assert len({g.ids for g in many}) > 1


def test_rows_wait_for_a_slot(folder, backend):
    """More rows than may decode at once: the same candidates come out."""
    wanted = run(backend.generate(ask(range(9)))).generations
    with Local(device="cpu", max_rows=2).open(folder) as narrow:
        same(wanted, run(narrow.generate(ask(range(9)))).generations)


def test_greedy_is_the_likeliest(backend):
    found = run(backend.generate(ask((1, 2), sampling=GREEDY))).generations
    assert found[0].ids == found[1].ids
    others = run(backend.generate(ask(range(12), tokens=1, scope="t"))).generations
    kept = [g.logprob for g in others if g.ids]  # not of one that ended at once
    best = run(backend.generate(ask((0,), tokens=1, sampling=GREEDY, scope="t"))).generations[0]
    assert len(kept) > 2 and best.logprob >= max(kept)


# --- trouble --------------------------------------------------------------------------------------


class Shortage:
    """Makes a method run out of memory on some of its calls."""

    def __init__(self, monkeypatch, owner, name, failing, error=torch.OutOfMemoryError):
        self.calls = 0
        real = getattr(owner, name)

        def short(*args, **kwargs):
            self.calls += 1
            if failing(self.calls, *args):
                raise error("out of memory")
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, short)


def test_out_of_memory_while_decoding(folder, backend, monkeypatch):
    wanted = run(backend.generate(ask(range(8)))).generations
    heard = []
    with Local(device="cpu").open(folder, on_notice=heard.append) as short:
        # More than three rows never fit: as a real limit would, it shows whenever it is passed.
        Shortage(
            monkeypatch,
            short.adapter,
            "forward",
            lambda n, rows, *_: rows.ids.shape[1] == 1 and len(rows.ids) > 3,
        )
        same(wanted, run(short.generate(ask(range(8)))).generations)
        assert short.worker.max_rows == 2
    assert len(heard) == 2 and "Out of memory" in heard[0]
    assert short.info.notes[-1] == heard[-1]


def test_out_of_memory_while_growing_and_in_prompts(folder, backend, monkeypatch):
    prompts = [Prompt(f"how many {w}", (picture(i),)) for i, w in enumerate(("one", "two", "so"))]
    wanted = [run(stages(backend, f"a{i}", p))[0] for i, p in enumerate(prompts)]
    with Local(device="cpu").open(folder) as short:
        Shortage(monkeypatch, short.worker.prefill, "run", lambda n, parts: len(parts) > 1)
        Shortage(monkeypatch, short.worker.batch, "join", lambda n, *_: n == 2, RuntimeError)
        crowd = run(together(*(stages(short, f"a{i}", p) for i, p in enumerate(prompts))))
        for single, (found, _) in zip(wanted, crowd, strict=True):
            for a, b in zip(single, found, strict=True):
                same(a, b)


def test_out_of_memory_halfway(folder, backend, monkeypatch):
    """While a row gets its slots, which others share: nobody stands on what is filled half."""
    wanted = run(backend.generate(ask(range(8)))).generations
    with Local(device="cpu", max_rows=5).open(folder) as short:
        Shortage(monkeypatch, Slots, "put", lambda n, *_: n % 3 == 1)
        same(wanted, run(short.generate(ask(range(8)))).generations)


def test_out_of_memory_for_good(backend, monkeypatch):
    Shortage(monkeypatch, backend.adapter, "forward", lambda *_: True)
    with pytest.raises(ModelError, match="memory"):
        run(backend.generate(ask()))


def test_an_error_reaches_who_asked_and_nobody_else(backend, monkeypatch):
    Shortage(monkeypatch, backend.adapter, "logits", lambda n, *_: n == 1, ValueError)
    with pytest.raises(ModelError, match="ValueError: out of memory"):
        run(backend.generate(ask()))
    assert len(run(backend.generate(ask())).generations) == 4


def test_a_cancelled_request_leaves(backend):
    async def go():
        backend.text.eos = frozenset()
        task = asyncio.create_task(
            backend.generate(ask(range(3), tokens=1000, until=Until(("never",))))
        )
        other = asyncio.create_task(backend.generate(ask(range(2), tokens=30, scope="other")))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await other
        for _ in range(100):
            if not backend.worker._rows():
                return
            await asyncio.sleep(0.05)
        raise AssertionError("rows of the cancelled request are still there")

    run(go())


def test_what_was_given_up_before_it_was_computed_is_not_held(backend, monkeypatch):
    monkeypatch.setattr(prefix, "CHUNK", 7)
    worker, begun, go_on = backend.worker, threading.Event(), threading.Event()
    real = worker._prefill

    def waiting():
        begun.set()
        worker._prefill = real
        return go_on.wait(10)

    async def go():
        worker._prefill = waiting
        tasks = [asyncio.create_task(backend.generate(ask())) for _ in range(2)]
        await asyncio.to_thread(begun.wait, 10)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        go_on.set()
        await backend.generate(ask((1,), 1, scope="other"))  # the thread has been there since
        expected = backend.estimate(ask())
        assert expected.prefilled == (await backend.generate(ask())).usage.prefilled > 1

    run(go())


def test_deadline(backend):
    backend.text.eos = frozenset()
    request = ask(tokens=1500, until=Until(("never",)), deadline=time.monotonic() + 0.3)
    began = time.monotonic()
    found = run(backend.generate(request)).generations
    assert {g.finish for g in found} == {"budget"}
    assert time.monotonic() - began < 5
    assert all(g.ids for g in found)


def test_a_row_stops_where_another_step_would_end_after_the_deadline(backend):
    backend.text.eos = frozenset()
    backend.worker.step = 60.0  # as the last forward pass took
    deadline = time.monotonic() + 30
    request = ask(tokens=5, until=Until(("never",)), deadline=deadline)
    found = run(backend.generate(request)).generations
    assert {g.finish for g in found} == {"budget"} and all(len(g.ids) <= 1 for g in found)


def test_closing_fails_what_is_in_flight(folder):
    backend = Local(device="cpu").open(folder)
    backend.text.eos = frozenset()

    async def go():
        task = asyncio.create_task(backend.generate(ask(tokens=1500, until=Until(("never",)))))
        await asyncio.sleep(0.2)
        backend.close()
        with pytest.raises(ModelError, match="closed"):
            await task
        with pytest.raises(ModelError, match="closed"):
            await backend.generate(ask())

    run(go())
    assert not backend.worker.thread.handle.is_alive()


def test_too_long(backend):
    backend.text.eos = frozenset()
    request = ask((1,), 10**6, until=Until(("never",)), prompt=Prompt("word " * 400))
    room = backend.info.context - len(backend._reply(request).ids)
    assert backend.estimate(request).decoded == room < 100
    written = run(backend.generate(request))
    assert written.usage.decoded == room  # of which half a character at the end is dropped
    assert room - 3 <= len(written.generations[0].ids) <= room
    with pytest.raises(InputError, match="holds 2048"):
        run(backend.generate(ask(prompt=Prompt("word " * 3000))))


def test_too_many_images(backend):
    with pytest.raises(InputError, match="at most 16"):
        run(backend.generate(ask(prompt=Prompt("x", (picture(0),) * 17))))


def test_choices_must_differ_at_once(backend):
    with pytest.raises(InputError, match="same token"):
        run(backend.choose(Choose("s", PROMPT, ("?",), ("A", "Apple"))))


# --- how far a request is -------------------------------------------------------------------------


class Noting(Headway):
    """Keeps whatever is counted."""

    __slots__ = ("noted",)

    def __setattr__(self, name, value):
        if not hasattr(self, "noted"):
            object.__setattr__(self, "noted", [])
        self.noted.append((name, value))
        if name == "tokens" and value:
            self.noted.append(("read", tuple(self.written())))
        object.__setattr__(self, name, value)


def test_who_watches_sees_tokens_and_tails_done_one_after_the_other(folder):
    """And the answer is the same, watched or not."""
    with Local(device="cpu").open(folder) as backend:
        writing, judging = Noting(), Noting()
        watched = run(backend.generate(ask(headway=writing)))
        assert watched.generations == run(backend.generate(ask(scope="t"))).generations
        tokens = [value for name, value in writing.noted if name == "tokens"]
        assert tokens == list(range(watched.usage.decoded + 1))
        done = [value for name, value in writing.noted if name == "finished"]
        assert done == [0, 1, 2, 3, 4]
        read = [value for name, value in writing.noted if name == "read"]
        rows = zip(*read, writing.written(), strict=True)
        for row, generation in zip(rows, watched.generations, strict=True):
            assert len(set(row)) > 5 and all(b.startswith(a) for a, b in itertools.pairwise(row))
            assert row[-1].startswith(generation.text.rstrip("\ufffd"))

        backend.worker.prefill_columns = 64  # a prompt or so at a time
        tails = tuple(f" {colour} {number}?" for colour in ("red", "blue") for number in range(6))
        run(backend.choose(Choose("s", PROMPT, tails, ("A", "B"), headway=judging)))
        done = [value for name, value in judging.noted if name == "finished"]
        assert done == sorted(done) and done[-1] == len(tails) and len(set(done)) > 3
