"""What stopping early is worth, and which vote pays at which budget: `weighted-vote` as it would
have gone on the responses that were sampled, on problems that the probe was not fitted on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cot_engine.judging.rows import Row
from cot_engine.statistics import Interval, Paired, accuracy, paired
from cot_engine.training.probe_samples import Samples

STOPS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
DOUBTS = (0.35, 1.0)
ROUNDS = (1, 2)
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
STEPS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)
"""Budgets that rows are made for, in samples."""
SLACK = 0.005
"""Of the best accuracy that a budget buys, what a cheaper vote may give away."""
_VOTE = "weighted-vote"


@dataclass(frozen=True, slots=True)
class Policy:
    """Parameters of `weighted-vote`; a `stop` of None asks for all `n` at once. With `greedy` the
    likeliest response is the first."""

    n: int
    stop: float | None = None
    round: int = 2
    doubt: float = 0.35
    greedy: bool = False

    @property
    def row(self) -> tuple[str, dict[str, Any]]:
        """The strategy, and those parameters that a row has to name."""
        if self.greedy and self.n == 1:
            return "greedy", {}
        named = asdict(self) if self.stop is not None else {"n": self.n, "greedy": self.greedy}
        return _VOTE, {name: value for name, value in named.items() if value is not False}


@dataclass(frozen=True, slots=True)
class StopsRow:
    """A vote that may stop: the mean number of `responses`, its accuracy, and the difference from
    the vote of all."""

    policy: Policy
    responses: float
    accuracy: Interval
    difference: Paired


@dataclass(frozen=True, slots=True)
class Paying:
    """A row of the profile with what it was chosen for: its mean cost in `samples`, the mean number
    of `responses`, and its accuracy."""

    row: Row
    samples: float
    responses: float
    accuracy: Interval


@dataclass(frozen=True)
class Votes:
    """How votes stand after each response, [problems, responses]: the weight of the leading answer,
    of the next and of all, and what the leading answer earns."""

    lead: np.ndarray
    second: np.ndarray
    total: np.ndarray
    earned: np.ndarray

    @property
    def most(self) -> int:
        """Responses of a problem."""
        return int(self.lead.shape[1])


def votes_of(samples: Samples, groups: Sequence[np.ndarray], chance: np.ndarray) -> Votes:
    """Count the votes of problems, each given as the rows of its responses in the order in which
    they were sampled, weighted by `chance` [rows]. One with fewer responses than most is left
    out."""
    most = max(map(len, groups), default=0)
    whole = [own for own in groups if len(own) == most]
    kept = np.zeros((4, len(whole), most))
    for at, own in enumerate(whole):
        weight: dict[float, float] = {}
        best: dict[float, int] = {}
        for k, row in enumerate(own):
            answer = float(samples.answer[row])
            weight[answer] = weight.get(answer, 0.0) + float(chance[row])
            if answer not in best or chance[row] > chance[best[answer]]:
                best[answer] = int(row)
            leader = max(weight, key=lambda each: weight[each])
            rest = [value for each, value in weight.items() if each != leader]
            stand = (weight[leader], max(rest, default=0.0), sum(weight.values()))
            kept[:, at, k] = (*stand, samples.label[best[leader]])
    return Votes(*kept)


def ends(votes: Votes, policy: Policy) -> np.ndarray:
    """How many responses a vote took [problems], as `core.answers.settled` decides."""
    n = min(policy.n, votes.most)
    count = np.full(len(votes.lead), n)
    if policy.stop is None:
        return count
    going = np.ones(len(count), bool)
    for k in (*range(1 if policy.greedy else policy.round, n, policy.round), n):
        lead, total = votes.lead[:, k - 1], votes.total[:, k - 1] + policy.doubt
        over = (lead - votes.second[:, k - 1] > n - k) | (
            (lead >= policy.stop * total) & (lead > 0)
        )
        count[going & over] = k
        going &= ~over
    return count


def earned(votes: Votes, count: np.ndarray) -> np.ndarray:
    """What answers earn after so many responses [problems, 1]."""
    return votes.earned[np.arange(len(count)), count - 1][:, None]


def policies(widths: Iterable[int], greedy: bool = False) -> Iterator[Policy]:
    """All that are compared, of these widths; all `greedy`, or none."""
    for n in widths:
        yield Policy(n, greedy=greedy)
        for stop in STOPS if n > 1 else ():
            for doubt in DOUBTS:
                for step in ROUNDS:
                    if step < n:
                        yield Policy(n, stop, step, doubt, greedy)


def stopping(votes: Votes) -> tuple[StopsRow, ...]:
    """The curve: of all responses at each stop, the strategy's own `round` and `doubt`."""
    if votes.most < 2 or not len(votes.lead):
        return ()
    whole, found = earned(votes, np.full(len(votes.lead), votes.most)), []
    for stop in (*STOPS, None):
        policy = Policy(votes.most, stop)
        count = ends(votes, policy)
        own = earned(votes, count)
        row = StopsRow(policy, float(count.mean()), accuracy(own), paired(own, whole))
        found.append(row)
    return tuple(found)


def paying(
    votes: Votes, further: float, greedy: Votes | None = None, first: float = 1.0
) -> tuple[Paying, ...]:
    """The rows of a profile: at each step of the budget the cheapest vote that gives away no more
    than SLACK of the best that a budget of that size buys a question.

    `further` is what one more response costs beside a first one, in samples (its prompt is read
    once). A budget is a limit for each question, so that a vote has no more responses than fit.
    `greedy` are the votes that begin with the likeliest response, which costs `first`; alone, it is
    the strategy of that name. Steps that buy the same are one row; those beyond what was sampled
    are left out.
    """
    if not len(votes.lead):
        return ()
    found: list[Paying] = []
    measured: dict[Policy, tuple[float, float, float]] = {}
    begun = [(False, votes, 1.0)]
    if greedy is not None and len(greedy.lead):
        begun.append((True, greedy, first))
    for upto in STEPS:
        fit = min(votes.most, 1 + int((upto - 1) / further + 1e-9))
        if fit == votes.most and found and found[-1].row.upto >= 1 + (votes.most - 1) * further:
            break  # nothing larger was sampled
        widths = sorted({*(w for w in WIDTHS if w < fit), fit})
        for likeliest, some, start in begun:
            for policy in policies(widths, likeliest):
                if policy not in measured:
                    count = ends(some, policy)
                    cost = start + (float(count.mean()) - 1) * further
                    right = float(earned(some, count).mean())
                    measured[policy] = cost, right, float(count.mean())
        within = {p: m for p, m in measured.items() if p.n <= fit}
        front = {
            policy: (cost, right)
            for policy, (cost, right, _) in within.items()
            if not any(c < cost and r >= right for c, r, _ in within.values())
        }
        enough = max(right for _, right in front.values()) - SLACK
        best = min((p for p in front if front[p][1] >= enough), key=lambda p: front[p])
        row = Row(upto, *best.row)
        if found and (found[-1].row.strategy, found[-1].row.parameters) == best.row:
            found[-1] = replace(found[-1], row=row)
            continue
        (cost, _, responses), some = measured[best], begun[best.greedy][1]
        found.append(Paying(row, cost, responses, accuracy(earned(some, ends(some, best)))))
    return tuple(found)
