"""Sentence-level beam search: the tournament after every sentence."""

from __future__ import annotations

from dataclasses import dataclass

from cot_engine import (
    Beam,
    ConfigError,
    Expand,
    Search,
    Select,
    Task,
    check_extra,
    check_range,
    spread,
)


@dataclass(frozen=True)
class SentenceBeam:
    """Grow n candidates for each sentence, keep the tournament's winner, go on from it.

    After `max_sentences` the rest is written in one go: a model that never ends its turn would
    otherwise be asked for ever. `extra` is a fraction of n: that share of the sentences, evenly
    spread, grows one more. With `fill`, each sentence then goes on, at most n at a time, until
    half of what was left of its stage's share of the budget is used up: all that is left once the
    response is finished. Shares are in proportion to the lengths that the plan declares.
    """

    n: int = 2
    keep: int = 1
    max_sentences: int = 128
    fill: bool = False
    extra: float = 0.0

    def __post_init__(self) -> None:
        check_range("n", self.n)
        check_extra(self.extra)
        check_range("keep", self.keep)
        check_range("max_sentences", self.max_sentences)
        if self.keep > self.n:
            raise ConfigError(f"keep is {self.keep}, n is {self.n}.", "keep can be n at most.")

    def search(self, task: Task) -> Search:
        beam: Beam = task.start
        written: list[str] = []
        for k in range(self.max_sentences):
            if all(chain.done for chain in beam):
                break
            parents, n = beam, spread(self.n, self.extra, k)
            grown = yield Expand(parents, until="sentence", n=n)
            beam = yield Select(grown, keep=self.keep)
            [last] = beam[0].steps[-1:]
            written.append(last.stage or task.plan.stages[0].tag)
            while self.fill:
                upto = self._upto(task, beam, written)
                more = yield Expand(parents, until="sentence", n=n, upto=upto)
                if not more:
                    break
                beam = yield Select((*beam, *more), keep=self.keep)
        beam = yield Expand(beam, until="end")  # those that are done come back as they are
        beam = yield Select(beam, keep=1, about="whole")
        return beam[0]

    @staticmethod
    def _upto(task: Task, beam: Beam, written: list[str]) -> float:
        """The fraction of the budget that may be spent when the latest sentence has its share.
        `written` has the stage of each sentence so far."""
        if all(chain.done for chain in beam):
            return 1.0
        low, high = task.plan.span(written[-1])
        return float(high - (high - low) / 2 ** written.count(written[-1]))
