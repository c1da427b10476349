"""An engine on the bundled model, drawing hotter than it is used to."""

from __future__ import annotations

import pytest

from cot_engine import Engine, Problem, scenes
from cot_engine.images.load import load_image

# Hot, because the bundled model is so sure that its candidates would not differ at 1.
HOT = {"temperature": 1.2, "top_p": 1.0, "top_k": 0}


@pytest.fixture(scope="module")
def engine():
    with Engine.from_pretrained() as engine:
        yield engine


@pytest.fixture(scope="module")
def problems():
    made = [scenes.sample(5, i, "val") for i in range(12)]
    return [Problem(p.id, p.question, (load_image(p.image),)) for p in made]
