"""Budgets and meters against arithmetic written out here."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_engine.core.usage import Usage
from cot_engine.errors import ConfigError
from cot_engine.search.budget import Budget, Meter, parse_budget, parse_unit

USAGES = st.builds(
    Usage,
    encodes=st.integers(0, 9),
    prefilled=st.integers(0, 10**6),
    cached=st.integers(0, 10**6),
    decoded=st.integers(0, 10**6),
    flops=st.integers(0, 10**15),
    calls=st.integers(0, 99),
    seconds=st.floats(0, 100),
)
UNITS = ("flops", "new tokens", "tokens", "calls", "seconds")


def amount_of(usage: Usage, unit: str) -> float:
    return {
        "flops": usage.flops,
        "new tokens": usage.decoded,
        "tokens": usage.prefilled + usage.decoded,  # cached ones were paid for before
        "calls": usage.calls,
        "seconds": 0.0,  # of a clock, not of usage
    }[unit]


@given(USAGES, USAGES, USAGES)
def test_usage_adds_up_field_by_field_and_is_measured_by_unit(a, b, c):
    for unit in UNITS:
        budget = Budget(1, unit)
        assert budget.of(a) == amount_of(a, unit)
        assert budget.of(a + b) == budget.of(a) + budget.of(b)
    for name in Usage.__dataclass_fields__:
        assert getattr(a + b, name) == getattr(a, name) + getattr(b, name)
    meter = Meter()
    for role, usage in (("generate", a), ("judge", b), ("generate", c)):
        meter.charge(role, usage)
    assert meter.usage == {"generate": a + c, "judge": b}
    for unit in UNITS:
        total = amount_of(a, unit) + amount_of(b, unit) + amount_of(c, unit)
        assert Budget(1, unit).of(meter.total) == total


@given(
    st.sampled_from(UNITS[:-1]),
    st.integers(1, 100),
    *[st.integers(0, 60)] * 3,
    st.sampled_from([0.25, 0.5, 1.0]),
)
def test_room_is_what_is_left_of_the_part_with_the_floor_kept_back(
    unit, amount, spent, floor, cost, upto
):
    field = {"flops": "flops", "new tokens": "decoded", "tokens": "prefilled", "calls": "calls"}
    some = [Usage(**{field[unit]: k}) for k in (spent, floor, cost)]
    meter = Meter(Budget(amount, unit))
    meter.charge("judge", some[0])
    assert meter.left == max(0, amount - spent)
    assert meter.room(some[1], upto) == min(amount - floor, amount * upto) - spent
    assert meter.room(some[1]) == amount - floor - spent
    assert meter.affords(some[2], some[1]) == (spent + cost + floor <= amount)
    assert meter.deadline(some[1], upto) is None
    meter.budget = Budget(spent + floor + cost, unit)  # to the last one
    assert meter.affords(some[2], some[1])
    assert not meter.affords(some[2] + Usage(**{field[unit]: 1}), some[1])


@given(
    st.integers(1, 100), st.integers(0, 120), st.booleans(), st.sampled_from([0.25, 0.75, 0.9, 1.0])
)
def test_of_seconds_what_the_clock_says_counts_and_usage_does_not(amount, passed, held, upto):
    now = [1000.0]
    meter = Meter(Budget(amount, "seconds"), clock=lambda: now[0])
    assert meter.seconds == 0
    now[0] += passed
    meter.charge("generate", Usage(decoded=10**6, seconds=1e6))
    floor = Usage(calls=1) if held else Usage()
    end = min(amount * (0.75 if held else 1), amount * upto)
    assert (meter.seconds, meter.left) == (passed, max(0, amount - passed))
    assert meter.room(floor, upto) == end - passed
    assert meter.deadline(floor, upto) == pytest.approx(1000 + end - 0.002, abs=1e-9)
    assert meter.deadline(floor) == meter.deadline(floor, 1.0) and meter.pace == 0
    # At the end of the time nothing is affordable, a moment before anything is.
    assert meter.affords(Usage(decoded=1), floor) == (passed < amount * (0.75 if held else 1))


def test_what_could_not_take_eight_steps_is_not_begun_but_the_conclusion_is():
    now = [0.0]
    meter = Meter(Budget(8, "seconds"), clock=lambda: now[0])
    for seconds, tokens, pace in ((3.0, 10, 0.3), (9.0, 10, 0.3), (0.5, 0, 0.3), (1.0, 4, 0.25)):
        meter.timed(seconds, tokens)
        assert meter.pace == pace, "the least that a token took"
    for at, held, free in (
        (3.9, True, True),
        (4.0, False, True),
        (7.9, False, True),
        (8, False, False),
    ):
        now[0] = at  # of 6 s, eight steps of a quarter of a second are 2
        assert meter.affords(Usage(), Usage(calls=1)) == held
        assert meter.affords(Usage(), Usage()) == free


def test_without_a_budget_there_is_no_end():
    meter = Meter()
    assert meter.left is None and meter.deadline(Usage(calls=1)) is None
    assert meter.room(Usage()) == float("inf") and meter.affords(Usage(flops=10**30), Usage())


# --- in words ------------------------------------------------------------------------------------

NAMES = {
    "flops": ("flops", "flop"),
    "new tokens": ("new tokens", "new token", "new"),
    "tokens": ("tokens", "token", "all tokens"),
    "seconds": ("seconds", "second", "s"),
    "calls": ("calls", "call"),
}
SCALES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
WAYS = ("{n}{scale} {name}", "  {n} {scale}{name} ", "{n}{scale}{name}")


@pytest.mark.parametrize("number", ["1", "007", "2.5", "3.", "1e3", "2.5E+2", "5e-2"])
def test_every_way_to_write_a_budget(number):
    for (unit, names), (scale, factor), way in itertools.product(
        NAMES.items(), SCALES.items(), WAYS
    ):
        for name in names:
            budget = parse_budget(way.format(n=number, scale=scale, name=name))
            assert budget == Budget(float(number) * factor, unit)


@pytest.mark.parametrize(
    "text",
    [
        *("", "12", "calls", "0 calls", "0.0 s", "-1 calls", "1e400 flops", ".5 s"),
        *("12 callss", "12 Calls", "12 x calls", "12 K calls", "twelve calls", "12 calls 3"),
        *("1 2 calls", "nan s", "inf s", "12 m s"),
    ],
)
def test_what_is_no_budget_is_refused_with_the_forms_there_are(text):
    with pytest.raises(ConfigError) as error:
        parse_budget(text)
    assert repr(text) in str(error.value)
    for form in ('"2e12 flops"', '"500 new tokens"', '"4000 tokens"', '"30 s"', '"12 calls"'):
        assert form in str(error.value)


def test_units_by_all_their_names():
    for unit, names in NAMES.items():
        assert [parse_unit(name) for name in names] == [unit] * len(names)
    for text in ("", "tokn", "Calls", "s "):
        with pytest.raises(ConfigError) as error:
            parse_unit(text)
        assert repr(text) in str(error.value)
        assert all(f" {name}" in str(error.value) for names in NAMES.values() for name in names)


@given(st.floats(1, 1e15), st.sampled_from(UNITS))
def test_a_budget_as_text_is_that_budget(amount, unit):
    again = parse_budget(str(Budget(amount, unit)))
    assert again.unit == unit and again.amount == pytest.approx(amount, rel=1e-5)
