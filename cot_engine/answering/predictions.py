"""The predictions file: a line a question, appended as soon as it is answered, whole.

JSONL, CSV or TSV, by its name, with the columns that harnesses expect: `id`, `prediction` (what was
answered) and `answer` (the standard one). A line that a killed process left half is cut off when
the file is opened again. Beside it `NAME.run.json` says what it was made with: a run that would
answer in another way is refused, so a file is never about two things.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cot_engine.errors import InputError, StoreError, cut, shown
from cot_engine.files.reading import named, read_bytes, read_json
from cot_engine.files.sheets import sheet_line, without_apostrophe
from cot_engine.files.writing import unwritable, write_whole, writing

KINDS = (".jsonl", ".csv", ".tsv")
SCHEMA = "predictions-1"
_WHAT = "The predictions"
_FRESH = "Name another --out, or begin anew with --fresh, which renames the old file."
_KEPT = "Free some space; what is in it is kept: the same command goes on."


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line. `prediction` is the CONCLUSION (None: the question failed, `error` says why);
    `right` is None where there is no standard answer; `confidence` is how likely it is right by the
    model's probe (None: it has none). `new_tokens`, `tokens` (all the model
    computed), `flops` and `seconds` are what it cost, the judge included. `item` names the
    question's content: text, pictures, options, standard answer."""

    id: str
    question: str = ""
    prediction: str | None = None
    answer: str = ""
    right: bool | None = None
    confidence: float | None = None
    incomplete: str = ""
    error: str = ""
    new_tokens: int = 0
    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0
    type: str = ""
    trace: str = ""
    item: str = ""


COLUMNS = tuple(each.name for each in fields(Prediction))
_NUMBERS = {"new_tokens": int, "tokens": int, "flops": int, "seconds": float}
_NEEDED = ("id", "prediction", "right", "error", "item")


def line_of(prediction: Prediction, kind: str) -> bytes:
    """As it is written, with its line end. Half a surrogate pair becomes \\udXXX."""
    values = asdict(prediction)
    if kind == ".jsonl":
        text = json.dumps(values, ensure_ascii=False) + "\n"
    else:
        text = sheet_line(map(_cell, values.values()), _mark(kind))
    return text.encode("utf-8", "backslashreplace")


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value


def _mark(kind: str) -> str:
    return "," if kind == ".csv" else "\t"


class Predictions:
    """An open predictions file, which the caller holds (`files.locking.held`): begun, or begun
    again with the lines that are kept. Appends; `arrange` puts all into the order of the data.

    Raises StoreError for what the system refuses.
    """

    def __init__(self, path: str | Path, kept: Iterable[tuple[int, bytes]] = ()) -> None:
        """`kept`: lines with their places in the data."""
        self.path = Path(path)
        self.kind = kind_of_file(path)
        self.header = b"" if self.kind == ".jsonl" else _header(self.kind)
        self._spans: list[tuple[int, int, int]] = []  # place in the data, first byte, bytes
        self._at = len(self.header)
        lines = [self.header]
        for place, line in sorted(kept):
            lines.append(line)
            self._count(place, line)
        write_whole(path, b"".join(lines), _WHAT, StoreError, _KEPT)
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  # closed by close()
        except OSError as error:
            raise unwritable(path, error, _WHAT, StoreError, _KEPT) from None

    def add(self, place: int, prediction: Prediction) -> None:
        """One line more, in one piece: whoever reads the file, or finds it after this process was
        killed, sees it whole."""
        line = line_of(prediction, self.kind)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise unwritable(self.path, error, _WHAT, StoreError, _KEPT) from None
        self._count(place, line)

    def arrange(self) -> None:
        """The lines in the order of the data, whatever order they were answered in."""
        self.close()
        if self._spans == sorted(self._spans):
            return
        with open(self.path, "rb") as old, writing(self.path, _WHAT, StoreError, _KEPT) as put:
            put(self.header)
            for _, at, length in sorted(self._spans):
                old.seek(at)
                put(old.read(length))

    def _count(self, place: int, line: bytes) -> None:
        self._spans.append((place, self._at, len(line)))
        self._at += len(line)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def kind_of_file(path: str | Path) -> str:
    """Raises InputError for a name that ends in none of KINDS, and for what is there and no file:
    what went into a folder, a pipe or a device could not be read again."""
    kind = Path(path).suffix.lower()
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"--out {named(path)} is no regular file.", "Name another.")
    if kind not in KINDS:
        hint = f"Its name must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}."
        raise InputError(f"--out is {named(path)}.", hint)
    return kind


def _header(kind: str) -> bytes:
    return sheet_line(COLUMNS, _mark(kind)).encode()


# --- what is there already -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is there: what it says, and as it stands in the file."""

    prediction: Prediction
    raw: bytes


def read_predictions(path: str | Path) -> tuple[list[Line], int]:
    """The whole lines of a predictions file, and how many bytes of one that was cut off follow
    them. Raises InputError for a file that `cot-engine answer` did not write."""
    data = read_bytes(path, "predictions", InputError)
    kind = kind_of_file(path)
    found, end = [], 0
    for number, (raw, values) in enumerate(_records(path, data, kind), 1):
        end += len(raw)
        if values is not None:
            found.append(Line(_prediction(path, number, values), raw))
    return found, len(data) - end


def _records(path: str | Path, data: bytes, kind: str) -> Iterator[tuple[bytes, dict | None]]:
    """The bytes and the values of each whole line; of that with the columns no values."""
    if kind == ".jsonl":
        for number, raw in enumerate(data.splitlines(keepends=True), 1):
            if not raw.endswith(b"\n"):
                return
            yield raw, _object(path, number, raw)
        return
    pieces = data.split(b"\n")
    lines = [piece + b"\n" for piece in pieces[:-1]]  # what follows the last one was cut off
    text = (line.decode("utf-8", "replace").removeprefix("\ufeff") for line in lines)
    reader, read = csv.reader(text, delimiter=_mark(kind), strict=True), 0
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except (StopIteration, csv.Error):  # the end, or a quote that was not closed before it
            return
        raw, read = b"".join(lines[read : reader.line_num]), reader.line_num
        if header is None:
            header = cells
            if header != list(COLUMNS):
                raise _foreign(path, f"its columns are {cut(', '.join(header))}")
            yield raw, None
        elif len(cells) != len(header):
            raise _foreign(path, f"line {read} has {len(cells)} fields for {len(header)} columns")
        else:
            cells = [without_apostrophe(cell) for cell in cells]
            yield raw, dict(zip(header, cells, strict=True))


def _object(path: str | Path, number: int, raw: bytes) -> dict[str, Any] | None:
    if not raw.strip():
        return None
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise _foreign(path, f"line {number} is not JSON: {error}") from None
    if not isinstance(found, dict) or any(key not in found for key in _NEEDED):
        raise _foreign(path, f"line {number} has not the keys {', '.join(_NEEDED)}")
    return found


def _prediction(path: str | Path, number: int, values: dict[str, Any]) -> Prediction:
    known = {key: values[key] for key in COLUMNS if key in values}
    right = known.get("right")
    if isinstance(right, str):
        known["right"] = {"true": True, "false": False}.get(right.lower())
    if known.get("error"):
        known["prediction"] = None
    try:
        for key, kind in _NUMBERS.items():
            known[key] = kind(known.get(key) or 0)
        chance = known.get("confidence")
        known["confidence"] = None if chance in (None, "") else float(chance)
        return Prediction(**known)
    except (ValueError, TypeError) as error:
        raise _foreign(path, f"the {number}. line: {error}") from None


def _foreign(path: str | Path, said: str) -> InputError:
    return InputError(f"{named(path)} was not written by cot-engine answer: {said}.", _FRESH)


# --- what it was made with -----------------------------------------------------------------------


def run_file(path: str | Path) -> Path:
    """Where it stands what a predictions file was made with."""
    path = Path(path)
    return path.with_name(path.name + ".run.json")


def begun(path: str | Path) -> dict[str, Any] | None:
    """What the predictions that are there were made with; None if there are none. Raises
    InputError if they do not say."""
    if not os.path.exists(path) or not os.path.getsize(path):
        return None
    about = run_file(path)
    if not about.exists():
        said = f"{about.name}, which says what they were made with, is not beside them"
        raise InputError(f"There are predictions in {named(path)}, but {said}.", _FRESH)
    found = read_json(about, "record of the run", InputError)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        said = f"The record {named(about)} is not one of this version of cot-engine."
        raise InputError(said, _FRESH)
    return found


def record(path: str | Path, made: dict[str, Any]) -> None:
    """Write down what a predictions file is made with, before its first line."""
    text = json.dumps({"schema": SCHEMA, **made}, indent=2, default=str) + "\n"
    write_whole(run_file(path), text, "The record of the run", StoreError, _KEPT)


def check_same(path: str | Path, had: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises InputError, saying what differs, if the predictions that are there were made with
    something else than is asked for now; compared is what both say."""
    told = []
    for part in now.keys() & had.keys():
        old, new = had[part], now[part]
        old, new = _flat(part, old), _flat(part, json.loads(json.dumps(new, default=str)))
        told += [
            f"{key} {_said(old.get(key))} (now {_said(new.get(key))})"
            for key in sorted({**old, **new})
            if old.get(key) != new.get(key)
        ]
    if told:
        said = f"The predictions in {named(path)} were made with {', '.join(sorted(told))}."
        raise InputError(said, f"Go on with what they were made with. {_FRESH}")


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Tables in tables as one, by their own names."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: found for k, v in value.items() for key, found in _flat(k, v).items()}


def _said(value: Any) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else shown(value)


def put_aside(path: str | Path) -> str | None:
    """Rename the predictions that are there, and their record, to a free name beside them; that
    name, or None if there are none. The record goes last: without one no file is gone on with."""
    path = Path(path)
    if not path.exists():
        return None
    number = 1
    while (old := path.with_name(f"{path.stem}.old-{number}{path.suffix}")).exists():
        number += 1
    try:
        os.rename(path, old)
        if (about := run_file(path)).exists():
            os.replace(about, run_file(old))
    except OSError as error:
        hint = "Check the permissions of its folder."
        raise unwritable(path, error, _WHAT, StoreError, hint) from None
    return str(old)
