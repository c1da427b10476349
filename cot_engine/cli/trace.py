"""`cot-engine trace`: draw a recorded search, or judge it again."""

from __future__ import annotations

import asyncio
import json as _json
import os
import shlex
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from cot_engine.cli.process import put_document
from cot_engine.core.trace import Trace
from cot_engine.errors import ConfigError, InputError, TraceError, shown
from cot_engine.files.outputs import check_outputs
from cot_engine.files.writing import write_whole

if TYPE_CHECKING:
    from cot_engine.search.rejudge import Rejudged


def run(
    file: str,
    html: str | None,
    options: dict[str, Any],
    *,
    json: bool,
    quiet: bool,
) -> None:
    if html is not None and json:
        raise InputError("--html and --json exclude each other.", "Give one of them.")
    judging = {key: value for key, value in options.items() if key in ("judge", "tournament")}
    if options and not judging:
        raise InputError(
            "--model and --device are of a judge, and nothing is judged again.",
            "Give a --judge, or leave them out.",
        )
    check_outputs([("--html", html)], [("the trace", file), ("the model", options.get("model"))])
    recorded = Trace.parse(sys.stdin.buffer.read(), file) if file == "-" else Trace.read(file)
    drawn, again = recorded, None
    if judging:
        from cot_engine.search.rejudge import replayed

        again = _rejudge(recorded, options, quiet)
        drawn = replayed(recorded, again)
    try:
        _put(drawn, again, html, json=json)
    finally:  # a full disk costs the drawing, not what the judge said
        if again is not None and not json and not quiet:
            _report(recorded, again)


def _put(drawn: Trace, again: Rejudged | None, html: str | None, *, json: bool) -> None:
    if html is not None:
        _write_html(drawn, html)
    elif json:
        from cot_engine.show.summary import summary

        result = summary(drawn)
        if again is not None:
            result["rejudged"] = _compared(again)
        print(_json.dumps(result, indent=2))
    else:
        _print_tree(drawn)


def _write_html(trace: Trace, path: str) -> None:
    from cot_engine.show.html import render_html

    page = render_html(trace)
    if path == "-":
        put_document(page)
        return
    write_whole(path, page, "The page", TraceError, "Choose another place.")


def _print_tree(trace: Trace) -> None:
    from rich.console import Console

    from cot_engine.show.tree import render_tree

    # A pipe has no width; the tree is drawn for 80 columns then, or as COLUMNS says.
    Console(file=sys.stdout, highlight=False).print(render_tree(trace))


# --- judging again -------------------------------------------------------------------------------


def _rejudge(trace: Trace, options: dict[str, Any], quiet: bool) -> Rejudged:
    from cot_engine.cli.display import make_display
    from cot_engine.engine.facade import BUNDLED, Engine, profile_path
    from cot_engine.judging.profile import Profile
    from cot_engine.options.layers import load_config
    from cot_engine.options.resolve import check_tournament
    from cot_engine.search.loop import Named
    from cot_engine.search.rejudge import rejudge

    started = trace.started
    judge = options.pop("judge", started.judge)
    tournament = options.pop("tournament", started.tournament)
    check_tournament(tournament)
    config = load_config(environment=os.environ, flags=options)
    model, named, refusal = options.get("model"), started.backend.model, None
    if model is None and named not in (config.model, BUNDLED):
        refusal = InputError(
            f"The judge {shown(judge)} asks a model, and the trace names {shown(named)}, which"
            f" is not yours ({shown(config.model)}): whoever wrote it could name any.",
            f"Agree to it with --model {shlex.quote(named)[:200]}, or name another.",
        )
    elif model is None:
        config = replace(config, model=named)
    profile = Profile() if refusal else Profile.of(profile_path(config.model))
    try:
        part = Named(profile.name_of(judge), profile.make_judge(judge))
        if model is None:
            return asyncio.run(rejudge(trace, part, tournament=tournament))
    except ConfigError as error:  # this judge needs what is in the model's profile
        raise refusal or error from None
    except TraceError:  # it asks a model, or the trace will not do: the engine says so again
        if refusal is not None:
            raise refusal from None
    with make_display(quiet) as display:
        display.loading(config.model)
        with Engine.from_pretrained(**config.of_engine, on_notice=display.notice) as engine:
            return engine.rejudge(trace, judge=part, tournament=tournament)


def _compared(again: Rejudged) -> dict:
    return {
        "judge": again.judge,
        "tournament": again.tournament,
        "agreement": again.agreement,
        "answer": again.answer,
        "usage": asdict(again.usage),
        "selections": [
            {
                "stage": selection.before.stage,
                "before": list(selection.before.kept),
                "after": list(selection.after.kept),
            }
            for selection in again.selections
        ],
    }


def _report(recorded: Trace, again: Rejudged) -> None:
    """How the second judgement compares, in two lines on stderr."""
    from cot_engine.escape import visible

    same = sum(selection.same for selection in again.selections)
    print(
        f"{again.judge}, {again.tournament}: {same} of {len(again.selections)} selections kept"
        " the same candidates.",
        file=sys.stderr,
    )
    before = recorded.finished.answer if recorded.finished else ""
    changed = "the same" if again.answer == before else f"{again.answer!r} instead of {before!r}"
    print(visible(f"The answer is {changed}."), file=sys.stderr)
