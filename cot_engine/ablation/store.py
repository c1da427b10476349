"""The store: one SQLite file, one row for each search (problem x cell x seed), with its trace.

A row is named by all that decides what it says: the cell's hash, the seed, the item's digest (its
data), the code and the model. So a row is never counted for anything else, a run that is started
again goes on where it stopped, and grids that share cells share rows. Each row is one transaction:
kill -9 loses the searches in flight and nothing else.

    import pandas, sqlite3
    rows = pandas.read_sql("select * from results", sqlite3.connect("ablation.sqlite"))
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple
from typing import Any

from cot_engine.ablation.records import (
    CandidateRecord,
    ItemRecord,
    Key,
    ResultRow,
    Run,
    SelectionRecord,
    pack,
    unpack,
)
from cot_engine.ablation.store_file import StoreFile
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Role, Usage
from cot_engine.errors import NoTrace, StoreError
from cot_engine.images.thumbnails import Thumbnail


class Store(StoreFile):
    """An open store: what is written to it, and what can be asked of it. See StoreFile for how it
    is opened and let go."""

    # --- writing ---

    def begin(self, run: Run) -> None:
        """Record a run and what it is made of; one that is there already stays as it is."""
        with self._writing():
            about = json.dumps(run.about)
            self._write(
                "insert or ignore into runs values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(run.id, _now(), run.name, run.command, run.code, run.model, run.data),
                    *(run.reference, about),
                ),
            )
            for position, (digest, (label, plain)) in enumerate(run.cells.items()):
                n, judge = plain["parameters"].get("n"), plain["config"]["judge"]
                text = json.dumps(plain, sort_keys=True)
                self._write(
                    "insert or ignore into cells values (?, ?, ?, ?, ?)",
                    (digest, plain["strategy"], n, judge, text),
                )
                self._write(
                    "insert or ignore into run_cells values (?, ?, ?, ?)",
                    (run.id, position, digest, label),
                )
            for position, item in enumerate(run.items):
                self._write(
                    "insert or ignore into items values (?, ?, ?, ?, ?)",
                    (item.digest, item.problem, item.type, item.question, item.expected),
                )
                self._write(
                    "insert or ignore into run_items values (?, ?, ?)",
                    (run.id, position, item.digest),
                )
            for position, seed in enumerate(run.seeds):
                self._write(
                    "insert or ignore into run_seeds values (?, ?, ?)", (run.id, position, seed)
                )

    def add(self, run: Run, row: ResultRow) -> None:
        """Store a row; one of the same key that failed is replaced, one that is there stays."""
        with self._writing():
            self._write(
                "delete from searches where cell = ? and seed = ? and item = ? and code = ?"
                " and model = ? and status = 'failed'",
                (*row.key, run.code, run.model),
            )
            self._write(
                f"insert or ignore into searches values ({', '.join('?' * 21)})",
                (
                    *(*row.key, run.code, run.model, row.status, row.error, row.answer),
                    *(row.correct, row.unit, row.allotted, row.spent, row.remaining, row.seconds),
                    json.dumps({role: asdict(used) for role, used in row.usage.items()}),
                    json.dumps([asdict(candidate) for candidate in row.candidates]),
                    json.dumps([asdict(selection) for selection in row.selections]),
                    json.dumps(row.faults),
                    row.finished or _now(),
                    pack(row.trace) if row.trace is not None else None,
                    row.incomplete,
                ),
            )

    def add_picture(self, item: str, small: Thumbnail) -> None:
        """Keep what a report shows of the pictures of an item (its digest); what is there stays."""
        with self._writing():
            self._write(
                "insert or ignore into pictures values (?, ?, ?, ?, ?, ?, ?)",
                (item, *astuple(small)),
            )

    def _write(self, statement: str, values: Iterable[Any]) -> None:
        self._db.execute(statement, [_storable(value) for value in values])

    # --- reading ---

    def runs(self) -> list[Run]:
        """All runs, the one begun last being last, each with its cells, items and seeds."""
        found = self._db.execute("select * from runs order by started, rowid").fetchall()
        return [self._run(row) for row in found]

    def run(self, id: str | None = None) -> Run:
        """The run of that id (its beginning will do), or the last one. Raises StoreError."""
        row = self._db.execute(
            "select * from runs where substr(id, 1, ?) = ? order by started desc, rowid desc",
            (len(id or ""), id or ""),
        ).fetchone()
        if row is None:
            known = ", ".join(r[0] for r in self._db.execute("select id from runs"))
            raise StoreError(
                f"The store {str(self.path)!r} has no run {id!r}."
                if id
                else f"The store {str(self.path)!r} holds no run yet.",
                f"It has {known}." if known else "cot-engine ablate CONFIG.toml makes one.",
            )
        return self._run(row)

    def _run(self, row: sqlite3.Row) -> Run:
        id = row["id"]
        cells = self._db.execute(
            "select r.cell, r.label, c.plain from run_cells r join cells c on c.hash = r.cell"
            " where r.run = ? order by r.position",
            (id,),
        )
        items = self._db.execute(
            "select i.* from run_items r join items i on i.digest = r.item where r.run = ?"
            " order by r.position",
            (id,),
        )
        seeds = self._db.execute(
            "select seed from run_seeds where run = ? order by position", (id,)
        )
        with self._undamaged():
            return Run(
                id,
                row["name"],
                row["command"],
                row["code"],
                row["model"],
                row["data"],
                {c["cell"]: (c["label"], json.loads(c["plain"])) for c in cells},
                tuple(ItemRecord(*item) for item in items),
                tuple(seed[0] for seed in seeds),
                row["reference"],
                json.loads(row["about"]),
                row["started"],
            )

    def done(self, run: Run, *, failed: bool = True) -> set[Key]:
        """The keys that have a row for this run's code and model; `failed`: those that failed
        count as done too."""
        found = self._db.execute(
            "select cell, seed, item from searches where code = ? and model = ?"
            + ("" if failed else " and status = 'ok'"),
            (run.code, run.model),
        )
        return {Key(*row) for row in found}

    def rows(self, run: Run, where: str | None = None) -> Iterator[ResultRow]:
        """The rows of a run without their traces, in the order of the grid. `where` is a condition
        of SQL on the columns of `results`, such as "type = 'count' and seed = 0".

        Raises StoreError for a condition that SQLite does not understand.
        """
        chosen = self._chosen(run, where)
        # In the order of the run, whatever order they were done in.
        incomplete = "incomplete" if self._says_incomplete else "''"
        found = self._db.execute(
            "select cell, seed, item, status, error, answer, correct, unit, allotted, spent,"
            f" remaining, seconds, usage, candidates, selections, faults, finished, {incomplete}"
            " from searches where code = ? and model = ?",
            (run.code, run.model),
        )
        by_key = {Key(*row[:3]): row for row in found}
        for key in run.keys():  # noqa: SIM118
            if key in by_key and (chosen is None or key in chosen):
                with self._undamaged():
                    row = _row(by_key[key])
                yield row

    def table(self, run: Run, where: str | None = None) -> Iterator[tuple[Any, ...]]:
        """The names of the columns, then the searches that `rows` gives: each its cell's label
        and what the view `results` has. Raises StoreError as `rows` does."""
        chosen = self._chosen(run, where)
        found = self._db.execute(
            "select label, results.* from results"
            " join run_cells c on c.run = ? and c.cell = results.cell"
            " join run_items i on i.run = ? and i.item = results.item"
            " join run_seeds s on s.run = ? and s.seed = results.seed"
            " where code = ? and model = ? order by i.position, s.position, c.position",
            (run.id, run.id, run.id, run.code, run.model),
        )
        yield tuple(column[0] for column in found.description)
        for row in found:
            if chosen is None or Key(row["cell"], row["seed"], row["item"]) in chosen:
                yield tuple(row)

    def _chosen(self, run: Run, where: str | None) -> set[Key] | None:
        if where is None:
            return None
        try:
            # The bracket on a line of its own: the condition may end in a comment.
            found = self._db.execute(
                "select cell, seed, item from (select results.*, label from results join run_cells"
                f" using (cell) where run = ?) where code = ? and model = ? and ({where}\n)",
                (run.id, run.code, run.model),
            )
            return {Key(*row) for row in found}
        except (sqlite3.Error, sqlite3.Warning) as error:
            columns = [c[1] for c in self._db.execute("pragma table_info(results)")]
            said = " ".join(str(error).split())
            raise StoreError(
                f"The condition {where!r} cannot be used: {said}.",
                f"It is SQL on the columns label, {', '.join(columns)}.",
            ) from None

    def trace(self, run: Run, key: Key) -> Trace:
        """The trace of one search, without its pictures. Raises NoTrace, StoreError."""
        row = self._db.execute(
            "select trace from searches where cell = ? and seed = ? and item = ? and code = ?"
            " and model = ?",
            (*key, run.code, run.model),
        ).fetchone()
        if row is None or row[0] is None:
            raise NoTrace(f"The store {str(self.path)!r} has no trace of {tuple(key)}.")
        with self._undamaged():
            return unpack(row[0])

    def pictured(self) -> set[str]:
        """The items (digests) of which it is known what pictures they have."""
        if not self._has_pictures:
            return set()
        return {row[0] for row in self._db.execute("select item from pictures")}

    def picture(self, item: str) -> Thumbnail | None:
        """What there is to show of an item's pictures; None where that was not kept."""
        if not self._has_pictures:
            return None
        found = self._db.execute(
            "select number, shown, width, height, kind, data from pictures where item = ?", (item,)
        ).fetchone()
        return None if found is None else Thumbnail(*found)

    def spent(self, run: Run, cell: str) -> dict[tuple[int, str], dict[str, Any]]:
        """What a cell's searches cost, by (seed, item): the usage of all roles, and the seconds."""
        found = self._db.execute(
            "select seed, item, usage, seconds from searches where cell = ? and code = ?"
            " and model = ? and status = 'ok'",
            (cell, run.code, run.model),
        )
        return {
            (row["seed"], row["item"]): {
                "usage": sum(_usage(row["usage"]).values(), Usage()),
                "seconds": row["seconds"],
            }
            for row in found
        }


def _storable(value: Any) -> Any:
    """A text as UTF-8 can say it: half a surrogate pair becomes \\udXXX, as JSON writes it."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def _row(row: sqlite3.Row) -> ResultRow:
    selections = tuple(
        SelectionRecord(
            **s | {"candidates": tuple(s["candidates"]), "kept": tuple(s["kept"])}  # lists in JSON
        )
        for s in json.loads(row["selections"])
    )
    rest: tuple[Any, ...] = (
        _usage(row["usage"]),
        tuple(CandidateRecord(**c) for c in json.loads(row["candidates"])),
        selections,
        json.loads(row["faults"]),
        row["finished"],
        row[17],
    )
    return ResultRow(Key(*row[:3]), *row[3:12], *rest)


def _usage(text: str) -> dict[Role, Usage]:
    return {role: Usage(**used) for role, used in json.loads(text).items()}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
