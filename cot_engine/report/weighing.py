"""How much likelihood is worth beside the verdict: the weight of the judge `self+likelihood`.

Logistic regression on pairs with different outcomes: P(first is better) = sigmoid(s m + b l), m the
self-judge's margin (the mean of both orders), l the difference of the mean log-probabilities. There
is no constant, because which of a pair stands first means nothing. The weight is b / s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cot_engine.errors import InputError
from cot_engine.report.judging import Contest, Measure, pairs_of
from cot_engine.statistics import Interval

MIN_PAIRS, MIN_PROBLEMS = 40, 20  # fewer say nothing that would hold on other problems
_Z = 1.959964  # of a 95 % interval
_UNWRITTEN = 50.0  # nats a token: only a candidate of which nothing was sampled is that far off


@dataclass(frozen=True, slots=True)
class Margins:
    """Pairs with different outcomes, one a row: the problem, what the self-judge and the likelihood
    say for the first (nats), and whether it is the better one."""

    problems: tuple[str, ...]
    own: np.ndarray
    likelihood: np.ndarray
    better: np.ndarray


@dataclass(frozen=True, slots=True)
class Fit:
    """`weight` with its 95 % interval; `scale`, the s by which the combined margin times s is a
    log-odds; how many pairs and problems it was fitted on."""

    weight: Interval
    scale: float
    pairs: int
    problems: int


def margins(
    own: Sequence[Contest], likelihood: Sequence[Contest], measure: Measure = "worth"
) -> Margins:
    """What the two judges said of the same pairs, `own` with readable verdicts only.

    The contests of one must be those of the other, in the same order: the same candidates, as
    `judge_report.examine` has them judged.
    """
    rows: list[tuple[str, float, float, bool]] = []
    for mine, theirs in zip(own, likelihood, strict=True):
        said = {}
        for match in theirs.matches:
            said[match.first, match.second] = match.margin
            said[match.second, match.first] = -match.margin
        for problem, match, first_is_better, _ in pairs_of(mine, measure):
            apart = said.get((match.first, match.second))
            readable = all(verdict.readable for verdict in match.verdicts)
            if readable and apart is not None and abs(apart) < _UNWRITTEN:
                rows.append((problem, match.margin, apart, first_is_better))
    columns = list(zip(*rows, strict=True)) or [()] * 4
    return Margins(columns[0], *(np.array(column, dtype=float) for column in columns[1:]))


def fit_weight(pairs: Margins) -> Fit:
    """The weight that fits best, by maximum likelihood (Newton's method).

    The interval is Fieller's (1954), of a ratio, with a covariance that lets the pairs of a problem
    depend on each other (the sandwich of Liang and Zeger, 1986). Raises InputError for too few
    pairs or problems, for margins that tell all pairs apart without a fault (no weight is the best
    one then), and where the self-judge's margin says nothing that is clear of zero: then there is
    nothing to weigh likelihood against.
    """
    names, group = np.unique(np.array(pairs.problems), return_inverse=True)
    _check_enough(len(pairs.own), len(names))
    sign = np.where(pairs.better > 0, 1.0, -1.0)  # as if the better one always stood first
    x = np.stack([pairs.own * sign, pairs.likelihood * sign], axis=1)
    size = np.sqrt((x**2).mean(axis=0))
    if not size.all():
        who = "self-judge" if not size[0] else "likelihood"
        raise InputError(f"The margins of the {who} are all zero.", "There is nothing to weigh.")
    z = x / size
    beta = _newton(z)
    wrong = np.exp(-np.logaddexp(0, z @ beta))
    bread = np.linalg.inv((z * (wrong * (1 - wrong))[:, None]).T @ z)
    scores = np.zeros((len(names), 2))
    np.add.at(scores, group, z * wrong[:, None])
    covariance = bread @ (scores.T @ scores) @ bread * len(names) / (len(names) - 1)
    (s, b), spread = beta / size, covariance / np.outer(size, size)
    return Fit(_ratio(b, s, spread), float(s), len(z), len(names))


def _check_enough(pairs: int, problems: int) -> None:
    if pairs < MIN_PAIRS or problems < MIN_PROBLEMS:
        raise InputError(
            f"There are {pairs:,} pairs with different outcomes and readable verdicts, on"
            f" {problems:,} problems; a weight takes at least {MIN_PAIRS} on {MIN_PROBLEMS}.",
            "Take more problems (--problems) or samples that differ more (--temperature), or train"
            " the judge.",
        )


def _newton(z: np.ndarray) -> np.ndarray:
    """The maximum of sum(log sigmoid(z @ beta)), whose columns are of size 1."""

    def loss(beta: np.ndarray) -> float:
        return float(np.logaddexp(0, -(z @ beta)).sum())

    beta = np.zeros(2)
    for _ in range(100):
        wrong = np.exp(-np.logaddexp(0, z @ beta))
        hessian = (z * (wrong * (1 - wrong))[:, None]).T @ z
        try:
            step = np.linalg.solve(hessian, z.T @ wrong)
        except np.linalg.LinAlgError:
            raise InputError(
                "The margins of the self-judge and the likelihood say the same of every pair.",
                "No weight can be told from another: use one of the two judges.",
            ) from None
        while loss(beta + step) > loss(beta) and np.abs(step).max() > 1e-12:
            step = step / 2
        beta = beta + step
        # The loss goes to zero along a direction that gets every pair right, and has no minimum.
        if np.abs(beta).max() > 1e3 or (z @ beta).min() > 0:
            break
        if np.abs(step).max() < 1e-9:
            return beta
    raise InputError(
        "The two margins tell these pairs apart without a fault (or nearly): any larger scale fits"
        " better, and no weight fits best.",
        "Take more problems, or harder ones.",
    )


def _ratio(b: float, s: float, spread: np.ndarray) -> Interval:
    """b / s with Fieller's interval: the w for which b - w s is within its own error of zero."""
    least = s**2 - _Z**2 * spread[0, 0]
    if s <= 0 or least <= 0:
        raise InputError(
            f"The self-judge's margin says nothing clear of these pairs: its scale is {s:.3g}, with"
            f" a standard error of {math.sqrt(spread[0, 0]):.2g}.",
            "Judge by likelihood alone, train the judge, or take more problems.",
        )
    middle = b * s - _Z**2 * spread[0, 1]
    width = math.sqrt(max(0.0, middle**2 - least * (b**2 - _Z**2 * spread[1, 1])))
    low, high = (middle - width) / least, (middle + width) / least
    return Interval(float(b / s), float(low), float(high))
