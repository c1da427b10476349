"""A model decides what rules leave open: which option an answer means, what number it gives, how
right it is. Any backend will do, of this machine or a server's.

Each reply is added to a file, by model and prompt, as soon as it is there: it is asked for once,
and can be read, and taken over, by others. The prompts are our own, and each is asked once,
greedily: the grades of another prompt (MM-Vet's own, for GPT-4) differ.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cot_engine.backends.protocol import Backend
from cot_engine.benchmarks.conclusion import concluded
from cot_engine.benchmarks.mathvista import LETTERS
from cot_engine.benchmarks.questions import Question
from cot_engine.benchmarks.rulesets import asked
from cot_engine.benchmarks.scoring import Mark
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import GREEDY, Generate, Prompt
from cot_engine.errors import ConfigError, StoreError
from cot_engine.files.locking import held
from cot_engine.files.reading import named
from cot_engine.files.rows import read_rows
from cot_engine.files.writing import unwritable

LENGTH = 128
"""Tokens of a reply at most."""
IN_FLIGHT = 16


def prompt_of(kind: str, question: Question, prediction: str) -> str:
    """What the model is asked about a prediction, of which it sees the conclusion alone."""
    answer = concluded(prediction).strip()
    if kind == "graded":
        right = " or ".join(question.answers).replace("<AND>", " and ").replace("<OR>", " or ")
        task = (
            "How right is the answer? 1.0 is all right, 0.0 all wrong, tenths are between: where"
            " the right answer has several parts, what share of them the answer has. Reply with"
            " the number alone."
        )
        return f"{_asked(question)}\nRight answer: {right}\nAnswer to grade: {answer}\n\n{task}"
    return f"{_asked(question)}\nAnswer: {answer}\n\n{_task(kind, question)}"


def _asked(question: Question) -> str:
    lines = [f"Question: {question.question}"]
    lines += [f"{letter}. {text}" for letter, text in question.options.items()]
    return "\n".join(lines)


def _task(kind: str, question: Question) -> str:
    if kind == "yes/no":
        return "Does the answer say yes or no? Reply Yes, No, or Unknown if it says neither."
    if kind == "choice":
        letters = ", ".join(question.options)
        return (
            "Which option does the answer mean, whether or not that is right? Reply with its letter"
            f" alone ({letters}), or Z if it means none of them, or several."
        )
    if kind == "mathvista":
        about = asked(question)
        if about.several:
            choices = [f"{c}. {text}" for c, text in zip(LETTERS, about.choices, strict=False)]
            shown = "\n".join(choices)
            return f"Which of these does the answer mean? Reply with the letter alone.\n{shown}"
        form = {"integer": "a whole number", "list": "a list, such as [1, 2]"}
        digits = f"a number with {about.precision} digits after the point"
        return (
            "Copy from the answer what was asked for, and nothing else:"
            f" {form.get(about.answer_type, digits)}."
        )
    return "Copy from the answer the number, word or phrase that was asked for, and nothing else."


@dataclass(slots=True)
class Verdicts:
    """Replies of models by prompt, and the file that keeps them. One that is not there is empty."""

    path: Path
    replies: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike[str], needed: bool = False) -> Verdicts:
        """Raises StoreError for a file that is none, or that is not there and `needed`: nobody
        will fill it; a line that was cut off is left out."""
        verdicts = cls(Path(path))
        if verdicts.path.suffix.lower() not in (".jsonl", ".ndjson"):  # it could not be read again
            said = f"The file of verdicts is {named(path)}."
            raise StoreError(said, "Its name must end in .jsonl: it has an object a line.")
        if not verdicts.path.exists():
            if needed:
                said = f"There is no file of verdicts {named(path)}, and no --grader to fill it."
                raise StoreError(said, "Check its name, or say with --grader who decides.")
            return verdicts
        faults: list[str] = []
        for row in read_rows(
            path, "verdicts", StoreError, lambda place, _, said: faults.append(f"{place}: {said}")
        ):
            try:
                key = str(row.cells["model"]), str(row.cells["prompt"])
                verdicts.replies[key] = str(row.cells["reply"])
            except KeyError as error:
                said = f"{named(path)}, {row.place}: there is no {error.args[0]}."
                raise StoreError(said, "Name a file of verdicts.") from None
        if faults and not verdicts.replies:
            raise StoreError(f"{named(path)}, {faults[0]}.", "Name a file of verdicts.")
        return verdicts

    def of(self, kind: str, marks: Iterable[Mark], model: str | None = None) -> dict[str, str]:
        """The replies about open predictions, by question. Raises ConfigError where several models
        replied and none is named."""
        models = {model} if model else {name for name, _ in self.replies}
        if len(models) > 1:
            said = f"{named(self.path)} has verdicts of {len(models)} models."
            names = ", ".join(sorted(models))
            raise ConfigError(said, f"Say with --grader whose: {names}.")
        found = {}
        for mark in marks:
            for name in models:
                key = name, digest(kind, mark)
                if key in self.replies:
                    found[mark.id] = self.replies[key]
        return found


def digest(kind: str, mark: Mark) -> str:
    """The name of the prompt about a prediction."""
    text = prompt_of(kind, mark.case.question, mark.case.prediction)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def name_of(backend: Backend) -> str:
    """The model as a file of verdicts calls it: its name, and which weights."""
    info = backend.info
    if "://" in info.model:  # a model is the same wherever it is served
        return info.digest
    return f"{Path(info.model).name}@{info.digest[:12]}"


def ask(
    backend: Backend,
    kind: str,
    marks: Iterable[Mark],
    verdicts: Verdicts,
    on_reply: Callable[[int], None] = lambda done: None,
) -> dict[str, str]:
    """The model's replies about predictions, by question: those in the file, and the rest asked for
    and added to it. Raises StoreError for a file that cannot be written, and what the backend
    raises."""
    marks, name = list(marks), name_of(backend)
    known = verdicts.of(kind, marks, name)
    waiting = [mark for mark in marks if mark.id not in known]
    if not waiting:
        return known
    hint = "Wait for it, or name another file with --verdicts."
    with held(verdicts.path, "the verdicts", hint):
        try:
            with verdicts.path.open("ab+") as file:
                _end_line(file)

                def keep(mark: Mark, reply: str) -> None:
                    row = {"model": name, "prompt": digest(kind, mark), "reply": reply}
                    row |= {"id": mark.id, "kind": kind}
                    file.write(json.dumps(row).encode() + b"\n")
                    file.flush()
                    verdicts.replies[name, row["prompt"]] = known[mark.id] = reply
                    on_reply(len(known))

                asyncio.run(_ask_all(backend, kind, waiting, keep))
        except OSError as error:
            raise unwritable(verdicts.path, error, "The file of verdicts", StoreError) from None
    return known


def _end_line(file: IO[bytes]) -> None:
    """What follows a line that was cut off stands on its own."""
    if file.seek(0, 2):
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.write(b"\n")


async def _ask_all(
    backend: Backend, kind: str, marks: list[Mark], keep: Callable[[Mark, str], None]
) -> None:
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(mark: Mark) -> None:
        text = prompt_of(kind, mark.case.question, mark.case.prediction)
        scope = f"grade/{mark.id}"
        request = Generate(scope, Prompt(text), (), Until(), (0,), LENGTH, GREEDY, "judge")
        async with gate:
            try:
                reply = (await backend.generate(request)).generations[0].text
            finally:
                backend.release(scope)
        keep(mark, reply)

    try:
        async with asyncio.TaskGroup() as group:
            for mark in marks:
                group.create_task(one(mark))
    except BaseExceptionGroup as failed:  # the first says enough, and what was replied is kept
        raise failed.exceptions[0] from None
