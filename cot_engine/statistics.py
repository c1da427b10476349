"""Is one strategy better than another? Intervals, paired tests and the problems it would take.

Scores are arrays of shape (problems, seeds) in [0, 1], NaN where there is none. A problem's score
is the mean over its seeds; what is estimated is the mean over problems, each counting once.

**What is resampled.** Problems, each with all its seeds. Seeds are nested in problems: a
candidate's random stream is derived from (run seed, problem), so the luck of the draw in one
problem says nothing about the next. Then the variance of the mean over n problems is Var(problem's
mean) / n, and a problem's mean varies between problems and seeds alike: resampling whole problems
has both. Resampling seeds within the resampled problems again would count the seeds' share twice
(Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8; Field and Welsh,
Bootstrapping clustered data, JRSS B 69, 2007). So n is the number of problems; more seeds make the
interval narrower as far as seeds are what varies, and no further.

**Which interval.** Bootstrap tilting (Efron, Canad. J. Statist. 9, 1981; DiCiccio and Romano, Int.
Statist. Rev. 58, 1990), the bootstrap's own test turned round: the interval's end is the mean of
that reweighting of the problems under which a mean as far off as the observed one would be seen in
2.5 % of resamples, ties counted half (mid-p). It is second-order correct, stays within the scale,
and for one seed of 0/1 scores it is the mid-p exact binomial interval. The percentile bootstrap
covers too little where few problems differ (benchmarks/coverage.py). As what was never seen cannot
be resampled, half a problem is added at each end, as Jeffreys' prior does: at 0 and 1 for an
accuracy; for a difference at plus and minus the largest seen, or 1 where no two differ. (At 1
always, intervals of several seeds are too wide: their differences are mostly fractions.) So two
strategies that agree on all of 200 problems may still differ by 1.6 points.

**Which test.** Under the hypothesis that two strategies are alike, their names may be exchanged on
any problem, all seeds of it at once. `paired` computes exactly how often exchanging them at random
makes the mean difference at least as large (Fisher, The Design of Experiments, 1935, section 21;
Pitman, JRSS Suppl. 4, 1937). For one seed of 0/1 scores this is McNemar's exact test. Pairs of one
problem are never counted as independent. A sign test over problems would be that, too, but asks
who wins more problems, not who has the higher mean, which is what the interval is about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from cot_engine.errors import InputError

CELLS = 2**22  # numbers held at once while resampling: 32 MiB
GRID = 50_000  # steps of the test's distribution where differences share no small denominator


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its interval, 95 % unless it was made with another level."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Paired:
    """Two strategies on the same problems, the first minus the second.

    `seeds`: the seeds that any problem has of both. `difference`: the mean of the problems'
    differences. The four shares are of (problem, seed) pairs; a score of 0.5 or more counts as
    right. `p`: two-sided, of the exact randomisation test over problems (McNemar's for one seed).
    `sd`: of the problems' differences, n - 1 in its denominator; NaN for fewer than two problems.
    """

    problems: int
    seeds: int
    difference: Interval
    only_first: float
    only_second: float
    both: float
    neither: float
    p: float
    sd: float


def wilson(right: float, total: float, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a share (Wilson, JASA 22, 1927); (0, 1) for a total of 0.

    `right` may be fractional, as a mean over seeds is; the interval is then that of `total`
    independent answers, wider than need be. Raises InputError unless 0 <= right <= total.
    """
    z = _z(level)
    if not -1e-9 <= right <= total + 1e-9:
        raise InputError(f"{right} of {total} is not a share.")
    if total == 0:
        return 0.0, 1.0
    share = min(1.0, max(0.0, float(right) / float(total)))
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def accuracy(
    values: np.ndarray, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """The mean score over problems, with its bootstrap tilting interval.

    `values`: (problems, seeds) in [0, 1]; problems without any value are left out. Without any
    problem the estimate is NaN and the interval all of (0, 1). Raises InputError for other shapes,
    scores off the scale, a level outside [0.5, 1) or fewer than 100 draws.
    """
    return _tilting(_means(_scores(values)), 0.0, 1.0, level, draws, seed)


def paired(
    a: np.ndarray, b: np.ndarray, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Paired:
    """The first's scores minus the second's, on the problems and seeds that both have.

    `a`, `b`: (problems, seeds) in [0, 1], of one shape. Exchanging them negates the difference
    and its interval and leaves p, to the last digit. Without a common problem the estimate is
    NaN, the interval (-1, 1) and p 1. Raises InputError as `accuracy` does, and where shapes
    differ.
    """
    a, b = _scores(a), _scores(b)
    if a.shape != b.shape:
        raise InputError(f"Scores of shapes {a.shape} and {b.shape} cannot be paired.")
    cells = a - b
    have = ~np.isnan(cells)
    means = _means(cells)
    reach = float(np.abs(means).max()) if len(np.unique(means)) > 1 else 1.0
    first, second = a[have] >= 0.5, b[have] >= 0.5
    pairs = max(1, len(first))
    return Paired(
        problems=len(means),
        seeds=int(have.any(axis=0).sum()),
        difference=_tilting(means, -reach, reach, level, draws, seed),
        only_first=float((first & ~second).sum() / pairs),
        only_second=float((~first & second).sum() / pairs),
        both=float((first & second).sum() / pairs),
        neither=float((~first & ~second).sum() / pairs),
        p=_exchange(means),
        sd=float(means.std(ddof=1)) if len(means) > 1 else math.nan,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test: the binomial test of the discordant pairs at a half.

    1.0 without discordant pairs (McNemar, Psychometrika 12, 1947, in its exact form). The pairs
    must be of different problems. Raises InputError for negative counts.
    """
    if min(only_first, only_second) < 0:
        raise InputError(f"{only_first} and {only_second} are not counts.")
    n, fewer = only_first + only_second, min(only_first, only_second)
    if 2 * fewer == n:
        return 1.0
    ways = tail = 1
    for i in range(fewer):
        ways = ways * (n - i) // (i + 1)
        tail += ways
    return float(tail / 2 ** (n - 1))


def holm(ps: Sequence[float]) -> list[float]:
    """P values adjusted for their number, in the order given (Holm, Scand. J. Statist. 6, 1979).

    Rejecting those below 0.05 rejects any true hypothesis at all with probability 0.05 at most,
    however they depend on each other. Raises InputError for values outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in ps):
        raise InputError(f"{list(ps)} are not p values.")
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = max(least, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = least
    return adjusted


def needed(effect: float, sd: float, *, level: float = 0.95, power: float = 0.8) -> int | None:
    """The problems it takes to see a paired mean difference of `effect`, with that power.

    ((z_level + z_power) sd / effect)^2, rounded up: the normal approximation, two-sided. `sd`: of
    the problems' differences (`Paired.sd`). None where that is 0 or NaN: nothing differed, so
    nothing is known about how much it would. Raises InputError for an effect of 0 or a power
    outside (0.5, 1).
    """
    if not abs(effect) > 0:
        raise InputError(f"An effect of {effect} is not seen with any number of problems.")
    z = _z(level) + _z_power(power)
    return math.ceil((z * sd / effect) ** 2 - 1e-9) if sd > 0 else None


def visible(problems: int, sd: float, *, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest difference that so many problems would show: the inverse of `needed`.

    Raises InputError unless there is a problem, and as `needed` does.
    """
    if problems < 1:
        raise InputError(f"{problems} problems show nothing.")
    return (_z(level) + _z_power(power)) * sd / math.sqrt(problems)


def sentence(
    first: str, second: str, paired: Paired, p_adjusted: float, *, of_interest: float = 0.02
) -> str:
    """What a comparison says, in one sentence.

    A difference is claimed only where the 95 % interval excludes zero and p, adjusted for the
    number of comparisons (`holm`), is below 0.05. Where they disagree that is said. Otherwise
    it says how many problems would show a difference `of_interest` (80 % power), or what these did.
    """
    d, n = paired.difference, f"{paired.problems:,} problem{'s' if paired.problems != 1 else ''}"
    if not paired.problems:
        return f"{first} and {second} have no problem in common."
    if d.estimate == paired.sd == 0:
        return (
            f"{first} and {second} score the same on every one of {n} "
            f"(95 % interval {_points(d.low)} to {_points(d.high)} points)."
        )
    interval = f"95 % interval {_points(d.low)} to {_points(d.high)}"
    p = f"adjusted p {_p(p_adjusted)}"
    excludes, significant = d.low > 0 or d.high < 0, p_adjusted < 0.05
    if excludes or significant:
        side = f"{_points(abs(d.estimate))} points {'above' if d.estimate > 0 else 'below'}"
        claim = f"{first} is {side} {second} ({interval}, {p}, {n})"
        if excludes and significant:
            return f"{claim}."
        if significant:
            why = "the test finds a difference, but the interval includes zero"
        elif paired.p < 0.05:
            why = "the interval excludes zero, but not after correction for several comparisons"
        else:
            why = "the interval excludes zero, but the exact test finds no difference"
        return f"{claim}, which settles nothing: {why}."
    what = (
        f"No difference visible between {first} and {second} at n={paired.problems:,} "
        f"({_points(d.estimate)} points, {interval}, {p})"
    )
    interest = f"{100 * of_interest:g} point" + ("s" if of_interest != 0.01 else "")
    enough = needed(of_interest, paired.sd)
    if -of_interest < d.low and d.high < of_interest:
        return f"{what}: the interval excludes {interest} either way."
    if enough is not None and enough > paired.problems:
        return f"{what}: {_upwards(enough):,} problems would show {interest}."
    if enough is not None:
        seen = _points(visible(paired.problems, paired.sd))
        return f"{what}: so many problems would show {seen} points four times out of five."
    return f"{what}."


def _z(level: float) -> float:
    """The normal quantile of a two-sided level. Raises InputError outside [0.5, 1)."""
    if not 0.5 <= level < 1:
        raise InputError(f"A level of {level} is not one of an interval.", "0.95 is usual.")
    return NormalDist().inv_cdf(0.5 + level / 2)


def _z_power(power: float) -> float:
    if not 0.5 < power < 1:
        raise InputError(f"A power of {power} is not usable.", "0.8 is usual.")
    return NormalDist().inv_cdf(power)


def _scores(values: np.ndarray) -> np.ndarray:
    """(problems, seeds) as floats. Raises InputError for another shape or off the scale."""
    values = np.asarray(values, dtype=float)
    if values.ndim != 2:
        raise InputError(f"Scores of shape {values.shape} are not (problems, seeds).")
    if not (np.isnan(values) | ((values >= 0) & (values <= 1))).all():
        raise InputError("Scores must lie in [0, 1], NaN where there is none.")
    return values


def _means(cells: np.ndarray) -> np.ndarray:
    """Each problem's mean over the seeds it has, without the problems that have none.

    Rounded to twelve decimals, so that what is equal but for the order of sums is equal.
    """
    have = ~np.isnan(cells)
    seeds = have.sum(axis=1)
    sums = np.where(have, cells, 0.0).sum(axis=1)
    means: np.ndarray = np.round(sums[seeds > 0] / seeds[seeds > 0], 12)
    return means


def _tilting(
    means: np.ndarray, low: float, high: float, level: float, draws: int, seed: int
) -> Interval:
    """The bootstrap tilting interval of the mean of `means`, of shape (problems,).

    Half a problem is added at `low` and at `high`, which no value may lie beyond. The interval's
    low end is the high end of the negated values, so that negating negates it exactly.
    """
    _z(level)
    if draws < 100:
        raise InputError(f"{draws} draws make no interval.", "10,000 are usual.")
    if not len(means):
        return Interval(math.nan, low, high)
    tail, unit = (1 - level) / 2, max(-low, high)
    estimate = float(means.sum() / len(means))
    means, low, high = means / unit, low / unit, high / unit
    below = -unit * _upper(-means, -high, -low, tail, draws, seed)
    above = unit * _upper(means, low, high, tail, draws, seed)
    return Interval(estimate, min(estimate, below), max(estimate, above))


def _upper(
    values: np.ndarray, low: float, high: float, tail: float, draws: int, seed: int
) -> float:
    """The high end: the mean of the tilted values under which a sum as low as theirs has
    probability `tail`. Values, `low` and `high` lie in [-1, 1].

    Tilting by t weighs a value v by exp(t v). As the weight of a whole resample then depends on
    its sum only, one set of resamples of the untilted values serves every t, each reweighted by
    exp(t sum) / (mean of exp(t v))^n (importance sampling; Davison and Hinkley, 1997, section
    9.4). What is reweighted is the near half of the resamples, so 10,000 draws place the end to
    about a hundredth of a standard error.
    """
    n, observed = len(values), float(values.sum())
    if observed >= n * high - 1e-6:
        return high
    # Half a problem at each end: all others count twice. As deviations, so exp does not overflow.
    pool = np.concatenate([values, values, [low, high]]) - observed / n
    support, counts = np.unique(pool, return_counts=True)
    weights = counts / len(pool)
    sums = _sums(pool, support, weights, n, draws, seed)
    equal = np.abs(sums) < 1e-6
    share = np.where(equal, 0.5, 1.0) / draws
    near = (sums < 0) | equal
    sums, share = np.where(equal, 0.0, sums)[near], share[near]

    def probability(t: float) -> float:
        return float(share @ np.exp(t * sums - n * math.log(weights @ np.exp(t * support))))

    # Untilted, it is about 0.3 at least (e^-0.5 / 2 where all values are at the low end),
    # above the tail of any level from 0.5; it falls as t grows.
    under, over = 0.0, 1.0
    while probability(over) > tail:
        if over > 300:
            return high
        under, over = over, 2 * over
    for _ in range(40):
        middle = (under + over) / 2
        under, over = (middle, over) if probability(middle) > tail else (under, middle)
    tilted = weights * np.exp(over * support)
    return min(high, observed / n + float(tilted @ support / tilted.sum()))


def _sums(
    pool: np.ndarray, support: np.ndarray, weights: np.ndarray, n: int, draws: int, seed: int
) -> np.ndarray:
    """Sums of n values drawn from the pool with replacement, of shape (draws,).

    Drawn as counts of its distinct values where these are few, as of 0/1 scores they are (of three
    seeds a mean takes four); value by value where they are not, which is then quicker.
    """
    rng = np.random.default_rng(seed)
    few = 10 * len(support) < n
    step = max(1, CELLS // (len(support) if few else n))
    sums = []
    for start in range(0, draws, step):
        some = min(step, draws - start)
        if few:
            sums.append(rng.multinomial(n, weights, size=some) @ support)
        else:
            sums.append(pool[rng.integers(len(pool), size=(some, n))].sum(axis=1))
    return np.concatenate(sums)


def _exchange(differences: np.ndarray) -> float:
    """Two-sided p of the randomisation test of paired differences, of shape (problems,).

    The share of all 2^n choices of signs whose sum is at least as far from 0 as the observed.
    Exact, by adding one problem after the other to the distribution of the sum of those taken
    positive, on a grid that fits all differences. Where none does (scores with many different
    denominators), they are rounded to a grid of about `GRID` steps for their whole sum.
    """
    sizes = np.abs(differences[differences != 0])
    total = float(sizes.sum())
    grid = next(
        (
            float(g)
            for g in range(1, 61)
            if g * total <= 4 * GRID and (np.abs(sizes * g - np.rint(sizes * g)) < 1e-6).all()
        ),
        GRID / total if total else 1.0,
    )
    steps = np.rint(differences * grid).astype(int)
    chances = np.ones(1)  # of the sum of those taken positive being 0, 1, ...
    for k in np.sort(np.abs(steps[steps != 0])):
        longer = np.zeros(len(chances) + k)
        longer[: len(chances)] = chances
        longer[k:] += chances
        chances = longer / 2
    positive, most = int(steps[steps > 0].sum()), len(chances) - 1
    return min(1.0, 2 * float(chances[max(positive, most - positive) :].sum()))


def _points(share: float) -> str:
    """A share as points, to a tenth; finer where a tenth would read as zero."""
    text = f"{100 * share + 0.0:.1f}"
    return text if share == 0 or float(text) else f"{100 * share:.1g}"


def _p(p: float) -> str:
    """A p value to two digits, never rounded across 0.05."""
    if p < 0.001:
        return "< 0.001"
    text = f"{p:.2g}"
    return f"= {text}" if (float(text) < 0.05) == (p < 0.05) else f"= {p:.5f}"


def _upwards(n: int) -> int:
    """Rounded up to two digits."""
    unit: int = 10 ** max(0, len(str(n)) - 2)
    return -(-n // unit) * unit
