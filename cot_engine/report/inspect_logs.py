"""A run as logs of Inspect AI: one for each cell, its seeds as epochs, for `inspect view` and
inspect's own analysis.

    from cot_engine.report.inspect_logs import write_logs
    write_logs(store, store.run(), Path("logs"))        # then: inspect view --log-dir logs

A sample holds the question, the whole tagged response, the score and what it cost, not its trace
and no picture: the trace stays in the store, under the key that the sample's metadata names.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cot_engine.ablation.records import ItemRecord, Key, ResultRow, Run
from cot_engine.ablation.store import Store
from cot_engine.core.grammar import read
from cot_engine.core.usage import Usage
from cot_engine.errors import CotEngineError, InputError, NoTrace, install
from cot_engine.files.writing import write_whole

SCORER = "cot_engine"


def write_logs(store: Store, run: Run, folder: str | Path, where: str | None = None) -> list[Path]:
    """Write the logs of a run into `folder`, in the order of its cells; a cell without a row gets
    none. Logs of the same run and cell that are there are replaced. `where` is a condition as for
    `Store.rows`.

    The metrics are inspect's: the mean over problems of the mean over their finished epochs, its
    standard error and, of a release that has it, its 95 % interval (`ci`). They and the scorer are
    named, so that inspect's `recompute_metrics` comes to the same. Raises StoreError, and
    CotEngineError if Inspect AI is not installed.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError:
        raise CotEngineError("Inspect AI is not installed.", install("inspect")) from None
    folder = Path(folder)
    run = store.run(run.id)  # which knows when it began
    rows: dict[str, list[ResultRow]] = defaultdict(list)
    for row in store.rows(run, where):
        rows[row.key.cell].append(row)
    letters = all(r.correct in (None, 0, 1) for found in rows.values() for r in found)
    paths = []
    for cell in run.cells:
        if cell in rows:
            log = _Cell(store, run, cell, rows[cell], where, letters).log()
            # The name that inspect itself would give: it reads the parts between underscores.
            parts = (log.eval.created, log.eval.task, log.eval.task_id)
            name = "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in parts)
            paths.append(folder / f"{name}.eval")
            with TemporaryDirectory() as place:
                write_eval_log(log, made := f"{place}/log.eval")
                write_whole(paths[-1], Path(made).read_bytes(), "", InputError)
    return paths


class _Cell:
    """One cell of a run as a log."""

    def __init__(
        self,
        store: Store,
        run: Run,
        cell: str,
        rows: list[ResultRow],
        where: str | None,
        letters: bool,
    ) -> None:
        self.store, self.run, self.cell, self.rows, self.where = store, run, cell, rows, where
        self.letters = letters  # scores as inspect's C and I, which its viewer colours
        self.label, self.plain = run.cells[cell]
        self.items = {item.digest: item for item in run.items}
        self.model = str(run.about.get("model", {}).get("name") or run.model)

    def log(self) -> Any:
        from inspect_ai.log import EvalLog, EvalStats

        finished = sum((_total(row) for row in self.rows), Usage())
        log = EvalLog(
            status="success" if self._complete() else "cancelled",
            eval=self._spec(),
            plan=self._plan(),
            results=self._results(),
            stats=EvalStats(
                started_at=self.run.started,
                completed_at=max(row.finished for row in self.rows),
                model_usage={self.model: _tokens(finished)},
            ),
            samples=[self._sample(row) for row in self.rows],
        )
        log.reductions = self._reductions()  # older releases cannot take it with the results
        return log

    def _complete(self) -> bool:
        """Whether every search of this cell is there that there can be: what is matched to a
        search that failed is never done."""
        if self.where is not None:
            return True  # a choice of rows, all of it there
        missing = set(self.run.keys()) - {row.key for row in self.rows}
        missing = {key for key in missing if key.cell == self.cell}
        goal = (self.plain.get("match") or {}).get("reference")
        if not goal or not missing:
            return not missing
        had = self.store.done(self.run) - self.store.done(self.run, failed=False)
        return all(Key(goal, key.seed, key.item) in had for key in missing)

    def _spec(self) -> Any:
        from inspect_ai.log import EvalConfig, EvalDataset, EvalSpec
        from inspect_ai.log._log import EvalMetricDefinition, EvalScorer

        named = ["accuracy", "stderr", *(["ci"] if _interval() is not None else [])]
        metrics = [EvalMetricDefinition(name=f"inspect_ai/{name}") for name in named]
        run, about = self.run, self.run.about
        problems = list(dict.fromkeys(self.items[row.key.item].problem for row in self.rows))
        package, _, version = run.code.partition(" ")
        return EvalSpec(
            run_id=run.id,
            created=run.started,
            task=f"{run.name}: {self.label}",
            task_id=self.cell,
            task_args=self._arguments(),
            solver=self.plain["strategy"],
            solver_args=self.plain["parameters"],
            dataset=EvalDataset(
                name=about.get("data", {}).get("name"),
                samples=len(problems),
                sample_ids=[*problems],
            ),
            model=self.model,
            scorers=[EvalScorer(name=SCORER, metrics=[*metrics])],
            config=EvalConfig(epochs=len(run.seeds), epochs_reducer=["mean"], fail_on_error=False),
            packages={package: version},
            metadata={
                "cell": self.cell,
                "label": self.label,
                "config": self.plain,
                "seeds": list(run.seeds),
                "code": run.code,
                "model_digest": run.model,
                "data_digest": run.data,
                "command": run.command,
                "where": self.where,
                "about": about,
            },
        )

    def _arguments(self) -> dict[str, Any]:
        """The settings in few words, for the viewer's header; `metadata` has all of them."""
        left_out = ("plan", "model", "device")
        settings = {k: v for k, v in self.plain["config"].items() if k not in left_out}
        settings |= {f"match_{k}": v for k, v in (self.plain.get("match") or {}).items()}
        return {k: v for k, v in settings.items() if v is not None}

    def _plan(self) -> Any:
        from inspect_ai.log import EvalPlan, EvalPlanStep
        from inspect_ai.model import GenerateConfig

        config = self.plain["config"]
        drawn = {key: config.get(key) for key in ("temperature", "top_p", "top_k")}
        step = EvalPlanStep(solver=self.plain["strategy"], params=self.plain["parameters"])
        return EvalPlan(name=self.label, steps=[step], config=GenerateConfig(**drawn))

    # --- scores ---

    def _by_problem(self) -> dict[str, float]:
        scores: dict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            if row.correct is not None:
                scores[self.items[row.key.item].problem].append(row.correct)
        return {problem: statistics.fmean(found) for problem, found in scores.items()}

    def _results(self) -> Any:
        from inspect_ai.log import EvalMetric, EvalResults, EvalScore

        means = list(self._by_problem().values())
        spread = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0
        values = {"accuracy": statistics.fmean(means), "stderr": spread} if means else {}
        metrics = {name: EvalMetric(name=name, value=value) for name, value in values.items()}
        if means and (interval := _interval()) is not None:
            group: dict[str, Any] = {"group": "ci"}  # a field of the releases that have it
            for name, value in interval(means).items():
                metrics[name] = EvalMetric(name=name, value=value, **group)
        return EvalResults(
            total_samples=len(self.rows),
            completed_samples=sum(row.status == "ok" for row in self.rows),
            scores=[EvalScore(name=SCORER, scorer=SCORER, reducer="mean", metrics=metrics)],
        )

    def _reductions(self) -> Any:
        from inspect_ai.log import EvalSampleReductions, EvalSampleScore

        samples = [
            EvalSampleScore(value=value, sample_id=problem)
            for problem, value in self._by_problem().items()
        ]
        return [EvalSampleReductions(scorer=SCORER, reducer="mean", samples=samples)]

    # --- samples ---

    def _sample(self, row: ResultRow) -> Any:
        from inspect_ai.log import EvalError, EvalSample
        from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput

        item = self.items[row.key.item]
        messages: list[Any] = [ChatMessageUser(content=item.question)]
        output, text = ModelOutput(model=self.model), ""
        stages: dict[str, str] = {}
        more: dict[str, Any] = {"total_time": row.seconds}  # older releases leave it out
        if row.status == "ok":
            text, stages = self._response(row)
            messages.append(ChatMessageAssistant(content=text))
            output = ModelOutput.from_content(self.model, row.answer or "")
            output.usage = _tokens(_total(row))
            output.time = row.seconds
        return EvalSample(
            id=item.problem,
            epoch=self.run.seeds.index(row.key.seed) + 1,
            input=item.question,
            target=item.expected,
            messages=messages,
            output=output,
            scores={SCORER: self._score(row, item)} if row.correct is not None else None,
            metadata=self._about(row, item, stages),
            model_usage={self.model: _tokens(_total(row))} if row.usage else {},
            **more,
            error=EvalError(message=row.error, traceback=row.error, traceback_ansi=row.error)
            if row.status == "failed"
            else None,
        )

    def _response(self, row: ResultRow) -> tuple[str, dict[str, str]]:
        """The whole tagged response and its stages; the conclusion alone, where the store has no
        trace of it."""
        try:
            trace = self.store.trace(self.run, row.key)
        except NoTrace:
            return row.answer or "", {}
        end = trace.finished
        if end is None or end.chain not in (chains := trace.chains()):
            return row.answer or "", {}
        text = chains[end.chain].text
        return text, read(text, trace.started.plan, complete=True).contents

    def _score(self, row: ResultRow, item: ItemRecord) -> Any:
        from inspect_ai.scorer import CORRECT, INCORRECT, Score

        assert row.correct is not None  # only what was graded has a score
        value = (CORRECT if row.correct else INCORRECT) if self.letters else row.correct
        said = f"Expected {item.expected!r}; scored {row.correct:g}."
        return Score(value=value, answer=row.answer, explanation=said)

    def _about(self, row: ResultRow, item: ItemRecord, stages: dict[str, str]) -> dict[str, Any]:
        held = Counter(selection.stage for selection in row.selections)
        return {
            "type": item.type,
            "seed": row.key.seed,
            "key": list(row.key),
            "stages": stages,
            "usage": {role: asdict(used) for role, used in row.usage.items()},
            "budget": {
                "unit": row.unit,
                "allotted": row.allotted,
                "spent": row.spent,
                "left": row.remaining,
            },
            "seconds": row.seconds,
            "faults": row.faults,
            "incomplete": row.incomplete,
            "candidates": len(row.candidates),
            "selections": dict(held),
        }


def _interval() -> Callable[[list[float]], dict[str, float]] | None:
    """Inspect's own interval of a mean; None for a release without one."""
    from inspect_ai import scorer

    if (metric := getattr(scorer, "ci", None)) is None:
        return None

    def interval(values: list[float]) -> dict[str, float]:
        return dict(
            metric()([scorer.SampleScore(score=scorer.Score(value=value)) for value in values])
        )

    return interval


def _total(row: ResultRow) -> Usage:
    return sum(row.usage.values(), Usage())


def _tokens(usage: Usage) -> Any:
    from inspect_ai.model import ModelUsage

    return ModelUsage(
        input_tokens=usage.prefilled,
        output_tokens=usage.decoded,
        total_tokens=usage.tokens,
        input_tokens_cache_read=usage.cached,
    )
