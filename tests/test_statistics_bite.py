"""Statistics at their edges: defaults, bounds, denominators, and what is held at once."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cot_engine import statistics as stats
from cot_engine.errors import InputError

NAN = math.nan


def column(*values):
    return np.array(values, dtype=float)[:, None]


# --- intervals of shares -------------------------------------------------------------------------


def test_a_share_stays_a_share():
    for total in range(1, 400):
        assert 0 <= stats.wilson(0, total)[0] < 1e-12
        assert 1 - 1e-12 < stats.wilson(total, total)[1] <= 1
    # What rounding left beyond the ends counts as the end.
    assert stats.wilson(-1e-10, 10) == stats.wilson(0, 10)
    assert stats.wilson(10 + 1e-10, 10) == stats.wilson(10, 10)
    for right, total in ((-1e-8, 10), (10 + 1e-8, 10), (1, 0)):
        with pytest.raises(InputError, match=f"{right} of {total}"):
            stats.wilson(right, total)


@given(st.floats(0, 1), st.integers(1, 500), st.sampled_from([0.5, 0.8, 0.95]))
def test_wilsons_ends_solve_its_equation(share, total, level):
    """The ends are where (share - p)^2 = z^2 p (1 - p) / n."""
    z = {0.5: 0.674489750196, 0.8: 1.281551565545, 0.95: 1.959963984540}[level]
    for end in stats.wilson(share * total, total, level):
        assert (share - end) ** 2 == pytest.approx(z * z * end * (1 - end) / total, abs=1e-9)


# --- defaults ------------------------------------------------------------------------------------


def test_what_nobody_asks_for_is_95_percent_of_10000_draws_of_seed_0():
    rng = np.random.default_rng(1)
    a, b = rng.random((40, 2)), rng.random((40, 2))
    usual = {"level": 0.95, "draws": 10_000, "seed": 0}
    for call in (lambda **o: stats.accuracy(a, **o), lambda **o: stats.paired(a, b, **o)):
        assert call() == call(**usual)
        for other in ({"level": 0.9}, {"draws": 9_999}, {"draws": 10_001}, {"seed": 1}):
            assert call() != call(**usual | other)
    assert stats.needed(0.02, 0.3) == stats.needed(0.02, 0.3, level=0.95, power=0.8) == 1766
    assert stats.visible(1766, 0.3) == pytest.approx(0.02, rel=1e-3)
    assert stats.wilson(3, 7) == stats.wilson(3, 7, 0.95)


@pytest.mark.parametrize("level", [0.499, 1.0, 1.5, -0.5, NAN])
def test_levels_that_are_none(level):
    for call in (
        lambda: stats.accuracy(column(0, 1), level=level),
        lambda: stats.paired(column(0, 1), column(1, 1), level=level),
        lambda: stats.accuracy(column(), level=level),
        lambda: stats.wilson(1, 2, level),
        lambda: stats.needed(0.1, 0.1, level=level),
        lambda: stats.visible(10, 0.1, level=level),
    ):
        with pytest.raises(InputError, match=f"level of {level}"):
            call()
    assert stats.wilson(1, 2, 0.5)[0] > stats.wilson(1, 2, 0.51)[0]


def test_draws_and_powers_that_are_none():
    assert stats.accuracy(column(0, 1), draws=100)
    with pytest.raises(InputError, match=r"99 draws.*10,000"):
        stats.accuracy(column(0, 1), draws=99)
    for power in (0.5, 1.0, 1.2, NAN):
        with pytest.raises(InputError, match=f"power of {power}"):
            stats.needed(0.1, 0.1, power=power)
    assert stats.needed(0.1, 0.1, power=0.51) < stats.needed(0.1, 0.1, power=0.99)


@pytest.mark.parametrize("values", [column(-0.001), column(1.001), column(-math.inf), np.zeros(3)])
def test_scores_off_the_scale_are_refused(values):
    with pytest.raises(InputError):
        stats.accuracy(values)


@pytest.mark.parametrize("ps", [[-0.001], [1.001], [0.5, NAN], [0.2, -1, 0.3]])
def test_p_values_that_are_none(ps):
    with pytest.raises(InputError, match="not p values"):
        stats.holm(ps)


def test_holm_written_out():
    assert stats.holm([0.0, 1.0]) == [0.0, 1.0]
    assert stats.holm([0.01, 0.02, 0.3, 0.015]) == pytest.approx([0.04, 0.045, 0.3, 0.045])
    assert stats.holm([0.4, 0.3]) == pytest.approx([0.6, 0.6])


def test_mcnemar_written_out():
    for first, second in itertools.product(range(9), repeat=2):
        n = first + second
        tail = sum(math.comb(n, k) for k in range(min(first, second) + 1)) / 2**n
        assert stats.mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))
    for counts in ((-1, 0), (0, -1)):
        with pytest.raises(InputError, match="not counts"):
            stats.mcnemar(*counts)


@given(st.floats(0.001, 0.9), st.floats(0.01, 1), st.sampled_from([(0.95, 0.8), (0.8, 0.9)]))
def test_what_it_takes_written_out(effect, sd, asked):
    level, power = asked
    z = {0.95: 1.959963984540, 0.8: 1.281551565545}[level]
    z += {0.8: 0.841621233573, 0.9: 1.281551565545}[power]
    exact = (z * sd / effect) ** 2
    assert stats.needed(effect, sd, level=level, power=power) == pytest.approx(exact, abs=1.001)
    assert stats.needed(effect, sd, level=level, power=power) >= exact - 1e-6
    seen = stats.visible(50, sd, level=level, power=power)
    assert seen == pytest.approx(z * sd / math.sqrt(50), rel=1e-9)


def test_what_no_number_of_problems_shows():
    assert stats.needed(0.1, 0.0) is None and stats.needed(0.1, NAN) is None
    for effect in (0, NAN):
        with pytest.raises(InputError, match="effect of"):
            stats.needed(effect, 0.1)
    with pytest.raises(InputError, match="0 problems"):
        stats.visible(0, 0.1)
    assert stats.visible(1, 0.1) > 0
    assert stats.needed(stats.visible(100, 0.3), 0.3) == 100, "rounding makes no hundred and first"


# --- pairs ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.49, 0.5, 1.0, NAN])] * 2), max_size=12))
def test_shares_and_spread_of_pairs_written_out(cells):
    a, b = (np.array([c[k] for c in cells], float).reshape(-1, 1) for k in (0, 1))
    got = stats.paired(a, b, draws=100)
    both = [(x, y) for x, y in cells if not math.isnan(x - y)]
    n = max(1, len(both))
    assert got.only_first == sum(x >= 0.5 > y for x, y in both) / n
    assert got.only_second == sum(y >= 0.5 > x for x, y in both) / n
    assert got.both == sum(x >= 0.5 and y >= 0.5 for x, y in both) / n
    assert got.neither == sum(x < 0.5 and y < 0.5 for x, y in both) / n
    if len(both) > 1:
        spread = np.std([x - y for x, y in both], ddof=1)
        assert got.sd == pytest.approx(spread, abs=1e-12)
    else:
        assert math.isnan(got.sd)


def test_half_a_problem_is_added_at_the_largest_difference_seen_or_at_1():
    n = 40
    third = np.zeros((n, 3))
    third[:6, 0] = 1  # two kinds of problems: 1/3 and none
    got = stats.paired(third, np.zeros((n, 3))).difference
    small = stats.paired(third / 100, np.zeros((n, 3))).difference
    assert got.high < 1 / 6 and got.low < 0.05
    assert (small.low, small.high) == pytest.approx((got.low / 100, got.high / 100), rel=1e-6)
    alike = stats.paired(third, third).difference
    assert alike.high == -alike.low > 0.05, "where no two differ they might by 1"
    same = stats.paired(third * 0 + 1, third * 0).difference
    assert (same.high, same.estimate) == (1, 1) and 0.8 < same.low < 1


def test_no_problem_at_all():
    for values in (np.zeros((0, 2)), np.full((3, 2), NAN)):
        got = stats.accuracy(values)
        assert math.isnan(got.estimate) and (got.low, got.high) == (0, 1)
    got = stats.paired(np.full((3, 1), NAN), np.zeros((3, 1)))
    assert (got.problems, got.seeds, got.p) == (0, 0, 1.0)
    assert (got.difference.low, got.difference.high) == (-1, 1)


@pytest.mark.parametrize("shape", [((3, 1), (4, 1)), ((3, 1), (3, 2))])
def test_shapes_that_do_not_pair(shape):
    first, second = shape
    with pytest.raises(InputError, match=rf"\({first[0]}, {first[1]}\) and \({second[0]}"):
        stats.paired(np.zeros(first), np.zeros(second))


def exact(d):
    signs = np.array(list(itertools.product((-1, 1), repeat=len(d))))
    sums = np.abs(signs @ np.abs(d))
    return float(np.mean(sums >= abs(d.sum()) - 1e-9))


@pytest.mark.parametrize("denominators", [(1,), (2,), (59,), (60,), (3, 4, 5), (4, 15), (2, 30)])
def test_p_is_exact_for_every_denominator_up_to_60(denominators):
    rng = np.random.default_rng(4)
    for _ in range(12):
        d = np.array([rng.integers(-k, k + 1) / k for k in rng.choice(denominators, size=8)])
        assert stats._exchange(d) == pytest.approx(exact(d), abs=1e-12)


def test_p_beyond_them_is_as_near_as_the_grid():
    rng = np.random.default_rng(5)
    for _ in range(6):
        d = rng.uniform(-1, 1, size=10)
        assert stats._exchange(d) == pytest.approx(exact(d), abs=2e-3)
    assert stats._exchange(np.zeros(4)) == 1.0
    assert stats._exchange(np.array([1.0, 1.0, 1.0, 0.0, 1.0])) == 2 / 16


def test_p_of_many_problems_of_small_denominators_stays_exact_and_small():
    d = np.array([1 / 3] * 900 + [-1 / 3] * 800 + [0.0] * 500)
    assert stats._exchange(d) == pytest.approx(stats.mcnemar(900, 800), rel=1e-9)
    assert stats._exchange(d * 3) == pytest.approx(stats.mcnemar(900, 800), rel=1e-9)


# --- resampling ----------------------------------------------------------------------------------


class Spy:
    """A generator that tells how it is asked."""

    def __init__(self, rng):
        self.rng, self.asked = rng, []

    def multinomial(self, n, weights, size):
        self.asked.append(("counts", size, size * len(weights)))
        return self.rng.multinomial(n, weights, size=size)

    def integers(self, high, size):
        self.asked.append(("values", size[0], size[0] * size[1]))
        return self.rng.integers(high, size=size)


@pytest.mark.parametrize("cells", [300, 4000, 2**22])
@pytest.mark.parametrize(("distinct", "n"), [(2, 50), (4, 41), (5, 50), (30, 50)])
def test_sums_are_drawn_by_counts_where_few_values_differ_and_never_too_many_at_once(
    monkeypatch, distinct, n, cells
):
    made, real = [], np.random.default_rng
    monkeypatch.setattr(
        stats.np.random, "default_rng", lambda s: made.append(Spy(real(s))) or made[0]
    )
    monkeypatch.setattr(stats, "CELLS", cells)
    support, weights = np.arange(distinct) / distinct, np.full(distinct, 1 / distinct)
    pool = np.repeat(support, 20)
    sums = stats._sums(pool, support, weights, n, 777, 3)
    (spy,) = made
    assert sums.shape == (777,) == (sum(many for _, many, _ in spy.asked),)
    few = 10 * distinct < n
    assert {kind for kind, *_ in spy.asked} == {"counts" if few else "values"}
    width = distinct if few else n
    assert all(held <= max(cells, width) for *_, held in spy.asked)
    assert len(spy.asked) == math.ceil(777 / max(1, cells // width))
    error = math.sqrt(n * support.var() / 777)
    assert abs(sums.mean() - n * support.mean()) < 5 * error
    assert sums.std() == pytest.approx(math.sqrt(n * support.var()), rel=0.15)


def test_32_mib_are_held_at_once():
    assert stats.CELLS * 8 == 32 * 2**20 and stats.GRID == 50_000


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30))
@settings(max_examples=30)
def test_the_ends_are_where_the_tilted_tail_is_2_5_percent(values):
    """Recomputed from independent draws of the tilted distribution itself."""
    got = stats.accuracy(column(*values), draws=4000)
    n, total = len(values), sum(values)
    pool = np.array([*values, *values, 0.0, 1.0])
    if got.high < 1:
        low_t, high_t = 0.0, 400.0
        for _ in range(60):  # the tilt that has this mean
            t = (low_t + high_t) / 2
            w = np.exp(t * (pool - 1))
            low_t, high_t = (low_t, t) if w @ pool / w.sum() > got.high else (t, high_t)
        w = np.exp(low_t * (pool - 1))
        draws = np.random.default_rng(9).choice(pool, p=w / w.sum(), size=(4000, n)).sum(axis=1)
        tail = np.mean(draws < total - 1e-6) + np.mean(abs(draws - total) < 1e-6) / 2
        assert tail == pytest.approx(0.025, abs=0.013)
    else:
        assert total >= n - 1e-6 or n < 4


# --- in words ------------------------------------------------------------------------------------


def said(estimate, low, high, p, adjusted, *, n=1000, sd=0.4, **options):
    interval = stats.Interval(estimate, low, high)
    result = stats.Paired(n, 1, interval, 0.1, 0.1, 0.4, 0.4, p, sd)
    return stats.sentence("A", "B", result, adjusted, **options)


def test_exactly_at_the_limits_nothing_is_claimed():
    # An end at zero does not exclude it; an adjusted p of 0.05 is not below 0.05.
    for text in (said(0.02, 0.0, 0.04, 0.05, 0.05), said(-0.02, -0.04, 0.0, 0.05, 0.05)):
        assert text.startswith("No difference visible")
    assert "settles nothing: the test finds" in said(0.02, 0.0, 0.04, 0.01, 0.049)
    assert "but the exact test finds no" in said(0.02, 0.001, 0.04, 0.05, 0.05)
    assert "after correction" in said(0.02, 0.001, 0.04, 0.0499, 0.05)
    assert "A is 2.0 points below B" in said(-0.02, -0.04, -1e-9, 0.01, 0.049)


def test_what_the_interval_excludes_and_what_it_would_take():
    at = said(0.0, -0.02, 0.0199, 1, 1, n=3140, sd=0.4)
    assert "excludes" not in at
    assert said(0.0, -0.0199, 0.02, 1, 1, n=3140).count("excludes") == 0
    assert said(0.0, -0.0199, 0.0199, 1, 1).endswith("excludes 2 points either way.")
    exactly = stats.needed(0.02, 0.4)
    assert exactly == 3140
    assert "3,200 problems would show" in said(0, -0.03, 0.03, 1, 1, n=exactly - 1)
    assert "so many problems would show 2.0 points" in said(0, -0.03, 0.03, 1, 1, n=exactly)
    assert said(0.1, -0.3, 0.3, 1, 1, sd=NAN).endswith("adjusted p = 1).")
    assert "1 point." in said(0, -0.3, 0.3, 1, 1, of_interest=0.01)
    assert "0.5 points." in said(0, -0.3, 0.3, 1, 1, of_interest=0.005)


def test_numbers_in_words():
    assert [stats._points(x) for x in (0, 0.0004, -0.00046, 0.0005, 0.0015, 0.1, -0.25, -0.0)] == [
        *("0.0", "0.04", "-0.05", "0.1", "0.1", "10.0", "-25.0", "0.0")
    ]
    assert [stats._p(p) for p in (0, 0.00099, 0.001, 0.0123, 0.0499, 0.04996, 0.05, 0.5, 1)] == [
        *("< 0.001", "< 0.001", "= 0.001", "= 0.012"),
        *("= 0.04990", "= 0.04996", "= 0.05", "= 0.5", "= 1"),
    ]
    assert [stats._upwards(n) for n in (1, 9, 10, 99, 100, 101, 990, 991, 12_559)] == [
        *(1, 9, 10, 99, 100, 110, 990, 1000, 13_000)
    ]
