"""How often do 95 % intervals hold the truth? Simulated strategies whose truth is known.

    python benchmarks/coverage.py --simulations 4000

Methods: `tilting` is `cot_engine.statistics`; `percentile` is the plain bootstrap over problems,
`wilson` the score interval (one seed only), both for comparison. `low` and `high` are the shares
that miss on either side; `p<.05` is how often the test of `paired` finds a difference: its size
where the true difference is 0, else its power. By chance a coverage is off by 0.34 points (one
standard deviation) at 4,000 simulations.

An accuracy's problems each have their own chance of being solved (Beta, mean p); seeds are then
independent. In pairs, a share of the problems is open: there the strategies answer right with
chances of their own (Beta, mean 1/2 + e and 1/2 - e), independently; all others they answer alike.
D is the share of (problem, seed) pairs on which one is right and the other wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cot_engine.statistics import Interval, accuracy, paired, wilson


@dataclass(frozen=True)
class Scenario:
    """`of` is "accuracy" or "pairs"; `share` is p or D; `edge` is e; `missing` a share of cells;
    `graded`: scores are the chances themselves, fractions."""

    of: str
    n: int
    seeds: int
    share: float
    edge: float = 0.0
    missing: float = 0.0
    graded: bool = False

    @property
    def name(self) -> str:
        if self.of == "accuracy":
            text = f"accuracy {self.share:g}, n={self.n}, {self.seeds} seeds"
        else:
            text = f"pairs D={self.share:g} e={self.edge:g}, n={self.n}, {self.seeds} seeds"
        text += f", {self.missing:.0%} missing" if self.missing else ""
        return text.replace("1 seeds", "1 seed") + (", graded" if self.graded else "")

    @property
    def open(self) -> float:
        """The share of open problems: D is that times the chance that the two differ there."""
        return self.share / (0.5 + 2 * self.edge**2)

    @property
    def truth(self) -> float:
        return self.share if self.of == "accuracy" else self.open * 2 * self.edge

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """The scores of one experiment: (problems, seeds), of one strategy or of two."""
        if self.of == "accuracy":
            return (self._answers(rng, self.share, 1.0),)
        alike = rng.random((self.n, 1)) >= self.open
        a, b = (self._answers(rng, 0.5 + side * self.edge, 2.0) for side in (1, -1))
        return tuple(np.where(alike & ~np.isnan(x), 1.0, x) for x in (a, b))

    def _answers(self, rng: np.random.Generator, mean: float, spread: float) -> np.ndarray:
        chances = np.full((self.n, 1), mean)
        if 0 < mean < 1:
            chances = rng.beta(mean * spread, (1 - mean) * spread, (self.n, 1))
        answers = (rng.random((self.n, self.seeds)) < chances).astype(float)
        answers = np.repeat(chances, self.seeds, axis=1) if self.graded else answers
        answers[rng.random(answers.shape) < self.missing] = np.nan
        return answers


SCENARIOS = [
    *(
        Scenario("accuracy", n, seeds, p)
        for p in (0.6, 0.95)
        for n in (200, 1000)
        for seeds in (1, 3)
    ),
    Scenario("accuracy", 218, 3, 0.6, missing=0.2),
    Scenario("accuracy", 200, 1, 0.6, graded=True),
    *(
        Scenario("pairs", n, seeds, d, e)
        for d in (0.02, 0.1, 0.3)
        for n in (200, 1000)
        for seeds in (1, 3)
        for e in (0.0, 0.1)
    ),
    Scenario("pairs", 200, 1, 0.05, 0.5),
    Scenario("pairs", 1000, 1, 0.05, 0.5),
    Scenario("pairs", 218, 3, 0.1, 0.1, missing=0.2),
    Scenario("pairs", 200, 1, 0.1, 0.1, graded=True),
]


def differences(scores: tuple[np.ndarray, ...]) -> np.ndarray:
    """Problems' means, of the scores or of their differences; for the methods compared with."""
    cells = scores[0] - scores[1] if len(scores) == 2 else scores[0]
    return np.nanmean(cells[~np.isnan(cells).all(axis=1)], axis=1)


def percentile(scores: tuple[np.ndarray, ...], draws: int) -> tuple[Interval, float]:
    means = differences(scores)
    values, counts = np.unique(means, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(means), counts / len(means), size=draws)
    low, high = np.quantile(drawn @ values / len(means), (0.025, 0.975))
    return Interval(float(means.mean()), float(low), float(high)), np.nan


def tilting(scores: tuple[np.ndarray, ...], draws: int) -> tuple[Interval, float]:
    if len(scores) == 1:
        return accuracy(scores[0], draws=draws), np.nan
    result = paired(*scores, draws=draws)
    return result.difference, result.p


def score(scores: tuple[np.ndarray, ...], draws: int) -> tuple[Interval, float]:
    return Interval(scores[0].mean(), *wilson(scores[0].sum(), scores[0].size)), np.nan


METHODS: dict[str, Callable[..., tuple[Interval, float]]] = {
    "tilting": tilting,
    "percentile": percentile,
    "wilson": score,
}


def methods(scenario: Scenario) -> list[str]:
    one = scenario.of == "accuracy" and scenario.seeds == 1 and not scenario.graded
    return list(METHODS) if one else ["tilting", "percentile"]


def simulate(
    scenario: Scenario, method: str, simulations: int, draws: int, seed: int = 0
) -> dict[str, float]:
    """`coverage`, `low` and `high` (misses below and above), mean `width`, `found` (p < 0.05).

    The same seed gives every method the same experiments. Results of equal data are kept: one
    seed's scores have few different counts.
    """
    rng = np.random.default_rng(seed)
    known: dict[bytes, tuple[Interval, float]] = {}
    rows = []
    for _ in range(simulations):
        scores = scenario.draw(rng)
        key = np.sort(differences(scores)).tobytes()
        if key not in known:
            known[key] = METHODS[method](scores, draws)
        interval, p = known[key]
        # A hair's breadth: an end that equals the truth but for rounding holds it.
        below, above = interval.high < scenario.truth - 1e-9, interval.low > scenario.truth + 1e-9
        rows.append((not below and not above, below, above, interval.high - interval.low, p < 0.05))
    means = np.mean(rows, axis=0)
    return dict(zip(("coverage", "low", "high", "width", "found"), means.tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=4000, help="of each scenario")
    parser.add_argument("--draws", type=int, default=2000, help="resamples of each interval")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    args = parser.parse_args()
    print("| scenario | method | coverage | low | high | mean width | p<.05 |")
    print("|---|---|---|---|---|---|---|")
    for scenario in SCENARIOS:
        if args.only not in scenario.name:
            continue
        for method in methods(scenario):
            row = simulate(scenario, method, args.simulations, args.draws, args.seed)
            shares = " | ".join(f"{100 * row[key]:.1f}" for key in ("coverage", "low", "high"))
            found = f"{row['found']:.3f}" if (scenario.of, method) == ("pairs", "tilting") else ""
            name = f"| {scenario.name} | {method} | {shares} | {100 * row['width']:.2f} | {found} |"
            print(name, flush=True)


if __name__ == "__main__":
    main()
