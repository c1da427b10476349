"""What a teacher was paid for, written down before it is read: one SQLite file, only ever added to.

Each reply is a transaction that is on the disk when `add` returns, so kill -9 or a power cut loses
the calls in flight and nothing else. What becomes of the rows is worked out from here anew on every
run: a reply that is here is never asked for again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_engine.errors import InputError, StoreError
from cot_engine.files.locking import held
from cot_engine.training.teacher import Reply, read_reply

SCHEMA = "journal-1"

_TABLES = """
create table meta (key text primary key, value text not null);
create table replies (
  task text not null, attempt integer not null, purpose text not null, model text not null,
  body text not null, prompt integer, completion integer, cached integer, at text not null,
  primary key (task, attempt, purpose, model)
);
"""


@dataclass
class Spent:
    """Of one purpose: calls that were answered, their tokens, and how many were not `counted` by
    the server."""

    calls: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    uncounted: int = 0

    def add(self, reply: Reply) -> None:
        self.calls += 1
        self.prompt += reply.prompt or 0
        self.completion += reply.completion or 0
        self.cached += reply.cached or 0
        self.uncounted += reply.prompt is None or reply.completion is None

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion


class Journal:
    """An open journal, held by one process at a time. Use it as a context manager.

    `recipe` is what decides what is asked beside the question itself. Raises StoreError for a file
    that is no journal, is held by another process, or cannot be written, and InputError for one
    that was made by another recipe.
    """

    def __init__(self, path: str | Path, recipe: dict[str, Any]) -> None:
        self.path = Path(path)
        self.spent: dict[str, Spent] = {}
        self._held = ExitStack()
        hint = "Wait for it to end, stop it, or name another --out."
        self._held.enter_context(held(self.path, "the journal", hint))
        try:
            with self._explained("opened"):
                self._db = sqlite3.connect(self.path, timeout=0, isolation_level=None)
                self._held.callback(self._db.close)
                # Where nobody else may be, SQLite needs no file of shared memory beside it.
                self._db.execute("pragma locking_mode = exclusive")
                self._db.execute("pragma journal_mode = wal")
                self._db.execute("pragma synchronous = full")
                self._check(recipe)
                rows = self._db.execute("select purpose, prompt, completion, cached from replies")
                for purpose, *tokens in rows:
                    self._spend(purpose, Reply("", "", "", "", *tokens))
        except BaseException:
            self._held.close()
            raise

    def _check(self, recipe: dict[str, Any]) -> None:
        tables = {row[0] for row in self._db.execute("select name from sqlite_master")}
        if not tables:
            self._db.execute("begin")
            for statement in _TABLES.split(";\n"):
                if statement.strip():
                    self._db.execute(statement)
            meta = [("schema", SCHEMA), ("recipe", json.dumps(recipe))]
            self._db.executemany("insert into meta values (?, ?)", meta)
            self._db.execute("commit")
            return
        if not {"meta", "replies"} <= tables:
            raise sqlite3.DatabaseError("it is another kind of SQLite file")
        kept = dict(self._db.execute("select key, value from meta"))
        if kept.get("schema") != SCHEMA:
            raise sqlite3.DatabaseError(f"its schema is {kept.get('schema')}, not {SCHEMA}")
        had = json.loads(kept["recipe"])
        other = [k for k in {**had, **recipe} if had.get(k) != recipe.get(k)]
        if other:
            said = ", ".join(f"{k} {had.get(k)!r} (now {recipe.get(k)!r})" for k in other)
            raise InputError(
                f"The journal {str(self.path)!r} was begun with {said}.",
                "Go on with what it was begun with, or name another --out.",
            )

    def get(self, task: str, attempt: int, purpose: str, model: str) -> Reply | None:
        """The reply that was paid for, if it was."""
        with self._explained("read"):
            found = self._db.execute(
                "select body from replies where task = ? and attempt = ? and purpose = ?"
                " and model = ?",
                (task, attempt, purpose, model),
            ).fetchone()
        return read_reply(found[0]) if found else None

    def add(self, task: str, attempt: int, purpose: str, model: str, body: str) -> Reply:
        """Keep a reply for good, then read it."""
        reply = read_reply(body)
        with self._explained("written"):
            tokens = (reply.prompt, reply.completion, reply.cached)
            self._db.execute(
                "insert into replies values (?, ?, ?, ?, ?, ?, ?, ?, datetime('now'))",
                (task, attempt, purpose, model, body, *tokens),
            )
        self._spend(purpose, reply)
        return reply

    def _spend(self, purpose: str, reply: Reply) -> None:
        self.spent.setdefault(purpose, Spent()).add(reply)

    @property
    def total(self) -> Spent:
        """Over all purposes and all runs."""
        every = self.spent.values()
        names = ("calls", "prompt", "completion", "cached", "uncounted")
        return Spent(*(sum(getattr(spent, name) for spent in every) for name in names))

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """SQLite's errors in the user's terms."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            name = repr(str(self.path))
            code = getattr(error, "sqlite_errorcode", 0) or 0
            hint = "Check its name and permissions, or name another --out."
            if what == "written" or code & 0xFF == sqlite3.SQLITE_FULL:
                hint = "Is the disk full? What is in it is kept: the same command goes on."
            raise StoreError(f"The journal {name} cannot be {what}: {error}.", hint) from None

    def close(self) -> None:
        """Let go of the file, and remove one in which nothing is that was paid for."""
        with suppress(sqlite3.Error, OSError):
            self._db.execute("pragma journal_mode = delete")  # no log stays beside it
            if not self._db.execute("select 1 from replies").fetchone():
                self.path.unlink()  # still held: nobody has begun to write into it
        self._held.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
