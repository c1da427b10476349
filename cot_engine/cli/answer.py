"""`cot-engine answer`: read the questions, see what is done, load the model, answer the rest."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cot_engine.errors import CotEngineError, QuestionsFailed
from cot_engine.files.locking import held
from cot_engine.files.outputs import check_outputs
from cot_engine.files.writing import check_writable
from cot_engine.options.layers import files_of, load_config

if TYPE_CHECKING:
    from cot_engine.answering.data import Questions
    from cot_engine.answering.predictions import Prediction
    from cot_engine.options.config import RunConfig
    from cot_engine.options.resolve import Resolved

_SHOWN = 3  # of what failed


def run(
    source: str,
    question: str | None,
    split: str | None,
    limit: int | None,
    shuffle: int | None,
    out: str | None,
    traces: str | None,
    config_file: str | None,
    flags: dict[str, Any],
    *,
    fresh: bool,
    dry_run: bool,
    json: bool,
    quiet: bool,
) -> None:
    from cot_engine.answering.data import read_data
    from cot_engine.answering.predictions import kind_of_file, run_file
    from cot_engine.answering.summary import summarise, told
    from cot_engine.engine.facade import model_path, profile_path
    from cot_engine.judging.profile import Profile
    from cot_engine.options.resolve import resolve
    from cot_engine.questions.data import check_n

    check_n(limit, "limit")
    config = load_config(config_file, os.environ, flags)
    call = resolve(Profile.of(profile_path(config.model)), config)
    if out is not None:
        kind_of_file(out)
    questions = read_data(source, question, split, config.allow_url)
    path = Path(out or f"{questions.stem}.predictions.jsonl")
    model = ("the model", model_path(config.model))
    read = [("the data", source), model, *files_of(config_file, os.environ, flags)]
    record, lock = ("the record of the run", run_file(path)), ("the lock", f"{path}.lock")
    check_outputs([("--out", path), record, lock, ("--traces", traces)], read)
    if not quiet:
        for note in questions.notes:
            print(f"Note: {note}", file=sys.stderr)
    if dry_run:
        _dry_run(config, call, questions, limit, json)
        return
    hint = "Wait for it to end, stop it, or name another --out."
    with held(path, "the predictions", hint):
        done, kinds = _answer(call, questions, path, traces, limit, shuffle, fresh, source, quiet)
    found = summarise((prediction for _, prediction in sorted(done.items())), kinds)
    if json:
        import json as _json

        about = {"data": source, "out": str(path), "record": str(run_file(path))}
        print(_json.dumps(about | found.plain(), indent=2))
    else:
        from cot_engine.escape import visible

        for line in told(found, str(path)):
            print(visible(line))
    sys.stdout.flush()
    if found.failed:
        raise _failure(found.failed, len(done))


def _dry_run(
    config: RunConfig, call: Resolved, questions: Questions, limit: int | None, json: bool
) -> None:
    from cot_engine.backends.local.needs import PICTURE
    from cot_engine.cli.needs import dry_run

    asked = len(questions.chosen(limit, None))
    dry_run(config, {"questions": asked, **call.plain(1)}, [PICTURE], json)


def _answer(
    call: Resolved,
    questions: Questions,
    path: Path,
    traces: str | None,
    limit: int | None,
    shuffle: int | None,
    fresh: bool,
    source: str,
    quiet: bool,
) -> tuple[dict[int, Prediction], set[str]]:
    """What is in the file when it is done, by place in the data, and how it was graded."""
    from cot_engine.answering import run as answering
    from cot_engine.answering.predictions import put_aside
    from cot_engine.cli.progress import LongWork
    from cot_engine.engine.facade import Engine, profile_path
    from cot_engine.errors import StoreError, TraceError
    from cot_engine.options.resolve import resolve

    made = answering.made_with(call)
    todo = answering.plan(path, questions, limit, shuffle, fresh, made)
    done = {place: line.prediction for place, line in todo.kept}
    if traces is not None:
        answering.check_traces(traces, todo)
        hint = "Choose another place with --traces."
        check_writable(Path(traces) / "trace.jsonl", "The trace", TraceError, hint)
    check_writable(path, "The predictions", StoreError, "Choose another place with --out.")
    total, label = len(todo.kept) + len(todo.asked), call.strategy.name
    with LongWork({label: total}, noun="questions", quiet=quiet) as progress:
        if todo.lost:
            said = f"The last line of {path} was cut off ({todo.lost:,} bytes)"
            progress.say(f"Note: {said}: its question is asked again.")
        progress.had(label, [_score(prediction) for prediction in done.values()])
        if done:
            progress.say(f"{len(done):,} of {total:,} questions were answered already.")
        if not todo.asked:
            answering.arrange(path, todo)
            return done, todo.kinds
        about = {"command": "cot-engine " + shlex.join(sys.argv[1:]), "data": source}

        def on_done(place: int, prediction: Prediction) -> None:
            done[place] = prediction
            if prediction.error:
                progress.say(f"Failed: {prediction.error}")
            failed = bool(prediction.error)
            progress.row(label, _score(prediction), prediction.flops, failed)

        def put_old_aside() -> None:
            if fresh and (old := put_aside(path)) is not None:
                progress.say(f"Note: the predictions from before are now {old}.")

        if lines := answering.hopeless(todo):
            put_old_aside()
            with answering.open_predictions(path, todo, made, about) as predictions:
                for line in lines:
                    predictions.add(*line)
                    on_done(*line)
                predictions.arrange()
            return done, todo.kinds
        progress.say(f"Loading {call.config.model}")
        folder = profile_path(call.config.model)
        with Engine.from_pretrained(**call.config.of_engine, on_notice=progress.say) as engine:
            if profile_path(call.config.model) != folder:  # it came with a download just now
                call = resolve(engine.profile, call.config)
            made = answering.made_with(call) | answering.made_by(engine, call)
            put_old_aside()
            folder_of_traces = None if traces is None else Path(traces)
            with answering.open_predictions(path, todo, made, about) as predictions:
                progress.starting()
                try:
                    answering.answer_all(engine, call, todo, predictions, folder_of_traces, on_done)
                except KeyboardInterrupt:
                    raise KeyboardInterrupt("Interrupted.", _so_far(path, done, total)) from None
                except CotEngineError as error:
                    error.hint = f"{error.hint} {_so_far(path, done, total)}".strip()
                    raise
                predictions.arrange()
    return done, todo.kinds


def _score(prediction: Prediction) -> float | None:
    return None if prediction.right is None else float(prediction.right)


def _so_far(path: Path, done: dict[int, Prediction], total: int) -> str:
    answered = sum(not prediction.error for prediction in done.values())
    said = f"{answered:,} of {total:,} questions are answered in {str(path)!r}"
    return f"{said}; the same command goes on."


def _failure(failed: tuple[str, ...], total: int) -> QuestionsFailed:
    more = f" There are {len(failed) - _SHOWN:,} more." if len(failed) > _SHOWN else ""
    return QuestionsFailed(
        f"{len(failed):,} of {total:,} questions failed: {' '.join(failed[:_SHOWN])}{more}",
        "The same command tries these again; the others are answered.",
    )
