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
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cot_engine.ablation.records import (
    Candidate,
    ItemRecord,
    Key,
    Row,
    Run,
    Selection,
    pack,
    unpack,
)
from cot_engine.errors import StoreError
from cot_engine.events import Trace
from cot_engine.types import Usage

SCHEMA = 1

_TABLES = """
create table meta (key text primary key, value text not null);
create table runs (
  id text primary key, started text not null, name text not null, command text not null,
  code text not null, model text not null, data text not null, reference text,
  about text not null
);
create table run_cells (run text, position integer, cell text, label text,
  primary key (run, position));
create table run_items (run text, position integer, item text, primary key (run, position));
create table run_seeds (run text, position integer, seed integer, primary key (run, position));
create table cells (hash text primary key, strategy text not null, n integer, judge text,
  plain text not null);
create table items (digest text primary key, problem text not null, type text not null,
  question text not null, expected text not null);
create table searches (
  cell text not null, seed integer not null, item text not null, code text not null,
  model text not null,
  status text not null, error text not null, answer text, correct real,
  unit text, allotted real, spent real, remaining real, seconds real,
  usage text not null, candidates text not null, selections text not null, faults text not null,
  finished text not null, trace blob, incomplete text not null default '',
  primary key (cell, seed, item, code, model)
);
"""
_VIEW = """
create view results as
  select i.problem, i.type, c.strategy, c.n, c.judge, s.cell, s.seed, s.status, s.error,
    s.incomplete, s.correct, s.answer, i.expected,
    s.unit, s.allotted, s.spent, s.remaining, s.seconds,
    json_extract(s.usage, '$.generate.flops') as generate_flops,
    json_extract(s.usage, '$.judge.flops') as judge_flops,
    json_extract(s.usage, '$.score.flops') as score_flops,
    json_extract(s.usage, '$.generate.decoded') as generate_new_tokens,
    json_extract(s.usage, '$.judge.decoded') as judge_new_tokens,
    json_extract(s.usage, '$.generate.prefilled') as generate_prefilled,
    json_extract(s.usage, '$.judge.prefilled') as judge_prefilled,
    json_extract(s.usage, '$.generate.calls') as generate_calls,
    json_extract(s.usage, '$.judge.calls') as judge_calls,
    i.question, c.plain as config, s.item, s.code, s.model, s.finished
  from searches s join items i on i.digest = s.item join cells c on c.hash = s.cell;
"""


class Store:
    """An open store. Use it as a context manager; one object belongs to one thread.

    Raises StoreError for a file that is no store, is of another schema, or cannot be opened.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        self._made = self._writes = False
        try:
            there = self.path.is_file()
            if not create and not there:
                raise StoreError(
                    f"There is no store {str(path)!r}.", "cot-engine ablate CONFIG.toml makes one."
                )
            if create:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            else:
                self._db = self._reading()
            self._made = create and not there
            try:
                self._db.row_factory = sqlite3.Row
                self._check(create)
                self._writes = create
            except BaseException:
                self.close()
                raise
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise StoreError(
                f"The store {str(path)!r} cannot be opened:"
                f" {getattr(error, 'strerror', None) or error}.",
                "Check its name and permissions; it must be a file that cot-engine ablate wrote.",
            ) from None

    def _reading(self) -> sqlite3.Connection:
        """A connection that changes nothing and leaves no file behind."""
        uri = self.path.absolute().as_uri()
        # To read beside a writer SQLite needs files beside the store. Who might write to it takes
        # them away again; who may not leaves them.
        places = (self.path, self.path.parent)
        mode = "rw" if all(os.access(each, os.W_OK) for each in places) else "ro"
        db = sqlite3.connect(f"{uri}?mode={mode}", uri=True, timeout=30, isolation_level=None)
        try:
            db.execute("pragma query_only = on")
            db.execute("select 1 from sqlite_master")
        except sqlite3.OperationalError:
            # Where nothing may be written these files cannot be made. With no log of a writer
            # there, the store is as it is.
            db.close()
            log = self.path.with_name(self.path.name + "-wal")
            if log.exists() and log.stat().st_size:
                raise
            db = sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True, isolation_level=None)
        return db

    def _check(self, create: bool) -> None:
        tables = {row[0] for row in self._db.execute("select name from sqlite_master")}
        if not tables and create:
            self._log_ahead()
            self._says_incomplete = True
            with self._writing():
                for statement in [*_TABLES.split(";\n"), _VIEW]:
                    if statement.strip():
                        self._db.execute(statement)
                self._db.execute("insert into meta values ('schema', ?)", (str(SCHEMA),))
            return
        if "meta" not in tables or "searches" not in tables:
            raise sqlite3.DatabaseError("it is another kind of SQLite file")
        found = self._db.execute("select value from meta where key = 'schema'").fetchone()
        if found is None or found[0] != str(SCHEMA):
            raise StoreError(
                f"The store {str(self.path)!r} has schema {found and found[0]}; this version of"
                f" cot-engine reads and writes {SCHEMA}.",
                "Use the version that wrote it, or another file.",
            )
        if create:
            self._log_ahead()
        columns = {row["name"] for row in self._db.execute("pragma table_info(searches)")}
        self._says_incomplete = "incomplete" in columns
        if create and not self._says_incomplete:  # a store from before answers said so
            with self._writing():
                self._db.execute(
                    "alter table searches add column incomplete text not null default ''"
                )
                self._db.execute("drop view results")
                self._db.execute(_VIEW)
            self._says_incomplete = True

    def _log_ahead(self) -> None:
        # Write-ahead logging: readers and the writer do not wait for each other, and a commit that
        # returned survives the death of this process.
        self._db.execute("pragma journal_mode = wal")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self._db.execute("begin immediate")
            yield
            self._db.execute("commit")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("rollback")
            if isinstance(error, sqlite3.Error):
                raise StoreError(
                    f"The store {str(self.path)!r} cannot be written: {error}.",
                    "Free some space or check its permissions; what was stored before is kept.",
                ) from None
            raise

    def close(self) -> None:
        """Let go of the file. One that was made in vain, for no run began, is removed, and no log
        stays beside it, unless somebody is reading."""
        if self._made:
            with suppress(sqlite3.Error):
                self._made = self._db.execute("select 1 from runs").fetchone() is None
        if self._writes or self._made:
            with suppress(sqlite3.Error):
                self._db.execute("pragma busy_timeout = 0")
                self._db.execute("pragma journal_mode = delete")
        self._db.close()
        if self._made:
            self.path.unlink(missing_ok=True)
        self._made = self._writes = False  # closing again changes nothing

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- writing ---

    def begin(self, run: Run) -> None:
        """Record a run and what it is made of; one that is there already stays as it is."""
        who = f"Process {os.getpid()} on {socket.gethostname()}, since {_now()},"
        with self._writing():
            self._write("insert or replace into meta values ('writer', ?)", (who,))
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

    def add(self, run: Run, row: Row) -> None:
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

    def _write(self, statement: str, values: Iterable[Any]) -> None:
        self._db.execute(statement, [_storable(value) for value in values])

    # --- reading ---

    @property
    def writer(self) -> str:
        """Who began to write last."""
        row = self._db.execute("select value from meta where key = 'writer'").fetchone()
        return row[0] if row else "Another process"

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

    def rows(self, run: Run, where: str | None = None) -> Iterator[Row]:
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
                yield _row(by_key[key])

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
        """The trace of one search, without its pictures. Raises StoreError if there is none."""
        row = self._db.execute(
            "select trace from searches where cell = ? and seed = ? and item = ? and code = ?"
            " and model = ?",
            (*key, run.code, run.model),
        ).fetchone()
        if row is None or row[0] is None:
            raise StoreError(f"The store {str(self.path)!r} has no trace of {tuple(key)}.")
        return unpack(row[0])

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


def _row(row: sqlite3.Row) -> Row:
    return Row(
        Key(*row[:3]),
        *row[3:12],
        _usage(row["usage"]),
        tuple(Candidate(**c) for c in json.loads(row["candidates"])),
        tuple(
            Selection(
                **s
                | {"candidates": tuple(s["candidates"]), "kept": tuple(s["kept"])}  # lists in JSON
            )
            for s in json.loads(row["selections"])
        ),
        json.loads(row["faults"]),
        row["finished"],
        row[17],
    )


def _usage(text: str) -> dict[str, Usage]:
    return {role: Usage(**used) for role, used in json.loads(text).items()}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
