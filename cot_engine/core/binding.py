"""Which model a verifier asks, where it is not the one that searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Binding:
    """A model as `Engine.from_pretrained` is told of one: its folder, its name or its address; by
    which `backend` it is opened (None: by the one that claims models called so), and that one's
    `parameters`. What is equal is opened once an engine, and closed with it."""

    model: str
    backend: str | None = None
    parameters: tuple[tuple[str, Any], ...] = ()
