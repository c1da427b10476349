"""What a verifier is asked: turns with fields in them, made into dialogues for each candidate.

    Turn("user", "Question: {question}\\n\\nAnswer: {response}")
    Turn("user", "{step}", first="{question}\\n\\n{step}", each=True)
    Turn("assistant", "{mark}+", each=True)

Fields are data: whatever a user or a model wrote stays text. The words around them are the
verifier's own: a special token of its model is one there. `{mark}` is a place whose score counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from cot_engine.core import requests
from cot_engine.core.boundaries import sentence_end
from cot_engine.core.chain import Chain
from cot_engine.core.grammar import conclusion, read
from cot_engine.core.requests import Dialogue, Piece
from cot_engine.core.stages import Plan
from cot_engine.core.tables import must
from cot_engine.errors import ConfigError, InputError, UnknownNameError, shown
from cot_engine.judging import prompts
from cot_engine.judging.protocol import Case

Steps = Literal["stage", "paragraph", "line", "sentence", "search", "whole"]
"""What counts as a step: what each stage holds, its paragraphs, lines or sentences, what the search
grew at a time, or the whole response as one."""

_FIELD = re.compile(r"\{\{|\}\}|\{([A-Za-z][A-Za-z0-9_]*)\}")
_TAG = re.compile(r"[A-Z][A-Z0-9_]*")
POINT = ("question", "response", "raw", "answer", "before", "last", "stage", "sentence")
STEP = ("step", "number")
PAIR = ("first", "second")
SENTENCE = "Is everything in it right?"


def is_words(value: object) -> bool:
    """Is it a text, which may be empty?"""
    return isinstance(value, str)


Words = Annotated[str, must("a text", is_words)]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of what a verifier is asked. `speaker` says it: user, assistant or system. With
    `each` it is said once for each step, with `first` in place of `text` for the first of them;
    turns with `each` that follow each other are said in turn. Pictures stand in the first turn of
    the user."""

    speaker: Literal["user", "assistant", "system"] = "user"
    text: Words = "{question}"
    first: Words | None = None
    each: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """What a verifier is asked of one candidate, or of a pair. `sentence` is what {sentence}
    stands for, `sentences` by stage. `opens`: whether the model's turn is begun at the end (None:
    where the last turn is not its own and nothing is marked). Raises ConfigError for turns that
    will not do."""

    turns: tuple[Turn, ...]
    steps: Steps = "stage"
    sentence: str = SENTENCE
    sentences: Mapping[str, str] = field(default_factory=dict)
    opens: bool | None = None
    pairwise: bool = False

    def __post_init__(self) -> None:
        if not self.turns:
            raise ConfigError("A verifier has no turns.", 'Add one: [[turns]] text = "...".')
        for turn in self.turns:
            for text in (turn.text, turn.first or ""):
                self._check(turn, text)
            if turn.first is not None and not turn.each:
                raise ConfigError(
                    f"A turn has first = {shown(turn.first)} without each = true.",
                    "It is what is said for the first of several steps.",
                )

    def _check(self, turn: Turn, text: str) -> None:
        known = [*POINT, "mark", *(PAIR if self.pairwise else ()), *(STEP if turn.each else ())]
        for name, _ in _parts(text):
            if name in STEP and name not in known:
                raise ConfigError(
                    f"A turn has {{{name}}} in it and is not said for each step.",
                    "Add each = true to it.",
                )
            if name and name not in known and not _TAG.fullmatch(name):
                raise UnknownNameError("field of a verifier's words called", name, known)

    @property
    def marked(self) -> bool:
        """Whether there are places that count, in place of the end."""
        texts = [t for turn in self.turns for t in (turn.text, turn.first or "")]
        return any(name == "mark" for text in texts for name, _ in _parts(text))

    @property
    def by_step(self) -> bool:
        """Whether each step is said by itself."""
        return any(turn.each for turn in self.turns)

    def of_one(self, chain: Chain, case: Case) -> tuple[Dialogue, int, int]:
        """The dialogue about a candidate, how many of its steps are new, the last ones, and how
        many it has (0: they are not said one by one). Raises InputError where a field has
        nothing."""
        if not self.by_step:
            return self._dialogue(self._fields(chain, case), [], case), 0, 0
        steps, new = steps_of(chain, case.plan, self.steps)
        if not steps:
            raise InputError("There is no step to verify: nothing was written yet.")
        return self._dialogue(self._fields(chain, case), steps, case), new, len(steps)

    def of_pair(self, first: Chain, second: Chain, case: Case) -> Dialogue:
        """The dialogue in which two candidates are compared, in this order."""
        shared = 0 if case.about == "whole" else prompts.common_steps(first, second)
        before = Chain("", first.steps[:shared])
        fields = self._fields(first, case)
        fields["before"] = plain_text(before, case.plan)
        fields["first"], fields["second"] = (
            prompts.since(chain, shared, case.plan) for chain in (first, second)
        )
        return self._dialogue(fields, [], case)

    # --- inside ----------------------------------------------------------------------------------

    def _fields(self, chain: Chain, case: Case) -> dict[str, str]:
        tag = case.stage.tag if case.stage is not None else ""
        contents = read(chain.text, case.plan).contents
        return {
            "question": case.problem.question,
            "response": plain_text(chain, case.plan),
            "raw": chain.text,
            "answer": conclusion(chain.text, case.plan),
            "before": plain_text(Chain("", chain.steps[:-1]), case.plan),
            "last": prompts.since(chain, max(0, len(chain.steps) - 1), case.plan),
            "stage": tag,
            "sentence": self.sentences.get(tag, self.sentence),
            **contents,
        }

    def _dialogue(
        self, fields: Mapping[str, str], steps: Sequence[tuple[str, str]], case: Case
    ) -> Dialogue:
        said = list(self._said(fields, steps))
        pictured = next((at for at, (turn, _, _) in enumerate(said) if turn.speaker == "user"), 0)
        turns = tuple(
            requests.Turn(
                turn.speaker,
                tuple(self._pieces(text, own)),
                case.images if at == pictured else (),
            )
            for at, (turn, text, own) in enumerate(said)
        )
        opens = self.opens
        if opens is None:
            opens = turns[-1].speaker != "assistant" and not self.marked
        return Dialogue(turns, opens)

    def _said(
        self, fields: Mapping[str, str], steps: Sequence[tuple[str, str]]
    ) -> Iterator[tuple[Turn, str, Mapping[str, str]]]:
        """The turns, those for each step repeated, each with what its fields are."""
        at = 0
        while at < len(self.turns):
            if not self.turns[at].each:
                yield self.turns[at], self.turns[at].text, fields
                at += 1
                continue
            end = at
            while end < len(self.turns) and self.turns[end].each:
                end += 1
            for number, (tag, step) in enumerate(steps, 1):
                own = {**fields, "step": step, "number": str(number), "stage": tag}
                own["sentence"] = self.sentences.get(tag, self.sentence)
                for turn in self.turns[at:end]:
                    first = number == 1 and turn.first is not None
                    yield turn, (turn.first or "") if first else turn.text, own
            at = end

    def _pieces(self, text: str, fields: Mapping[str, str]) -> Iterator[Piece]:
        words = ""
        for name, literal in _parts(text):
            if not name:
                words += literal
                continue
            if name == "mark":
                yield Piece(words, True, True)
                words = ""
                continue
            if name not in fields:
                written = [tag for tag in fields if _TAG.fullmatch(tag)]
                raise InputError(
                    f"The verifier asks about {name}, and the response has no such stage.",
                    f"It has {', '.join(written) or 'none yet'}.",
                )
            if words:
                yield Piece(words, True)
            words = ""
            if fields[name]:
                yield Piece(fields[name])
        if words:
            yield Piece(words, True)


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """The fields of a text, by name, and ("", text) for what stands between them."""
    at = 0
    for match in _FIELD.finditer(text):
        if match.start() > at:
            yield "", text[at : match.start()]
        yield (match[1], "") if match[1] else ("", match[0][0])
        at = match.end()
    if at < len(text):
        yield "", text[at:]


# --- candidates as text --------------------------------------------------------------------------


def plain_text(chain: Chain, plan: Plan) -> str:
    """What a chain says, without its tags, a stage a paragraph; as it is where it has none."""
    reading = read(chain.text, plan)
    parts = [*reading.contents.values(), reading.opened.strip()]
    return "\n\n".join(filter(None, parts)) or chain.text.strip()


def steps_of(chain: Chain, plan: Plan, by: Steps) -> tuple[list[tuple[str, str]], int]:
    """The steps of a chain, each with the tag of its stage ("" for none), and how many of the last
    ones the chain's last growth brought or changed: one at least, if there is any."""
    now = _steps(chain, plan, by)
    before = _steps(Chain("", chain.steps[:-1]), plan, by) if chain.steps else []
    same = 0
    while same < min(len(before), len(now)) and before[same] == now[same]:
        same += 1
    return now, max(1, len(now) - same) if now else 0


def _steps(chain: Chain, plan: Plan, by: Steps) -> list[tuple[str, str]]:
    if by == "whole":
        text = plain_text(chain, plan)
        return [("", text)] if text else []
    reading = read(chain.text, plan)
    parts = [*reading.contents.items()]
    if reading.open and reading.opened.strip():
        parts.append((reading.open, reading.opened.strip()))
    if by == "search" or not parts:  # without tags, what was grown at a time is all that there is
        tags = "|".join(re.escape(stage.tag) for stage in plan)
        bare = [(s.stage, re.sub(rf"</?(?:{tags})>", "", s.text).strip()) for s in chain.steps]
        parts = [(stage, text) for stage, text in bare if text]
    if by in ("stage", "search"):
        return [(tag, text) for tag, text in parts if text]
    return [(tag, piece) for tag, text in parts for piece in _cut(text, by)]


def _cut(text: str, by: Steps) -> list[str]:
    if by == "sentence":
        found = []
        while (end := sentence_end(text)) is not None:
            found.append(text[:end])
            text = text[end:]
        found.append(text)
    else:
        found = re.split(r"\n\s*\n" if by == "paragraph" else r"\n", text)
    return [piece.strip() for piece in found if piece.strip()]
