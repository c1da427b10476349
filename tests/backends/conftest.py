"""Tiny models that several tests of the local backend load."""

from __future__ import annotations

import pytest
from tiny_models import build

from cot_engine.backends.local import loading


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    made = {}

    def checkpoint(architecture):
        if architecture not in made:
            folder = build(architecture, tmp_path_factory.mktemp(architecture))
            made[architecture] = loading.load(folder, device="cpu")
        return made[architecture]

    return checkpoint
