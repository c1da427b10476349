"""`cot-engine ablate` on a table of benchmarks: every checkpoint that is given on every benchmark
whose file is there, one store, and one table of what all of it came to."""

from __future__ import annotations

import json as _json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cot_engine.errors import AblationFailed, ConfigError, InputError, StoreError
from cot_engine.escape import terminal
from cot_engine.files.locking import held
from cot_engine.files.outputs import check_outputs, side_files
from cot_engine.files.writing import check_writable

if TYPE_CHECKING:
    from cot_engine.ablation.records import Run
    from cot_engine.ablation.store import Store
    from cot_engine.ablation.table import Table
    from cot_engine.ablation.table_choice import Chosen
    from cot_engine.ablation.table_data import Asked
    from cot_engine.benchmarks.scoring import Mark

_TOLD = 5  # of what is wrong with the rows of one file
_HINT = "Wait for it to end (--wait does), stop it, or use another --store."


@dataclass(frozen=True, slots=True)
class Flags:
    """What only a table takes: folders and files, models, who decides what rules leave open,
    another set of rules, where answers are written."""

    data: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    grader: str | None = None
    verdicts: str | None = None
    rules: str | None = None
    predictions: str | None = None
    json: bool = False

    def refuse(self, what: str) -> None:
        """Raises ConfigError for any that is set, where there is no table but `what`."""
        given: dict[str, Any] = {
            "--data": self.data,
            "--checkpoint": self.checkpoints,
            "--grader": self.grader,
        }
        given |= {"--verdicts": self.verdicts, "--rules": self.rules, "--json": self.json}
        for name, value in (given | {"--predictions": self.predictions}).items():
            if value:
                hint = "It is for tables, such as the preset paper-table."
                if name == "--json":
                    hint = "cot-engine report STORE --json has what a grid came to."
                raise ConfigError(f"{name} is set, and {what} is a grid.", hint)


def run_table(
    table: Table,
    config: str,
    store: str | None,
    problems: int | None,
    shared: dict[str, Any],
    flags: Flags,
    *,
    search: Callable[..., None],
    wait: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """`search` does what the store lacks of one run, on an open engine."""
    from cot_engine.ablation.store import Store
    from cot_engine.ablation.table_choice import choose, with_rules
    from cot_engine.benchmarks.grader import Verdicts
    from cot_engine.engine.facade import model_path

    if "model" in shared:
        names = ", ".join(table.checkpoints)
        raise ConfigError(
            f"--model is {shared['model']!r}, and {table.name} is a table of several checkpoints.",
            f"Say which it is with --checkpoint NAME=MODEL: {names}.",
        )
    if flags.rules is not None:
        table = with_rules(table, flags.rules)
    chosen = choose(table, flags.data, flags.checkpoints, shared)
    path = Path(store or f"{table.name}.sqlite")
    verdicts = flags.verdicts or (f"{path}.verdicts.jsonl" if flags.grader else None)
    inputs: list[tuple[str, Any]] = [
        ("the table", config),
        *(("the data", file) for file in chosen.files.values()),
    ]
    inputs += [("a checkpoint", model_path(_model(grids))) for grids in chosen.grids.values()]
    for _, written in side_files(path):
        check_outputs([("--store", written), ("--verdicts", verdicts)], inputs)

    if verdicts is not None:  # before hours of searches, which it would be the end of
        Verdicts.read(verdicts, flags.grader is None)

    def tell(text: str) -> None:
        if not quiet:
            print(terminal(text), file=sys.stderr, flush=True)

    for said in chosen.left_out:
        tell(f"Note: {said}")
    asked = _ask(chosen, problems, tell)
    if dry_run:
        from cot_engine.cli.table_cost import show_cost

        show_cost(chosen, asked, flags.json)
        return
    if flags.predictions is not None:
        hint = "Choose another place with --predictions."
        check_writable(Path(flags.predictions) / "x.jsonl", "The predictions", StoreError, hint)
    with held(path, "the store", _HINT, wait=wait, tell=tell), Store(path, create=True) as opened:
        runs = _search_all(chosen, asked, opened, search, tell)
        failed = _result(chosen, opened, runs, asked, flags, verdicts, tell)
    if failed:
        raise AblationFailed(
            failed,
            f"The same command tries them again; cot-engine report {shlex.quote(str(path))}"
            " --run ID names them all.",
        )


def _model(grids: Mapping[str, Any]) -> str:
    return str(next(iter(grids.values())).run.model)


def _ask(chosen: Chosen, problems: int | None, tell: Callable[[str], None]) -> dict[str, Asked]:
    """The questions of each benchmark that any row is about."""
    from cot_engine.ablation.table_data import ask

    asked = {}
    for name, path in chosen.files.items():
        if not any(name in grids for grids in chosen.grids.values()):
            continue
        of = chosen.table.columns[name].benchmark
        found = ask(path, of, problems)
        if of.kind != "graded" and not any(each.answers for each in found.questions):
            raise InputError(
                f"No question of {str(path)!r} has an answer, so {name} cannot be scored.",
                "Name a file that has them with --data, or take this one out of the folder.",
            )
        if len(found.questions) < found.held:
            count = f"{len(found.questions):,} of {found.held:,}"
            tell(f"Note: {count} questions of {name}: a part of it, not a sample.")
        faults = [str(each) for each in found.troubles]
        faults += [f"question {key}: {said}" for key, said in found.faults.items()]
        for said in faults[:_TOLD]:
            tell(f"Note: {path}, {said}")
        if len(faults) > _TOLD:
            tell(f"Note: {path}: {len(faults) - _TOLD:,} more rows with faults.")
        asked[name] = found
    return asked


def _search_all(
    chosen: Chosen,
    asked: Mapping[str, Asked],
    store: Store,
    search: Callable[..., None],
    tell: Callable[[str], None],
) -> dict[tuple[str, str], Run]:
    """Do what the store lacks, a checkpoint after the other, and give the runs."""
    from cot_engine.ablation.runner import plan_run
    from cot_engine.engine.facade import Engine

    command = "cot-engine " + shlex.join(sys.argv[1:])
    runs: dict[tuple[str, str], Run] = {}
    by_weights: dict[str, str] = {}
    for checkpoint, grids in chosen.grids.items():
        model = _model(grids)
        tell(f"Loading {checkpoint}: {model}")
        with Engine.from_pretrained(**next(iter(grids.values())).run.of_engine) as engine:
            works = {}
            for name, grid in grids.items():
                work = plan_run(grid, asked[name].data, engine, command)
                about = {"table": chosen.table.name, "checkpoint": checkpoint, "benchmark": name}
                title = f"{chosen.table.name}: {checkpoint} on {name}"
                named = replace(work.run, name=title, about=work.run.about | about)
                works[name] = replace(work, run=named)
                runs[checkpoint, name] = named
            weights = next(iter(works.values())).run.model
            if (other := by_weights.setdefault(weights, checkpoint)) != checkpoint:
                tell(f"Note: {other} and {checkpoint} are the same weights.")
            for name, work in works.items():
                tell(f"{checkpoint} on {name}")
                search(engine, work, store, grids[name].run.in_flight)
    return runs


def _result(
    chosen: Chosen,
    store: Store,
    runs: dict[tuple[str, str], Run],
    asked: Mapping[str, Asked],
    flags: Flags,
    verdicts: str | None,
    tell: Callable[[str], None],
) -> str:
    """The table on stdout; what failed, in words."""
    from cot_engine.ablation.runner import told
    from cot_engine.ablation.table_scores import export, scores
    from cot_engine.cli.table_text import plain, text

    with _Grader(flags.grader, verdicts, tell) as grader:
        found = scores(chosen, store, runs, asked, grader.grade if verdicts else None)
    if flags.predictions is not None:
        written = export(flags.predictions, store, runs, asked)
        tell(f"{len(written):,} files of predictions are in {flags.predictions}.")
    if flags.json:
        print(_json.dumps(plain(chosen, found, runs), indent=2, allow_nan=False))
    else:
        sys.stdout.write(terminal("\n".join(text(chosen, found))) + "\n")
    sys.stdout.flush()
    failed = {run.name: told(run, store.rows(run)) for run in runs.values()}
    return " ".join(f"{name}: {said}" for name, said in failed.items() if said)


class _Grader:
    """The model that decides what rules leave open, opened when it is first asked; without one, the
    verdicts that a file holds."""

    def __init__(
        self, model: str | None, verdicts: str | None, tell: Callable[[str], None]
    ) -> None:
        self.model, self.verdicts, self.tell = model, verdicts, tell
        self._backend: Any = None

    def __enter__(self) -> _Grader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._backend is not None:
            self._backend.close()

    def grade(self, kind: str, marks: list[Mark]) -> tuple[dict[str, str], str]:
        from cot_engine.backends.opening import open_backend
        from cot_engine.benchmarks.grader import Verdicts, ask, name_of

        assert self.verdicts is not None
        kept = Verdicts.read(self.verdicts)
        if self.model is None:
            by = ", ".join(sorted({model for model, _ in kept.replies}))
            return kept.of(kind, marks), by
        if self._backend is None:
            self.tell(f"Loading the grader {self.model}")
            self._backend = open_backend(self.model, on_notice=self.tell)
        self.tell(f"Grading {len(marks):,} answers")
        return ask(self._backend, kind, marks, kept), name_of(self._backend)
