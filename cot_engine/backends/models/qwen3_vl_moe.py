"""Qwen3-VL with experts: a token goes through a few of them (`flops` counts those)."""

from __future__ import annotations

from cot_engine.backends.models.qwen3_vl import Qwen3VLAdapter


class Qwen3VLMoeAdapter(Qwen3VLAdapter):
    texts = ("qwen3_vl_moe_text",)
