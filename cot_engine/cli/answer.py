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
    from cot_engine.answering.predictions import Prediction, Predictions
    from cot_engine.answering.run import Todo
    from cot_engine.options.config import RunConfig
    from cot_engine.options.resolve import Resolved

_SHOWN = 3  # of what failed, in the end
_TOLD = 20  # while it runs


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
    from cot_engine.answering.run import made_with, plan
    from cot_engine.answering.summary import summarise, told
    from cot_engine.engine.facade import model_path, profile_path
    from cot_engine.judging.profile import Profile
    from cot_engine.options.resolve import checked, resolve
    from cot_engine.questions.data import check_n

    check_n(limit, "limit")
    config = load_config(config_file, os.environ, flags)
    call = checked(resolve(Profile.of(profile_path(config.model)), config))
    questions = read_data(source, question, split, config.allow_url)
    path = Path(out or f"{questions.stem}.predictions.jsonl")
    kind_of_file(path)
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
    about = {"command": "cot-engine " + shlex.join(sys.argv[1:]), "data": source}
    with held(path, "the predictions", hint):
        todo = plan(path, questions, limit, shuffle, fresh, made_with(call))
        _check_places(path, traces, todo)
        done = _answer(call, todo, path, traces, about, quiet)
    found = summarise((prediction for _, prediction in sorted(done.items())), todo.kinds)
    if json:
        import json as _json

        files = {"data": source, "out": str(path), "record": str(run_file(path))}
        print(_json.dumps(files | found.plain(), indent=2))
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
    options = {"questions": asked, **call.plain(1)}
    dry_run(config, options, [PICTURE], json, call.notes)


def _check_places(path: Path, traces: str | None, todo: Todo) -> None:
    """Raises what is wrong with the places to write to, before a model loads."""
    from cot_engine.answering.run import check_traces
    from cot_engine.errors import StoreError, TraceError

    check_writable(path, "The predictions", StoreError, "Choose another place with --out.")
    if traces is not None:
        check_traces(traces, todo)
        hint = "Choose another place with --traces."
        check_writable(Path(traces) / "trace.jsonl", "The trace", TraceError, hint)


def _answer(
    call: Resolved,
    todo: Todo,
    path: Path,
    traces: str | None,
    about: dict[str, Any],
    quiet: bool,
) -> dict[int, Prediction]:
    """What is in the file when it is done, by place in the data."""
    from cot_engine.answering import run as answering
    from cot_engine.cli.progress import LongWork
    from cot_engine.engine.facade import Engine, profile_path
    from cot_engine.options.resolve import resolve

    done = {place: line.prediction for place, line in todo.kept}
    total, label = len(todo.kept) + len(todo.asked), call.strategy.name
    with LongWork({label: total}, noun="questions", quiet=quiet) as progress:

        def on_done(place: int, prediction: Prediction) -> None:
            done[place] = prediction
            failed = bool(prediction.error)
            said = progress.tallies[label].failed if failed else _TOLD + 1
            if said < _TOLD:
                progress.say(f"Failed: {prediction.error}")
            elif said == _TOLD:
                progress.say(f"More fail: each is named in {path}, in the column error.")
            progress.row(label, _score(prediction), prediction.flops, failed)

        def opened(made: dict[str, Any]) -> Predictions:
            return answering.open_predictions(path, todo, made, about, progress.say)

        if todo.lost:
            said = f"The last line of {path} was cut off ({todo.lost:,} bytes)"
            progress.say(f"Note: {said}: its question is asked again.")
        progress.had(label, [_score(prediction) for prediction in done.values()])
        if done:
            progress.say(f"{len(done):,} of {total:,} questions were answered already.")
        if not todo.asked:
            answering.arrange(path, todo)
            return done
        if lines := answering.hopeless(todo):
            with opened(answering.made_with(call)) as predictions:
                for line in lines:
                    predictions.add(*line)
                    on_done(*line)
                predictions.arrange()
            return done
        progress.say(f"Loading {call.config.model}")
        folder = profile_path(call.config.model)
        with Engine.from_pretrained(**call.config.of_engine, on_notice=progress.say) as engine:
            if profile_path(call.config.model) != folder:  # it came with a download just now
                call = resolve(engine.profile, call.config)
            with opened(answering.made_with(call) | answering.made_by(engine, call)) as predictions:
                progress.starting()
                try:
                    answering.answer_all(engine, call, todo, predictions, traces, on_done)
                except KeyboardInterrupt:
                    raise KeyboardInterrupt("Interrupted.", _so_far(path, done, total)) from None
                except CotEngineError as error:
                    error.hint = f"{error.hint} {_so_far(path, done, total)}".strip()
                    raise
                predictions.arrange()
    return done


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
