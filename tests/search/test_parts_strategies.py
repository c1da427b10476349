"""Whatever a strategy yields, returns or is."""

from __future__ import annotations

import pytest
from broken_parts import REQUESTS, RETURNED, Doing, asking, broken

from cot_engine.search.strategy import Expand
from cot_engine.testing import ScriptedBackend


@pytest.mark.parametrize("said", REQUESTS)
def test_what_a_strategy_asks_is_checked_before_the_model_is_asked(said):
    backend = ScriptedBackend()
    text = broken(said, strategy=Doing(asking(REQUESTS[said])), backend=backend)
    assert "The strategy Doing" in text
    assert len(backend.requests) == 1  # the sound one before it


@pytest.mark.parametrize("said", RETURNED)
def test_what_a_strategy_returns_is_a_chain_of_its_search(said):
    def act(task):
        grown = yield Expand(task.start, until="end", n=2)
        return RETURNED[said](grown)

    broken(said, strategy=Doing(act))


def test_what_is_no_generator():
    class Plain:
        def search(self, task):
            return task.start[0]

    class Coroutine:
        async def search(self, task):
            return task.start[0]

    class Asynchronous:
        async def search(self, task):
            yield Expand(task.start, until="end")

    for kind in (Plain, Coroutine, Asynchronous):
        assert f"The strategy {kind.__name__}" in broken("as its search", strategy=kind())


def test_a_strategy_is_closed_when_its_search_fails_and_may_not_hide_why():
    ended = []

    def act(task):
        try:
            yield Expand(task.start, until="end")
            yield 3
        finally:
            ended.append(True)
            raise ValueError("from its clean-up")

    broken("yielded 3", strategy=Doing(act))
    assert ended
