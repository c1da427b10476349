"""What a probe is worth, measured on problems that it was neither fitted nor calibrated on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cot_engine.judging.probe import WHOLE, Probe
from cot_engine.statistics import Interval, Paired, accuracy, paired
from cot_engine.training.probe_fit import logits, whole_features, with_claims
from cot_engine.training.probe_samples import Samples
from cot_engine.training.probe_stops import StopsRow, Votes, stopping, votes_of


@dataclass(frozen=True, slots=True)
class PairsRow:
    """Of candidates of one problem with different outcomes, the share in which the better one has
    the higher number: by the probe, by likelihood, and the difference over `problems`."""

    stage: str
    pairs: int
    probe: Interval
    likelihood: Interval
    difference: Paired


@dataclass(frozen=True, slots=True)
class VotesRow:
    """Of the first `n` responses: accuracies, and the probe-weighted vote's difference from the
    majority's. `oracle`: is any of them right."""

    n: int
    majority: Interval
    vote: Interval
    best: Interval
    oracle: Interval
    difference: Paired


@dataclass(frozen=True, slots=True)
class Measured:
    """`pairs` by stage and "whole", `votes` by number of responses, `stops` of votes that end when
    the answer is settled; `loss` is the mean
    cross-entropy (nats) of the head "whole", `base` that of always saying the share `right`;
    `calibration` has, for each fifth of the scale, the responses, their mean probability and how
    many are right."""

    problems: int
    right: float
    loss: float
    base: float
    calibration: tuple[tuple[int, float, float], ...]
    pairs: tuple[PairsRow, ...]
    votes: tuple[VotesRow, ...]
    stops: tuple[StopsRow, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The same as values of JSON."""
        return asdict(self)


def measure(probe: Probe, samples: Samples, rows: np.ndarray) -> Measured:
    """Measure a probe on some `rows` of the samples."""
    whole = logits(probe.heads[WHOLE], whole_features(samples))
    likelihood = samples.nats / np.maximum(samples.tokens, 1)
    found = []
    for tag in samples.stages:
        if tag in probe.heads:
            blocks, there = with_claims(samples, probe, tag), samples.arrays[f"closed/{tag}"] > 0
            facts = samples.arrays[f"facts/{tag}"]
            labels = np.where(np.isnan(facts), samples.label, facts)
            says = logits(probe.heads[tag], blocks)
            stage_likelihood = blocks["likelihood"][:, 0]
            found.append((tag, says, stage_likelihood, labels, rows & there))
    found.append((WHOLE, whole, likelihood, samples.label, rows))
    chance = 1 / (1 + np.exp(-whole[rows]))
    label = samples.label[rows]
    share = float(label.mean())
    return Measured(
        problems=len(np.unique(samples.problem[rows])),
        right=share,
        loss=_cross_entropy(chance, label),
        base=_cross_entropy(np.full(len(label), share), label),
        calibration=tuple(_calibration(chance, label)),
        pairs=tuple(row for each in found if (row := _pairs(samples.problem, *each))),
        votes=tuple(_votes(samples, rows, whole, likelihood)),
        stops=stopping(weighted(probe, samples, rows)),
    )


def weighted(
    probe: Probe, samples: Samples, rows: np.ndarray, first: np.ndarray | None = None
) -> Votes:
    """How votes stand that are weighted by a probe, on some `rows` of the samples. `first` are rows
    of which each problem has one: its votes begin with that, and one without it is left out."""
    whole = logits(probe.heads[WHOLE], whole_features(samples))
    groups = _by_problem(samples.problem, rows)
    if first is not None:
        begun = {samples.problem[row]: row for row in np.flatnonzero(first)}
        both = [(begun.get(samples.problem[own[0]]), own) for own in groups]
        groups = [np.array([row, *own]) for row, own in both if row is not None]
    return votes_of(samples, groups, 1 / (1 + np.exp(-whole)))


def _cross_entropy(chance: np.ndarray, label: np.ndarray) -> float:
    p = np.clip(chance.astype(np.float64), 1e-9, 1 - 1e-9)
    return float(-(label * np.log(p) + (1 - label) * np.log(1 - p)).mean())


def _calibration(chance: np.ndarray, label: np.ndarray) -> list[tuple[int, float, float]]:
    found = []
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        mine = (chance >= low) & (chance < low + 0.2 if low < 0.8 else chance <= 1)
        if mine.any():
            found.append((int(mine.sum()), float(chance[mine].mean()), float(label[mine].mean())))
    return found


def _pairs(
    problem: np.ndarray,
    stage: str,
    probe: np.ndarray,
    likelihood: np.ndarray,
    label: np.ndarray,
    rows: np.ndarray,
) -> PairsRow | None:
    """By problem the share of its pairs in which each is right; None if no problem has a pair."""
    shares, count = [], 0
    for own in _by_problem(problem, rows):
        better, worse = own[label[own] >= 0.5], own[label[own] < 0.5]
        if len(better) and len(worse):
            count += len(better) * len(worse)
            shares.append([_won(says, better, worse) for says in (probe, likelihood)])
    if not shares:
        return None
    both = np.array(shares)
    ours, theirs = both[:, :1], both[:, 1:]
    return PairsRow(stage, count, accuracy(ours), accuracy(theirs), paired(ours, theirs))


def _won(says: np.ndarray, better: np.ndarray, worse: np.ndarray) -> float:
    first, second = says[better][:, None], says[worse][None]
    return float(((first > second) + 0.5 * (first == second)).mean())


def _by_problem(problem: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    places = np.flatnonzero(rows)
    places = places[np.argsort(problem[places], kind="stable")]
    cuts = np.flatnonzero(np.diff(problem[places], prepend=-1) != 0)
    return np.split(places, cuts[1:]) if len(places) else []


def _votes(
    samples: Samples, rows: np.ndarray, whole: np.ndarray, likelihood: np.ndarray
) -> list[VotesRow]:
    problems = _by_problem(samples.problem, rows)
    most = max(map(len, problems), default=0)
    chance, plain = 1 / (1 + np.exp(-whole)), np.ones(len(whole))
    found = []
    for n in sorted({n for n in (2, 4, 8, 16, 32, 64) if n < most} | {most} - {0, 1}):
        some = [own[:n] for own in problems]
        voted = _scores(some, lambda own: samples.label[_leader(samples, own, chance)])
        equal = _scores(some, lambda own: samples.label[_leader(samples, own, plain, likelihood)])
        best = _scores(some, lambda own: samples.label[own[np.argmax(whole[own])]])
        oracle = _scores(some, lambda own: samples.label[own].max())
        found.append(
            VotesRow(
                n,
                accuracy(equal),
                accuracy(voted),
                accuracy(best),
                accuracy(oracle),
                paired(voted, equal),
            )
        )
    return found


def _scores(problems: Sequence[np.ndarray], of: Callable[[np.ndarray], Any]) -> np.ndarray:
    return np.array([[float(of(own))] for own in problems])


def _leader(
    samples: Samples, own: np.ndarray, weights: np.ndarray, tie: np.ndarray | None = None
) -> int:
    """A response with the answer of the most weight, of equal ones that of the likelier."""
    votes: dict[float, tuple[float, float]] = {}
    for at in own:
        number, more = votes.get(samples.answer[at], (0.0, 0.0))
        beside = 0.0 if tie is None else math.exp(tie[at])
        votes[samples.answer[at]] = (number + weights[at], more + beside)
    answer = max(votes, key=lambda each: votes[each])
    return int(next(at for at in own if samples.answer[at] == answer))


def sentences(measured: Measured) -> list[str]:
    """What was found, in words."""
    said = []
    for row in measured.votes[-1:]:
        d = row.difference.difference
        said.append(
            f"A vote of {row.n} weighted by the probe is right in {row.vote.estimate:.3f}, a "
            f"majority in {row.majority.estimate:.3f}: {d.estimate:+.3f} ({d.low:+.3f} to "
            f"{d.high:+.3f}), {measured.problems:,} problems."
        )
        if d.low <= 0 <= d.high:
            said.append(
                "The interval holds zero: on these problems the probe is not shown to help."
            )
    if measured.loss >= measured.base:
        said.append(
            f"The probe's probabilities are no better than the share of right responses "
            f"({measured.loss:.3f} against {measured.base:.3f} nats): take more questions."
        )
    return said
