"""Statistics: against scipy and statsmodels, by properties, and by how often intervals hold."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cot_engine import statistics as stats
from cot_engine.errors import InputError

NAN = math.nan
COUNTS = st.integers(0, 60)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
BINARY = st.sampled_from([0.0, 1.0, 1.0, NAN])
GRADED = st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 0.77, 1.0, NAN])


@st.composite
def pairs(draw):
    """Two arrays of scores of one shape, with gaps; 0/1 or graded."""
    shape, cells = draw(SHAPES), draw(st.sampled_from([BINARY, GRADED]))
    return draw(hnp.arrays(float, shape, elements=cells)), draw(
        hnp.arrays(float, shape, elements=cells)
    )


def column(*values: float) -> np.ndarray:
    """Scores of one seed."""
    return np.array(values, dtype=float)[:, None]


def discordant(n: int, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """One seed, n problems: `first` only the first solves, `second` only the second."""
    a, b = np.zeros((n, 1)), np.zeros((n, 1))
    a[:first], b[first : first + second] = 1, 1
    return a, b


# Against references


@given(COUNTS, COUNTS)
def test_mcnemar_is_the_binomial_test(first, second):
    reference = pytest.importorskip("scipy.stats")
    n = first + second
    expected = reference.binomtest(first, n, 0.5).pvalue if n else 1.0
    assert stats.mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


@given(COUNTS, COUNTS)
def test_mcnemar_is_that_of_statsmodels(first, second):
    reference = pytest.importorskip("statsmodels.stats.contingency_tables")
    table = [[5, first], [second, 7]]
    expected = reference.mcnemar(table, exact=True).pvalue if first + second else 1.0
    assert stats.mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many():
    reference = pytest.importorskip("scipy.stats")
    expected = reference.binomtest(4900, 10_000, 0.5).pvalue
    assert stats.mcnemar(4900, 5100) == pytest.approx(expected, rel=1e-9)


@given(st.integers(1, 2000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_that_of_statsmodels(total, share, level):
    reference = pytest.importorskip("statsmodels.stats.proportion")
    right = min(share * total, total)
    expected = reference.proportion_confint(right, total, alpha=1 - level, method="wilson")
    assert stats.wilson(right, total, level) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_that_of_statsmodels(ps):
    assert stats.holm([]) == []
    if ps:
        reference = pytest.importorskip("statsmodels.stats.multitest")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "gc.collect", lambda *_: 0
            )  # it collects all the tests' garbage, each time
            expected = reference.multipletests(ps, method="holm")[1]
        assert stats.holm(ps) == pytest.approx(list(expected), abs=1e-12)


@given(st.floats(0.005, 0.2), st.floats(0.05, 0.9), st.sampled_from([0.8, 0.9]))
def test_needed_is_the_normal_power_of_statsmodels(effect, sd, power):
    reference = pytest.importorskip("statsmodels.stats.power")
    n = stats.needed(effect, sd, power=power)
    # ratio=0 is one sample. The wrong tail, which this counts and we do not, is nothing at 80 %.
    reached = reference.NormalIndPower().power(effect / sd, n, 0.05, ratio=0)
    assert reached >= power - 1e-6
    if n > 5:
        assert reference.NormalIndPower().power(effect / sd, n - 1, 0.05, ratio=0) < power + 1e-6
        # Student's t asks for about two more, at any size.
        assert reference.TTestPower().power(effect / sd, n + 3, 0.05) >= power - 1e-3


SAMPLES = {
    "accuracy": lambda rng: (rng.random((600, 3)) < rng.beta(0.9, 0.6, (600, 1)), None),
    "one seed": lambda rng: (rng.random((600, 1)) < 0.6, rng.random((600, 1)) < 0.5),
    "three seeds": lambda rng: (rng.random((600, 3)) < 0.6, rng.random((600, 3)) < 0.5),
    "graded": lambda rng: (rng.random((600, 1)) ** 2, rng.random((600, 1))),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_interval_is_close_to_scipys_bca(name):
    """Both are second-order correct, so they differ by less than the percentile interval does;
    the half problems at the ends are a sixth of a percent of the sample here."""
    reference = pytest.importorskip("scipy.stats")
    a, b = SAMPLES[name](np.random.default_rng(5))
    a = a.astype(float)
    ours = stats.accuracy(a) if b is None else stats.paired(a, b).difference
    means = (a if b is None else a - b).mean(axis=1)
    theirs = reference.bootstrap((means,), np.mean, n_resamples=10_000, rng=1, vectorized=True)
    error = means.std(ddof=1) / math.sqrt(len(means))
    assert theirs.standard_error == pytest.approx(error, rel=0.05)
    got, expected = (ours.low, ours.high), tuple(theirs.confidence_interval)
    assert got == pytest.approx(expected, abs=0.1 * error)
    assert ours.estimate == pytest.approx(means.mean())


@pytest.mark.parametrize("distinct", [2, 40])
def test_resamples_are_those_of_scipy(distinct):
    """The distribution of resampled sums, by counts and value by value, against scipy's."""
    reference = pytest.importorskip("scipy.stats")
    pool = np.random.default_rng(2).integers(distinct, size=300) / distinct
    support, counts = np.unique(pool, return_counts=True)
    ours = stats._sums(pool, support, counts / 300, 300, 20_000, 0) / 300
    theirs = reference.bootstrap((pool,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    at = [0.025, 0.25, 0.5, 0.75, 0.975]
    expected = np.quantile(theirs.bootstrap_distribution, at)
    # Quantiles of 20,000 draws: 0.02 standard errors at 2.5 %, for either side.
    assert np.quantile(ours, at) == pytest.approx(expected, abs=0.1 * theirs.standard_error)


@pytest.mark.parametrize(("right", "n"), [(0, 200), (3, 200), (130, 218), (950, 1000), (40, 40)])
def test_accuracy_of_one_seed_is_the_mid_p_binomial_interval(right, n):
    binom = pytest.importorskip("scipy.stats").binom
    optimize = pytest.importorskip("scipy.optimize")

    def end(tail, bound):  # where the mid-p tail beyond the observed count is 2.5 %
        return optimize.brentq(lambda p: tail(p) - 0.025, 1e-9, 1 - 1e-9) if bound else None

    half = lambda p: 0.5 * binom.pmf(right, n, p)  # noqa: E731
    low = end(lambda p: binom.sf(right, n, p) + half(p), right > 0)
    high = end(lambda p: binom.cdf(right - 1, n, p) + half(p), right < n)
    got = stats.accuracy((np.arange(n) < right).astype(float)[:, None])
    # 10,000 draws place an end to about a hundredth of a standard error.
    error = math.sqrt(max(got.estimate * (1 - got.estimate), 1 / n) / n)
    assert got.low == pytest.approx(low or 0.0, abs=0.04 * error)
    assert got.high == pytest.approx(high or 1.0, abs=0.04 * error)


# The test of paired differences


@given(COUNTS, COUNTS)
def test_p_of_one_seed_is_mcnemars(first, second):
    got = stats.paired(*discordant(130, first, second), draws=100)
    assert got.p == pytest.approx(stats.mcnemar(first, second), rel=1e-9)


@pytest.mark.parametrize("denominators", [(3,), (2, 3, 5), (97, 89, 83)])
def test_p_is_what_all_sign_changes_give(denominators):
    rng = np.random.default_rng(3)
    for _ in range(20):
        d = np.array([rng.integers(-k, k + 1) / k for k in rng.choice(denominators, size=9)])
        signs = np.array(list(itertools.product((-1, 1), repeat=9)))
        expected = np.mean(np.abs((signs * np.abs(d)).sum(axis=1)) >= abs(d.sum()) - 1e-9)
        got = stats._exchange(d)
        # Beyond small denominators the grid rounds: sums closer than it can tell may tie.
        assert got == pytest.approx(expected, abs=1e-9 if max(denominators) < 60 else 0.01)


def test_seeds_of_a_problem_are_not_counted_as_independent():
    a, b = discordant(100, 5, 0)
    one, three = stats.paired(a, b), stats.paired(a.repeat(3, axis=1), b.repeat(3, axis=1))
    assert (one.p, one.difference, one.sd) == (three.p, three.difference, three.sd)
    assert one.p == stats.mcnemar(5, 0)
    assert (one.seeds, three.seeds) == (1, 3)


# Properties


@given(pairs())
def test_paired_properties(scores):
    a, b = scores
    got, turned = stats.paired(a, b, draws=300), stats.paired(b, a, draws=300)
    assert 0 <= got.p <= 1 and got.p == turned.p
    common = ~np.isnan(a - b)
    assert got.problems == common.any(axis=1).sum()
    assert got.seeds == common.any(axis=0).sum()
    shares = (got.only_first, got.only_second, got.both, got.neither)
    assert sum(shares) == pytest.approx(1.0 if common.any() else 0.0)
    assert shares[:2] == (turned.only_second, turned.only_first)
    d = got.difference
    if not got.problems:
        assert math.isnan(d.estimate) and (d.low, d.high, got.p) == (-1, 1, 1)
        return
    assert -1 <= d.low <= d.estimate <= d.high <= 1
    assert d.low < d.high
    assert d == stats.Interval(
        -turned.difference.estimate, -turned.difference.high, -turned.difference.low
    )
    assert got.sd == pytest.approx(turned.sd, nan_ok=True)
    assert math.isnan(got.sd) == (got.problems < 2)
    mean = np.mean([np.mean((x - y)[c]) for x, y, c in zip(a, b, common, strict=True) if c.any()])
    assert d.estimate == pytest.approx(mean, abs=1e-9)


@given(pairs(), st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_accuracy_properties(scores, level):
    a, _ = scores
    got = stats.accuracy(a, level=level, draws=300)
    if np.isnan(a).all():
        assert math.isnan(got.estimate) and (got.low, got.high) == (0, 1)
        return
    assert 0 <= got.low <= got.estimate <= got.high <= 1
    assert got.low < got.high
    wrong = stats.accuracy(1 - a, level=level, draws=300)
    assert (wrong.low, wrong.high) == pytest.approx((1 - got.high, 1 - got.low), abs=0.1)


def test_missing_cells_leave_out_what_is_not_common():
    a = np.array([[1, NAN, 1], [0, 1, NAN], [NAN, NAN, 1], [1, 1, 1]], dtype=float)
    b = np.array([[0, 1, 1], [0, NAN, 1], [1, 1, NAN], [1, 1, 0]], dtype=float)
    got = stats.paired(a, b)
    assert (got.problems, got.seeds) == (3, 3)  # the third problem has no seed of both
    assert got.difference.estimate == pytest.approx((0.5 + 0 + 1 / 3) / 3)
    assert (got.only_first, got.only_second) == (2 / 6, 0)
    assert (got.both, got.neither) == (3 / 6, 1 / 6)
    assert stats.accuracy(a).estimate == pytest.approx((1 + 0.5 + 1 + 1) / 4)


def test_intervals_narrow_with_level_problems_and_agreement():
    def width(n, first, second, **options):
        got = stats.paired(*discordant(n, first, second), **options).difference
        return got.high - got.low

    assert width(200, 9, 5, level=0.8) < width(200, 9, 5) < width(200, 9, 5, level=0.99)
    assert width(1000, 45, 25) < width(200, 9, 5) < width(200, 20, 16)


def test_intervals_do_not_depend_on_order_or_unit_of_the_scale():
    rng = np.random.default_rng(4)
    a, b = rng.random((50, 2)), rng.random((50, 2))
    order = rng.permutation(50)
    got, other = stats.paired(a, b), stats.paired(a[order], b[order])
    assert got.difference.low == pytest.approx(other.difference.low, abs=0.002)
    small = stats.paired(a / 1000, b / 1000)
    assert small.difference.high == pytest.approx(got.difference.high / 1000, rel=0.02)
    assert small.p == pytest.approx(got.p, abs=0.01)


def test_the_seed_decides_the_draws_and_matters_little():
    a, b = discordant(500, 60, 40)
    first, again, other = (stats.paired(a, b, seed=seed).difference for seed in (0, 0, 1))
    assert first == again != other
    error = 0.2**0.5 / 500**0.5
    assert (other.low, other.high) == pytest.approx((first.low, first.high), abs=0.05 * error)


@given(st.floats(0.001, 0.5), st.floats(0.01, 1.0), st.floats(1.05, 3))
def test_needed_grows_as_effects_shrink_and_is_undone_by_visible(effect, sd, factor):
    n = stats.needed(effect, sd)
    assert n >= 1
    assert stats.needed(-effect, sd) == n
    assert stats.needed(effect / factor, sd) >= n <= stats.needed(effect, sd * factor)
    assert n <= stats.needed(effect, sd, power=0.9) <= stats.needed(effect, sd, power=0.99)
    assert stats.visible(n, sd) <= effect * (1 + 1e-6)
    if n > 1:
        assert stats.visible(n - 1, sd) >= effect * (1 - 1e-6)
    assert stats.needed(effect, 0.0) is stats.needed(effect, NAN) is None


def test_what_is_not_usable_is_refused():
    ok = column(0, 1)
    for call in (
        lambda: stats.accuracy(np.zeros(3)),
        lambda: stats.accuracy(column(0, 1.5)),
        lambda: stats.accuracy(column(0, math.inf)),
        lambda: stats.accuracy(ok, level=1.0),
        lambda: stats.accuracy(ok, level=95),
        lambda: stats.accuracy(ok, draws=10),
        lambda: stats.paired(ok, column(0, 1, 1)),
        lambda: stats.wilson(3, 2),
        lambda: stats.wilson(-1, 2),
        lambda: stats.mcnemar(-1, 2),
        lambda: stats.holm([0.1, NAN]),
        lambda: stats.needed(0.0, 0.3),
        lambda: stats.needed(0.02, 0.3, power=0.0),
        lambda: stats.visible(0, 0.3),
    ):
        with pytest.raises(InputError):
            call()


def test_wilson_of_none_and_of_means():
    assert stats.wilson(0, 0) == (0.0, 1.0)
    assert stats.wilson(10 + 1e-12, 10) == stats.wilson(10, 10)
    assert stats.wilson(6.5, 10)[0] < 0.65 < stats.wilson(6.5, 10)[1]


# In words


def said(estimate, low, high, p, adjusted, *, n=1000, sd=0.4, **options):
    interval = stats.Interval(estimate, low, high)
    result = stats.Paired(n, 1, interval, 0.1, 0.1, 0.4, 0.4, p, sd)
    return stats.sentence("A", "B", result, adjusted, **options)


def test_a_difference_is_claimed():
    assert said(0.031, 0.012, 0.05, 0.001, 0.004) == (
        "A is 3.1 points above B (95 % interval 1.2 to 5.0, adjusted p = 0.004, 1,000 problems)."
    )
    assert said(-0.031, -0.05, -0.0003, 1e-9, 1e-8) == (
        "A is 3.1 points below B (95 % interval -5.0 to -0.03, adjusted p < 0.001, 1,000 problems)."
    )


def test_no_difference_is_visible():
    assert said(-0.005, -0.04, 0.031, 0.4, 0.8, n=218, sd=0.38) == (
        "No difference visible between A and B at n=218 (-0.5 points, 95 % interval -4.0 to 3.1, "
        "adjusted p = 0.8): 2,900 problems would show 2 points."
    )
    assert said(0.0, -0.011, 0.011, 1, 1).endswith(": the interval excludes 2 points either way.")
    assert said(0.009, -0.003, 0.021, 0.2, 1, sd=0.19).endswith(
        ": so many problems would show 1.7 points four times out of five."
    )
    assert stats.needed(0.01, 0.4) == 12_559  # said in two digits, rounded up
    assert said(0, -0.1, 0.1, 1, 1, of_interest=0.01).endswith(
        ": 13,000 problems would show 1 point."
    )


def test_disagreement_is_said():
    for text, why in (
        (said(0.02, 0.001, 0.04, 0.04, 0.12), "but not after correction"),
        (said(0.02, 0.001, 0.04, 0.051, 0.051), "but the exact test finds no difference"),
        (said(0.02, -0.001, 0.04, 0.01, 0.04), "but the interval includes zero"),
    ):
        assert "which settles nothing" in text and why in text
    assert "adjusted p = 0.04999" in said(0.02, -0.001, 0.04, 0.01, 0.04999)


def test_identical_and_no_outcomes():
    a = column(*[1, 0] * 100)
    same = stats.sentence("A", "B", stats.paired(a, a), 1.0)
    assert same == (
        "A and B score the same on every one of 200 problems (95 % interval -1.6 to 1.6 points)."
    )
    nothing = stats.sentence("A", "B", stats.paired(a * NAN, a), 1.0)
    assert nothing == "A and B have no problem in common."
    assert "A is 100.0 points above B" in stats.sentence(
        "A", "B", stats.paired(a * 0 + 1, a * 0), 0
    )
    assert "1 problem)" in said(0.2, 0.1, 0.3, 0.01, 0.01, n=1)


@given(pairs(), st.floats(1, 20))
def test_a_sentence_claims_only_what_both_find(scores, factor):
    result = stats.paired(*scores, draws=100)
    adjusted = min(1.0, result.p * factor)
    text = stats.sentence("A", "B", result, adjusted)
    d = result.difference
    found = (d.low > 0 or d.high < 0) and adjusted < 0.05
    assert found == ((" above B" in text or " below B" in text) and "settles nothing" not in text)
    assert "nan" not in text and "-0.0 " not in text and text.endswith(".")


# Coverage: benchmarks/coverage.py at full size, here reduced

_spec = importlib.util.spec_from_file_location(
    "coverage_benchmark", Path(__file__).parent.parent / "benchmarks" / "coverage.py"
)
coverage = importlib.util.module_from_spec(_spec)
SIMULATIONS = 600
HARD = [  # one or several seeds, near the edge, few discordant pairs, missing cells
    ("accuracy", 200, 1, 0.6),
    ("accuracy", 200, 3, 0.95),
    ("accuracy", 1000, 1, 0.95),
    ("pairs", 200, 1, 0.02, 0.1),
    ("pairs", 200, 3, 0.1, 0.1, 0.2),
    ("pairs", 1000, 1, 0.1),
    ("pairs", 1000, 3, 0.02, 0.1),
    ("pairs", 400, 1, 0.3, 0.1),
]


@pytest.fixture(scope="module")
def benchmark():
    import sys

    sys.modules[_spec.name] = coverage  # dataclasses look their module up
    _spec.loader.exec_module(coverage)
    yield coverage
    del sys.modules[_spec.name]


def test_intervals_hold_the_truth_as_often_as_they_say(benchmark):
    scenarios = [benchmark.Scenario(*case) for case in HARD]
    rows = [benchmark.simulate(s, "tilting", SIMULATIONS, 500) for s in scenarios]
    noise = math.sqrt(0.95 * 0.05 / SIMULATIONS)
    for scenario, row in zip(scenarios, rows, strict=True):
        assert abs(row["coverage"] - 0.95) < 0.015 + 3 * noise, scenario.name
        if scenario.of == "pairs" and not scenario.truth:
            assert row["found"] < 0.05 + 3 * noise, scenario.name
    # All together the noise is small; and neither side is missed much more often.
    together = np.mean([row["coverage"] for row in rows])
    assert abs(together - 0.95) < 0.005 + 3 * noise / math.sqrt(len(rows))
    below, above = (np.mean([row[side] for row in rows]) for side in ("low", "high"))
    assert abs(below - above) < 0.01 + 3 * math.sqrt(0.05 / SIMULATIONS / len(rows))


def test_the_same_check_finds_the_percentile_interval_out(benchmark):
    scenario = benchmark.Scenario("pairs", 200, 1, 0.01, 0.5)
    tolerated = 0.95 - 0.015 - 3 * math.sqrt(0.95 * 0.05 / SIMULATIONS)
    plain, ours = (
        benchmark.simulate(scenario, method, SIMULATIONS, 500)["coverage"]
        for method in ("percentile", "tilting")
    )
    assert plain < tolerated < ours
