"""What a teacher is asked about: image questions with standard answers, from files of three kinds.

LLaVA-CoT-100k-style JSONL (each pair of turns a question; the standard answer is what is said
there, or its CONCLUSION), the JSONL of `cot-engine ablate`, and TSV as the public benchmarks are
given out. One row that is no good never keeps the others from being read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cot_engine.core.grammar import conclusion
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.errors import InputError
from cot_engine.files.reading import opened, parse_json
from cot_engine.images.download import AllowUrl
from cot_engine.questions.data import Item
from cot_engine.questions.entries import Entry, entries_of, faulty, rows_of
from cot_engine.questions.row import QuestionRow, Source
from cot_engine.training.row import standard_answers, unlearnable
from cot_engine.training.rows import BadRow, numbered_rows


def read_questions(
    path: str | Path, images: str | Path | None = None, allow_url: AllowUrl = False
) -> list[Entry[Item]]:
    """The questions of a file, faulty rows among them (their `make` raises).

    Paths of pictures are relative to `images`, or to the file. Raises InputError if the file as a
    whole cannot be read.
    """
    path, images = Path(path), None if images is None else Path(images)
    if path.suffix.lower() not in (".jsonl", ".ndjson", ".json", ".tsv"):
        raise InputError(f"The data {str(path)!r} is no known kind.", "Give a .jsonl or .tsv file.")
    read = _conversations if _has_conversations(path) else rows_of
    rows = (_located(x, images) if isinstance(x, QuestionRow) else x for x in read(path))
    entries = entries_of(path, rows, allow_url)
    if not entries:
        raise InputError(f"The data {str(path)!r} holds no questions.", "Write some into it.")
    return entries


def _has_conversations(path: Path) -> bool:
    """Is the first row that can be read one of LLaVA's? An array of rows always is."""
    if path.suffix.lower() == ".tsv":
        return False
    try:
        with opened(path, "data", InputError) as file:
            for line in file:
                text = line.decode("utf-8-sig", "replace").strip()
                if text.startswith("["):
                    return True
                try:
                    found = parse_json(text)
                except ValueError:
                    continue
                if isinstance(found, dict):
                    return "conversations" in found
    except (OSError, InputError):
        pass  # the reader explains it
    return False


def _conversations(path: Path) -> Iterator[QuestionRow | Entry]:
    for number, row in numbered_rows(path):
        place = f"line {number}"
        if isinstance(row, BadRow):
            yield faulty(path, place, row.said, row.hint)
            continue
        if wrong := [said for _, said in unlearnable(row)]:
            yield faulty(path, place, wrong[0], id=row.id)
            continue
        pictures: tuple[Source, ...] = tuple(("path", name) for name in row.images)
        for at, (question, response) in enumerate(row.turns, 1):
            id = f"{row.id}/{at}" if row.later else row.id
            answer = conclusion(response, DEFAULT_PLAN).strip()
            answers = (not row.later and standard_answers(row)) or (answer,)
            if not question.strip() or not answers[0]:
                said = f"there is no {'answer' if question.strip() else 'question'}."
                yield faulty(path, place, said, "Fill it in.", id)
                continue
            yield QuestionRow(place, id, question, answers, pictures=pictures)


def _located(row: QuestionRow, images: Path | None) -> QuestionRow:
    if images is None:
        return row
    folder = images.absolute()
    pictures = ((k, str(Path(folder, x)) if k == "path" else x) for k, x in row.pictures)
    return replace(row, pictures=tuple(pictures))
