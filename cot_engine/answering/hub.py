"""Data sets as Hugging Face keeps them on disk: folders of Arrow files (`save_to_disk`), or of
Parquet files (as downloaded). Read with pyarrow, row by row: pictures stay on the disk until their
question is asked.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cot_engine.errors import ImageError, InputError, UnknownNameError, install
from cot_engine.files.reading import named, read_json
from cot_engine.images.download import AllowUrl
from cot_engine.questions.cells import entries as listed
from cot_engine.questions.data import Item, item_of
from cot_engine.questions.entries import Entry, entries_of, failing
from cot_engine.questions.files import row_of
from cot_engine.questions.row import LETTERS, QuestionRow, Source

_ALSO = {
    "question": ("query", "problem", "prompt"),
    "answer": ("answers", "label"),
    "choices": ("options",),
    "id": ("index", "pid", "question_id", "qid"),
    "type": ("category", "question_type"),
}
"""What columns are called elsewhere; the first that is there counts."""
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_KEPT = 2  # row groups of Parquet at a time: each may hold a hundred pictures


@dataclass(frozen=True, slots=True)
class Part:
    """One file: its columns without pictures as rows, and the pictures of a row."""

    rows: list[dict[str, Any]]
    pictures: Callable[[int], tuple[Source, ...]]
    has_pictures: bool


def read_data_set(
    folder: Path, split: str | None, allow_url: AllowUrl = False
) -> tuple[list[QuestionRow], list[Entry[Item]]]:
    """The questions that can be read, and all as entries. Raises InputError for a folder that
    cannot be read, with several splits and none named, or without pyarrow."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        said = f"Reading the data set {named(folder)} takes the package pyarrow."
        raise InputError(said, install("datasets")) from None
    found: list[QuestionRow | Entry] = []
    shown: dict[str, tuple[Part, int]] = {}  # where the pictures of a row are, by its place
    for file in _files(folder, split):
        part = _part(file)
        for at, values in enumerate(part.rows):
            number = str(len(found) + 1)
            place = f"row {number}"
            try:
                found.append(row_of(folder / "*", place, _meant(values), number, loose=True))
            except InputError as error:
                found.append(failing(place, error))
            if part.has_pictures:
                shown[place] = part, at
    if not found:
        raise InputError(f"The data set {named(folder)} holds no questions.", "Name another.")
    entries = entries_of(folder / "*", found, allow_url)
    for k, entry in enumerate(entries):
        if entry.row is not None and entry.place in shown:
            make = partial(_with_pictures, folder, entry.row, *shown[entry.place], allow_url)
            row = replace(entry.row, pictures=(("path", "*"),))  # there is one, not read yet
            entries[k] = replace(entry, make=make, row=row)
    return [entry.row for entry in entries if entry.row is not None], entries


def _with_pictures(
    folder: Path, row: QuestionRow, part: Part, at: int, allow_url: AllowUrl
) -> Item:
    import pyarrow

    try:
        pictures = part.pictures(at)
    except (OSError, pyarrow.ArrowException) as error:
        said = f"{named(folder)}, {row.place}: its picture cannot be read: {error}."
        raise ImageError(said, "Download the data set again.") from None
    return item_of(folder / "*", replace(row, pictures=pictures), {}, allow_url)


def _meant(values: dict[str, Any]) -> dict[str, Any]:
    """A row with its columns called as ours are."""
    found = {key: value for key, value in values.items() if value is not None}
    for key, others in _ALSO.items():
        for other in others:
            if key not in found and other in found:
                found[key] = found.pop(other)
    if found.get("type") and "category" in found:
        found.pop("category")
    choices = found.get("choices")
    if isinstance(choices, str):  # MMMU writes lists as texts
        choices = listed(choices)
    if not choices:
        found.pop("choices", None)
        return found
    found["choices"] = choices
    answer = found.get("answer")
    if type(answer) is int and 0 <= answer < min(len(choices), len(LETTERS)):
        found["answer"] = LETTERS[answer]  # an index, from 0, as there
    return found


# --- which files ---------------------------------------------------------------------------------


def _files(folder: Path, split: str | None) -> list[Path]:
    """The files of one split, in their order. Raises InputError."""
    splits: dict[str, list[Path]] = {}
    if (folder / "dataset_dict.json").is_file():
        told = read_json(folder / "dataset_dict.json", "list of splits", InputError)
        names = told.get("splits") if isinstance(told, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{named(folder / 'dataset_dict.json')} names no splits.")
        splits = {name: _saved(folder / name) for name in names}
    elif (folder / "state.json").is_file():
        splits = {split or "": _saved(folder)}
    else:
        found = sorted([*folder.rglob("*.parquet"), *folder.rglob("*.arrow")])
        for file in found:
            splits.setdefault(_SHARD.sub("", file.stem), []).append(file)
    if split is None and len(splits) > 1:
        raise InputError(
            f"The data set {named(folder)} has several splits: {', '.join(sorted(splits))}.",
            "Name one with --split.",
        )
    if split is not None and split not in splits:
        raise UnknownNameError(f"split in {named(folder)} called", split, splits)
    return splits[split] if split is not None else next(iter(splits.values()), [])


def _saved(folder: Path) -> list[Path]:
    """The files of a data set that was saved, as its state lists them."""
    state = read_json(folder / "state.json", "state of the data set", InputError)
    try:
        names = [str(each["filename"]) for each in state["_data_files"]]
    except (TypeError, KeyError):
        said = f"{named(folder / 'state.json')} lists no files."
        raise InputError(said, "Save the data set again.") from None
    return [folder / Path(name).name for name in names]


# --- what is in one ------------------------------------------------------------------------------


def _part(file: Path) -> Part:
    """Raises InputError for a file that is none of these, or damaged."""
    import pyarrow

    try:
        return _parquet(file) if file.suffix == ".parquet" else _arrow(file)
    except (OSError, pyarrow.ArrowException) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{named(file)} cannot be read: {said}.", "Download it again.") from None


def _arrow(file: Path) -> Part:
    import pyarrow

    mapped = pyarrow.memory_map(str(file))
    try:
        table = pyarrow.ipc.open_stream(mapped).read_all()
    except pyarrow.ArrowInvalid:
        table = pyarrow.ipc.open_file(mapped).read_all()
    table.validate(full=True)  # where a damaged file says that its texts are, nothing may be
    shown, plain = _columns(table.schema)

    def pictures(at: int) -> tuple[Source, ...]:
        return tuple(_sources(table.column(name)[at].as_py() for name in shown))

    return Part(table.select(plain).to_pylist(), pictures, bool(shown))


def _parquet(file: Path) -> Part:
    from pyarrow import parquet

    opened = parquet.ParquetFile(file)
    shown, plain = _columns(opened.schema_arrow)
    sizes = [opened.metadata.row_group(k).num_rows for k in range(opened.num_row_groups)]

    @functools.lru_cache(maxsize=_KEPT)
    def group(k: int) -> Any:
        return opened.read_row_group(k, columns=shown)

    def pictures(at: int) -> tuple[Source, ...]:
        k = 0
        while at >= sizes[k]:
            at, k = at - sizes[k], k + 1
        return tuple(_sources(group(k).column(name)[at].as_py() for name in shown))

    return Part(opened.read(columns=plain).to_pylist(), pictures, bool(shown))


def _columns(schema: Any) -> tuple[list[str], list[str]]:
    """The columns that hold pictures, in the order of their numbers, and the others without those
    that name the same pictures in words."""
    from pyarrow import types

    def holds(kind: Any) -> bool:
        if types.is_list(kind) or types.is_large_list(kind):
            return holds(kind.value_type)
        if types.is_struct(kind):
            return {"bytes", "path"} <= {field.name for field in kind}
        return types.is_binary(kind) or types.is_large_binary(kind)

    shown = [field.name for field in schema if holds(field.type)]
    shown.sort(key=lambda name: int(re.sub(r"\D", "", name)[:18] or 0))
    also = ("image", "images") if shown else ()
    return shown, [name for name in schema.names if name not in (*shown, *also)]


def _sources(values: Iterator[Any]) -> Iterator[Source]:
    for value in values:
        if isinstance(value, list):
            yield from _sources(iter(value))
        elif isinstance(value, dict) and value.get("bytes") is None:
            if value.get("path"):
                yield "path", value["path"]
        elif value is not None:
            data = value["bytes"] if isinstance(value, dict) else value
            yield "base64", base64.b64encode(data).decode()
