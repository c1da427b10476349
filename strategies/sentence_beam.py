"""Sentence-level beam search: the tournament after every sentence."""

from __future__ import annotations

from dataclasses import dataclass

from cot_engine import ConfigError, Expand, Search, Select, Task, check_range


@dataclass(frozen=True)
class SentenceBeam:
    """Grow n candidates for each sentence, keep the tournament's winner, go on from it.

    After `max_sentences` the rest is written in one go: a model that never ends its turn would
    otherwise be asked for ever.
    """

    n: int = 2
    keep: int = 1
    max_sentences: int = 128

    def __post_init__(self) -> None:
        check_range("n", self.n)
        check_range("keep", self.keep)
        check_range("max_sentences", self.max_sentences)
        if self.keep > self.n:
            raise ConfigError(f"keep is {self.keep}, n is {self.n}.", "keep can be n at most.")

    def search(self, task: Task) -> Search:
        beam = task.start
        for _ in range(self.max_sentences):
            if all(chain.done for chain in beam):
                break
            grown = yield Expand(beam, until="sentence", n=self.n)
            beam = yield Select(grown, keep=self.keep)
        beam = yield Expand(beam, until="end")  # those that are done come back as they are
        beam = yield Select(beam, keep=1, about="whole")
        return beam[0]
