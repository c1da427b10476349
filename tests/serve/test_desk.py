"""Who may search, when, and what became of it: on a scripted model, without HTTP."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from serving import TRAINED, Gate, picture, scripted

from cot_engine import ConfigError, ImageError, InputError, UnknownNameError
from cot_engine.core.events import Failed, Finished, Grown, Progress, Started
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage
from cot_engine.images.load import load_image
from cot_engine.search.budget import parse_budget
from cot_engine.serve.desk import Busy, Cancelled, Desk, Late
from cot_engine.serve.limits import Allowance, Limits
from cot_engine.serve.quota import Quota
from cot_engine.serve.turns import Turns


def on_a_desk(act, limits=None, backend=None, in_flight=2):
    """Run act(desk) in a loop of its own."""

    async def main():
        desk = Desk(engine, limits or Limits(grace=5))
        try:
            return await act(desk)
        finally:
            if backend is not None and hasattr(backend, "open"):
                backend.open.set()
            await desk.close()

    with scripted(backend, in_flight) as engine:
        return asyncio.run(asyncio.wait_for(main(), 60))


async def opened(desk, client="a", question="How many?", pictures=(), **options):
    return await desk.open(client, pictures, question, {**TRAINED, **options})


async def until(condition):
    while not condition():
        await asyncio.sleep(0.002)


# --- one search ----------------------------------------------------------------------------------


def test_events_are_replayed_from_the_first_and_the_trace_is_the_engines():
    async def act(desk):
        ticket = await opened(desk, pictures=[picture()])
        live = [event async for event in ticket.events() if not isinstance(event, Progress)]
        answer = await ticket.answer()
        trace = answer.trace.canonical()
        await until(lambda: ticket.size)  # on the shelf
        again = [event async for event in ticket.events()]
        assert (await ticket.answer()).text == answer.text
        assert not (await ticket.answer()).problem.images, "no pixels are kept"
        return desk, ticket, live, answer, trace, again

    desk, ticket, live, answer, trace, again = on_a_desk(act)
    assert isinstance(live[0], Started) and isinstance(live[-1], Finished)
    assert Trace(live).canonical() == trace == Trace(again).canonical()
    assert ticket.trace.canonical() == trace
    assert desk.ticket(ticket.id) is ticket and answer.text == live[-1].answer
    assert ticket.usage == answer.usage and not ticket.problem.images
    with scripted() as engine:  # alone, and by the engine itself
        alone = engine.solve(picture(), "How many?", **TRAINED)
    assert alone.trace.canonical() == trace


def test_what_a_search_raises_its_answer_raises():
    async def act(desk):
        ticket = await opened(desk, budget="3 new tokens")
        heard = [event async for event in ticket.events()]
        with pytest.raises(Exception, match="cannot pay for an answer"):
            await ticket.answer()
        return heard

    assert isinstance(on_a_desk(act)[-1], Failed)


def test_a_cancelled_search_ends_and_gives_its_place_back():
    async def act(desk):
        running, waiting, third = [await opened(desk, question=q) for q in ("1", "2", "3")]
        await until(lambda: running.trace is not None)
        waiting.cancel()
        with pytest.raises(Cancelled, match="before it began"):
            await waiting.answer()
        assert desk.waiting == 1 and third.state == "waiting"
        running.cancel()
        heard = [event async for event in running.events()]
        with pytest.raises(Cancelled):
            await running.answer()
        backend.open.set()
        await third.answer()
        running.cancel()  # over: nothing happens
        return heard, desk.running

    backend = Gate()
    heard, running = on_a_desk(act, backend=backend, in_flight=1)
    assert isinstance(heard[-1], Failed) and running == 0


def test_a_search_has_no_longer_than_it_may():
    async def act(desk):
        ticket = await opened(desk)
        with pytest.raises(Late, match=r"after 0\.05 seconds"):
            await ticket.answer()

    on_a_desk(act, Limits(seconds=0.05, grace=5), Gate())


# --- whose turn it is ----------------------------------------------------------------------------


def test_places_go_round_the_clients():
    """One client with ten searches and one with two: the second does not wait for the first."""

    async def act(desk):
        order = []
        desk.on_over.append(lambda ticket: order.append(ticket.client))
        tickets = [await opened(desk, "many", f"m{k}") for k in range(10)]
        tickets += [await opened(desk, "few", f"f{k}") for k in range(2)]
        assert desk.running == 1 and desk.waiting == 11
        backend.open.set()
        for ticket in tickets:
            await ticket.answer()
        assert not desk.turns.places, "all were given back"
        return order

    backend = Gate()
    order = on_a_desk(act, backend=backend, in_flight=1)
    assert order == ["many", "few", "many", "few", *["many"] * 8]


def test_turns_are_bounded_and_who_has_most_makes_room():
    turns = Turns(3)
    assert [turns.put("a", k) for k in range(3)] == [None, None, None]
    assert turns.put("a", 3) == 3, "nobody has more than this one"
    assert turns.put("b", 4) == 2, "the latest of who has most"
    assert turns.put("b", 5) == 5 and len(turns) == 3
    assert [turns.take() for _ in range(4)] == [("a", 0), ("b", 4), ("a", 1), None]
    turns.leave("a"), turns.leave("a"), turns.leave("b")
    assert not turns.places and not turns._served and not turns._waiting


def test_a_full_queue_says_when_to_ask_again():
    async def act(desk):
        await opened(desk), await opened(desk)
        with pytest.raises(Busy, match="1 searches are running and 1 wait") as busy:
            await opened(desk)
        assert busy.value.why == "full" and 1 <= busy.value.retry_after <= 60
        with pytest.raises(Busy):  # a has one that waits, b none: that is no crowd
            await opened(desk, "b")

    on_a_desk(act, Limits(queue=1, grace=5), Gate(), in_flight=1)


def test_one_who_crowds_the_queue_is_handed_back_for_one_who_has_nothing_there():
    async def act(desk):
        crowd = [await opened(desk, "a", f"{k}") for k in range(4)]
        other = await opened(desk, "b")
        with pytest.raises(Busy):
            await crowd[-1].answer()
        backend.open.set()
        await other.answer()
        return [(await ticket.answer()).text for ticket in crowd[:-1]]

    backend = Gate()
    assert len(on_a_desk(act, Limits(queue=3, grace=5), backend, in_flight=1)) == 3


def test_pictures_that_wait_are_bounded_in_pixels():
    async def act(desk):
        await opened(desk, pictures=[picture(size=(40, 40))])
        with pytest.raises(Busy, match="1,600 pixels"):
            await opened(desk, pictures=[picture(size=(40, 40))])
        await (await opened_first(desk)).answer()
        await opened(desk, pictures=[picture(size=(40, 40))])  # there is room again

    async def opened_first(desk):
        ticket = await opened(desk, question="without one")
        backend.open.set()
        return ticket

    backend = Gate()
    on_a_desk(act, Limits(held=3000, grace=5), backend, in_flight=1)


def test_pictures_are_counted_as_they_are_read_not_after_all_are():
    read = []

    def reading(size):
        read.append(size)
        return load_image(picture(size=size))

    async def act(desk):
        first = await opened(desk, pictures=[picture(size=(40, 40))])
        many = [partial(reading, (30, 30)), partial(reading, (40, 40)), partial(reading, (50, 50))]
        with pytest.raises(Busy, match="2,500 pixels"):
            await opened(desk, "b", pictures=many)
        assert read == [(30, 30), (40, 40)], "what there is no room for is not read"
        assert desk._held == 1600, "nothing is held of what was refused"
        backend.open.set()
        await first.answer()
        read.clear()
        await (await opened(desk, "b", pictures=many)).answer()  # alone it may have all
        assert len(read) == 3 and not desk._held

    backend = Gate()
    on_a_desk(act, Limits(held=3000, grace=5), backend, in_flight=1)


# --- what may be asked ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"budget": "2000 new tokens"}, ConfigError, "the most for one search is 1000 new tokens"),
        ({"budget": "3 seconds"}, ConfigError, "Give it in new tokens, up to 1000"),
        ({"budget": 3}, ConfigError, "The budget is 3"),
        ({"strategy": "stage-beam", "parameters": {"n": 5}}, ConfigError, "n is 5; the most"),
        ({"strategy": "stage-been"}, UnknownNameError, "stage-beam"),
        ({"strategy": False}, ConfigError, "Give its name"),
        ({"plan": "/etc/passwd"}, ConfigError, "names nothing here"),
        ({"allow_url": True}, ConfigError, "the server's"),
        ({"model": "other"}, ConfigError, "option of the engine"),
        ({"judge": "nobody"}, UnknownNameError, "judge"),
        (
            {"strategy": "best-of-n", "parameters": {"verifier": "/nowhere/secret.toml"}},
            *(ConfigError, "secret.toml' is not for a client to name"),  # and not looked for
        ),
    ],
)
def test_options_beyond_what_a_client_may_are_refused(options, error, said):
    async def act(desk):
        with pytest.raises(error, match=said):
            await opened(desk, **options)
        assert not desk._tickets and not desk._held

    on_a_desk(act, Limits(allowance=Allowance("1000 new tokens", n=4)))


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        ([picture()] * 3, "There are 3 pictures; the most is 2"),
        ([picture(size=(101, 10))], "the limit is 1,000"),
        (["/etc/passwd"], "none are fetched here"),
        ([b""], "is empty"),
        ([b"%PDF-1.4"], "a PDF"),
    ],
)
def test_pictures_that_will_not_do_are_refused(pictures, said):
    async def act(desk):
        with pytest.raises((InputError, ImageError), match=said):
            await opened(desk, pictures=pictures)

    on_a_desk(act, Limits(pictures=2, pixels=1000))


def test_a_path_is_no_picture_even_where_addresses_are_fetched(tmp_path):
    path = tmp_path / "mine.png"
    path.write_bytes(picture())

    async def act(desk):
        for name in (str(path), f"file://{path}"):
            with pytest.raises(ImageError, match="Send its data"):
                await opened(desk, pictures=[name])

    on_a_desk(act, Limits(allow_url=True))


def test_a_search_without_a_budget_has_the_most_there_may_be():
    async def act(desk):
        ticket = await opened(desk)
        return ticket.call.budget, await ticket.answer()

    budget, answer = on_a_desk(act, Limits(allowance=Allowance("200 new tokens")))
    assert str(budget) == "200 new tokens" and answer.left is not None


def test_a_clients_total_is_held_before_and_settled_after():
    async def act(desk):
        ticket = await opened(desk, budget="60 new tokens")
        with pytest.raises(Busy, match="60 new tokens are not left") as busy:
            await opened(desk, budget="60 new tokens")
        assert busy.value.why == "spent" and 0 < busy.value.retry_after <= 50
        with pytest.raises(Busy):  # a user of the same address
            await opened(desk, "a/somebody", budget="60 new tokens")
        await opened(desk, "other", budget="60 new tokens")
        backend.open.set()
        answer = await ticket.answer()
        spent = sum(answer.usage.values(), Usage()).decoded
        assert desk.quota.spent("a") == spent < 60
        await (await opened(desk, budget=f"{100 - spent} new tokens")).answer()
        now[0] += 50
        await (await opened(desk, budget="100 new tokens")).answer()

    async def timed(desk):
        desk.quota.clock = lambda: now[0]
        await act(desk)

    now = [0.0]
    allowance = Allowance("100 new tokens", "100 new tokens", per=50)
    backend = Gate()
    on_a_desk(timed, Limits(allowance=allowance, grace=5), backend)


def test_a_search_that_is_broken_off_has_cost_its_budget():
    async def act(desk):
        waiting = [await opened(desk, budget="60 new tokens") for _ in range(2)][1]
        waiting.cancel()
        assert desk.quota.spent("a") == 0
        [running] = desk._running
        await until(lambda: running.trace is not None)
        running.cancel()
        await until(lambda: not desk.running)
        return desk.quota.spent("a")

    allowance = Allowance("100 new tokens", "200 new tokens")
    assert on_a_desk(act, Limits(allowance=allowance, grace=5), Gate(), in_flight=1) == 60


def test_seconds_are_counted_by_the_clock():
    quota, allowance = Quota(), Allowance("10 s", "12 s")
    budget = parse_budget("10 s")
    assert quota.hold("a", allowance, budget) is None
    quota.settle("a", budget, Usage(decoded=99), 3.0)
    assert quota.spent("a") == 3.0 and quota.hold("a", allowance, budget) > 0
    assert quota.hold("b", allowance, budget) is None
    quota.settle("b", budget, Usage())  # it never began
    assert quota.hold("b", allowance, budget) is None


def test_a_total_needs_a_bound_in_its_unit():
    with pytest.raises(ConfigError, match="Give both in the same unit"):
        Allowance(budget="3 seconds", total="100 new tokens")
    with pytest.raises(ConfigError, match="not limited"):
        Allowance(total="100 new tokens")


# --- what is kept --------------------------------------------------------------------------------


def test_traces_are_kept_within_a_bound():
    async def act(desk):
        tickets = [await opened(desk, question=f"q{k}") for k in range(5)]
        for ticket in tickets:
            await ticket.answer()
        await until(lambda: all(t.size for t in tickets) and not desk._tickets)
        kept = [t for t in tickets if desk.ticket(t.id)]
        assert desk.shelf.bytes == sum(t.size for t in kept)
        return len(kept), max(t.size for t in tickets)

    count, size = on_a_desk(act, Limits(traces=3))
    assert count == 3
    assert on_a_desk(act, Limits(trace_bytes=2 * size + size // 2))[0] == 2
    assert on_a_desk(act, Limits(trace_bytes=0))[0] == 0


def test_a_folder_keeps_every_trace_for_who_asked(tmp_path):
    async def act(desk):
        ticket = await opened(desk, "someone", pictures=[picture()])
        trace = (await ticket.answer()).trace.canonical()
        await until(lambda: not desk._tickets)
        assert desk.ticket(ticket.id) is None, "no longer in memory"
        lines = await desk.trace("someone", ticket.id)
        assert await desk.trace("another", ticket.id) is None
        assert await desk.trace("someone", "../someone/x") is None
        return trace, Trace.parse(lines, "it").canonical(), ticket.id

    made, read, id = on_a_desk(act, Limits(trace_bytes=0, folder=tmp_path))
    assert made == read
    assert Trace.read(tmp_path / "someone" / f"{id}.jsonl").canonical() == made


# --- the end -------------------------------------------------------------------------------------


def test_closing_hands_back_what_waits_and_lets_end_what_runs():
    async def act(desk):
        running, waiting = await opened(desk), await opened(desk)
        closing = asyncio.ensure_future(desk.close())
        with pytest.raises(Busy, match="closing") as busy:
            await waiting.answer()
        assert busy.value.why == "closing"
        with pytest.raises(Busy, match="closing"):
            await opened(desk)
        backend.open.set()
        assert (await running.answer()).text
        await closing

    backend = Gate()
    on_a_desk(act, backend=backend, in_flight=1)


def test_what_does_not_end_in_time_is_handed_back():
    async def act(desk):
        running = await opened(desk)
        await until(lambda: running.trace is not None)
        await desk.close(0.01)
        with pytest.raises(Busy, match="closing"):
            await running.answer()
        assert not any(isinstance(event, Grown) for event in running.trace)

    on_a_desk(act, backend=Gate(), in_flight=1)
