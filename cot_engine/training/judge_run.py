"""A judge's training from its configuration to a model folder: pairs, steps, what it came to."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cot_engine.ablation.worth import WHOLE
from cot_engine.errors import ConfigError, CotEngineError, InputError, StoreError
from cot_engine.files.outputs import check_outputs
from cot_engine.files.writing import write_whole
from cot_engine.options.config import RunConfig
from cot_engine.training import sft
from cot_engine.training.clock import Clock
from cot_engine.training.judge_config import JudgeConfig
from cot_engine.training.judge_data import Problems, load_problems, plan_of
from cot_engine.training.judge_measure import (
    LIKELIHOOD,
    TrainingReport,
    answers,
    compare,
    judge_pairs,
)
from cot_engine.training.pairs import Done, PairsFile
from cot_engine.training.sampling import Sampler, check_enough, sample_pairs

PAIRS, HELD_OUT, REPORT = "pairs.jsonl", "held-out.jsonl", "judge-report.json"
_OURS = {PAIRS, HELD_OUT, REPORT, "checkpoints", "log.jsonl"}
_AGAIN = {REPORT, "checkpoints", "log.jsonl"}  # what --restart throws away
_EVERY = 10.0  # seconds between lines about sampling


@dataclass(frozen=True, slots=True)
class JudgeOutcome:
    """What a run came to. `stopped` is "pairs", "time" or "interrupted" where it did not get to the
    end, `training` None before the first step, `report` None before the last."""

    output: Path
    pairs: int
    training: sft.TrainingOutcome | None = None
    report: TrainingReport | None = None
    stopped: str = ""

    def plain(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "pairs": self.pairs,
            "training": self.training and self.training.plain(),
            "report": self.report and self.report.plain(),
            "stopped": self.stopped,
        }


def train_judge(
    config: JudgeConfig,
    *,
    minutes: float | None = None,
    restart: bool = False,
    pairs_only: bool = False,
    measure: bool = True,
    tell: Callable[[str], None] = lambda _: None,
    show: Callable[[dict[str, Any]], None] = lambda _: None,
    step: Callable[[int, str], None] = lambda done, said: None,
) -> JudgeOutcome:
    """Sample pairs, train on them, measure before and after; go on where an earlier run stopped.

    `minutes` bounds sampling and training together; `restart` throws checkpoints away, not pairs;
    `pairs_only` stops when all are sampled; without `measure` nothing is measured at the end.
    `tell` gets sentences, `show` each row of log.jsonl, `step` how far it is, as of `train`. Raises
    CotEngineError for everything that the user can mend.
    """
    _check_sources(config)
    sft._needs()
    began = time.monotonic()
    output = config.output
    _check_output(output, restart)
    problems = load_problems(config)
    _check_stages(config)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def left() -> float | None:
        return None if minutes is None else minutes - (time.monotonic() - began) / 60

    train, held = _pairs(config, problems, world, tell, left)
    made = sum(len(done.pairs) for done in train.values())
    if len(train) + len(held) < _wanted(config, problems):
        return JudgeOutcome(output, made, stopped="time")
    _check_pairs(config, problems, train, held, tell)
    if pairs_only:
        return JudgeOutcome(output, made, stopped="pairs")
    last = _last_checkpoint(config)
    import torch

    from cot_engine.training.judge_train import JudgeRun

    torch.manual_seed(config.sft.train.seed)
    measured = [held[index] for index in problems.measuring if index in held]
    rest = left()
    # At least one step, however long sampling took: or no run would ever get anywhere.
    run = JudgeRun(
        config, problems, train.values(), measured, last, rest and max(rest, 0.01), tell, show, step
    )
    trained = run.run()
    if trained.model is not None and not measure and run.dropped:
        run.tell(f"Note: {run.dropped}")  # where it is measured, it is fitted anew
    if trained.model is None or not measure or rank:
        return JudgeOutcome(output, made, trained, None, trained.stopped)
    report = _measured(config, problems, held, trained.model, tell)
    text = json.dumps(report.plain(), indent=1) + "\n"
    write_whole(output / REPORT, text, "The report", StoreError)
    return JudgeOutcome(output, made, trained, report)


# --- pairs ---------------------------------------------------------------------------------------


def _wanted(config: JudgeConfig, problems: Problems) -> int:
    sampled = len(problems.training) if config.judge.corruptions < 1 else 0
    return sampled + len(problems.measuring) + len(problems.calibrating)


def _pairs(
    config: JudgeConfig,
    problems: Problems,
    world: int,
    tell: Callable[[str], None],
    left: Callable[[], float | None],
) -> tuple[dict[int, Done], dict[int, Done]]:
    """What is sampled of the problems to train on and of those held out, by place."""
    from cot_engine.backends.local import loading
    from cot_engine.backends.local.digest import digest_of
    from cot_engine.backends.local.folder import weight_files
    from cot_engine.engine.facade import Engine, model_path

    table = config.pairs
    sampled = table.model or config.sft.model.path
    source = loading.find_folder(sft._relative(config.sft, model_path(sampled)))
    digest = digest_of(weight_files(source))
    run = RunConfig(
        plan=plan_of(config),
        temperature=table.temperature,
        top_p=table.top_p,
        top_k=table.top_k,
        seed=table.seed,
    )
    sampler = Sampler(run, table.stages, table.n, table.per_problem, table.graded)
    # The same number from all stages, and right against wrong alone: what is reported.
    measuring = replace(sampler, graded=False, per_problem=2 * len(table.stages))
    held = sorted([*problems.measuring, *problems.calibrating])
    training = problems.training if config.judge.corruptions < 1 else []
    work = [
        (HELD_OUT, problems.held_out, held, measuring, problems.names[1]),
        (PAIRS, problems.train, training, sampler, problems.names[0]),
    ]
    found: dict[str, dict[int, Done]] = {}
    engine: Engine | None = None
    try:
        for name, items, places, how, data in work:
            recipe = {"model": digest, "data": data, **how.recipe()}
            with PairsFile(config.output / name, recipe) as file:
                missing = [index for index in places if index not in file.done]
                if missing and world > 1:
                    raise InputError(
                        f"{len(missing):,} problems are not sampled, and there are {world} "
                        "processes.",
                        "Sample with one: cot-engine train-judge CONFIG.toml --pairs-only.",
                    )
                if missing and engine is None:
                    tell(f"Loading {sampled} to sample")
                    engine = Engine.from_pretrained(
                        source, device=config.sft.model.device, in_flight=table.in_flight
                    )
                if missing:
                    _sample(engine, items, missing, how, file, name, tell, left)
                found[name] = {i: file.done[i] for i in places if i in file.done}
    finally:
        if engine is not None:
            engine.close()
    return found[PAIRS], found[HELD_OUT]


def _sample(
    engine: Any,
    items: Any,
    missing: list[int],
    sampler: Sampler,
    file: PairsFile,
    name: str,
    tell: Callable[[str], None],
    left: Callable[[], float | None],
) -> None:
    said, total = 0.0, len(missing) + len(file.done)
    clock = Clock(total, len(file.done))

    def stop() -> bool:
        rest = left()
        return rest is not None and rest <= 0

    def on_done(_: Done) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said < _EVERY and len(file.done) < total:
            return
        said = now
        pairs = sum(len(done.pairs) for done in file.done.values())
        rate = (len(file.done) - clock.first) / max(clock.seconds, 1e-9)
        tell(f"{name}: {clock.said(len(file.done))}, {pairs:,} pairs, {rate:.1f} problems/s")

    try:
        sample_pairs(engine, items, missing, sampler, file, on_done, stop)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped: {len(file.done):,} of {total:,} problems of {name} are kept, and the same "
            "command goes on from there."
        ) from None


def _check_pairs(
    config: JudgeConfig,
    problems: Problems,
    train: dict[int, Done],
    held: dict[int, Done],
    tell: Callable[[str], None],
) -> None:
    """Raises InputError if there is nothing to train on; what there is too little of is told."""
    for name, done in (("training", train), ("held-out", held)):
        failed = [each for each in done.values() if each.error]
        if failed:
            tell(f"Note: {len(failed):,} {name} problems failed, the first: {failed[0].error}")
    stages = config.pairs.stages
    notes = check_enough(train.values(), stages, "training") if train else []
    try:
        notes += check_enough((held[i] for i in problems.measuring), stages, "held-out")
    except InputError as error:
        notes.append(f"Nothing can be measured. {error.message}")
    for note in notes:
        tell(f"Note: {note}")


def _check_stages(config: JudgeConfig) -> None:
    from cot_engine.ablation.worth import SENTENCE
    from cot_engine.errors import UnknownNameError

    known = [*(stage.tag for stage in plan_of(config)), WHOLE, SENTENCE]
    for name in config.pairs.stages:
        if name not in known:
            raise UnknownNameError("stage of pairs.stages called", name, known)


def _check_sources(config: JudgeConfig) -> None:
    """Raises InputError for what is learnt from, if the training would write over it."""
    pairs = config.pairs
    sft._check_sources(config.sft, config.output)
    named = {"data": pairs.data, "held_out": pairs.held_out, "plan": pairs.plan}
    files = [(f"pairs.{k},", config.folder / v) for k, v in named.items() if isinstance(v, str)]
    model = ("pairs.model,", sft._relative(config.sft, pairs.model) if pairs.model else None)
    check_outputs([("output", config.output / name) for name in _OURS | sft.OURS], [*files, model])


def _check_output(output: Path, restart: bool) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in output.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise InputError(
            f"The output {str(output)!r} cannot be used: {error.strerror}.", "Name another folder."
        ) from None
    if there and not there & _OURS:
        raise InputError(
            f"The output {str(output)!r} holds other files: {', '.join(sorted(there)[:3])}.",
            "Name an empty folder, or one that train-judge made.",
        )
    if restart:
        for name in _AGAIN & there:
            path = output / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _last_checkpoint(config: JudgeConfig) -> Path | None:
    from cot_engine.training.trainer import checkpoints

    found = checkpoints(config.output)
    if not found:
        return None
    facts = json.loads((found[-1] / "training.json").read_text("utf-8"))
    sft._same_training(facts, config, found[-1])
    return found[-1]


# --- measuring -----------------------------------------------------------------------------------


def _measured(
    config: JudgeConfig,
    problems: Problems,
    held: dict[int, Done],
    model: Path,
    tell: Callable[[str], None],
) -> TrainingReport:
    """Ask the model before and the one after about the same pairs, and both for answers."""
    from cot_engine.backends.local import loading
    from cot_engine.engine.facade import Engine, model_path
    from cot_engine.judging.judges import SelfJudge
    from cot_engine.judging.profile import Profile
    from cot_engine.report.weighing import fit_weight, margins

    plan, items = plan_of(config), problems.held_out
    judge = SelfJudge(prompt=config.judge.prompt)
    measured = [held[index] for index in problems.measuring if index in held]
    fitted = [held[index] for index in problems.calibrating if index in held]
    source = loading.find_folder(sft._relative(config.sft, model_path(config.sft.model.path)))
    seen, scores, weight = [], [], None
    notes: list[str] = []
    for name, folder in (("before", source), ("after", model)):
        tell(f"Measuring {name} training")
        with Engine.from_pretrained(
            folder, device=config.sft.model.device, in_flight=config.pairs.in_flight
        ) as engine:
            seen.append(judge_pairs(engine, judge, items, measured, plan))
            scores.append(answers(engine, items, problems.measuring, RunConfig(plan=plan)))
            if name == "before":
                likely = judge_pairs(engine, LIKELIHOOD, items, measured, plan)
                continue
            try:
                own = judge_pairs(engine, judge, items, fitted, plan)
                by_likelihood = judge_pairs(engine, LIKELIHOOD, items, fitted, plan)
                fit = fit_weight(margins(own.contests, by_likelihood.contests))
                weight = fit.weight.estimate
                Profile("self", config.judge.prompt, weight).write(model)
            except CotEngineError as error:
                notes.append(f"No weight of self+likelihood: {error.message}")
    failed = [part for part in seen if part.failed]
    if failed:
        notes.append(f"{failed[0].failed:,} problems could not be judged: {failed[0].error}")
    if not seen[1].contests:
        notes.append("There were no held-out pairs to measure on.")
    return compare(seen[0], seen[1], likely, (scores[0], scores[1]), weight, notes)


def check(config: JudgeConfig) -> None:
    """What can be checked before anything is loaded. Raises CotEngineError."""
    _check_stages(config)
    if not config.pairs.stages:
        raise ConfigError("pairs.stages is empty.", "Name at least one stage.")
