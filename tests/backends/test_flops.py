"""FLOPs by formula against PyTorch's counter, on every architecture."""

from __future__ import annotations

import pytest
import torch
from tiny_models import BUILDERS, build, picture
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from cot_engine.backends.local.loading import load

# The counter knows the GPU's attention kernels; this is the CPU's.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *a, **kw: sdpa_flop(
        q, k, v
    )
}


def counted(act):
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as c:
        result = act()
    return result, c.get_total_flops()


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def adapter(request, tmp_path_factory):
    adapter = load(build(request.param, tmp_path_factory.mktemp("m")), device="cpu").adapter
    if hasattr(
        adapter.text, "num_experts_per_tok"
    ):  # else in one kernel, which the counter overlooks
        adapter.model.set_experts_implementation("eager")
    return adapter


@pytest.mark.parametrize("size", [(40, 28), (90, 30), (20, 70)])
def test_vision(adapter, size):
    pixels = adapter.prepare(picture(0, *size).pixels, "0" * 64)
    _, real = counted(lambda: adapter.encode(pixels))
    assert adapter.image_flops(pixels) == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize(("tokens", "context"), [(96, 0), (32, 64), (1, 127)])
def test_language(adapter, tokens, context):
    """Prefill from nothing, prefill behind a prefix, one decoded token."""
    from cot_engine.backends.local.kv import RowCache, Slots
    from cot_engine.backends.models.family import Pass

    flops = adapter.flops
    pixels = adapter.prepare(picture(0).pixels, "0" * 64)
    images = [pixels] if adapter.prompt_depends_on_images else []
    with torch.inference_mode():
        seen = tuple(adapter.encode(image) for image in images)
    slots = Slots(adapter.kv_shape())
    slots.renew(1, context + tokens)
    positions = context + torch.arange(tokens)[None]
    ids = torch.ones(1, tokens, dtype=torch.long)
    rows = Pass(ids, positions, positions, [], [(seen, (0,) * len(seen))])
    cache = RowCache(slots, 1, context + tokens)
    cache.place(positions)
    hidden, real = counted(lambda: adapter.forward(rows, cache))
    assert flops.prefill(tokens, context, adapter.crossed(images)) == pytest.approx(real, rel=0.02)
    _, head = counted(lambda: adapter.logits(hidden[:, -1]))
    assert flops.head(1) == pytest.approx(head, rel=0.02)


def test_steps_add_up(adapter):
    flops = adapter.flops
    one_by_one = sum(flops.step(50 + i, 7) for i in range(9))
    assert flops.steps(50, 10, 7) == one_by_one
