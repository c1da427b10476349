"""Nothing is left behind at the moment a failure arrives, not only when the loop ends."""

from __future__ import annotations

import asyncio

import pytest

from cot_engine.search.concurrency import bounded, cancel, gather


def held(many, fail=KeyError):
    """What still runs, in a loop that goes on, when `many` has raised; and what had ended."""
    ended = []

    async def one(index):
        try:
            if index == 1:
                raise fail(index)
            await asyncio.sleep(60)
        finally:
            ended.append(index)

    async def main():
        with pytest.raises(fail):
            await many(one(i) for i in range(3))
        # At once: asyncio.run would cancel what is left, and hide that nobody else did.
        return asyncio.all_tasks() - {asyncio.current_task()}, sorted(ended)

    return asyncio.run(main())


@pytest.mark.parametrize("fail", [KeyError, asyncio.CancelledError])
@pytest.mark.parametrize("many", [gather, lambda c: bounded(c, 3, lambda _: None)])
def test_when_one_fails_the_others_have_ended_before_it_is_told(many, fail):
    assert held(many, fail) == (set(), [0, 1, 2])


@pytest.mark.parametrize("many", [gather, lambda c: bounded(c, 2, lambda _: None)])
def test_when_the_caller_is_cancelled_so_are_all_in_flight(many):
    ended = []

    async def one(index):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(index)

    async def main():
        caller = asyncio.ensure_future(many(one(i) for i in range(2)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(main()) == set() and sorted(ended) == [0, 1]


def test_results_come_in_the_order_asked_whatever_ends_first():
    async def one(index):
        for _ in range(5 - index):
            await asyncio.sleep(0)
        return index

    assert asyncio.run(gather(one(i) for i in range(5))) == list(range(5))


def test_cancel_waits_for_what_takes_its_time_to_end():
    ended = []

    async def slow(index):
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(index)
            raise OSError(index)  # what fails while it ends is nobody's error any more

    async def main():
        tasks = [asyncio.ensure_future(slow(i)) for i in range(3)]
        await asyncio.sleep(0)
        await asyncio.wait_for(cancel(iter(tasks)), 20)
        return sorted(ended)

    assert asyncio.run(main()) == [0, 1, 2]


def test_each_result_is_handed_over_once():
    seen, begun = [], []

    async def one(index):
        begun.append(index)
        await asyncio.sleep(0)
        return index

    def took(index):
        assert index in begun and index not in seen
        seen.append(index)

    async def main():
        await bounded((one(i) for i in range(7)), 2, took)

    asyncio.run(asyncio.wait_for(main(), 20))
    assert sorted(seen) == list(range(7))
