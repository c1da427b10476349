"""`cot-engine report`: what a store of searches says, in one of several formats."""

from __future__ import annotations

import io
import json as _json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cot_engine.cli.process import put_document
from cot_engine.errors import InputError, UnknownNameError
from cot_engine.escape import terminal
from cot_engine.files.outputs import check_outputs, side_files
from cot_engine.files.writing import write_whole

if TYPE_CHECKING:
    from cot_engine.ablation.records import Key, Run
    from cot_engine.ablation.store import Store
    from cot_engine.core.trace import Trace

FORMATS = ("md", "json", "html", "csv", "inspect")
_COLUMNS = "Look at the values that --format csv writes."
LOGS = "logs"  # where `inspect view` looks


def run(
    store: str,
    id: str | None,
    format: str | None,
    out: str | None,
    where: str | None,
    traces: int | None,
    runs: bool,
    search: str | None,
    *,
    json: bool,
) -> None:
    from cot_engine.ablation.store import Store

    format = _format(format, out, json)
    if format != "inspect":  # which writes files of names of its own into a folder
        check_outputs([("--out", out)], side_files(store))
    with Store(store) as opened:
        if runs:
            print(_json.dumps(_runs(opened), indent=2) if json else _told(_runs(opened)))
        elif search is not None:
            _put_trace(_trace(opened, opened.run(id), search), out)
        elif format == "inspect":
            _inspect(opened, opened.run(id), out, where)
        else:
            text = _report(opened, opened.run(id), format, where, traces)
            _put(text, out, document=format in ("html", "csv"))


def _format(format: str | None, out: str | None, json: bool) -> str:
    """The one asked for, else the one that the name of the file has, else Markdown."""
    if json and format not in (None, "json"):
        raise InputError(f"--json and --format {format} exclude each other.", "Give one of them.")
    if json:
        return "json"
    if format is None:
        suffix = Path(out or "").suffix.removeprefix(".")
        return suffix if suffix in FORMATS else "md"
    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    return format


def _report(store: Store, run: Run, format: str, where: str | None, traces: int | None) -> str:
    from cot_engine.report.analysis import analyse
    from cot_engine.report.text import markdown, plain, rows_csv

    if where is not None and next(store.rows(run, where), None) is None:
        raise InputError(f"No search of the run is one of which {where!r} is true.", _COLUMNS)
    if format == "csv":
        file = io.StringIO()
        rows_csv(store, run, where, file)
        return file.getvalue()
    if format != "html":
        findings = analyse(store, run, where=where)
        if format == "md":
            return markdown(findings)
        return _json.dumps(plain(findings), indent=2, allow_nan=False) + "\n"
    from cot_engine.report.page import page

    more = {} if traces is None else {"traces": traces}
    return page(analyse(store, run, where=where), store, **more)


def _inspect(store: Store, run: Run, out: str | None, where: str | None) -> None:
    from cot_engine.report.inspect_logs import write_logs

    if out == "-":
        raise InputError("Inspect logs are files.", "Name a folder: --out logs.")
    for path in write_logs(store, run, Path(out or LOGS), where=where):
        print(path)


def _runs(store: Store) -> list[dict[str, Any]]:
    found = []
    for run in store.runs():
        done = store.done(run)
        total = len(run.cells) * len(run.items) * len(run.seeds)
        made = sum(key in done for key in run.keys())  # noqa: SIM118
        found.append({"run": run.id, "started": run.started, "searches": made, "of": total})
        found[-1]["command"] = run.command
    return found


def _told(runs: list[dict[str, Any]]) -> str:
    lines = [
        f"{run['run']}  {run['started']}  {run['searches']:,} of {run['of']:,} searches"
        f"  {run['command']}"
        for run in runs
    ]
    return terminal("\n".join(lines)) if lines else "No run yet."


# --- one search ----------------------------------------------------------------------------------


def _trace(store: Store, run: Run, search: str) -> Trace:
    """The trace of a search that is named "PROBLEM/LABEL/SEED", where ids and labels may have
    slashes of their own. Raises UnknownNameError, StoreError."""
    key = next((key for key in _named(run, search)), None)
    if key is None:
        known = [
            f"{run.items[0].problem}/{label}/{run.seeds[0]}" for label, _ in run.cells.values()
        ]
        raise UnknownNameError("search", search, known)
    return store.trace(run, key)


def _named(run: Run, search: str) -> list[Key]:
    from cot_engine.ablation.records import Key

    items = {item.problem: item.digest for item in run.items}
    return [
        Key(cell, seed, items[problem])
        for cell, (label, _) in run.cells.items()
        for seed in run.seeds
        if search.endswith(f"/{label}/{seed}")
        and (problem := search.removesuffix(f"/{label}/{seed}")) in items
    ]


# --- where it goes -------------------------------------------------------------------------------


def _put(text: str, out: str | None, *, document: bool) -> None:
    if out is None or out == "-":
        if document:  # what a model wrote is in CSV as it wrote it: not for a terminal to obey
            put_document(text)
        else:
            sys.stdout.write(terminal(text) if sys.stdout.isatty() else text)
        return
    write_whole(out, text, "", InputError, "Choose another place with --out.")


def _put_trace(trace: Trace, out: str | None) -> None:
    from cot_engine.core.events import event_to_json

    _put("".join(event_to_json(event) + "\n" for event in trace), out, document=True)
