"""Data sets of image questions with standard answers: the bundled scenes, JSONL and TSV files.

    data = load_data("scenes", n=200)
    data = load_data("questions.jsonl")          # or a benchmark's .tsv
    item = data.items[0]
    item.problem(), item.grade("Two.")

A line of a JSONL file is an object: `question`, `answer` (a text, a number, or a list of which any
will do), `image` or `images` (a path relative to the file, or base64), and where wanted `id` (else
the line's number), `choices` (a list, or letters with texts), `hint`, `type`, `split`. A TSV file
has the columns of the public benchmarks: index, question, answer, image (base64, or the index of
the row that has it) or image_path, and where wanted hint, A, B, C, ..., category, split.

An answer that is one text and holds a list of texts (`['2', 'two']`) is that list: any of them will
do. A list of bare numbers (`[1, 2]`) is one answer, a vector; so is what is no whole list.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cot_engine import scenes
from cot_engine.core.answers import normalise_answer
from cot_engine.core.problem import Problem
from cot_engine.errors import ConfigError, ImageError, InputError, UnknownNameError, shown
from cot_engine.images.download import AllowUrl
from cot_engine.images.load import Image, load_image
from cot_engine.options.problem import check_question
from cot_engine.questions.cells import is_bracketed
from cot_engine.questions.files import read_file
from cot_engine.questions.grading import RULES, SAID, Grader, Grading, Unknown, is_marked, kind_of
from cot_engine.questions.pictures import pictures_of
from cot_engine.questions.row import QuestionRow, wrong

SCENES = 1000
"""How many scenes are taken where nothing else is said."""
MAX_SCENES = 100_000
SOURCES = ("scenes", "scenes/test", "scenes/val", "scenes/ood")
_FORMAT = "item-1"  # part of every digest: results graded by other rules must not mix with these
_LONG = 10  # words of an answer that nobody contains word for word
_SHOWN = 3


class Picture(Protocol):
    """A picture that is decoded or drawn when it is needed. `digest` is of its content."""

    @property
    def digest(self) -> str: ...
    def load(self) -> Image: ...


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One question with its standard answer. Equal and hashed by `digest`, which is over all that
    decides how it is answered and graded, the content of its pictures included.

    `question` is the prompt as asked, options and all; `answer` is for tables; `type` is "" where
    the data set has none.
    """

    id: str
    question: str
    answer: str
    digest: str
    grader: Grading = field(repr=False)
    pictures: tuple[Picture, ...] = field(default=(), repr=False)
    type: str = ""

    def problem(self) -> Problem:
        """The question as an engine is asked it. Raises ImageError naming the item."""
        try:
            images = tuple(picture.load() for picture in self.pictures)
        except ImageError as error:
            raise ImageError(f"Question {self.id!r}: {error.message}", error.hint) from None
        return Problem(self.id, self.question, images)

    @property
    def known(self) -> bool:
        """Is there a standard answer?"""
        return self.grader.kind != "unknown"

    def grade(self, answer: str) -> float:
        """What the text of a CONCLUSION earns, 0 to 1; NaN where there is no standard answer."""
        return self.grader.grade(answer)

    def facts(self, stage: str, text: str) -> float | None:
        """1.0 or 0.0 where the data set knows whether that stage's text is right, else None."""
        return self.grader.facts(stage, text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Item) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True, slots=True)
class DataSet:
    """Questions in their order. `digest` is over theirs; `rule` says in one sentence how answers
    are graded; `notes` are sentences for the user."""

    name: str
    items: tuple[Item, ...] = field(repr=False)
    digest: str
    rule: str
    notes: tuple[str, ...] = ()

    def take(self, n: int | None) -> DataSet:
        """The first `n` questions (all, if None), with a note if that is not what there was or
        was asked for. Raises ConfigError."""
        check_n(n)
        notes = _taken(n, len(self.items), self.name)
        return data_set(self.name, self.items[:n], (*self.notes, *notes))


def load_data(
    source: str | Path,
    *,
    n: int | None = None,
    split: str | None = None,
    seed: int = 0,
    folder: str | Path = "",
    rule: str | None = None,
    allow_url: AllowUrl = False,
) -> DataSet:
    """The data set that `source` names: "scenes", "scenes/val", "scenes/ood", or a .jsonl or .tsv
    file relative to `folder`.

    `n` takes the first so many (of scenes 1,000 if None, of a file all). `split` is "test", "val"
    or "ood" of the scenes, or keeps those rows of a file whose split it is. `seed` is of the
    stream of "scenes/val"; what is frozen or a file has none. `rule` is one of `grading.RULES`, for
    files. Raises ConfigError for an argument, InputError or ImageError for what is wrong with a
    file, naming the line. Images are not decoded here, but must be there.
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str) or not source.strip():
        raise ConfigError(f"The data source is {shown(source)}.", "Give a file, or scenes.")
    check_n(n)
    if split is not None and (not isinstance(split, str) or not split):
        raise ConfigError(f"split is {split!r}.", "Give its name, or leave it out.")
    if rule is not None and rule not in RULES:
        raise UnknownNameError("grading rule called", str(rule), RULES)
    if source in SOURCES:
        return _scenes(source, n, split, seed, rule)
    path = Path(folder, source)
    if path.suffix.lower() not in (".jsonl", ".ndjson", ".tsv"):
        error = UnknownNameError("data set called", source, SOURCES)
        raise ConfigError(error.message, f"{error.hint} A file must be .jsonl or .tsv.")
    return _from_file(path, n, split, rule or "auto", allow_url)


def check_n(n: int | None, name: str = "n") -> None:
    """Raises ConfigError for anything but None and a whole number from 1."""
    if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
        raise ConfigError(f"{name} is {n!r}.", "It must be a whole number, 1 or more.")


# --- scenes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SceneGrader:
    """Grades by the scenes' own rule, and knows whether a CAPTION is right."""

    scene: scenes.SceneProblem
    kind: str = "scenes"

    def grade(self, answer: str) -> float:
        return float(scenes.grade(answer, self.scene.answer))

    def facts(self, stage: str, text: str) -> float | None:
        if stage != "CAPTION":
            return None
        right, there = scenes.grade_caption(text, self.scene.objects)
        return float(right == there)


@dataclass(frozen=True, slots=True)
class ScenePicture:
    """A scene's picture, drawn when it is needed."""

    scene: scenes.SceneProblem
    digest: str

    def load(self) -> Image:
        return load_image(self.scene.picture())


def _scenes(source: str, n: int | None, split: str | None, seed: int, rule: str | None) -> DataSet:
    named = source.partition("/")[2]
    part = named or split or "test"
    if part not in ("test", "val", "ood") or (split and split != part):
        raise ConfigError(f"split is {split!r} of {source!r}.", "It must be test, val or ood.")
    if rule not in (None, "auto"):
        raise ConfigError(f"rule is {rule!r}.", "Scenes are graded by their own: leave it out.")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"seed is {seed!r}.", "It must be a whole number, 0 or more.")
    n = SCENES if n is None else n
    if n > MAX_SCENES:
        raise ConfigError(f"n is {n:,}.", f"At most {MAX_SCENES:,} scenes are drawn.")
    frozen = {"test": (scenes.TEST_SET, scenes.test_set), "ood": (scenes.OOD_SET, scenes.ood_set)}
    if part in frozen:
        name, made = frozen[part]
        return data_set(name, map(scene_item, made(n)))
    drawn = (scene_item(scenes.sample(seed, index, part)) for index in range(n))
    return data_set(f"{scenes.VERSION}/{part}/{seed}", drawn)


def scene_item(scene: scenes.SceneProblem) -> Item:
    """A scene as a question with its standard answer."""
    # Not over pixels: drawing 10,000 pictures takes minutes, and the scene decides them.
    picture = ScenePicture(scene, scenes.content_hash([scene]))
    grader = SceneGrader(scene)
    parts = [scene.id, scene.prompt, scene.answer, scene.type, grader.kind, picture.digest]
    digest = _digest(parts)
    return Item(scene.id, scene.prompt, scene.answer, digest, grader, (picture,), scene.type)


# --- files ---------------------------------------------------------------------------------------


def _from_file(
    path: Path, n: int | None, split: str | None, rule: str, allow_url: AllowUrl
) -> DataSet:
    rows = read_file(path)
    every = _by_id(path, rows)
    if split is not None:
        kept = [row for row in rows if row.split == split]
        if not kept:
            known = {row.split for row in rows if row.split}
            if not known:
                raise ConfigError(
                    f"split is {split!r}, but no question of {str(path)!r} has one.",
                    "Leave it out: all are taken.",
                )
            raise UnknownNameError(f"split in {str(path)!r} called", split, known)
        rows = kept
    marked = any(is_marked(a) for row in rows if not row.choices for a in row.answers)
    graders = [_grader(path, row, rule, marked) for row in rows]
    taken = rows[:n]  # pictures of the rest need not be there
    pictures = pictures_of(path, taken, every, allow_url)
    items = [_item(path, *parts) for parts in zip(taken, graders, pictures, strict=False)]
    name = path.name if split is None else f"{path.name}/{split}"
    return data_set(name, items, notes_of(name, items, taken, n, len(rows)))


def notes_of(
    name: str, items: list[Item], rows: list[QuestionRow], n: int | None, held: int
) -> tuple[str, ...]:
    """What is to be said of `items`, made of `rows`: the first `n` of those `held`."""
    notes = _taken(n, held, name)
    if blind := sum(not item.pictures for item in items):
        notes.append(f"{blind} of {len(items)} questions have no image.")
    notes += about_lists(rows)
    if hopeless := sum(_hopeless(item.grader) for item in items):
        notes.append(
            f"{hopeless} of {len(items)} standard answers are longer than {_LONG} words: no answer "
            "is likely to contain them, so these questions tell nothing."
        )
    return tuple(notes)


def _taken(n: int | None, held: int, name: str) -> list[str]:
    """What is to be said where `n` questions are taken of those a data set has."""
    if n is None or n == held:
        return []
    if n > held:
        return [f"n is {n}, but {name} has {held} questions: all are taken."]
    return [f"The first {n} of the {held} questions of {name}: a part of it, not a sample."]


def about_lists(rows: list[QuestionRow]) -> list[str]:
    """What is to be said of answers that are written as lists, read or not."""
    notes = []
    if listed := sum(row.listed for row in rows):
        notes.append(
            f"{listed} of {len(rows)} standard answers are written as lists of texts: any of their"
            " entries is right."
        )
    alike = [r for r in rows if not r.listed and len(r.answers) == 1 and is_bracketed(r.answers[0])]
    if alike:
        some = ", ".join(row.place for row in alike[:_SHOWN]) + (", ..." * (len(alike) > _SHOWN))
        notes.append(
            f"{len(alike)} of {len(rows)} standard answers stand in brackets and are no list of"
            f" texts ({some}): each is graded as that text."
        )
    return notes


def _by_id(path: Path, rows: list[QuestionRow]) -> dict[str, QuestionRow]:
    places: dict[str, list[QuestionRow]] = {}
    for row in rows:
        places.setdefault(row.id, []).append(row)
    twice = {name: found for name, found in places.items() if len(found) > 1}
    if twice:
        said = [
            f"{name!r} ({', '.join(row.place for row in found[:_SHOWN])})"
            for name, found in list(twice.items())[:_SHOWN]
        ]
        more = f" and {len(twice) - _SHOWN} more" if len(twice) > _SHOWN else ""
        raise InputError(
            f"{str(path)!r} has questions with the same id: {', '.join(said)}{more}.",
            "Results are kept by id: give each its own.",
        )
    return {name: found[0] for name, found in places.items()}


def _grader(path: Path, row: QuestionRow, rule: str, marked: bool) -> Grader:
    if rule == "choice" and not row.choices:
        raise ConfigError(
            f"rule is 'choice', but {str(path)!r}, {row.place} (id {row.id!r}) has no options.",
            "Use auto: it grades those by option that have some.",
        )
    answers = tuple(_letter(path, row, a) for a in row.answers) if row.choices else row.answers
    kind = kind_of(rule, answers, row.choices, marked)
    return Grader(kind, answers, tuple(row.choices.items()))


def _letter(path: Path, row: QuestionRow, answer: str) -> str:
    """The letter of the right option, which may be given as its text."""
    letter = answer.strip().upper()
    if letter in row.choices:
        return letter
    same = [c for c, t in row.choices.items() if normalise_answer(t) == normalise_answer(answer)]
    if len(same) == 1:
        return same[0]
    raise wrong(
        path,
        row.place,
        f"the answer {shown(answer)} is neither the letter of an option "
        f"({', '.join(row.choices)}) nor the text of just one.",
        "Correct it there.",
    )


def item_of(
    path: Path,
    row: QuestionRow,
    every: Mapping[str, QuestionRow],
    allow_url: AllowUrl = False,
    marked: bool | None = None,
) -> Item:
    """One row of a file, graded by its kind; `every` is for pictures that other rows hold, `marked`
    says that answers are written as MM-Vet does (None: this one will tell). Raises InputError or
    ImageError naming the line."""
    grader: Grader | Unknown = Unknown()
    if row.answers:
        if marked is None:
            marked = any(is_marked(answer) for answer in row.answers)
        grader = _grader(path, row, "auto", marked)
    (pictures,) = pictures_of(path, [row], every, allow_url)
    return _item(path, row, grader, pictures)


def _item(
    path: Path, row: QuestionRow, grader: Grader | Unknown, pictures: tuple[Picture, ...]
) -> Item:
    question = prompt(row.question, row.choices, row.hint)
    try:
        check_question(question)
    except InputError as error:
        raise wrong(path, row.place, error.message, error.hint) from None
    return item_from(row.id, question, grader, pictures, row.type)


def item_from(
    id: str, question: str, grader: Grader | Unknown, pictures: tuple[Picture, ...], type: str = ""
) -> Item:
    """A question as it is asked, with its grader, as an item. Raises ImageError for a picture that
    cannot be read."""
    digest = _digest(
        [
            id,
            question,
            list(grader.accepted),
            list(grader.choices),
            type,
            grader.kind,
            [picture.digest for picture in pictures],
        ]
    )
    return Item(id, question, " or ".join(grader.accepted), digest, grader, pictures, type)


def prompt(question: str, choices: dict[str, str], hint: str = "") -> str:
    """What is asked: the hint, the question, its options, and how to name one of them."""
    lines = [f"Hint: {hint}"] if hint else []
    if not choices:
        return "\n".join([*lines, question])
    lines += [f"Question: {question}", "Options:"]
    lines += [f"{letter}. {text}" for letter, text in choices.items()]
    return "\n".join([*lines, "Choose one option and answer with its letter."])


def _hopeless(grader: Grading) -> bool:
    if not isinstance(grader, Grader):
        return False
    parts = [p for a in grader.accepted for p in a.split("<OR>")]
    return grader.kind == "contains" and all(len(p.split()) > _LONG for p in parts)


# --- both ----------------------------------------------------------------------------------------


def data_set(name: str, items: Iterable[Item], notes: tuple[str, ...] = ()) -> DataSet:
    """These questions as a data set, named by what is in them."""
    items = tuple(items)
    rule = rule_of(dict.fromkeys(item.grader.kind for item in items))
    return DataSet(name, items, _digest([item.digest for item in items]), rule, notes)


def rule_of(kinds: Iterable[str]) -> str:
    """How questions of these kinds are graded, in one sentence; "" if none is."""
    said = "; ".join(SAID[kind] for kind in kinds if kind in SAID)
    return f"Graded by rules, without a model: {said}." if said else ""


def _digest(parts: list) -> str:
    """SHA-256 of the parts, each kept apart from its neighbours."""
    return hashlib.sha256(json.dumps([_FORMAT, *parts]).encode()).hexdigest()
