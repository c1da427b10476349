"""Tournaments as pure schedules: who meets whom, and what ranking the results make.

A schedule is a generator function `schedule(n, keep, rng)` over candidates 0 .. n-1. It yields
rounds, lists of pairs (i, j) that may be judged at the same time; it is sent, for each round, one
`Result` per pair in the same order; it returns the ranking: all n indices, best first, the first
`keep` of them as good as the schedule can tell. It knows no model, no clock, no global random
state: the same `rng` and results give the same rounds. Which of a pair stands first is drawn
evenly, nothing is decided by index, and no two candidates ever meet twice.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import NamedTuple

Pair = tuple[int, int]

_NOBODY = -1  # at a node of a bracket: nobody has come there yet, or whoever had has been ranked


class Result(NamedTuple):
    """One match's outcome: the winner's index, and a margin that is > 0 in favour of the pair's
    first. Ties are broken before they come here; a plain (winner, margin) tuple will do."""

    winner: int
    margin: float = 0.0


Rounds = Generator[list[Pair], Sequence[Result], list[int]]
Schedule = Callable[[int, int, random.Random], Rounds]


def random_pairs(n: int, keep: int, rng: random.Random) -> Rounds:
    """Draw two of the pool at random, drop the loser, until one is left. N-1 matches.

    The published method (LLaVA-CoT, arXiv 2411.10440). The others rank by how late they dropped
    out. All draws are made beforehand among places, a winner keeping its place in the pool: that
    is the same distribution, and matches that do not wait for each other share a round.
    """
    pool = list(range(n))
    draws: list[Pair] = []  # places, in the order drawn; the loser's place is always the second's
    level = [0] * n  # of each place: the round in which it is next free
    rounds: list[list[int]] = []
    while len(pool) > 1:
        a, b = rng.sample(pool, 2)
        pool.remove(b)
        at = max(level[a], level[b])
        level[a] = at + 1
        if at == len(rounds):
            rounds.append([])
        rounds[at].append(len(draws))
        draws.append((a, b))
    holder = list(range(n))  # of each place: the candidate that stands there
    dropped = [0] * len(draws)
    for numbers in rounds:
        pairs = [(holder[draws[k][0]], holder[draws[k][1]]) for k in numbers]
        pairs = [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs]
        results = yield pairs
        for k, pair, result in zip(numbers, pairs, results, strict=True):
            holder[draws[k][0]] = result[0]
            dropped[k] = pair[1] if result[0] == pair[0] else pair[0]
    return [*(holder[place] for place in pool), *reversed(dropped)]


def knockout(n: int, keep: int, rng: random.Random) -> Rounds:
    """A seeded random bracket: ceil(log2 N) rounds, N-1 matches for the winner.

    Byes go to candidates drawn at random, all in the first round. Each further place of `keep`
    replays only the path of the one just placed, with it taken out (tournament sort, Knuth, The
    Art of Computer Programming 3, 5.2.3): at most ceil(log2 N) - 1 matches more, and with
    consistent results the first `keep` are exact. The rest rank by how far they came, then by
    the place of who beat them: nobody ranks above a candidate that it lost to.
    """
    if n < 2:
        return list(range(n))
    order = rng.sample(range(n), n)
    size = 1 << (n - 1).bit_length()  # leaves; node k has children 2k and 2k+1, leaves are last
    byes = set(rng.sample(range(size // 2), size - n))
    at = [_NOBODY] * (2 * size)  # who stands at each node of the bracket
    for number in range(size // 2):
        at[size + 2 * number] = order.pop()
        if number not in byes:
            at[size + 2 * number + 1] = order.pop()
    leaf = {who: node for node, who in enumerate(at) if who != _NOBODY}

    def decide(nodes: Iterable[int]) -> Rounds:
        """Fill these nodes, all of one level, from their children."""
        open_nodes, pairs = [], []
        for node in nodes:
            a, b = at[2 * node], at[2 * node + 1]
            if _NOBODY in (a, b):
                at[node] = max(a, b)
            else:
                open_nodes.append(node)
                pairs.append((a, b) if rng.random() < 0.5 else (b, a))
        results = (yield pairs) if pairs else []
        for node, result in zip(open_nodes, results, strict=True):
            at[node] = result[0]
        return []

    level = size // 2
    while level:
        yield from decide(range(level, 2 * level))
        level //= 2
    place = {at[1]: 0}
    while len(place) < min(keep, n):
        node = leaf[at[1]]
        at[node] = _NOBODY
        while node > 1:
            node //= 2
            yield from decide([node])
        place[at[1]] = len(place)
    nodes = [1]  # who is left, from the root down; the better conqueror's victim first
    while nodes:
        children = (child for node in nodes for child in (2 * node, 2 * node + 1))
        nodes = [child for child in children if child < 2 * size and at[child] != _NOBODY]
        nodes.sort(key=lambda node: place[at[node // 2]])
        for node in nodes:
            place.setdefault(at[node], len(place))
    return list(place)


def round_robin(n: int, keep: int, rng: random.Random) -> Rounds:
    """Everyone meets everyone, all in one round: N(N-1)/2 matches. Ranked by wins; equal ones by
    the sum of their margins, then by a draw.

    Where all have met, wins rank as Bradley-Terry strengths do, without a fit. Each candidate
    stands first in half of its matches (give or take one).
    """
    order = rng.sample(range(n), n)
    pairs = [
        (order[a], order[b]) if (b - a) % 2 else (order[b], order[a])
        for b in range(n)
        for a in range(b)
    ]
    results = (yield pairs) if pairs else []
    wins, margins = [0] * n, [0.0] * n
    for (i, j), (winner, margin) in zip(pairs, results, strict=True):
        wins[winner] += 1
        margins[i] += margin
        margins[j] -= margin
    return sorted(order, key=lambda who: (-wins[who], -round(margins[who], 9)))


def swiss(n: int, keep: int, rng: random.Random) -> Rounds:
    """Everyone plays each round against one of the same score. ceil(log2 N) rounds, one more for
    keep > 1; floor(N/2) matches each.

    A bye counts as a win and goes, for odd N, to one of the lowest that had none. A round that
    could only repeat matches is not held (that can happen to the additional one of 5 or 6).
    Ranked by wins, then by the wins of those met (Buchholz), then by a draw.
    """
    seeds = rng.sample(range(n), n)
    bye = n  # for odd n: the opponent that everyone beats
    wins = [0] * n + [-1]
    met: list[set[int]] = [set() for _ in range(n + 1)]
    for _ in range((n - 1).bit_length() + (keep > 1) if n > 1 else 0):
        order = sorted(seeds, key=lambda who: -wins[who]) + [bye] * (n % 2)
        paired = _pair_by_score(order, wins, met)
        if paired is None:
            break
        for i, j in paired:
            met[i].add(j)
            met[j].add(i)
        pairs = [p if rng.random() < 0.5 else p[::-1] for p in paired if bye not in p]
        results = yield pairs
        for result in results:
            wins[result[0]] += 1
        for i, _ in (p for p in paired if bye in p):
            wins[i] += 1
    buchholz = [sum(wins[other] for other in met[who] if other != bye) for who in range(n)]
    return sorted(seeds, key=lambda who: (-wins[who], -buchholz[who]))


def _pair_by_score(order: list[int], wins: list[int], met: list[set[int]]) -> list[Pair] | None:
    """Pair everyone with one of the same number of wins; of an odd number the last who can goes
    down to the next. Where that is impossible, pair without regard to the groups."""
    pairs: list[Pair] = []
    left: list[int] = []
    for _, group in itertools.groupby(order, key=lambda who: wins[who]):
        pool = left + list(group)
        for leaver in reversed(pool) if len(pool) % 2 else [None]:
            made = _pair_off([who for who in pool if who != leaver], met)
            if made is not None:
                break
        else:
            return _pair_off(order, met)
        pairs += made
        left = [] if leaver is None else [leaver]
    return pairs


def _pair_off(order: list[int], met: list[set[int]]) -> list[Pair] | None:
    """Pair everyone with the next in order that they have not met; where that leaves two who
    have met, as few of the last pairs as possible are made anew. None if there is no way."""
    pairs: list[Pair] = []
    left = list(order)
    while left:
        first = left.pop(0)
        second = next((other for other in left if other not in met[first]), None)
        if second is None:
            break
        left.remove(second)
        pairs.append((first, second))
    else:
        return pairs
    for good in range(len(pairs) - 1, -1, -1):
        taken = {who for pair in pairs[:good] for who in pair}
        remade = _search([who for who in order if who not in taken], met)
        if remade is not None:
            return pairs[:good] + remade
    return None


def _search(left: list[int], met: list[set[int]]) -> list[Pair] | None:
    """A pairing of `left` without rematches, by backtracking."""
    if not left:
        return []
    first, rest = left[0], left[1:]
    for second in rest:
        if second not in met[first]:
            others = _search([who for who in rest if who != second], met)
            if others is not None:
                return [(first, second), *others]
    return None


TOURNAMENTS: dict[str, Schedule] = {
    "random-pairs": random_pairs,
    "knockout": knockout,
    "round-robin": round_robin,
    "swiss": swiss,
}


def matches_of(name: str, n: int, keep: int) -> tuple[int, bool]:
    """How many matches a tournament of `n` takes that keeps `keep`, and whether that is exact or
    the most. One that does not come with cot-engine is not known: (0, False)."""
    rounds = (n - 1).bit_length()
    match name:
        case "round-robin":
            return n * (n - 1) // 2, True
        case "random-pairs":
            return n - 1, True
        case "knockout":
            more = min(keep, n) - 1  # places behind the winner, each decided on one path
            return n - 1 + more * max(0, rounds - 1), more == 0
        case "swiss":
            return (rounds + (keep > 1)) * (n // 2), keep == 1
        case _:
            return 0, False


def play(
    schedule: Schedule, n: int, keep: int, rng: random.Random, judge: Callable[[int, int], Result]
) -> list[int]:
    """Run a schedule to its end with a plain function as judge; for tests and recorded matches."""
    rounds = schedule(n, keep, rng)
    try:
        pairs = next(rounds)
        while True:
            pairs = rounds.send([judge(i, j) for i, j in pairs])
    except StopIteration as end:
        ranking: list[int] = end.value
        return ranking
