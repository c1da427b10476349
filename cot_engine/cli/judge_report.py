"""`cot-engine judge-report`: check what is cheap to check, examine the judges, print what shows."""

from __future__ import annotations

import json as _json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cot_engine.errors import ConfigError, InputError
from cot_engine.files.outputs import check_outputs
from cot_engine.files.writing import check_writable, write_whole
from cot_engine.options.config import MAX_N
from cot_engine.options.layers import files_of, load_config

if TYPE_CHECKING:
    from cot_engine.questions.data import DataSet
    from cot_engine.report.judge_report import Examination, JudgeReport, Parts

MAX_ROLLOUTS = 64
_ELSEWHERE = "Choose another place with --out."


def run(
    judges: list[str],
    strategies: list[str],
    source: str,
    problems: int,
    n: int | None,
    rollouts: int,
    controls: bool | None,
    fit: bool,
    write_profile: bool,
    out: str | None,
    config_file: str | None,
    flags: dict[str, Any],
    *,
    json: bool,
    quiet: bool,
) -> None:
    from cot_engine.engine.facade import model_path, profile_path
    from cot_engine.judging.profile import Profile, check_profile_folder
    from cot_engine.questions.data import check_n, load_data
    from cot_engine.report.judge_report import LABELLED, STRATEGIES, Examination, judges_of
    from cot_engine.report.labelled import is_labelled, load_labelled

    check_n(problems, "problems")
    for name, value, least, most in (("n", n, 1, MAX_N), ("rollouts", rollouts, 0, MAX_ROLLOUTS)):
        if value is not None and not least <= value <= most:
            raise ConfigError(f"{name} is {value}.", f"It must be from {least} to {most}.")
    config = load_config(config_file, os.environ, flags)
    folder = model_path(config.model)
    profile = Profile.of(profile_path(config.model))
    labelled = None
    named = tuple(dict.fromkeys(map(profile.name_of, judges)))
    if is_labelled(source):
        data, labelled = load_labelled(source, problems, config.allow_url)
        steps = any(each.kind == "steps" for each in labelled.values())
        named = named or (("yes-no", "random") if steps else LABELLED)
    todo = Examination(
        config,
        named or judges_of(profile),
        tuple(dict.fromkeys(strategies)) or STRATEGIES,
        n,
        rollouts,
        controls,
        fit,
        labelled,
    )
    if write_profile and not fit:
        raise ConfigError("There is no weight for --write-profile to write.", "Add --fit.")
    parts = todo.resolve(profile)
    read = [("the data", source), ("the model", folder), *files_of(config_file, os.environ, flags)]
    check_outputs([("--out", out)], read)
    if write_profile:
        folder = profile_path(config.model) if "://" in config.model else folder
        check_profile_folder(folder)
    if labelled is None:
        data = load_data(source, n=problems, seed=config.seed, allow_url=config.allow_url)
    if out is not None:
        check_writable(out, "The report", InputError, _ELSEWHERE)
    found, stopped = _examine(data, todo, parts, quiet)
    text = _json.dumps(plain(found), indent=2)
    # A disk that filled up meanwhile costs the file, not what the judges were asked for.
    failed = None if out is None else _write(Path(out), text + "\n")
    if json:
        print(text)
    else:
        from cot_engine.cli.judge_table import show

        show(found)
    sys.stdout.flush()
    if failed is not None:
        raise failed
    if stopped:
        done = f"{found.done:,} of {found.asked:,}"
        raise KeyboardInterrupt("Interrupted.", f"The report is on {done} problems.")
    if found.failed and found.failed == found.done:
        raise InputError(
            f"All {found.done:,} problems failed, so nothing is known of the judges.",
            "The notes of the report say how the first one did.",
        )
    if fit and found.weight is None:
        raise InputError("No weight was fitted.", "The last note of the report says why.")
    if write_profile:
        assert found.weight is not None  # it was to be fitted, as --write-profile wants
        weight = float(f"{found.weight.weight.estimate:.4g}")
        path = replace(profile, likelihood_weight=weight).write(folder)
        if not quiet:
            print(f"likelihood_weight {weight:g} is in {path}.", file=sys.stderr)


def _examine(
    data: DataSet, todo: Examination, parts: Parts, quiet: bool
) -> tuple[JudgeReport, bool]:
    """The report on what was done, and whether it was interrupted. Raises KeyboardInterrupt if
    nothing was done by then."""
    from cot_engine.cli.progress import LongWork
    from cot_engine.engine.facade import Engine
    from cot_engine.report.judge_report import Examined, examine, report

    done: list[Examined] = []
    stopped = False
    with LongWork({"judges": len(data.items)}, noun="problems", quiet=quiet) as progress:
        progress.say(f"Loading {todo.config.model}")
        with Engine.from_pretrained(**todo.config.of_engine, on_notice=progress.say) as engine:
            progress.starting()

            def on_done(each: Examined) -> None:
                done.append(each)
                progress.row("judges", None, each.usage.flops, bool(each.error))

            try:
                examine(engine, data.items, todo, on_done, parts)
            except KeyboardInterrupt:
                if not done:
                    raise KeyboardInterrupt("Interrupted.") from None
                stopped = True
            return report(data, engine, todo, done), stopped


def plain(found: JudgeReport) -> dict[str, Any]:
    """The report as JSON has it; a number that there is none of is null."""
    from dataclasses import asdict

    def tidy(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tidy(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [tidy(item) for item in value]
        return None if value != value else value  # NaN is not JSON

    return tidy(asdict(found))


def _write(path: Path, text: str) -> InputError | None:
    """What went wrong, if something did."""
    try:
        write_whole(path, text, "The report", InputError, _ELSEWHERE)
    except InputError as error:
        return error
    return None
