"""The values everything else is written in: problems, chains, requests to a model, what came back.

All are frozen. Nothing here computes, reads files or knows a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cot_engine.backends import Headway
    from cot_engine.boundaries import Until
    from cot_engine.images import Image

Role = Literal["generate", "judge", "score"]
Finish = Literal["stop", "eos", "length", "budget"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One question, with zero or more images. `id` names it in seeds, traces and results."""

    id: str
    question: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: temperature, then top-k, then top-p, as the published runs did.

    `temperature=0` is greedy. `top_k=0` and `top_p=1` switch the cut off. The defaults are the
    published ones; the published script never names its top-k of 50, which transformers adds.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 50

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one piece of work cost. Adds up with `+`.

    `encodes` images through the vision tower; `prefilled`, `cached` and `decoded` tokens of the
    language model (an image counts as the tokens it occupies); `flops` floating-point operations,
    a multiply-add counting two; `calls` sampled continuations and judged orderings, however they
    were batched; `seconds` of model time, a batch's time being shared among the rows in it in
    proportion to their tokens.
    """

    encodes: int = 0
    prefilled: int = 0
    cached: int = 0
    decoded: int = 0
    flops: int = 0
    calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.encodes + other.encodes,
            self.prefilled + other.prefilled,
            self.cached + other.cached,
            self.decoded + other.decoded,
            self.flops + other.flops,
            self.calls + other.calls,
            self.seconds + other.seconds,
        )

    @property
    def tokens(self) -> int:
        """Tokens the model computed: prefilled + decoded (cached ones were paid for before)."""
        return self.prefilled + self.decoded


# --- what is said to a backend -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prompt:
    """One user turn: the images, then the text. The backend puts it in the model's chat format.

    `text` is data: a backend must not let special tokens written in it become special tokens.
    """

    text: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the assistant's turn so far.

    `ids` are the token ids the model itself sampled; None for text that the engine put there (a
    forced tag), which the backend tokenises.
    """

    text: str
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Generate:
    """Continue `prompt` + `prefix` until `until`, once per seed.

    `scope` names the search this belongs to: a backend shares prefixes within a scope and drops
    them on `release(scope)`, so that what a search costs never depends on its neighbours.
    `deadline` is a `time.monotonic()` value by which rows stop, with finish "budget". `headway`
    is there if somebody watches.
    """

    scope: str
    prompt: Prompt
    prefix: tuple[Segment, ...]
    until: Until
    seeds: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    role: Role = "generate"
    deadline: float | None = None
    headway: Headway | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled continuation.

    `text` is what `ids` add to the assistant's turn, cut at the boundary. `logprob` is the sum of
    the kept tokens' natural-log probabilities under the model itself (temperature 1, no cuts), so
    it does not depend on how they were drawn. An end-of-sequence token is not part of `ids`.
    """

    text: str
    ids: tuple[int, ...]
    logprob: float
    finish: Finish


@dataclass(frozen=True, slots=True)
class Generated:
    """The answer to `Generate`: one generation per seed, in order, and what all of it cost."""

    generations: tuple[Generation, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Choose:
    """Which of `choices` would the model write next, after `prompt` + `prefix` + each tail?

    The assistant's turn starts with `prefix`; each of the `tails` stands for one question. Tails
    are the end of the USER text: the turn is `prompt.text + tail`, then the chat format's
    assistant opening, then `prefix`. Everything the tails have in common is computed once.
    """

    scope: str
    prompt: Prompt
    tails: tuple[str, ...]
    choices: tuple[str, ...]
    prefix: str = ""
    role: Role = "judge"
    headway: Headway | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The answer to `Choose`: natural-log probabilities, `logprobs[tail][choice]`.

    They are those of each choice's first token as it stands after the prefix, over the whole
    vocabulary. Raises in the backend if two choices share a first token.
    """

    logprobs: tuple[tuple[float, ...], ...]
    usage: Usage


# --- what a search is made of --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """The text written for one stage, or one sentence, or all that remained.

    `segments` are exactly what stands in the assistant's turn (forced tags, sampled ids, repairs);
    `text` is their text. `logprob` sums over the `tokens` sampled ones. `faults` names what was
    malformed (see `stages.FAULTS`); `stage` is the tag of the stage that the step ended in.
    """

    text: str
    segments: tuple[Segment, ...]
    stage: str
    logprob: float
    tokens: int
    finish: Finish
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """A problem's steps so far. `id` is the path from the root: "r", "r.2", "r.2.0", ...

    `count` is how many candidates with this same text were merged into it. `done` says that the
    last stage is closed (or the model ended its turn) and nothing may follow.
    """

    id: str = "r"
    steps: tuple[Step, ...] = ()
    done: bool = False
    count: int = 1

    @property
    def parent(self) -> str | None:
        return self.id.rpartition(".")[0] or None

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(segment for step in self.steps for segment in step.segments)

    @property
    def last(self) -> Step | None:
        return self.steps[-1] if self.steps else None

    @property
    def faults(self) -> tuple[str, ...]:
        return tuple(fault for step in self.steps for fault in step.faults)

    def likelihood(self, steps: int | None = None) -> float:
        """Mean log-probability per sampled token of the last `steps` steps (all, if None).

        Where nothing was sampled it is -99, less likely than any text: writing nothing must not
        pass for certainty.
        """
        chosen = self.steps if steps is None else self.steps[-steps:]
        tokens = sum(step.tokens for step in chosen)
        return sum(step.logprob for step in chosen) / tokens if tokens else -99.0

    def grow(self, index: int, step: Step, done: bool) -> Chain:
        return Chain(f"{self.id}.{index}", (*self.steps, step), done)

    def counted(self, count: int) -> Chain:
        return replace(self, count=count)


Beam = tuple[Chain, ...]
Outcome = Literal["first", "second", "tie"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of an ordered pair. `margin` > 0 favours the first (nats, if logits).

    `readable` is False where the reply could not be read: then the outcome is a tie.
    """

    outcome: Outcome
    margin: float = 0.0
    readable: bool = True
    text: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """Two candidates judged in both orders (or in one, if so configured).

    `verdicts[0]` saw (first, second), `verdicts[1]` saw (second, first). `outcome` is the combined
    one: a disagreement or an unreadable reply makes a tie. `winner` is the id that went on;
    `broken_by` says how a tie was decided: "likelihood" or "draw" ("" if there was no tie).
    """

    first: str
    second: str
    verdicts: tuple[Verdict, ...]
    outcome: Outcome
    winner: str
    broken_by: Literal["", "likelihood", "draw"] = ""

    @property
    def margin(self) -> float:
        """Half the difference of the two orders' margins: position bias cancels."""
        if len(self.verdicts) == 1:
            return self.verdicts[0].margin
        return (self.verdicts[0].margin - self.verdicts[1].margin) / 2

    @property
    def flipped(self) -> bool:
        """Both orders were readable, decided, and named different candidates."""
        outcomes = [v.outcome for v in self.verdicts if v.readable]
        return len(outcomes) == 2 and "tie" not in outcomes and outcomes[0] == outcomes[1]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search returns. `text` is the CONCLUSION alone; the rest says how it came about.

    `usage` is by role; `left` is what remained of the budget, in its unit (None: no budget).
    `incomplete` says in a sentence why the answer is not whole; it is "" if it is.
    """

    text: str
    chain: Chain
    problem: Problem
    usage: dict[str, Usage] = field(default_factory=dict)
    seconds: float = 0.0
    left: float | None = None
    trace: object = None
    incomplete: str = ""

    def __str__(self) -> str:
        return self.text

    @property
    def complete(self) -> bool:
        """Whether the model wrote the answer to its end."""
        return not self.incomplete

    @property
    def total(self) -> Usage:
        return sum(self.usage.values(), Usage())
