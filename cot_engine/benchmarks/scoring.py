"""From predictions to scores: each item explained, then what the benchmark makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cot_engine.benchmarks import circular, hallusion, mathvista
from cot_engine.benchmarks.catalogue import Benchmark
from cot_engine.benchmarks.conclusion import concluded, is_staged
from cot_engine.benchmarks.predictions import (
    CATEGORIES,
    NAMED_NOTHING,
    Case,
    Cases,
    near,
)
from cot_engine.benchmarks.questions import Question, Trouble, listed
from cot_engine.benchmarks.rulesets import Finding, RuleSet, Unfit, as_choice
from cot_engine.benchmarks.said import OPEN, Said
from cot_engine.benchmarks.tables import Cell, Table, cell, combined
from cot_engine.errors import InputError, shown

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
"""Of MM-Vet: a question's category is a list of them."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One prediction, explained: what was `said` by which rule, against what was `wanted`, and what
    it is worth, 0 to 1. Where that is None, `why` says so, and `open` whether a model could tell.
    `by`: "rules", "file" (a model's, from the predictions' file) or the model that decided.
    """

    case: Case
    said: Said
    wanted: str
    score: float | None
    why: str = ""
    open: bool = False
    by: str = "rules"

    @property
    def id(self) -> str:
        """The question's."""
        return self.case.question.id


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of a benchmark under a set of rules. `overall` is the number that is published of
    it; `tables` the rest, in order."""

    benchmark: Benchmark
    rules: RuleSet
    overall: Cell
    tables: tuple[Table, ...]
    marks: tuple[Mark, ...] = field(repr=False)
    troubles: tuple[Trouble, ...] = ()
    unread: int = 0
    notes: tuple[str, ...] = ()
    unit: str = "questions"

    @property
    def unresolved(self) -> list[Mark]:
        """Those that the rules leave open and nobody has decided."""
        return [mark for mark in self.marks if mark.open]

    @property
    def unscored(self) -> list[Mark]:
        """All that have no score, for whatever reason."""
        return [mark for mark in self.marks if mark.score is None]


Replies = Mapping[str, str]
"""What a model replied about open predictions, by the question's id."""


def mark_all(
    cases: Cases, benchmark: Benchmark, rules: RuleSet, replies: Replies | None = None, by: str = ""
) -> tuple[list[Mark], list[Trouble]]:
    """Each case marked, and what was found wrong with rows on the way. `replies` are a model's, to
    those that the rules leave open, and `by` is its name."""
    marks, troubles = [], []

    def told(column: str, said: str, scored: bool = False) -> None:
        troubles.append(Trouble(case.place or case.question.place, column, said, scored))

    for case in cases.cases:
        try:
            question = as_choice(case.question) if benchmark.opens else case.question
            wanted = _wanted(benchmark, question)
            if benchmark.kind == "choice" and wanted not in question.options:
                told("answer", f"the option {wanted}, which is right, is not there", True)
            if case.trouble:
                marks.append(Mark(case, OPEN, wanted, None, case.trouble))
                continue
            mark = _mark(case, question, wanted, rules.reads[benchmark.kind], replies, by)
            if benchmark.kind == "graded" and mark.open and case.extracted is not None:
                told("score", f"{shown(case.extracted)} is no grade from 0 to 1")
            marks.append(mark)
        except Unfit as wrong:
            column, said = wrong.args
            told(column, said)
            marks.append(Mark(case, OPEN, "", None, f"column {column}: {said}"))
    return marks, troubles


def _mark(
    case: Case,
    question: Question,
    wanted: str,
    read: Callable[[Question, str, bool], Finding],
    replies: Replies | None,
    by: str,
) -> Mark:
    given = case.extracted is not None
    text = case.extracted if case.extracted is not None else case.prediction
    found = read(question, text, given)
    if found.score is not None:
        return Mark(case, found.said, wanted, found.score, by="file" if given else "rules")
    reply = (replies or {}).get(question.id)
    if reply is None:
        return Mark(case, found.said, wanted, None, found.said.rule, True)
    # What it thought before, or wrote in stages, is no reply.
    decided = read(question, concluded(reply.rpartition("</think>")[2]), True)
    why = "" if decided.score is not None else f"{by} says nothing: {reply.strip()[:60]!r}"
    return Mark(case, decided.said, wanted, decided.score, why, bool(why), by)


def _wanted(benchmark: Benchmark, question: Question) -> str:
    """The standard answer as rules compare it. Raises Unfit."""
    if benchmark.kind == "graded":
        return " or ".join(question.answers)
    if not question.answers:
        raise Unfit("answer", "it is empty")
    if benchmark.kind == "choice":
        if len(question.options) < 2:
            raise Unfit("A", "there are fewer than two options")
        if not question.letter:
            raise Unfit("answer", f"{question.answers[0]!r} is no option")
        return question.letter
    if benchmark.kind == "yes/no":
        if question.answers[0].strip().lower() not in ("yes", "no"):
            raise Unfit("answer", f"{question.answers[0]!r} is neither Yes nor No")
        return question.answers[0].strip().title()
    return question.of("answer") if benchmark.kind == "mathvista" else " or ".join(question.answers)


def score(
    cases: Cases, benchmark: Benchmark, rules: RuleSet, replies: Replies | None = None, by: str = ""
) -> Scored:
    """The scores of a benchmark's predictions. Raises InputError where no answer is known."""
    marks, troubles = mark_all(cases, benchmark, rules, replies, by)
    if benchmark.kind != "graded" and not any(each.case.question.answers for each in marks):
        said = f"None of the {len(marks):,} questions has an answer."
        hint = "Name a file that has them, with --against."
        if benchmark.test:
            hint = "Those of MMBench's test sets are not given out: its server scores them."
        raise InputError(said, hint)
    shape = _SHAPES[benchmark.shape]
    overall, tables, unit = shape(benchmark, marks, troubles)
    found = (*cases.troubles, *troubles)
    return Scored(
        *(benchmark, rules, overall, tuple(tables), tuple(marks), found, cases.unread),
        notes=(*cases.notes, *_notes(benchmark, rules, marks)),
        unit=unit,
    )


def _notes(benchmark: Benchmark, rules: RuleSet, marks: Sequence[Mark]) -> list[str]:
    there = {name for mark in marks for name in mark.case.question.columns}
    notes = [] if there & {*CATEGORIES} else near(CATEGORIES[1::-1], there)[:1]
    staged = sum(is_staged(mark.case.prediction) for mark in marks)
    if staged and rules.name != "conclusion" and benchmark.kind != "graded":
        notes.append(
            f"{staged:,} of {len(marks):,} predictions hold stages, and these rules read all of"
            " them: letters of the reasoning too. --rules conclusion reads the CONCLUSION alone."
        )
    nothing = [
        mark
        for mark in marks
        if any(text.strip() in NAMED_NOTHING for text in mark.case.question.options.values())
    ]
    if nothing:
        first, count = nothing[0].case.question, f"{len(nothing):,} of {len(marks):,}"
        at = next(c for c, text in first.options.items() if text.strip() in NAMED_NOTHING)
        notes.append(
            f"{count} questions have an option called {first.options[at].strip()!r} or the"
            f" like ({first.place}, column {at}, first): it is an option here; VLMEvalKit reads it"
            " as an empty cell and leaves it out."
        )
    if benchmark.kind == "graded":
        notes.append("The grades are a model's, and another model's would be others.")
        if any(mark.open for mark in marks):
            notes.append("No rule grades these answers: --grader MODEL asks a model.")
    return notes


# --- what benchmarks make of their items ---------------------------------------------------------

Shaped = tuple[Cell, list[Table], str]
Pairs = Sequence[tuple[Question, float | None]]


def _plain(benchmark: Benchmark, marks: Sequence[Mark], _: list[Trouble]) -> Shaped:
    return _by_category(benchmark, [(mark.case.question, mark.score) for mark in marks])


def _by_category(benchmark: Benchmark, pairs: Pairs, unit: str = "questions") -> Shaped:
    overall = cell("Overall", [score for _, score in pairs])
    splits = list(dict.fromkeys(question.of("split") for question, _ in pairs))
    tables = []
    if len(splits) > 1:
        tables.append(_table("split", pairs, unit))
    for split in splits:
        some = [pair for pair in pairs if pair[0].of("split") == split]
        more = f" ({split})" if len(splits) > 1 else ""
        for column in CATEGORIES:
            if any(question.of(column) for question, _ in some):
                tables.append(_table(column, some, unit, more))
        if benchmark.subset and (mean := _mean_of(benchmark, some, more)):
            tables.append(Table("reasoning subset" + more, (mean,), unit))
    return overall, tables, unit


def _table(column: str, pairs: Pairs, unit: str, more: str = "") -> Table:
    groups: dict[str, list[float | None]] = {}
    for question, score in pairs:
        groups.setdefault(question.of(column) or "(none)", []).append(score)
    return Table(column + more, tuple(cell(n, groups[n]) for n in sorted(groups)), unit)


def _mean_of(benchmark: Benchmark, pairs: Pairs, more: str) -> Cell | None:
    """The mean of the scores of a benchmark's reasoning categories, if all are there."""
    subset = benchmark.subset
    assert subset is not None
    groups = [
        [(question.id, score) for question, score in pairs if value == question.of(subset.column)]
        for value in subset.values
    ]
    return combined(subset.name, groups) if all(groups) else None


def _circular(benchmark: Benchmark, marks: Sequence[Mark], troubles: list[Trouble]) -> Shaped:
    groups: dict[str, list[Mark]] = {}
    for mark in marks:
        try:
            key = circular.group_of(mark.id, mark.case.question.of("g_index"))
        except ValueError:
            place = mark.case.place or mark.case.question.place
            troubles.append(Trouble(place, "index", f"{mark.id!r} is no whole number"))
            key = mark.id
        groups.setdefault(key, []).append(mark)
    pairs: list[tuple[Question, float | None]] = []
    for key, held in groups.items():
        first = next((each for each in held if each.id == key), held[0])
        question = first.case.question
        if not all(circular.is_number(each.id) for each in held):
            pairs.append((question, None))
            continue
        turns = [
            circular.Turned(
                *(each.id, len(each.case.question.options), each.score),
                each.case.question.of("g_index"),
            )
            for each in held
        ]
        said = circular.lacking(key, turns)
        if said:
            place = first.case.place or question.place
            troubles.append(Trouble(place, "index", f"of the group {key} {said}"))
        pairs.append((question, None if said else circular.together(turns)))
    overall, tables, unit = _by_category(benchmark, pairs, "groups")
    first_turns = [mark.score for mark in marks if mark.id in groups]
    single = cell("all turns", [mark.score for mark in marks]), cell("first turns", first_turns)
    return overall, [*tables, Table("each turn alone", single, "rows")], unit


def _hallusion(benchmark: Benchmark, marks: Sequence[Mark], troubles: list[Trouble]) -> Shaped:
    placed: list[tuple[Mark, hallusion.Place]] = []
    for mark in marks:
        question = mark.case.question
        try:
            placed.append((mark, hallusion.place_of(mark.id, question.of("l2-category"))))
        except ValueError as error:
            troubles.append(Trouble(mark.case.place or question.place, "index", str(error)))
            placed.append((mark, hallusion.Place(mark.id, mark.id, mark.id)))
    parts = {"Overall": placed}
    for column in ("category", "l2-category"):
        for value in dict.fromkeys(mark.case.question.of(column) for mark, _ in placed):
            if value:
                parts[value] = [p for p in placed if p[0].case.question.of(column) == value]
    measured = {name: _measured(some) for name, some in parts.items()}
    tables = [
        Table(
            measure,
            tuple(
                cell(name, [score for _, score in groups[k]]) for name, groups in measured.items()
            ),
            unit,
        )
        for k, (measure, unit) in enumerate(
            zip(hallusion.MEASURES, ("answers", "figures", "questions"), strict=True)
        )
    ]
    return combined("Mean of aAcc, fAcc, qAcc", measured["Overall"]), tables, "sets of figures"


def _measured(
    placed: Sequence[tuple[Mark, hallusion.Place]],
) -> list[list[tuple[str, float | None]]]:
    """For each measure what it counts: the set that each belongs to, and its score."""
    figures: dict[str, list[Mark]] = {}
    questions: dict[str, list[Mark]] = {}
    sets: dict[str, str] = {}
    for mark, place in placed:
        figures.setdefault(place.figure, []).append(mark)
        questions.setdefault(place.question, []).append(mark)
        sets |= {place.figure: place.set, place.question: place.set}
    answers = [(place.set, mark.score) for mark, place in placed]
    return [answers, *([(sets[k], _all(v)) for k, v in g.items()] for g in (figures, questions))]


def _all(marks: Sequence[Mark]) -> float | None:
    """1.0 if all are right, 0.0 as soon as one is wrong, else None."""
    scores = [mark.score for mark in marks]
    return 0.0 if 0.0 in scores else None if None in scores else 1.0


def _mathvista(benchmark: Benchmark, marks: Sequence[Mark], _: list[Trouble]) -> Shaped:
    overall = cell("Overall", [mark.score for mark in marks])
    tables = []
    for column in mathvista.BREAKDOWNS:
        groups: dict[str, list[float | None]] = {}
        for mark in marks:
            for value in listed(mark.case.question.columns.get(column)):
                groups.setdefault(value, []).append(mark.score)
        if groups:
            tables.append(Table(column, tuple(cell(n, groups[n]) for n in sorted(groups))))
    return overall, tables, "questions"


def _mmvet(benchmark: Benchmark, marks: Sequence[Mark], _: list[Trouble]) -> Shaped:
    overall = cell("Overall", [mark.score for mark in marks])
    able = {name: [m for m in marks if name in _capable(m)] for name in CAPABILITIES}
    able = {name: some for name, some in able.items() if some}
    each = tuple(cell(name, [m.score for m in some]) for name, some in able.items())
    exact: dict[str, list[float | None]] = {}
    for mark in marks:
        exact.setdefault("_".join(_capable(mark)), []).append(mark.score)
    tables = [Table("capability", each)]
    subset = benchmark.subset
    if subset and all(name in able for name in subset.values):
        groups = [[(m.id, m.score) for m in able[name]] for name in subset.values]
        tables.append(Table("reasoning subset", (combined(subset.name, groups),)))
    tables.append(Table("category", tuple(cell(n, exact[n]) for n in sorted(exact))))
    return overall, tables, "questions"


def _capable(mark: Mark) -> list[str]:
    return [name.strip() for name in mark.case.question.of("category").split(",") if name.strip()]


_SHAPES: dict[str, Callable[[Benchmark, Sequence[Mark], list[Trouble]], Shaped]] = {
    "plain": _plain,
    "circular": _circular,
    "hallusion": _hallusion,
    "mathvista": _mathvista,
    "mmvet": _mmvet,
}
