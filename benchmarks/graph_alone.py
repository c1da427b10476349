"""A decode step of the language model and nothing else: what the hardware takes for it.

Keys and values lie in one tensor a layer that never moves, inputs in buffers that are written in
place; on a GPU the step is captured once as a CUDA graph and replayed, elsewhere it is called.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from cot_engine.backends.models.family import Adapter


class Still:
    """What a transformers model sees as its cache: [rows, heads, columns, dim] a layer."""

    is_compileable = False

    def __init__(self, adapter: Adapter, rows: int, columns: int) -> None:
        shape = adapter.kv_shape()
        size = (2, rows, shape.heads, columns, shape.dim)
        self.kv = {
            layer: torch.zeros(size, dtype=shape.dtype, device=shape.device)
            for layer in shape.layers
        }
        self.at = torch.tensor([columns - 1], device=shape.device)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        held = self.kv[layer]
        held[0].index_copy_(2, self.at, keys)
        held[1].index_copy_(2, self.at, values)
        return held[0], held[1]

    def get_seq_length(self, layer: int = 0) -> int:
        return 0


@torch.inference_mode()
def alone(adapter: Adapter, rows: int, columns: int, steps: int) -> float:
    """Seconds a step of `rows` rows that all have `columns` tokens: the last is fed, its logits
    come out, nothing is drawn. Raises torch.OutOfMemoryError."""
    device = adapter.device
    cache = Still(adapter, rows, columns)
    ids = torch.full((rows, 1), 5, device=device)
    positions = torch.full((rows, 1), columns - 1, device=device)
    mask = torch.zeros((rows, 1, 1, columns), dtype=adapter.dtype, device=device)

    def step() -> Any:
        hidden = adapter.lm(
            inputs_embeds=adapter.embed(ids),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return adapter.logits(hidden[:, 0])

    if device.type != "cuda":
        step()
        began = time.process_time()
        for _ in range(steps):
            step()
        return (time.process_time() - began) / steps
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is made at the first call is not captured
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        graph.replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps
