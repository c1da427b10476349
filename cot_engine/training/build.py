"""Data for training, written by a teacher: `build` asks, reads, checks, tries again, and keeps.

What becomes of a row is a function of the replies in the journal alone: `build` goes through all
rows anew on every run and asks only for the replies that are not there. So a run that was stopped,
in whatever way, goes on where it was, and a run with more tries takes up what was set aside.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cot_engine.errors import (
    ConfigError,
    CotEngineError,
    ImageError,
    InputError,
    StoreError,
    cut,
    shown,
)
from cot_engine.files.writing import writing
from cot_engine.questions.entries import Entry
from cot_engine.training.journal import Journal, Spent
from cot_engine.training.rows import row_json
from cot_engine.training.tasks import Fault, RowDraft, TeacherTask
from cot_engine.training.teacher import Rejected, Reply, Stopped, Teacher, TeacherError, Unanswered

_REFUSES = re.compile(
    r"\W*(?:(?:I['’]?m|I am|we are) (?:very |so |truly )?(?:sorry|unable|not able)\b"
    r"|sorry, (?:but )?I\b|as an AI\b"
    r"|(?:I|we) (?:can(?:no|['’])?t|won['’]t|will not|don['’]t|do not|must decline) \w+)",
    re.IGNORECASE,
)
_WARMER, _MOST = 0.2, 1.0  # the temperature of each further try, up to the most
_VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_CHECK_TOKENS = 1024  # a word is enough for most, but some think first
NOT_ASKED = ("input", "image", "stopped", "unanswered")
"""Reasons that are not about a reply."""
_RECIPE = "recipe-1"  # changes with the prompts: what was paid under others is not mixed in


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How to ask, and when to stop. Prices are per million tokens; `budget` counts all runs."""

    model: str
    checker_model: str = ""
    tries: int = 3
    temperature: float = 0.7
    seed: int = 0
    max_tokens: int = 2048
    in_flight: int = 8
    budget_tokens: int | None = None
    budget_money: float | None = None
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        limits = {"tries": (1, 100), "temperature": (0, 2), "seed": (0, 2**31 - 1)}
        limits |= {"max_tokens": (1, 1_000_000), "in_flight": (1, 1024)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also false for NaN
                option = name.replace("_", "-")
                raise ConfigError(f"{option} is {value!r}.", f"It must be {low} to {high}.")
        if self.budget_money is not None and self.money(Spent()) is None:
            raise ConfigError(
                "The budget is in money, and there are no prices.",
                'Give --price-in and --price-out, or a budget like "2e6 tokens".',
            )

    def money(self, spent: Spent) -> float | None:
        """What it cost, cached tokens at the full price; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (spent.prompt * self.price_in + spent.completion * self.price_out) / 1e6

    def used_up(self, spent: Spent) -> bool:
        money = self.money(spent)
        return (self.budget_tokens is not None and spent.tokens >= self.budget_tokens) or (
            self.budget_money is not None and money is not None and money >= self.budget_money
        )

    def heat(self, attempt: int) -> float:
        """The temperature of an attempt, 0 first: another try must be able to end elsewhere."""
        return round(min(self.temperature + _WARMER * attempt, max(_MOST, self.temperature)), 6)

    def recipe(self, kind: str) -> dict[str, Any]:
        """What decides the replies beside the rows."""
        return {
            "format": _RECIPE,
            "teacher": kind,
            "model": self.model,
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
        }


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """What became of a row: kept, set aside, or left for a later run; `line` is its line in the
    file for that. `faults` are those of its attempts, the last one's being its own reason.
    `decided_by` says who found a kept row right: "rule", "teacher", or "" where nobody could.
    `asked`: a teacher was asked in this run, and not the journal alone."""

    id: str
    place: str
    status: Literal["kept", "aside", "left"]
    faults: tuple[Fault, ...] = ()
    line: str = ""
    decided_by: str = ""
    asked: bool = False


@dataclass
class BuildReport:
    """How many rows were kept (and by whose word), set aside and left, by reason; how many
    attempts failed, by reason; what was spent over all runs, by purpose. `stopped_by` is what ended
    it early: to be raised, when all is told."""

    kept: int = 0
    decided_by: Counter[str] = field(default_factory=Counter)
    aside: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    spent: dict[str, Spent] = field(default_factory=dict)
    out_of_budget: bool = False
    stopped_by: CotEngineError | KeyboardInterrupt | None = None

    def count(self, outcome: RowOutcome) -> None:
        self.attempts.update(f.reason for f in outcome.faults if f.reason not in NOT_ASKED)
        if outcome.status == "kept":
            self.kept += 1
            if outcome.decided_by:
                self.decided_by[outcome.decided_by] += 1
        else:
            counter = self.aside if outcome.status == "aside" else self.left
            counter[outcome.faults[-1].reason] += 1


def files_of(out: str | Path) -> dict[str, Path]:
    """Where things are written: rows, those set aside, the journal."""
    out = Path(out)
    return {
        "rows": out,
        "aside": out.with_name(f"{out.stem}.aside.jsonl"),
        "journal": out.with_name(f"{out.stem}.journal.sqlite"),
    }


def build(
    entries: Sequence[Entry[TeacherTask]],
    teacher: Teacher,
    journal: Journal,
    settings: BuildSettings,
    out: str | Path,
    *,
    on_outcome: Callable[[RowOutcome], None] = lambda outcome: None,
) -> BuildReport:
    """Make the rows of `entries` and write them, in that order, with what was set aside.

    What concerns all rows (a TeacherError) and Ctrl-C end it early: then no new calls are made,
    those in flight are kept, the files are written, and the report says what stopped it. Raises
    StoreError or InputError where nothing can be written, and KeyboardInterrupt for a second
    Ctrl-C, which drops the calls; both leave the files as they were, and the journal whole.
    """
    builder = _Builder(entries, teacher, journal, settings, on_outcome)
    with builder.outcomes:
        try:
            asyncio.run(builder.run())
        except asyncio.CancelledError:
            raise KeyboardInterrupt("Interrupted. The journal keeps what was paid for.") from None
        if isinstance(builder.fatal, StoreError):
            raise builder.fatal  # nothing can be written: the files stay as they were
        if not (builder.outcomes.empty and (builder.fatal or builder.interrupted)):
            builder.outcomes.write(Path(out))  # else nothing came of it, and nothing is left behind
    said = "Interrupted. What is done is kept; the same command goes on."
    interrupt = KeyboardInterrupt(said) if builder.interrupted else None
    builder.report.stopped_by = builder.fatal or interrupt
    return builder.report


class _Builder:
    def __init__(
        self,
        entries: Sequence[Entry[TeacherTask]],
        teacher: Teacher,
        journal: Journal,
        settings: BuildSettings,
        on_outcome: Callable[[RowOutcome], None],
    ) -> None:
        self.entries, self.teacher, self.journal = entries, teacher, journal
        self.settings, self.on_outcome = settings, on_outcome
        self.report = BuildReport(spent=journal.spent)
        self.outcomes = _Outcomes()
        self.fatal: CotEngineError | None = None
        self.interrupted = False
        self.asked: set[str] = set()  # rows that the teacher is asked about in this run

    async def run(self) -> None:
        self._mind_the_budget()
        numbered = iter(enumerate(self.entries))

        async def worker() -> None:
            # On after a stop too: rows whose replies are in the journal are worked out from there.
            for at, entry in numbered:
                outcome = await self._outcome(entry)
                if outcome.id in self.asked:
                    self.asked.remove(outcome.id)
                    outcome = replace(outcome, asked=True)
                self.outcomes.add(at, outcome)
                self.report.count(outcome)
                self.on_outcome(outcome)

        with self._interruptible():
            async with self.teacher:
                await asyncio.gather(*(worker() for _ in range(self.settings.in_flight)))

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C stops new calls, since those in flight are being paid for; the second
        drops them."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def interrupt() -> None:
            if self.interrupted and task is not None:
                task.cancel()
            self.interrupted = True
            self.teacher.pace.stop.set()
            self.teacher.tell(
                f"Stopping: {self.teacher.open} calls are in flight and paid for. Ctrl-C again"
                " drops them."
            )

        try:
            loop.add_signal_handler(signal.SIGINT, interrupt)
        except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    # --- one row ---

    async def _outcome(self, entry: Entry[TeacherTask]) -> RowOutcome:
        try:
            try:
                task = await asyncio.to_thread(entry.make)
            except ImageError as error:
                return _aside(entry, [Fault("image", str(error))])
            except InputError as error:
                return _aside(entry, [Fault("input", str(error))])
            return await self._made(entry, task)
        except Stopped:
            return RowOutcome(entry.id, entry.place, "left", (Fault("stopped", ""),))
        except Unanswered as error:
            return RowOutcome(entry.id, entry.place, "left", (Fault("unanswered", str(error)),))
        except (TeacherError, StoreError) as error:
            self.fatal = self.fatal or error
            self.teacher.pace.stop.set()
            return RowOutcome(entry.id, entry.place, "left", (Fault("stopped", error.message),))

    async def _made(self, entry: Entry[TeacherTask], task: TeacherTask) -> RowOutcome:
        faults: list[Fault] = []
        text = ""
        for attempt in range(self.settings.tries):
            try:
                result, text = await self._attempt(task, attempt, text)
            except ImageError as error:
                result = Fault("image", str(error))
            except Rejected as error:
                result = Fault("rejected", str(error))
            if isinstance(result, RowDraft):
                await asyncio.to_thread(task.save)
                row = result.row
                who = row.extra.get("decided_by", "")
                return RowOutcome(task.id, entry.place, "kept", tuple(faults), row_json(row), who)
            faults.append(result)
            if result.reason in ("image", "rejected"):
                break  # the next try would be the same
        return _aside(entry, faults, task, text)

    async def _attempt(
        self, task: TeacherTask, attempt: int, text: str
    ) -> tuple[RowDraft | Fault, str]:
        """What one attempt came to, and the text that it wrote."""
        settings = self.settings
        asked = (settings.model, settings.heat(attempt), settings.max_tokens)
        reply = await self._ask(task, attempt, "write", *asked, messages=task.messages)
        result = unusable(reply) or task.read(reply.text)
        if isinstance(result, RowDraft) and result.doubt is not None:
            doubt = result.doubt
            asked = (settings.checker_model or settings.model, 0.0, _CHECK_TOKENS)
            checked = await self._ask(task, attempt, "check", *asked, messages=lambda: doubt)
            result = _verdict(checked) or result
        return result, reply.text or reply.refusal

    async def _ask(
        self,
        task: TeacherTask,
        attempt: int,
        purpose: str,
        model: str,
        temperature: float,
        tokens: int,
        *,
        messages: Callable[[], list],
    ) -> Reply:
        """The reply in the journal, or a new one, which is there before anybody reads it."""
        had = self.journal.get(task.digest, attempt, purpose, model)
        if had is not None:
            return had
        if self.teacher.pace.stop.is_set():
            raise Stopped
        self.asked.add(task.id)
        asked = await asyncio.to_thread(messages)
        seed = (self.settings.seed + int(task.digest[:7], 16) + attempt) % 2**31
        body = await self.teacher.ask(
            model, asked, seed=seed, temperature=temperature, tokens=tokens
        )
        reply = self.journal.add(task.digest, attempt, purpose, model, body)
        self._mind_the_budget()
        counted = reply.garbage or (reply.prompt is not None and reply.completion is not None)
        if not counted and (self.settings.budget_tokens or self.settings.budget_money):
            raise TeacherError(
                "The teacher does not say how many tokens it used, so no budget can be kept.",
                "Leave --budget out, or use another server.",
            )
        return reply

    def _mind_the_budget(self) -> None:
        if self.settings.used_up(self.journal.total):
            self.report.out_of_budget = True
            self.teacher.pace.stop.set()


def unusable(reply: Reply) -> Fault | None:
    """What is wrong with a reply before its text is read."""
    if reply.garbage:
        return Fault("garbage", reply.garbage)
    if reply.refusal or reply.finish == "content_filter":
        return Fault("refused", cut(reply.refusal, 300) or "stopped by the server's content filter")
    if not reply.text:
        said = f" (finish_reason {reply.finish!r})" if reply.finish else ""
        return Fault("length" if reply.finish == "length" else "empty", f"no text{said}")
    if reply.finish == "length":
        return Fault("length", f"cut off after {reply.completion or 'too many'} tokens")
    if len(reply.text) < 600 and "<" not in reply.text and _REFUSES.match(reply.text):
        return Fault("refused", cut(reply.text, 300))
    return None


def _verdict(reply: Reply) -> Fault | None:
    """None for a yes. A checker that refuses or is cut off has not said anything."""
    said = {found.lower() for found in _VERDICT.findall(reply.text)}
    if reply.garbage or len(said) != 1:
        return Fault("unclear", f"the check said {shown(reply.garbage or reply.text, 200)}")
    return None if said == {"yes"} else Fault("wrong", "the check said no")


def _aside(
    entry: Entry, faults: list[Fault], task: TeacherTask | None = None, text: str = ""
) -> RowOutcome:
    found: dict[str, Any] = {"id": entry.id, "place": entry.place, "reason": faults[-1].reason}
    found |= {"said": faults[-1].said, "attempts": [fault.reason for fault in faults]}
    if task is not None:
        found |= {"question": task.question, "answer": task.answer, "image": task.image}
        found["text"] = text
    line = json.dumps(found, ensure_ascii=False).encode("utf-8", "replace").decode()
    return RowOutcome(entry.id, entry.place, "aside", tuple(faults), line)


class _Outcomes:
    """The lines to be written, by the row's place: on the disk, in a file that the system removes,
    since a hundred thousand are too many to hold."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("pragma journal_mode = off")
        self._db.execute("create table lines (at integer primary key, status text, line text)")

    def __enter__(self) -> _Outcomes:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, at: int, outcome: RowOutcome) -> None:
        try:
            row = (at, outcome.status, outcome.line)
            self._db.execute("insert into lines values (?, ?, ?)", row)
        except sqlite3.Error as error:
            raise StoreError(
                f"The folder for temporary files cannot be written: {error}.",
                "Free some space there; the journal keeps what was paid for.",
            ) from None

    @property
    def empty(self) -> bool:
        found = self._db.execute("select 1 from lines where status in ('kept', 'aside')")
        return found.fetchone() is None

    def write(self, out: Path) -> None:
        """Both files, each whole or not at all. Raises InputError."""
        files = files_of(out)
        for status, name in (("kept", "rows"), ("aside", "aside")):
            with writing(files[name], "", InputError) as put:
                query = "select line from lines where status = ? order by at"
                for (line,) in self._db.execute(query, (status,)):
                    put(line + "\n")
