"""Pairs of a model's own candidates with different outcomes: what a judge is trained on.

Candidates are sampled as a search samples them, n at a time from one prefix, with a random judge in
between. Each is labelled by the truth: a caption by its facts where the data set knows them, a
response by its answer, all else by whether its likeliest continuation ends in the right answer.

A pairs file is JSON lines: first what it was made by, then one line for each problem that is done,
in the order in which they were finished, with its pairs (perhaps none):

    {"problem": "...", "index": 7, "images": ["<digest>"], "seen": {"CAPTION": [4, 1.75, 3]},
     "pairs": [{"stage": "CAPTION", "question": "CAPTION", "shared": "<SUMMARY>...",
                "first": {...}, "second": {...}}]}

`seen` is, by stage, how many candidates there were, the sum of their outcomes, and how many
different sound texts. `shared` is the turn up to where the candidates part, and each of them
{"text", "label" (0 to 1), "logprob" (nats, summed), "tokens", "marks"}: `marks` are [start, end,
true] of every claim in the text, in characters, or null where nobody knows. A problem that failed
has "error" instead of pairs.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cot_engine.ablation.worth import WHOLE
from cot_engine.core.chain import Chain, Step
from cot_engine.core.problem import Problem
from cot_engine.core.requests import Prompt
from cot_engine.core.stages import Plan
from cot_engine.errors import InputError, StoreError
from cot_engine.files.locking import held
from cot_engine.judging.prompts import judge_turn
from cot_engine.judging.protocol import Case

if TYPE_CHECKING:
    from cot_engine.judging.prompts import Form

SCHEMA = "pairs-1"
Claim = tuple[int, int, bool]  # characters `start` to `end` of a text are one claim, true or not


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of a pair. `label` is its outcome, 0 to 1; `logprob` sums over its sampled `tokens`."""

    text: str
    label: float
    logprob: float = 0.0
    tokens: int = 0
    marks: tuple[Claim, ...] | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two candidates of one selection with different labels. `stage` is a tag, WHOLE or SENTENCE;
    `shared` the turn before the candidates ("" for whole responses); `question` the tag of the
    stage whose question a judge is asked ("": that of wholes or of sentences)."""

    stage: str
    shared: str
    first: Candidate
    second: Candidate
    question: str = ""

    @property
    def better(self) -> int:
        """0 if the first is the better one, else 1."""
        return int(self.second.label > self.first.label)

    def swapped(self) -> Pair:
        return replace(self, first=self.second, second=self.first)

    def chains(self) -> tuple[Chain, Chain]:
        """The candidates as a judge is given them, with the ids "r.0.0" and "r.0.1"."""
        shared = (Step(self.shared, (), self.stage, 0.0, 0, "stop"),) if self.shared else ()
        whole = self.stage == WHOLE

        def chain(k: int, each: Candidate) -> Chain:
            step = Step(each.text, (), self.stage, each.logprob, each.tokens, "stop")
            return Chain(f"r.0.{k}", (*shared, step), whole)

        return chain(0, self.first), chain(1, self.second)

    def case(self, problem: Problem, plan: Plan) -> Case:
        """What a judge is told of the selection. `plan` is fitted to the problem."""
        about: Literal["step", "whole"] = "whole" if self.stage == WHOLE else "step"
        asked = plan[self.question] if self.question else None
        return Case(problem, plan, about, asked, problem.images)

    def turn(self, problem: Problem, plan: Plan, form: Form) -> tuple[Prompt, str]:
        """The user's turn that asks for the verdict: what all pairs share, and the tail."""
        return judge_turn(self.case(problem, plan), self.chains(), form)

    def plain(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "question": self.question,
            "shared": self.shared,
            **{name: _plain(getattr(self, name)) for name in ("first", "second")},
        }


def _plain(each: Candidate) -> dict[str, Any]:
    return {
        "text": each.text,
        "label": round(each.label, 6),
        "logprob": round(each.logprob, 4),
        "tokens": each.tokens,
        "marks": None if each.marks is None else [list(mark) for mark in each.marks],
    }


@dataclass(frozen=True, slots=True)
class Done:
    """One problem's line of a pairs file."""

    problem: str
    index: int
    images: tuple[str, ...] = ()
    seen: dict[str, tuple[int, float, int]] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    error: str = ""

    def line(self) -> str:
        found: dict[str, Any] = {"problem": self.problem, "index": self.index}
        if self.error:
            return json.dumps(found | {"error": self.error})
        found |= {"images": list(self.images), "seen": self.seen}
        return json.dumps(found | {"pairs": [pair.plain() for pair in self.pairs]})


def _read_line(line: str) -> Done:
    found = json.loads(line)

    def candidate(each: dict[str, Any]) -> Candidate:
        marks = each["marks"]
        told = None if marks is None else tuple((s, e, bool(t)) for s, e, t in marks)
        return Candidate(each["text"], each["label"], each["logprob"], each["tokens"], told)

    return Done(
        found["problem"],
        found["index"],
        tuple(found.get("images", ())),
        {at: (n, right, texts) for at, (n, right, texts) in found.get("seen", {}).items()},
        tuple(
            Pair(
                each["stage"],
                each["shared"],
                candidate(each["first"]),
                candidate(each["second"]),
                each["question"],
            )
            for each in found.get("pairs", ())
        ),
        found.get("error", ""),
    )


# --- the file ------------------------------------------------------------------------------------


class PairsFile:
    """A pairs file that is written, by one process at a time, or only read (`recipe` None).

    What a killed process left of its last line is cut off. Raises StoreError for a file that is
    none, is held or cannot be written, InputError for one that was made by another recipe.
    """

    def __init__(self, path: str | Path, recipe: dict[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.done: dict[int, Done] = {}
        self._held = ExitStack()
        self._file: Any = None
        try:
            if recipe is not None:
                hint = "Wait for it to end, stop it, or name another output."
                self._held.enter_context(held(self.path, "the pairs file", hint))
                self._file = self._held.enter_context(self.path.open("a+b"))
            self._read(recipe)
        except OSError as error:
            self.close()
            raise self._broken(error.strerror or str(error)) from None
        except BaseException:
            self.close()
            raise

    def _read(self, recipe: dict[str, Any] | None) -> None:
        data = self.path.read_bytes()
        whole, cut = data.rpartition(b"\n")[::2]
        if cut and self._file is not None:
            self._file.truncate(len(data) - len(cut))
        if not whole:
            if recipe is None:
                raise self._broken("it is empty")
            self._write(json.dumps({"pairs": SCHEMA, "recipe": recipe}))
            self.recipe = recipe
            return
        head, *lines = whole.split(b"\n")
        try:
            first = json.loads(head)
            if first["pairs"] != SCHEMA:
                raise self._broken(f"its schema is {first['pairs']!r}, not {SCHEMA}")
            self.recipe = first["recipe"]
            for line in lines:
                done = _read_line(line.decode())
                self.done[done.index] = done
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self._broken(f"it is no pairs file ({error})") from None
        if recipe is not None and self.recipe != json.loads(json.dumps(recipe)):
            keys = [k for k in {**self.recipe, **recipe} if self.recipe.get(k) != recipe.get(k)]
            said = ", ".join(f"{k} {self.recipe.get(k)!r} (now {recipe.get(k)!r})" for k in keys)
            raise InputError(
                f"The pairs in {str(self.path)!r} were made with {said}.",
                "Set it back, name another output, or remove that file.",
            )

    def add(self, done: Done) -> None:
        """Keep a problem: it is on the disk when this returns."""
        try:
            self._write(done.line())
        except OSError as error:
            raise StoreError(
                f"{str(self.path)!r} cannot be written: {error.strerror}.",
                "Free some space and give the same command again: what is done is kept.",
            ) from None
        self.done[done.index] = done

    def _write(self, line: str) -> None:
        self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _broken(self, why: str) -> StoreError:
        return StoreError(f"The pairs file {str(self.path)!r} cannot be used: {why}.")

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> PairsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
