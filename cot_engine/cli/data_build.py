"""`cot-engine data build`: a teacher writes rows for training. What is done is in
`training/build.py`; here it is declared, watched and told."""

from __future__ import annotations

import json as _json
import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cot_engine.cli.options import Action, Json, Quiet, Verbose, option
from cot_engine.errors import ConfigError, CotEngineError, shown
from cot_engine.escape import terminal
from cot_engine.files.outputs import check_outputs
from cot_engine.options.layers import TEACHER_KEY as KEY
from cot_engine.training.clock import Clock, duration, share

if TYPE_CHECKING:
    from cot_engine.images.download import AllowUrl
    from cot_engine.training.build import BuildReport, BuildSettings, RowOutcome

_EVERY = 10.0  # seconds between lines
_AMOUNT = re.compile(r"\s*([0-9][0-9_,]*\.?[0-9]*(?:e[0-9]+)?|\.[0-9]+)\s*(tokens?)?\s*", re.I)


class Unfinished(CotEngineError):
    """Some rows are left for a later run; the others are written."""

    exit_code = 3


def build(
    file: Annotated[str, typer.Argument(metavar="FILE", hidden=True)],
    base_url: Annotated[
        str | None,
        option("--base-url", metavar="URL", help='The teacher: "http://127.0.0.1:8000/v1".'),
    ] = None,
    model: Annotated[
        str | None, option("--model", "-m", metavar="NAME", help="As its server calls it.")
    ] = None,
    out: Annotated[
        str | None, option("--out", metavar="FILE.jsonl", help="The rows. [FILE's name.TEACHER]")
    ] = None,
    key_env: Annotated[
        str, option("--key-env", metavar="NAME", help=f"The variable with the key. [{KEY}]")
    ] = KEY,
    images: Annotated[
        str | None,
        option("--images", metavar="DIR", help="What pictures are relative to. [FILE's folder]"),
    ] = None,
    teacher: Annotated[
        str,
        option("--teacher", metavar="staged|llava", help="llava: told in words. [staged]"),
    ] = "staged",
    kinds: Annotated[
        str | None,
        option("--kinds", metavar="LIST", help="Of llava. [conversation,detail,reasoning]"),
    ] = None,
    check: Annotated[
        str | None,
        option(
            "--check",
            metavar="rules|teacher|both",
            help="both: the teacher where rules leave it open. [both]",
        ),
    ] = None,
    checker_model: Annotated[
        str | None, option("--checker-model", metavar="NAME", help="Who checks. [--model]")
    ] = None,
    rows: Annotated[
        int | None, option("--rows", metavar="N", min=1, help="The first so many only. [all]")
    ] = None,
    tries: Annotated[int, option("--tries", metavar="N", help="Of each row. [3]")] = 3,
    temperature: Annotated[
        float, option("--temperature", "-t", metavar="X", help="More with each try. [0.7]")
    ] = 0.7,
    seed: Annotated[int, option("--seed", metavar="N", help="Of all draws. [0]")] = 0,
    max_tokens: Annotated[
        int, option("--max-tokens", metavar="N", help="Of a reply. [2048]")
    ] = 2048,
    in_flight: Annotated[int, option("--in-flight", metavar="N", help="Calls at a time. [8]")] = 8,
    rpm: Annotated[
        float | None, option("--rpm", metavar="X", help="Calls started per minute. [any]")
    ] = None,
    timeout: Annotated[
        float, option("--timeout", metavar="SECONDS", help="Of one call. [120]")
    ] = 120.0,
    retries: Annotated[
        int, option("--retries", metavar="N", help="Of a call that was not answered. [6]")
    ] = 6,
    budget: Annotated[
        str | None,
        option(
            "--budget",
            metavar="AMOUNT",
            help='"2e6 tokens", or money in the prices\' currency: 5. Of all runs. [none]',
        ),
    ] = None,
    price_in: Annotated[
        float | None, option("--price-in", metavar="X", min=0, help="Of a million prompt tokens.")
    ] = None,
    price_out: Annotated[
        float | None, option("--price-out", metavar="X", min=0, help="Of a million others.")
    ] = None,
    allow_url: Annotated[bool, option("--allow-url", help="Read pictures from http(s).")] = False,
    allow_inner_url: Annotated[
        bool, option("--allow-inner-url", help="Also from this machine and inner networks.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Action:
    """Let a teacher write rows for training, in stages, and check them.

    FILE holds image questions with standard answers: JSONL (LLaVA-CoT-100k's rows, or those of
    ablate), or TSV. The same command goes on where it was stopped; no reply is paid for twice.
    """
    return partial(run, Path(file), dict(locals()))


def run(file: Path, given: dict[str, Any]) -> None:
    """Raises what stopped it, or Unfinished if rows are left, after all is written and told."""
    from cot_engine.training.build import build as build_rows
    from cot_engine.training.build import files_of
    from cot_engine.training.journal import Journal
    from cot_engine.training.teacher import Pace, Teacher, is_exposed

    for name in ("base_url", "model"):
        if not (given[name] or "").strip():
            option_name = "--" + name.replace("_", "-")
            raise ConfigError(f"{option_name} is missing.", "See cot-engine data build --help.")
    for name, high in (("rpm", 1e6), ("timeout", 86_400), ("retries", 100)):
        if given[name] is not None and not 0 <= given[name] <= high:
            raise ConfigError(f"{name} is {given[name]}.", f"It must be 0 to {high:g}.")
    if given["rpm"] == 0 or given["timeout"] == 0:
        raise ConfigError("rpm and timeout cannot be 0.", "Leave rpm out for any number.")
    settings = _settings(given)
    out = Path(given["out"] or f"{file.stem}.{given['teacher']}.jsonl")
    files = files_of(out)
    check_outputs([("--out", path) for path in files.values()], [("the data", file)])
    entries = _entries(file, out, given)[: given["rows"]]
    watch = _Watch(len(entries), given["quiet"])
    key = os.environ.get(given["key_env"], "").strip()
    if key and is_exposed(given["base_url"]):
        watch.say("Note: the key goes to another machine unencrypted (http, not https).")
    pace = Pace(given["rpm"])
    how = {name: given[name] for name in ("timeout", "retries", "in_flight")}
    teacher = Teacher(given["base_url"], key, pace, **how, tell=watch.say)
    with Journal(files["journal"], settings.recipe(given["teacher"])) as journal:
        if had := journal.total.calls:
            watch.say(f"{had:,} replies are in the journal already; they are not paid for again.")
        report = build_rows(entries, teacher, journal, settings, out, on_outcome=watch.outcome)
    watch.say(watch.status())
    if report.spent or report.kept or report.aside or report.stopped_by is None:
        _tell(report, settings, files, given["json"])
    if report.stopped_by is not None:
        raise report.stopped_by
    if left := sum(report.left.values()):
        why = "the budget is used up" if report.out_of_budget else "the teacher did not answer"
        raise Unfinished(
            f"{left:,} of {len(entries):,} rows are left: {why}.",
            "The same command goes on with them"
            + (", with a larger --budget." if report.out_of_budget else "."),
        )


def _entries(file: Path, out: Path, given: dict[str, Any]) -> list:
    from cot_engine.training.llava import KINDS, read_described
    from cot_engine.training.questions import read_questions
    from cot_engine.training.staged import CHECKS, staged_entries

    images = Path(given["images"]) if given["images"] else None
    if images is not None and not os.path.isdir(images):
        raise ConfigError(f"--images {str(images)!r} is not a folder.", "Check its name.")
    if given["teacher"] == "llava":
        for name in ("check", "checker_model"):
            if given[name] is not None:
                option_name = "--" + name.replace("_", "-")
                raise ConfigError(f"{option_name} is not for llava.", "It has no answers to check.")
        kinds: Any = (given["kinds"] or ",".join(KINDS)).split(",")  # which are checked there
        return read_described(file, out, tuple(kind.strip() for kind in kinds), images)
    if given["teacher"] != "staged":
        raise ConfigError(f"--teacher is {given['teacher']!r}.", "It must be staged or llava.")
    if given["kinds"] is not None:
        raise ConfigError("--kinds is for --teacher llava.", "Leave it out.")
    allowed: AllowUrl = "inner" if given["allow_inner_url"] else given["allow_url"]
    check = given["check"] or "both"
    if check not in CHECKS:
        raise ConfigError(f"--check is {check!r}.", f"It must be one of {', '.join(CHECKS)}.")
    return staged_entries(read_questions(file, images, allowed), out, check)


def _settings(given: dict[str, Any]) -> BuildSettings:
    from cot_engine.training.build import BuildSettings

    names = "model tries temperature seed max_tokens in_flight price_in price_out".split()
    values = {name: given[name] for name in names}
    values["checker_model"] = given["checker_model"] or ""
    if (budget := given["budget"]) is not None:
        match = _AMOUNT.fullmatch(budget)
        amount = float(re.sub("[_,]", "", match[1])) if match else 0.0
        if not 0 < amount < 1e15:
            raise ConfigError(f"--budget is {shown(budget)}.", 'Give one like "2e6 tokens" or "5".')
        if match and match[2]:
            values["budget_tokens"] = int(amount)
        else:
            values["budget_money"] = amount
    return BuildSettings(**values)


class _Watch:
    """What is said on stderr: a line of progress now and then, and what the teacher is up to."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.total, self.quiet = total, quiet
        self.kept = self.aside = self.left = 0
        self.begun = self.said = time.monotonic()
        self.asked = Clock(0)  # of rows that a teacher was asked about: the journal answers at once
        self.terminal = sys.stderr is not None and sys.stderr.isatty()

    def outcome(self, outcome: RowOutcome) -> None:
        setattr(self, outcome.status, getattr(self, outcome.status) + 1)
        now = time.monotonic()
        if outcome.asked:
            self.asked.first -= 1  # that many are done since the clock began
        elif not self.asked.first:
            self.asked.began = now
        if now - self.said > (0.2 if self.terminal else _EVERY):
            self.said = now
            self._print(self.status(), stays=not self.terminal)

    def status(self) -> str:
        done = self.kept + self.aside
        self.asked.total = self.total - done - self.left
        parts = [f"{done:,} of {self.total:,} rows ({share(done, self.total)})"]
        parts += [f"{self.kept:,} kept, {self.aside:,} aside"]
        parts += [f"{self.left:,} left for a later run"] if self.left else []
        rest = self.asked.left(0)
        if rest is not None and self.asked.total:
            parts.append(f"about {duration(rest)} to go")
        return ", ".join(parts)

    def say(self, text: str) -> None:
        self._print(text, stays=True)

    def _print(self, text: str, stays: bool) -> None:
        if self.quiet:
            return
        stamp = f"[{time.monotonic() - self.begun:7.1f} s]"
        said = f"{stamp} {' '.join(terminal(text).split())}"
        with suppress(OSError, ValueError):  # nobody is listening
            blank = "\r\x1b[K" if self.terminal else ""
            print(blank + said, end="\n" if stays else "", file=sys.stderr, flush=True)


def _tell(report: BuildReport, settings: BuildSettings, files: dict[str, Path], json: bool) -> None:
    """The table, or all of it as JSON, on stdout."""
    spent = {purpose: asdict(found) for purpose, found in report.spent.items()}
    for purpose, found in report.spent.items():
        if (money := settings.money(found)) is not None:
            spent[purpose]["money"] = money
    if json:
        whole = {
            "kept": report.kept,
            "decided_by": dict(report.decided_by),
            "aside": dict(report.aside),
            "left": dict(report.left),
            "attempts": dict(report.attempts),
            "spent": spent,
            "out_of_budget": report.out_of_budget,
            "files": {name: str(path) for name, path in files.items()},
        }
        print(_json.dumps(whole, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False)
    aside, left = sum(report.aside.values()), sum(report.left.values())
    console.print(f"{report.kept:,} rows kept, {aside:,} set aside, {left:,} left.")
    if report.decided_by:
        rule, teacher = report.decided_by["rule"], report.decided_by["teacher"]
        console.print(
            f"Kept by rule: {rule:,}; on the word of whoever checked, in other words than the"
            f" standard answer's: {teacher:,}."
        )
    if aside or left or report.attempts:
        console.print()
        console.print(_outcomes(report))
    if spent:
        console.print()
        console.print(_costs(report, settings))
    if uncounted := sum(found.uncounted for found in report.spent.values()):
        console.print(f"{uncounted:,} replies did not say how many tokens they took.", markup=False)
    print(f"\nRows: {terminal(str(files['rows']))}")
    if report.aside:
        print(f"Set aside, with reasons and last texts: {terminal(str(files['aside']))}")


def _outcomes(report: BuildReport):
    from rich.table import Table

    from cot_engine.training.tasks import REASONS

    table = Table(box=None, pad_edge=False)
    table.add_column("reason")
    for name in ("aside", "left", "attempts"):
        table.add_column(name, justify="right")
    table.add_column("what it means")
    for reason, why in REASONS.items():
        numbers = (report.aside[reason], report.left[reason], report.attempts[reason])
        if any(numbers):
            table.add_row(reason, *(f"{number:,}" if number else "" for number in numbers), why)
    return table


def _costs(report: BuildReport, settings: BuildSettings):
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("tokens of all runs")
    priced = settings.money(next(iter(report.spent.values()))) is not None
    for name in ("calls", "prompt", "(cached)", "completion", *(["money"] if priced else [])):
        table.add_column(name, justify="right")
    for purpose, found in report.spent.items():
        numbers = (found.calls, found.prompt, found.cached, found.completion)
        money = [f"{settings.money(found):.4f}"] if priced else []
        table.add_row(purpose, *(f"{number:,}" for number in numbers), *money)
    return table
