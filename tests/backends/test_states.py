"""States handed over while rows are written equal those of the stock model, run from scratch.

The reference shares nothing with the backend but the token ids. Controls break the order of rows,
the place and the sums, and must be noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest
import torch
from near import largest
from tiny_models import BUILDERS, picture

from cot_engine.backends.local import states
from cot_engine.backends.local.backend import LocalBackend
from cot_engine.backends.local.decode import Batch
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Generate, Prompt, Sampling, Segment, States
from cot_engine.errors import InputError

SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=0)
MARKS = (" red", " the", "e")
PICTURES = (picture(0),)


def ask(scope, layers, seeds, tokens=12, images=PICTURES, prefix="", **more):
    text = Prompt("how many circle are there?", images)
    before = (Segment(prefix),) if prefix else ()
    wanted = None if layers is None else States(layers, MARKS)
    until = Until(("never",))
    return Generate(
        scope, text, before, until, tuple(seeds), tokens, SAMPLING, states=wanted, **more
    )


@torch.inference_mode()
def scratch(backend, sequence, more, layers):
    """The states [layers, tokens, width] of all ids by the stock model."""
    model, adapter = backend.adapter.model, backend.adapter
    ids = torch.tensor([[*sequence.ids, *more]])
    whole = replace(sequence, ids=tuple(ids[0].tolist()))
    inputs = adapter.stock_inputs(ids, [whole]) if sequence.images else {}
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    seen, hooks = {}, []
    for layer in (*range(len(adapter.lm.layers)), -1):  # in step with what it is compared with
        module = adapter.lm.norm if layer == -1 else adapter.lm.layers[layer]

        def keep(module, given, made, layer=layer):
            seen[layer] = (made[0] if isinstance(made, tuple) else made)[0].float()

        hooks.append(module.register_forward_hook(keep))
    model(input_ids=ids, use_cache=False, **inputs)
    for hook in hooks:
        hook.remove()
    return torch.stack([seen[layer] for layer in layers])


def differences(backend, request, generations):
    """How far the states and sums of all places are from scratch, and how many marks there were."""
    found, marked = [], 0
    for each in generations:
        sequence = backend._reply(request)
        held, at = scratch(backend, sequence, each.ids, request.states.layers), len(sequence.ids)
        for place in each.places:
            if place.token > len(each.ids):
                continue  # the end, behind half a character that was not kept
            wanted = held[:, at + place.token - 1]
            found += (wanted - torch.tensor(place.values)).flatten().tolist()
            summed = held[:, at : at + place.token].sum(1) - torch.tensor(place.sums)
            found += (summed / place.token).flatten().tolist()
            marked += bool(place.mark)
    return largest(found), marked


async def several(backend, layers):
    """Requests that want states of different layers, beside one that wants none."""
    requests = [
        ask("a", layers[:1], (1, 2, 3)),
        ask("b", None, (4, 5), tokens=7),
        ask("c", layers, (6, 7), tokens=5, prefix="<CAPTION> the circle"),
        ask("d", layers[::-1], (8, 9), images=()),
    ]
    return requests, await asyncio.gather(*map(backend.generate, requests))


def worst(backend, layers):
    requests, answers = asyncio.run(several(backend, layers))
    marks, found = 0, []
    for request, answer in zip(requests, answers, strict=True):
        if request.states is None:
            assert all(not each.places for each in answer.generations)
            continue
        written = [each for each in answer.generations if len(each.ids) > 1]
        assert all(each.places and not each.places[-1].mark for each in written)
        far, marked = differences(backend, request, answer.generations)
        found.append(far)
        marks += marked
    assert marks >= 3
    return largest(found)


@pytest.mark.parametrize("architecture", sorted(BUILDERS))
def test_states_are_those_of_the_stock_model(checkpoints, architecture):
    with LocalBackend(checkpoints(architecture)) as backend:
        layers = (-1, backend.adapter.self_layers()[1])
        assert worst(backend, layers) < 1e-4


def test_what_was_drawn_and_what_it_cost_is_the_same_with_states(backend):
    plain, held = (
        asyncio.run(backend.generate(ask(f"s{layers}", layers, (1, 2, 3))))
        for layers in (None, (0, -1))
    )
    assert [each.ids for each in plain.generations] == [each.ids for each in held.generations]
    assert replace(plain.usage, seconds=0) == replace(held.usage, seconds=0)


def test_rows_that_lose_their_slot_lose_no_states(checkpoints, monkeypatch):
    """Out of memory once in the middle: half of the rows wait, and go on where they were."""
    with LocalBackend(checkpoints("llava")) as backend:
        step, calls = Batch.step, []

        def failing(batch):
            calls.append(len(batch.rows))
            if len(batch.rows) > 4 and len(calls) > 5:
                raise torch.OutOfMemoryError("out of memory")
            return step(batch)

        monkeypatch.setattr(Batch, "step", failing)
        assert worst(backend, (-1, 1)) < 1e-4
        assert any("Nothing was lost" in note for note in backend.info.notes)


@pytest.mark.parametrize("broken", ["order", "place", "sums"])
def test_broken_states_are_noticed(checkpoints, monkeypatch, broken):
    made = states.place

    def place(mark, token, held, of, logprob):
        if broken == "order":
            of = of[::-1] if len(of) > 1 else [(of[0] + 1) % 2]
        if broken == "sums":
            held = torch.stack([held[0], held[1] - held[0] / 2])
        return made(mark, token - (broken == "place" and token > 1), held, of, logprob)

    monkeypatch.setattr("cot_engine.backends.local.worker.place", place)
    with LocalBackend(checkpoints("llava")) as backend, contextlib.suppress(AssertionError):
        assert worst(backend, (-1, 1)) < 1e-4
        pytest.fail("nobody noticed")


def test_a_layer_that_there_is_not_is_refused(backend):
    with pytest.raises(InputError, match=r"layer 7 .* has layers 0 to 2"):
        asyncio.run(backend.generate(ask("s", (7,), (1,))))
