"""Awaiting many at a time: no more than allowed, every result, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_engine.search.concurrency import bounded, gather


@given(waits=st.lists(st.integers(0, 4), max_size=20), at_once=st.integers(1, 6))
def test_bounded_keeps_to_its_number_and_hands_over_everything(waits, at_once):
    running, most, asked, done = 0, 0, 0, []

    async def one(index, steps):
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(steps):
            await asyncio.sleep(0)
        running -= 1
        return index

    def coroutines():
        nonlocal asked
        for index, steps in enumerate(waits):
            asked += 1
            assert asked - len(done) <= at_once  # not asked for before it can begin
            yield one(index, steps)

    asyncio.run(bounded(coroutines(), at_once, done.append))
    assert sorted(done) == list(range(len(waits)))
    assert most <= at_once and running == 0


@pytest.mark.parametrize(
    "many", [lambda c, seen: bounded(c, 3, seen.append), lambda c, _: gather(c)]
)
def test_a_failure_cancels_the_others(many):
    ended = []

    async def one(index):
        try:
            if index == 1:
                raise KeyError(index)
            await asyncio.sleep(60)
        finally:
            ended.append(index)

    with pytest.raises(KeyError):
        asyncio.run(many((one(i) for i in range(3)), []))
    assert sorted(ended) == [0, 1, 2]


def test_no_failure_is_left_to_be_complained_about():
    """An error that nobody fetches is printed by asyncio, with its traceback, when it is freed."""
    complaints = []

    async def fails(index):
        raise KeyError(index)

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, c: complaints.append(c))
        with pytest.raises(KeyError):
            await bounded((fails(i) for i in range(4)), 4, lambda _: None)
        gc.collect()

    asyncio.run(main())
    assert not complaints


def test_what_takes_the_results_may_stop_it():
    ended = []

    async def one(index):
        try:
            await asyncio.sleep(60 * index)
        finally:
            ended.append(index)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(bounded((one(i) for i in range(5)), 3, stop))
    assert sorted(ended) == [0, 1, 2]  # the last two were never begun
