"""What the local backend computes with shared prefixes equals a recompute from scratch.

The reference is the whole stock model, run without a cache on the image and all the ids: it shares
nothing with the backend but the token ids. Negative controls break one thing each and must fail.
"""

from __future__ import annotations

import asyncio

import pytest
import torch
from tiny_models import BUILDERS, build, picture
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from cot_engine.backends.local import LocalBackend
from cot_engine.boundaries import Until
from cot_engine.types import Choose, Generate, Prompt, Sampling, Segment

ARCHITECTURES = sorted(BUILDERS)
STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
SAMPLING = Sampling(temperature=1.0, top_p=0.95, top_k=50)
LENGTHS = (6, 9, 12, 5)
CHOICES = ("A", "B")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(architecture):
        if architecture not in made:
            made[architecture] = build(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return folder


@pytest.fixture
def load(folders):
    opened = []

    def loaded(architecture, **kwargs):
        opened.append(LocalBackend.load(folders(architecture), device="cpu", **kwargs))
        return opened[-1]

    yield loaded
    for backend in opened:
        backend.close()


@torch.inference_mode()
def scratch(backend, sequence, more=()):
    """Log-probabilities [tokens, vocabulary] by the stock model, without any cache."""
    model = backend.adapter.model
    ids = torch.tensor([[*sequence.ids, *more]])
    inputs = {}
    if sequence.images:
        wanted = (
            "pixel_values",
            "image_sizes",
            "image_grid_thw",
            "pixel_attention_mask",
            "aspect_ratio_ids",
            "aspect_ratio_mask",
        )
        together = [i.inputs for i in sequence.images]
        along = 1 if together[0]["pixel_values"].ndim >= 5 else 0
        if "image_sizes" in together[0]:  # LLaVA-NeXT: one row of patches per image
            patches = [i["pixel_values"][0] for i in together]
            most = max(len(p) for p in patches)
            pads = [torch.cat([p, torch.zeros(most - len(p), *p.shape[1:])]) for p in patches]
            inputs["pixel_values"] = torch.stack(pads)
            inputs["image_sizes"] = torch.cat([i["image_sizes"] for i in together])
        elif "aspect_ratio_ids" in together[0]:
            for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"):
                inputs[name] = torch.cat([i[name] for i in together], 1)
        else:
            for name in wanted:
                if name in together[0]:
                    inputs[name] = torch.cat(
                        [i[name] for i in together], along if "pixel" in name else 0
                    )
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (ids == backend.adapter.placeholder).int()
        if "gemma3" in model.config.model_type:
            inputs["token_type_ids"] = (ids == backend.adapter.placeholder).int()
        if "aspect_ratio_ids" in inputs:
            where = get_cross_attention_token_mask(ids[0].tolist(), backend.adapter.placeholder)
            tiles = [[int(torch.as_tensor(i["num_tiles"]).reshape(-1)[0]) for i in together]]
            dense = convert_sparse_cross_attention_mask_to_dense([where], tiles, 4, ids.shape[1])
            inputs["cross_attention_mask"] = torch.tensor(dense)
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    return model(input_ids=ids, use_cache=False, **inputs).logits[0].float().log_softmax(-1)


def written_logprob(backend, request, generation):
    """Of a generation's ids after its request's prompt and prefix, from scratch."""
    sequence = backend._reply(request)
    logprobs = scratch(backend, sequence, generation.ids)
    at = len(sequence.ids) - 1
    return sum(logprobs[at + i, token].item() for i, token in enumerate(generation.ids))


async def search(backend, images, stages=STAGES, check=True):
    """Stages of four candidates; a winner is carried on; judges see its text. Returns the largest
    difference from scratch, of candidates and of judges."""
    scope = "s"
    prompt = Prompt("how many circle are there?", images)
    prefix, worst, judged = (), 0.0, 0.0
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
        if check:
            worst = max(
                worst, *(abs(written_logprob(backend, request, g) - g.logprob) for g in found)
            )
        tails = tuple(
            f" {a.text} or {b.text}?"
            for a, b in ((found[0], found[1]), (found[1], found[0]), (found[2], found[3]))
        )
        question = Choose(scope, prompt, tails, CHOICES, "answer ")
        chosen = await backend.choose(question)
        if check:
            firsts = backend._first_tokens(question)
            for sequence, got in zip(backend._questions(question), chosen.logprobs, strict=True):
                wanted = scratch(backend, sequence)[-1, firsts]
                judged = max(judged, (wanted - torch.tensor(got)).abs().max().item())
        winner = max(found, key=lambda g: (len(g.ids), g.logprob))
        prefix = (*opened, Segment(winner.text, winner.ids), Segment(f"</{stage}>"))
    return worst, judged


@pytest.mark.parametrize("count", [1, 0, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forked_equals_scratch(load, architecture, count):
    backend = load(architecture)
    images = tuple(picture(i, 40 + 30 * i, 28) for i in range(count))
    worst, judged = asyncio.run(search(backend, images, STAGES if count == 1 else STAGES[:2]))
    assert worst < TOLERANCE
    assert judged < TOLERANCE


# --- controls: one thing broken each --------------------------------------------------------------


def differs(backend, images):
    worst, judged = asyncio.run(search(backend, images, STAGES[:2]))
    return max(worst, judged) > 100 * TOLERANCE


def test_control_positions_off_by_one(load, monkeypatch):
    backend = load("llava")
    real = backend.adapter.forward

    def shifted(rows, *args, **kwargs):
        if rows.ids.shape[1] == 1:
            rows.rope = rows.rope + 1
        return real(rows, *args, **kwargs)

    monkeypatch.setattr(backend.adapter, "forward", shifted)
    assert differs(backend, (picture(0),))


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
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
    from cot_engine.backends.adapters import Adapter

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
