"""What is said to a model, and what it answers. All frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from cot_engine.core.headway import Headway
from cot_engine.core.usage import Role, Usage

if TYPE_CHECKING:
    import numpy as np

    from cot_engine.core.boundaries import Until
    from cot_engine.images.load import Image

Finish = Literal["stop", "eos", "length", "budget"]


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
        """Whether the likeliest token is taken, and nothing drawn."""
        return self.temperature == 0


GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0)


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
class States:
    """Of a continuation, what the model's layers hold while it is written: which `layers` (0 is the
    first, -1 what the last one gives after its norm), and at which places: wherever one of the
    strings in `marks` is complete, and at the end. Nothing is computed for it."""

    layers: tuple[int, ...]
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """What the layers held at one place of a continuation.

    The place is where token `token` of it was drawn, all before that read: it completed `mark`, or
    is the last ("" : the end of the continuation; `token` is then their number if the model ended
    its turn there). `values` [layers, width] are the states at the place, `sums` [layers, width]
    those of the `token` places up to it added up, both float32. The first token of a continuation
    is drawn from what read the prompt, and is no place. `logprob` (nats) sums over the tokens
    before and at it. The end may lie some tokens behind those that were kept.
    """

    mark: str
    token: int
    values: np.ndarray
    sums: np.ndarray
    logprob: float


@dataclass(frozen=True, slots=True)
class Generate:
    """Continue `prompt` + `prefix` until `until`, once per seed.

    `scope` names the search this belongs to: a backend shares prefixes within a scope and drops
    them on `release(scope)`, so that what a search costs never depends on its neighbours.
    `deadline` is a `time.monotonic()` value by which rows stop, with finish "budget". `states` are
    wanted with what is written, of a backend that has them. `headway` is there if somebody watches.
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
    states: States | None = None
    headway: Headway | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled continuation.

    `text` is what `ids` add to the assistant's turn, cut at the boundary. `logprob` is the sum of
    the kept tokens' natural-log probabilities under the model itself (temperature 1, no cuts), so
    it does not depend on how they were drawn. An end-of-sequence token is not part of `ids`.
    `places` are those whose states were asked for, in order, the last one the end; none where the
    backend does not have them.
    """

    text: str
    ids: tuple[int, ...]
    logprob: float
    finish: Finish
    places: tuple[Place, ...] = field(default=(), compare=False, repr=False)


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


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a turn. `own`: the words of whoever asks, in which a model's special tokens are
    such; else data, in which they stay text. `mark`: the end of this piece is a place."""

    text: str
    own: bool = False
    mark: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation: its pictures, then its text."""

    speaker: Literal["system", "user", "assistant"]
    pieces: tuple[Piece, ...]
    images: tuple[Image, ...] = ()

    @property
    def text(self) -> str:
        """What it says."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns as the model's chat format writes them. `opens`: an assistant's turn is begun behind
    them. Its places are the marked ones, in order; its end is the only one where none is marked."""

    turns: tuple[Turn, ...]
    opens: bool = False

    @property
    def images(self) -> tuple[Image, ...]:
        """Those of all turns, in order."""
        return tuple(image for turn in self.turns for image in turn.images)

    @property
    def places(self) -> int:
        """How many there are."""
        return max(1, sum(piece.mark for turn in self.turns for piece in turn.pieces))


@dataclass(frozen=True, slots=True)
class Measure:
    """What does the model make of dialogues that are there already, at their places?

    With `choices`: how likely each would be to stand there next; without, the model's final hidden
    state there. Nothing is written. Not every backend can (`protocol.Measuring`).
    """

    scope: str
    dialogues: tuple[Dialogue, ...]
    choices: tuple[str, ...] = ()
    role: Role = "verify"
    headway: Headway | None = field(default=None, compare=False, repr=False)

    @property
    def images(self) -> tuple[Image, ...]:
        """Those of all dialogues, each once."""
        found = {image.digest: image for dialogue in self.dialogues for image in dialogue.images}
        return tuple(found.values())


@dataclass(frozen=True, slots=True)
class Measured:
    """The answer to `Measure`: `numbers[dialogue][place]` are the natural-log probabilities of each
    choice's first token, over the whole vocabulary; without choices, the final hidden state, after
    the model's last norm."""

    numbers: tuple[tuple[tuple[float, ...], ...], ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What a trace records of the model. `digest` names the weights; `max_images` per problem.

    `context` is the longest prompt + reply in tokens. `notes` are sentences for the user (a
    fallback that was taken, a limit that was met). `max_pixels`: of a picture, what was shown to it
    at most, if that was bounded.
    """

    name: str
    model: str
    digest: str
    architecture: str
    device: str
    dtype: str
    context: int
    max_images: int
    notes: tuple[str, ...] = ()
    max_pixels: int | None = None
