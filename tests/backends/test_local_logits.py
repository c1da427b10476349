"""Logits: what is no number is an error and nobody else's; what is computed is what is charged."""

from __future__ import annotations

import asyncio
import copy

import pytest
from tiny_models import picture
from torch.utils.flop_counter import FlopCounterMode

from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Choose, Generate, Prompt, Segment
from cot_engine.errors import ModelError

PROMPT = Prompt("how many circle are there?", (picture(0),))
NAN, INF = float("nan"), float("inf")


def ask(scope="s", prompt=PROMPT, prefix=(), seeds=(1, 2, 3), tokens=5, **more):
    return Generate(scope, prompt, prefix, Until(("never",)), tuple(seeds), tokens, **more)


def poisoned(backend, monkeypatch, word=" red"):
    """A model one of whose words is no number, but not what it writes: it is read, and whatever
    comes after it in that prompt is lost."""
    adapter = backend.adapter
    head, embed = copy.deepcopy(adapter.head), copy.deepcopy(adapter.embed)
    (token,) = backend.text.continuation(word)
    embed.weight[token] = NAN
    monkeypatch.setattr(adapter, "head", head)
    monkeypatch.setattr(adapter, "embed", embed)


def test_only_the_request_concerned_fails(backend, monkeypatch):
    """Nobody beside it, and nobody after it in the memory that it leaves."""
    prompts = [
        Prompt(f"{word} how many circle", (picture(0),)) for word in ("is", "so", "the", "a")
    ]
    wanted = [asyncio.run(backend.generate(ask(f"w{i}", p))) for i, p in enumerate(prompts)]
    poisoned(backend, monkeypatch)

    async def go():
        bad = Prompt("is red how many circle are there because the square?", PROMPT.images)
        requests = [ask(f"s{i}", p) for i, p in enumerate(prompts[:-1])]
        requests.insert(1, ask("bad", bad))
        found = await asyncio.gather(*map(backend.generate, requests), return_exceptions=True)
        error = found.pop(1)
        assert isinstance(error, ModelError)
        assert "not numbers" in str(error) and "begins its reply" in str(error)
        requests = [ask(f"t{i}", p) for i, p in enumerate(prompts)]
        again = await asyncio.gather(*map(backend.generate, requests), return_exceptions=True)
        for some in (found, again):
            for a, b in zip(some, wanted[: len(some)], strict=True):
                assert [g.ids for g in a.generations] == [g.ids for g in b.generations]

    asyncio.run(go())


def test_a_row_that_goes_wrong_while_writing_poisons_no_other(backend, monkeypatch):
    """Its slot is used again: a masked nan would still be one."""
    long = ask("long", seeds=(1, 2, 3, 4), tokens=40)
    wanted = asyncio.run(backend.generate(long)).generations
    real = backend.adapter.forward
    begun = []

    def forward(rows, cache, **more):
        hidden = real(rows, cache, **more)
        mine = [r for r in backend.worker.batch.rows if r.job.request.scope == "bad"]
        if rows.ids.shape[1] == 1 and mine and len(mine[0].ids) == 7:
            begun.append(1)
            for row in mine:
                at = backend.worker.batch.rows.index(row)
                cache.slots.data[:, :, at, :, row.start :] = NAN
                hidden[at] = NAN
        return hidden

    monkeypatch.setattr(backend.adapter, "forward", forward)

    async def go():
        bad = ask("bad", prefix=(Segment("<SUMMARY>a</SUMMARY> <CAPTION>"),), tokens=300)
        error, _ = await asyncio.gather(
            backend.generate(bad), backend.generate(ask("other")), return_exceptions=True
        )
        assert isinstance(error, ModelError) and "where it writes <CAPTION>" in str(error)
        return (await backend.generate(ask("again", seeds=long.seeds, tokens=40))).generations

    found = asyncio.run(go())
    assert begun
    assert [g.ids for g in found] == [g.ids for g in wanted]


@pytest.mark.parametrize(
    ("written", "doing"),
    [
        ("", "begins its reply"),
        ("<SUMMARY>a", "writes <SUMMARY>"),
        ("<SUMMARY>a</SUMMARY>", "goes on after </SUMMARY>"),
        ("<SUMMARY>a</SUMMARY>\n<LOOK_2>b", "writes <LOOK_2>"),
    ],
)
@pytest.mark.parametrize("wrong", [NAN, INF])
def test_the_stage_is_named(backend, monkeypatch, written, doing, wrong):
    real = backend.adapter.logits

    def logits(hidden):
        out = real(hidden)
        out[:, 7] = wrong
        return out

    monkeypatch.setattr(backend.adapter, "logits", logits)
    prefix = (Segment(written),) if written else ()
    with pytest.raises(ModelError, match=f"where it {doing}"):
        asyncio.run(backend.generate(ask(prefix=prefix)))
    with pytest.raises(ModelError, match="asked for a verdict") as caught:
        asyncio.run(backend.choose(Choose("s", PROMPT, ("?", "!"), ("A", "B"))))
    assert "float16" in caught.value.hint


def test_heads_computed_are_heads_charged(backend, monkeypatch):
    """Sixteen candidates begin with one computation of their logits: PyTorch's counter says so."""
    counted, costs = [], backend.adapter.flops
    logits = backend.adapter.logits

    def computed(hidden):
        with FlopCounterMode(display=False) as counter:
            out = logits(hidden)
        counted.append(counter.get_total_flops())
        return out

    monkeypatch.setattr(backend.adapter, "logits", computed)
    request = ask(seeds=range(16), tokens=4)
    estimated = backend.estimate(request)
    usage = asyncio.run(backend.generate(request)).usage
    assert sum(counted) == costs.head(1 + 3 * 16)
    assert usage.flops == estimated.flops
    choice = Choose("s", PROMPT, ("a", "b", "the"), ("A", "B"))
    spent = usage.flops + asyncio.run(backend.choose(choice)).usage.flops
    assert sum(counted) == costs.head(1 + 3 * 16 + 3)
    backend.release("s")
    monkeypatch.setattr(costs, "_logits", 0)
    free = asyncio.run(backend.generate(request)).usage.flops
    free += asyncio.run(backend.choose(choice)).usage.flops
    assert spent - free == sum(counted) / 2, "what is charged for logits is what was computed"
