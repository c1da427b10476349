"""Files of labelled pairs or steps, to examine judges and verifiers on: what people preferred, or
which steps they found right.

Each row has a `question` (or `query`), its picture, and either

- `response`, a list of texts, with `human_ranking`, the rank of each, 0 the best (VL-RewardBench),
- `responses` with `better`, the place of the best one, from 0,
- `response`, an object of `steps` and `process_correctness` (VisualProcessBench), or these two keys
  themselves (or `labels`): 1 for a step that is right, -1 for one that is wrong, 0 for neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cot_engine.ablation.records import SelectionRecord
from cot_engine.core.chain import Chain, Step
from cot_engine.core.events import Grown, ImageRecord, Selected, Started
from cot_engine.core.problem import Problem
from cot_engine.core.requests import BackendInfo, Sampling, Segment
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage
from cot_engine.errors import ConfigError, InputError, cut, shown
from cot_engine.files.rows import KINDS, Row, near_columns, read_rows
from cot_engine.images.download import AllowUrl
from cot_engine.questions.data import DataSet, Item
from cot_engine.questions.files import row_of
from cot_engine.questions.grading import Unknown
from cot_engine.questions.pictures import pictures_of
from cot_engine.questions.row import MEANT, QuestionRow, check_characters, wrong

Kind = Literal["pairs", "steps"]
RULES: dict[Kind, str] = {
    "pairs": "which response people preferred",
    "steps": "which steps people found right",
}
_COLUMNS = "response human_ranking responses better steps process_correctness".split()
_LAYOUTS = (
    "A row has response and human_ranking, responses and better, or steps and process_correctness."
)


@dataclass(frozen=True, slots=True)
class Labelled:
    """The texts of a row, and what each is worth; None: nobody says."""

    kind: Kind
    texts: tuple[str, ...]
    worth: tuple[float | None, ...]


def is_labelled(source: str) -> bool:
    """Whether a source is such a file, by its first row, or is meant to be one: its columns are
    called nearly so. Raises InputError for one that cannot be read."""
    path = Path(source)
    if path.suffix.lower() not in KINDS or not path.is_file():
        return False
    for row in read_rows(path, "data", InputError, lambda *_: None):
        return _kind(row.cells) is not None or ("answer" not in row.cells and bool(_near(row)))
    return False


def load_labelled(
    source: str, n: int | None, allow_url: AllowUrl = False
) -> tuple[DataSet, Mapping[str, Labelled]]:
    """The first `n` rows as questions, and the labels of each by its id. Raises InputError and
    ImageError, naming the row."""
    path = Path(source)
    rows: list[QuestionRow] = []
    found: dict[str, Labelled] = {}

    def tell(place: str, column: str, said: str) -> None:
        raise wrong(path, place, f"{column}: {said}" if column else said, _LAYOUTS)

    for row in read_rows(path, "data", InputError, tell):
        if n is not None and len(rows) == n:
            break
        asked = _question(path, row, len(rows))
        if asked.id in found:
            raise wrong(path, row.place, f"the id {shown(asked.id)} stands twice.", "Rename one.")
        rows.append(asked)
        found[asked.id] = _labelled(path, row)
    if not rows:
        raise InputError(f"{source!r} holds no rows.", _LAYOUTS)
    kinds = {each.kind for each in found.values()}
    if len(kinds) > 1:
        raise InputError(f"{source!r} has rows of pairs and of steps.", "Make two files of it.")
    pictures = pictures_of(path, rows, {row.id: row for row in rows}, allow_url)
    items = tuple(
        Item(row.id, row.question, "", _digest(row, each, found[row.id]), Unknown(), each)
        for row, each in zip(rows, pictures, strict=True)
    )
    digest = hashlib.sha256("".join(item.digest for item in items).encode()).hexdigest()
    return DataSet(path.name, items, digest, RULES[kinds.pop()]), found


def recorded(problem: Problem, given: Labelled) -> tuple[Trace, tuple[SelectionRecord, ...]]:
    """The texts as a search would have left them, with one selection among them, and what is known
    of its candidates. Each step is a candidate with all that stands before it."""
    chains = _steps(given.texts) if given.kind == "steps" else _responses(given.texts)
    known = {c.id: w for c, w in zip(chains, given.worth, strict=True) if w is not None}
    ids = tuple(chain.id for chain in chains if chain.id in known)
    about: Literal["step", "whole"] = "step" if given.kind == "steps" else "whole"
    info = BackendInfo("file", "people", "", "none", "none", "none", 1, len(problem.images))
    images = tuple(
        ImageRecord(image.digest, image.source, image.size, image.notes, image=image)
        for image in problem.images
    )
    started = Started(
        problem=problem.id,
        question=problem.question,
        images=images,
        strategy="labelled",
        parameters={},
        judge="people",
        plan=DEFAULT_PLAN.fit(len(problem.images)),
        mode="trained",
        sampling=Sampling(),
        budget=None,
        backend=info,
    )
    grown = [
        Grown("end", (Chain(chain.id, chain.steps[-1:], chain.done),), Usage(), round=1)
        for chain in chains
    ]
    if not ids:  # steps of which none is right or wrong: there is nothing to judge
        return Trace([started, *grown]), ()
    chosen = Selected(about, "", ids, {}, {}, (), ids, ids[:1], Usage(), round=2)
    record = SelectionRecord(given.kind, ids, ids[:1], worth=known)
    return Trace([started, *grown, chosen]), (record,)


# --- reading -------------------------------------------------------------------------------------


def _kind(cells: Mapping[str, Any]) -> Kind | None:
    inside = cells.get("response")
    if isinstance(inside, dict) and "steps" in inside:
        return "steps"
    if "steps" in cells and ("process_correctness" in cells or "labels" in cells):
        return "steps"
    if "human_ranking" in cells or ("responses" in cells and "better" in cells):
        return "pairs"
    return None


def _question(path: Path, row: Row, at: int) -> QuestionRow:
    cells = row.cells
    plain = {key: cells[key] for key in ("image", "images") if cells.get(key) is not None}
    plain["question"] = cells.get("question", cells.get("query"))
    plain["id"] = cells.get("id")
    if isinstance(plain["question"], str):  # where pictures stand is for the chat format to say
        plain["question"] = plain["question"].replace("<image>", "").strip()
    return row_of(path, row.place, plain, str(at + 1), True)


def _labelled(path: Path, row: Row) -> Labelled:
    cells, kind = row.cells, _kind(row.cells)
    if kind is None:
        said = f"it has {cut(', '.join(cells), 120)}."
        raise wrong(path, row.place, said, " ".join([*_near(row), _LAYOUTS]))
    if kind == "steps":
        inside = cells["response"] if isinstance(cells.get("response"), dict) else cells
        texts = _texts(path, row, "steps", inside.get("steps"))
        labels = inside.get("process_correctness", inside.get("labels"))
        marks = _numbers(path, row, "process_correctness", labels, len(texts))
        if not set(marks) <= {-1, 0, 1}:
            raise wrong(path, row.place, f"a step is labelled {shown(marks)}.", "Give 1, 0 or -1.")
        return Labelled(kind, texts, tuple({1: 1.0, -1: 0.0}.get(int(m)) for m in marks))
    if "human_ranking" in cells:
        texts = _texts(path, row, "response", cells.get("response"))
        ranks = _numbers(path, row, "human_ranking", cells["human_ranking"], len(texts))
        low, apart = min(ranks), (max(ranks) - min(ranks)) or 1.0
        return Labelled(kind, texts, tuple(1 - (rank - low) / apart for rank in ranks))
    texts, better = _texts(path, row, "responses", cells["responses"]), cells["better"]
    if type(better) is not int or not 0 <= better < len(texts):
        raise wrong(path, row.place, f"better is {shown(better)}.", f"Give 0 to {len(texts) - 1}.")
    return Labelled(kind, texts, tuple(float(at == better) for at in range(len(texts))))


def _near(row: Row) -> list[str]:
    """Which of its columns are called nearly as those that are read, in sentences."""
    return near_columns(_COLUMNS, row.cells, (*_COLUMNS, *MEANT), 0.8)


def _list(value: Any) -> Any:
    """A list; one in a cell of a table is a text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _texts(path: Path, row: Row, name: str, value: Any) -> tuple[str, ...]:
    value = _list(value)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise wrong(path, row.place, f"{name} is {shown(value)}.", "Give a list of texts.")
    if not all(text.strip() for text in value):
        raise wrong(path, row.place, f"{name} has an empty text.", "Leave the row out.")
    for text in value:
        check_characters(path, row.place, name, text)
    return tuple(value)


def _numbers(path: Path, row: Row, name: str, value: Any, count: int) -> tuple[float, ...]:
    value = _list(value)
    good = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    if not good or len(value) != count:
        raise wrong(
            path, row.place, f"{name} is {shown(value)}.", f"Give {count} numbers, one for each."
        )
    return tuple(map(float, value))


def _digest(row: QuestionRow, pictures: Any, given: Labelled) -> str:
    parts = [row.id, row.question, *(picture.digest for picture in pictures), repr(given)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()


# --- as chains -----------------------------------------------------------------------------------


def _step(text: str) -> Step:
    return Step(text, (Segment(text),), "", 0.0, 0, "stop")


def _responses(texts: tuple[str, ...]) -> list[Chain]:
    return [Chain(f"r.{at}", (_step(text),), True) for at, text in enumerate(texts)]


def _steps(texts: tuple[str, ...]) -> list[Chain]:
    chains: list[Chain] = []
    steps: tuple[Step, ...] = ()
    for at, text in enumerate(texts):
        steps = (*steps, _step(("\n\n" if at else "") + text))
        chains.append(Chain("r" + ".0" * (at + 1), steps))
    return chains


def check_judges(kind: Kind, judges: Mapping[str, Any]) -> None:
    """Raises ConfigError for judges that cannot be asked about what is labelled."""
    from cot_engine.judging.judges import LikelihoodScorer, RandomJudge, ScorerJudge

    for name, judge in judges.items():
        if isinstance(judge, ScorerJudge) and isinstance(judge.scorer, LikelihoodScorer):
            raise ConfigError(
                f"The judge {name} knows only what a search has written.",
                "Of texts in a file nobody knows how likely a model found them.",
            )
        if kind == "steps" and not isinstance(judge, ScorerJudge | RandomJudge):
            raise ConfigError(
                f"The judge {name} compares pairs, and the file has steps of one response each.",
                "Name a verifier that is pointwise, such as yes-no.",
            )
