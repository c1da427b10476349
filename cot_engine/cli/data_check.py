"""`cot-engine data check`: is a data set fit to be trained on? What is looked for is in
`training/check.py`; here it is told, and good and bad rows are written apart."""

from __future__ import annotations

import json as _json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cot_engine.cli.options import Action, Json, Quiet, Verbose, option
from cot_engine.errors import CotEngineError, InputError
from cot_engine.files.outputs import check_outputs

if TYPE_CHECKING:
    from cot_engine.files.writing import Put
    from cot_engine.training.check import DataReport, Finding, OnRow
    from cot_engine.training.rows import BadRow, TrainingRow

_EVERY = 10.0  # seconds between lines
_EXAMPLES = 3  # rows named for each check


class FaultyData(CotEngineError):
    """The data set was checked, and some of its rows have errors."""

    exit_code = 3


def check(
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl", hidden=True)],
    images: Annotated[
        str | None,
        option("--images", metavar="DIR", help="What pictures are relative to. [FILE's folder]"),
    ] = None,
    plan: Annotated[
        str | None, option("--plan", metavar="FILE", help="A TOML file with other stages.")
    ] = None,
    model: Annotated[
        str | None,
        option("--model", "-m", metavar="NAME", help="Whose tokenizer counts. [tokens: none]"),
    ] = None,
    max_tokens: Annotated[
        int | None,
        option(
            "--max-tokens",
            metavar="N",
            help="The most that question and response may have. [any]",
        ),
    ] = None,
    write_good: Annotated[
        str | None,
        option("--write-good", metavar="OUT.jsonl", help="Write the rows without errors there."),
    ] = None,
    write_bad: Annotated[
        str | None,
        option("--write-bad", metavar="OUT.jsonl", help="Write the others, with reasons, there."),
    ] = None,
    overwrite: Annotated[
        bool, option("--overwrite", help="These files may be there already.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Action:
    """Check rows for training, and print what is wrong with them.

    Reads LLaVA-CoT-100k's format, as JSONL or a JSON array. Looks for faults of the stages,
    pictures that cannot be read, answers told too early, rows that come twice, odd lengths and
    broken text. Exit code 0: no row has an error; 3: some have.
    """
    return partial(
        run,
        file,
        images,
        plan,
        model,
        max_tokens,
        write_good,
        write_bad,
        overwrite=overwrite,
        json=json,
        quiet=quiet,
    )


def run(
    file: str,
    images: str | None,
    plan: str | None,
    model: str | None,
    max_tokens: int | None,
    write_good: str | None,
    write_bad: str | None,
    *,
    overwrite: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Raises FaultyData, after all is told and written, if a row has an error."""
    from cot_engine.core.stages import DEFAULT_PLAN, Plan
    from cot_engine.files.writing import writing
    from cot_engine.training.check import check as check_data
    from cot_engine.training.check import load_tokenizer

    if max_tokens is not None and model is None:
        raise InputError("--max-tokens needs a tokenizer.", "Name the model that has it: --model.")
    read = [("the data", file), ("--plan", plan), ("the model", model)]
    check_outputs([("--write-good", write_good), ("--write-bad", write_bad)], read)
    _check_there(write_good, write_bad, overwrite)
    stages = DEFAULT_PLAN if plan is None else Plan.from_toml(plan)
    tokenizer = None if model is None else load_tokenizer(model)
    with ExitStack() as stack:
        put_good = write_good and stack.enter_context(writing(write_good, "", InputError))
        put_bad = write_bad and stack.enter_context(writing(write_bad, "", InputError))
        report = check_data(
            file,
            images=images,
            plan=stages,
            tokenizer=tokenizer,
            max_tokens=max_tokens,
            on_row=_on_row(put_good or None, put_bad or None, None if quiet else time.monotonic()),
        )
    if json:
        _print_json(file, report)
    else:
        _print_table(file, report)
    sys.stdout.flush()
    if report.bad:
        hint = "--write-good OUT.jsonl keeps the others."
        if write_good is not None:
            hint = f"The others are in {write_good!r}."
        raise FaultyData(f"{report.bad:,} of {report.rows:,} rows have errors.", hint)


def _check_there(good: str | None, bad: str | None, overwrite: bool) -> None:
    for each in (good, bad):
        if each is not None and os.path.exists(each) and not overwrite:
            raise InputError(
                f"{str(each)!r} is there already.", "Name another file, or add --overwrite."
            )


def _on_row(good: Put | None, bad: Put | None, begun: float | None) -> OnRow:
    """Writes a row where it belongs, and says on stderr how far it is."""
    from cot_engine.training.rows import TrainingRow, row_json

    number, said = 0, begun

    def on_row(line: int, row: TrainingRow | BadRow, found: list[Finding]) -> None:
        nonlocal number, said
        number += 1
        faulty = any(each.severity == "error" for each in found)
        if faulty and bad is not None:
            bad(_bad_json(line, row, found) + "\n")
        elif isinstance(row, TrainingRow) and not faulty and good is not None:
            good(row_json(row) + "\n")
        if said is not None and begun is not None and (now := time.monotonic()) - said > _EVERY:
            said = now
            with suppress(OSError, ValueError):  # nobody is listening
                rate = f"{number:,} rows, {number / (now - begun):,.0f} per second"
                print(f"[{now - begun:7.1f} s] {rate}", file=sys.stderr, flush=True)

    return on_row


def _bad_json(line: int, row: TrainingRow | BadRow, found: list[Finding]) -> str:
    """One line of --write-bad: the row, or the beginning of a line that is none."""
    from cot_engine.training.rows import TrainingRow, row_json

    reasons = [_plain(each, "check", "severity", "said") for each in found]
    if isinstance(row, TrainingRow):
        # The row's own JSON, so that what was read is written.
        return f'{{"line": {line}, "reasons": {_json.dumps(reasons)}, "row": {row_json(row)}}}'
    return _json.dumps({"line": line, "reasons": reasons, "text": row.text})


def _plain(found: Finding, *keys: str) -> dict[str, Any]:
    return {key: getattr(found, key) for key in keys}


# --- what is printed -----------------------------------------------------------------------------


def _sorted_checks(report: DataReport) -> Iterator[tuple[str, str, str, int]]:
    """(check, severity, what it means, rows) of all that found something, the worst first."""
    from cot_engine.training.check import CHECKS, SEVERITIES

    for wanted in SEVERITIES:
        for name, (severity, about) in CHECKS.items():
            if severity == wanted and report.counts[name]:
                yield name, severity, about, report.counts[name]


def _lengths(numbers: Any) -> dict[str, float] | None:
    from statistics import median

    if not numbers:
        return None
    return {"median": median(numbers), "longest": max(numbers), "shortest": min(numbers)}


def _print_json(file: str, report: DataReport) -> None:
    found = {
        "file": file,
        "rows": report.rows,
        "good": report.good,
        "bad": report.bad,
        "checks": [
            {"check": name, "severity": severity, "about": about, "rows": rows}
            for name, severity, about, rows in _sorted_checks(report)
        ],
        "characters": _lengths(report.lengths.characters),
        "tokens": _lengths(report.lengths.tokens),
        "max_tokens": report.lengths.limit,
        "findings": [
            _plain(each, "line", "id", "check", "severity", "said") for each in report.findings
        ],
        "findings_left_out": report.left_out,
    }
    print(_json.dumps(found, indent=2))


def _print_table(file: str, report: DataReport) -> None:
    from cot_engine.escape import terminal

    rows, about = [], []
    for name, severity, meaning, number in _sorted_checks(report):
        shown = [each for each in report.findings if each.check == name][:_EXAMPLES]
        cells = [
            f"{each.id} (line {each.line})" if each.id else f"line {each.line}" for each in shown
        ]
        cells += ["..."] if number > len(shown) else []
        rows.append((severity, f"{number:,}", name, terminal(", ".join(cells))))
        first = f". Line {shown[0].line}: {shown[0].said}" if shown else "."
        about.append(terminal(f"{name}: {meaning}{first}"))
    if rows:
        _table(("severity", "rows", "check", "for example"), rows)
        print("", *about, "", sep="\n")
    else:
        print("Nothing was found.")
    lengths = report.lengths
    for what, numbers in (
        ("Characters of a response", lengths.characters),
        ("Tokens of question and response", lengths.tokens),
    ):
        if found := _lengths(numbers):
            allowed = f", {lengths.limit:,} allowed" if lengths.limit and "Tok" in what else ""
            median, longest = f"{found['median']:,.0f}", f"{found['longest']:,}"
            print(f"{what}: median {median}, longest {longest}{allowed}.")
    print(
        f"{terminal(file)}: {report.rows:,} rows, {report.good:,} good, {report.bad:,} with errors."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Drawn by rich on a terminal, plain columns elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        styles = {"error": "red", "warning": "yellow"}
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in head:
            table.add_column(
                name,
                justify="right" if name == "rows" else "left",
                no_wrap=name == "check",
                overflow="fold",
            )
        for severity, *cells in rows:
            table.add_row(Text(severity, styles.get(severity, "")), *map(Text, cells))
        Console(highlight=False).print(table)
        return
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    for severity, number, name, example in [head, *rows]:
        columns = (f"{severity:<{widths[0]}}", f"{number:>{widths[1]}}", f"{name:<{widths[2]}}")
        print("  ".join((*columns, example)).rstrip())
