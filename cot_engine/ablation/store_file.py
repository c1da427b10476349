"""The file of a store: its tables, and its life from being made or opened to being let go."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from cot_engine.errors import StoreError, TraceError

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
_PICTURES = """
create table if not exists pictures (item text primary key, number integer not null,
  shown integer not null, width integer not null, height integer not null, kind text not null,
  data blob not null)
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


class StoreFile:
    """An open file with the tables of a store: `create` makes it where there is none, and whoever
    does not create changes nothing. A context manager; one object belongs to one thread.

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
            self._says_incomplete = self._has_pictures = True
            with self._writing():
                for statement in [*_TABLES.split(";\n"), _PICTURES, _VIEW]:
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
        self._has_pictures = create or "pictures" in tables
        if create and "pictures" not in tables:  # a store from before it kept any
            with self._writing():
                self._db.execute(_PICTURES)

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None:
        self.close()
        # What SQLite says of the file or its disk; its other errors are defects of ours.
        if type(error) in (sqlite3.DatabaseError, sqlite3.OperationalError):
            raise self._damaged(error) from None

    @contextmanager
    def _undamaged(self) -> Iterator[None]:
        """What is made of a stored text or trace: one that is not as it was written is damage."""
        try:
            yield
        except (zlib.error, ValueError, TypeError, AttributeError, KeyError, TraceError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: BaseException | None) -> StoreError:
        return StoreError(
            f"The store {str(self.path)!r} cannot be read: {error}.",
            "If it is damaged, use a copy from before: cot-engine ablate does what that lacks.",
        )
