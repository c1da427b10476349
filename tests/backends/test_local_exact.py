"""What the local backend computes with shared prefixes equals a recompute from scratch.

The reference is the whole stock model, run without a cache on the image and all the ids: it shares
nothing with the backend but the token ids. Negative controls break one thing each and must fail.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace

import pytest
import torch
from near import largest
from tiny_models import BUILDERS, picture

from cot_engine.backends.local import prefix, step
from cot_engine.backends.local.backend import LocalBackend
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Choose, Generate, Prompt, Sampling, Segment

ARCHITECTURES = sorted(BUILDERS)
STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
SAMPLING = Sampling(temperature=1.0, top_p=0.95, top_k=50)
LENGTHS = (6, 9, 12, 5)
CHOICES = ("A", "B")
TOLERANCE = 1e-4


@pytest.fixture
def load(checkpoints):
    with contextlib.ExitStack() as opened:
        yield lambda name: opened.enter_context(LocalBackend(checkpoints(name)))


@torch.inference_mode()
def scratch(backend, sequence, more=()):
    """Log-probabilities [tokens, vocabulary] by the stock model, without any cache."""
    model = backend.adapter.model
    ids = torch.tensor([[*sequence.ids, *more]])
    whole = replace(sequence, ids=tuple(ids[0].tolist()))
    inputs = backend.adapter.stock_inputs(ids, [whole]) if sequence.images else {}
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    return model(input_ids=ids, use_cache=False, **inputs).logits[0].float().log_softmax(-1)


def written_logprob(backend, request, generation):
    """Of a generation's ids after its request's prompt and prefix, from scratch."""
    sequence = backend._reply(request)
    logprobs = scratch(backend, sequence, generation.ids)
    at = len(sequence.ids) - 1
    return sum(logprobs[at + i, token].item() for i, token in enumerate(generation.ids))


@dataclass
class Seen:
    """What a search gave. `written` and `judged` are its differences from scratch, of candidates
    and of verdicts; the rest shows that there was something to get wrong."""

    written: list[float] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    verdicts: list[tuple[float, ...]] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)

    def worst(self):
        return largest([*self.written, *self.judged])


async def search(backend, images, stages=STAGES, check=True):
    """Stages of four candidates; a winner is carried on; judges see its text."""
    scope, seen = "s", Seen()
    prompt = Prompt("how many circle are there?", images)
    prefix = ()
    for number, stage in enumerate(stages):
        opened = (*prefix, Segment(f"<{stage}>"))
        request = Generate(
            scope,
            prompt,
            opened,
            Until((f"</{stage}>",)),
            tuple(100 * number + i for i in range(4)),
            LENGTHS[number],
            SAMPLING,
        )
        found = (await backend.generate(request)).generations
        seen.texts |= {g.text for g in found}
        seen.per_token += [g.logprob / len(g.ids) for g in found if g.ids]
        if check:
            seen.written += [written_logprob(backend, request, g) - g.logprob for g in found]
        tails = tuple(
            f" {a.text} or {b.text}?"
            for a, b in ((found[0], found[1]), (found[1], found[0]), (found[2], found[3]))
        )
        question = Choose(scope, prompt, tails, CHOICES, "answer ")
        chosen = await backend.choose(question)
        seen.verdicts += chosen.logprobs
        if check:
            firsts = backend._first_tokens(question)
            for sequence, got in zip(backend._questions(question), chosen.logprobs, strict=True):
                wanted = scratch(backend, sequence)[-1, firsts]
                seen.judged += (wanted - torch.tensor(got)).tolist()
        winner = max(found, key=lambda g: (len(g.ids), g.logprob))
        prefix = (*opened, Segment(winner.text, winner.ids), Segment(f"</{stage}>"))
    return seen


@pytest.mark.parametrize("count", [1, 0, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forked_equals_scratch(load, architecture, count):
    backend = load(architecture)
    images = tuple(picture(i, 40 + 30 * i, 28) for i in range(count))
    seen = asyncio.run(search(backend, images, STAGES if count == 1 else STAGES[:2]))
    assert seen.worst() < TOLERANCE
    # Something could have been wrong: what is written is neither certain nor anything at all, and
    # another question gets another verdict.
    assert len(seen.texts) > 6
    assert all(-6 < mean < -1 for mean in seen.per_token)
    assert len({round(a - b, 2) for a, b in seen.verdicts}) > 4


@pytest.mark.parametrize("architecture", ["llava", "mllama", "qwen3_vl", "gemma3"])
def test_as_on_a_gpu(load, monkeypatch, architecture):
    """Rows and columns padded to those of a graph, buffers used again, prompts read in parts."""
    monkeypatch.setattr(prefix, "CHUNK", 7)
    monkeypatch.setattr(step, "ROWS", (3, 6))
    backend = load(architecture)
    batch = backend.worker.batch
    batch.buckets = True
    steps, real = [], batch.step
    batch.step = lambda: (real(), steps.append(batch._step))[0]
    read, run = [], backend.worker.prefill.run
    backend.worker.prefill.run = lambda parts: (read.extend(p.size for p in parts), run(parts))
    seen = asyncio.run(search(backend, (picture(0), picture(1, 50, 70))))
    assert seen.worst() < TOLERANCE
    layouts = {(one.layout.rows, one.layout.groups, one.layout.width) for one in steps}
    assert (6, 3, 6) in layouts <= {(6, 3, 6), (3, 3, 3)}
    assert len(set(map(id, steps))) == len(batch._steps) < len(steps) / 3
    assert (max(read) <= 7) == backend.adapter.in_parts


# --- controls: one thing broken each --------------------------------------------------------------


def differs(backend, images):
    seen = asyncio.run(search(backend, images, STAGES[:2]))
    return seen.worst() > 100 * TOLERANCE


def position(backend, monkeypatch):
    """Every token that is written stands one place too far."""
    real = backend.adapter.forward

    def shifted(rows, *args, **kwargs):
        if rows.ids.shape[1] == 1:
            rows.rope = rows.rope + 1
        return real(rows, *args, **kwargs)

    monkeypatch.setattr(backend.adapter, "forward", shifted)


def mask(backend, monkeypatch):
    """Tokens that are written do not see the one before them."""
    real = backend.adapter.mask

    def blind(rows, columns):
        masks = real(rows, columns)
        for one in masks.values() if isinstance(masks, dict) else [masks]:
            if rows.ids.shape[1] == 1:
                for row, at in enumerate(rows.positions[:, 0].tolist()):
                    one[row, ..., at - 1] = float("-inf")
        return masks

    monkeypatch.setattr(backend.adapter, "mask", blind)


def other_picture(backend, monkeypatch):
    """Not the one that was asked about, but its mirror image."""
    real = backend.adapter.encode

    def mirrored(image):
        pixels = image.inputs["pixel_values"]
        flipped = pixels.flip(0) if pixels.ndim == 2 else pixels.flip(-1)
        return real(replace(image, inputs={**image.inputs, "pixel_values": flipped}))

    monkeypatch.setattr(backend.adapter, "encode", mirrored)


def kept(backend, monkeypatch):
    """Of what is kept of a candidate, each token has its neighbour's values."""
    real = backend.worker.batch.copy

    def mixed(*args):
        keys, values = real(*args).unbind(1)
        return torch.stack([keys, values.roll(1, dims=2)], 1)

    monkeypatch.setattr(backend.worker.batch, "copy", mixed)


# Of two that share an adapter, one: what is broken is the same code.
TWINS = {"mistral3", "qwen2_5_vl", "qwen3_vl_moe", "smolvlm", "glm4v_moe"}


@pytest.mark.parametrize("broken", [position, mask, other_picture, kept])
@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - TWINS))
def test_control(load, monkeypatch, architecture, broken):
    backend = load(architecture)
    broken(backend, monkeypatch)
    assert differs(backend, (picture(0),))


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen3_vl"])
def test_control_qwen_delta_ignored(load, monkeypatch, architecture):
    backend = load(architecture)
    real = backend.adapter.rope
    monkeypatch.setattr(backend.adapter, "rope", lambda *a: (real(*a)[0], 0))
    assert differs(backend, (picture(0, 90, 60),))


def test_control_mllama_vision_dropped_while_decoding(load, monkeypatch):
    backend = load("mllama")
    real = backend.adapter.extra
    monkeypatch.setattr(
        backend.adapter,
        "extra",
        lambda rows, cache: {} if rows.ids.shape[1] == 1 else real(rows, cache),
    )
    assert differs(backend, (picture(0),))


def test_control_mllama_mask_ignored(load, monkeypatch):
    """All tiles seen, padding tiles too."""
    backend = load("mllama")
    real = backend.adapter.encode

    def unmasked(image):
        features = real(image)
        features.seen[:] = True
        return features

    monkeypatch.setattr(backend.adapter, "encode", unmasked)
    assert differs(backend, (picture(0),))


def test_control_gemma_image_causal(load, monkeypatch):
    backend = load("gemma3")
    from cot_engine.backends.models.family import Adapter

    monkeypatch.setattr(
        backend.adapter, "mask", lambda rows, columns: Adapter.mask(backend.adapter, rows, columns)
    )
    assert differs(backend, (picture(0),))


def test_control_qwen3_deepstack_dropped(load, monkeypatch):
    backend = load("qwen3_vl")
    monkeypatch.setattr(backend.adapter, "extra", lambda rows, cache: {})
    assert differs(backend, (picture(0),))


def test_control_wrong_prefix(load):
    """The prefix of another image: found only if a prefix is really reused, and matters."""
    backend = load("llava")
    first, second = picture(0), picture(1)
    backend._prepared(first)
    asyncio.run(search(backend, (first,), check=False))
    scope = backend._scopes["s"]
    here, there = (-int(p.digest[:15], 16) - 1 for p in (first, second))
    for root in scope.roots.values():
        stack = [root]
        while stack:
            node = stack.pop()
            node.keys = tuple(there if k == here else k for k in node.keys)
            node.children = {there if k == here else k: c for k, c in node.children.items()}
            stack += node.children.values()
    assert differs(backend, (second,))
