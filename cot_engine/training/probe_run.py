"""`train-verifier`: a model's responses sampled with its states, a probe fitted on them, measured,
and written into the model's profile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cot_engine.backends.protocol import Backend
from cot_engine.engine.facade import Engine, profile_path
from cot_engine.errors import ConfigError, InputError, shown
from cot_engine.files.writing import write_whole
from cot_engine.judging.probe import Probe
from cot_engine.judging.profile import Profile
from cot_engine.options.config import RunConfig
from cot_engine.options.resolve import resolve
from cot_engine.questions.data import DataSet, SceneGrader
from cot_engine.training.probe_cost import Costs, measure_costs
from cot_engine.training.probe_fit import check_enough, fit_probe, split
from cot_engine.training.probe_measure import Measured, measure, sentences, weighted
from cot_engine.training.probe_samples import Recorder, SampleFolder, sample_all
from cot_engine.training.probe_stops import Paying, paying

FILE = "cot_engine.probe"
"""What a probe is called beside the weights, and in the folder of a run: no other program takes it
for weights, as vLLM does whatever ends in .safetensors."""
CLAIMS = {"CAPTION": "."}
"""What ends a claim of the bundled world, by stage."""


@dataclass(frozen=True)
class Outcome:
    """A probe and the file it is in, what it is worth, how its heads were fitted (penalty, loss and
    that of the share alone, nats), where the profile was written, sentences, the problems that
    failed with why, what responses cost, and which strategy pays at which budget."""

    probe: Probe
    path: Path
    measured: Measured
    heads: dict[str, dict[str, float]]
    profile: Path | None
    notes: tuple[str, ...]
    failed: dict[str, str]
    costs: Costs | None = None
    auto: tuple[Paying, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The same as values of JSON, without the weights."""
        return {
            "probe": str(self.path),
            "layers": list(self.probe.layers),
            "heads": self.heads,
            "measured": self.measured.plain(),
            "costs": None if self.costs is None else asdict(self.costs),
            "auto": [asdict(each) for each in self.auto],
            "profile": None if self.profile is None else str(self.profile),
            "notes": list(self.notes),
            "failed": self.failed,
        }


def train_verifier(
    config: RunConfig,
    data: DataSet,
    out: str | Path,
    *,
    n: int = 4,
    layers: tuple[int, ...] | None = None,
    write_profile: bool = False,
    on_done: Callable[[int, str], None] = lambda index, error: None,
    on_notice: Callable[[str], None] | None = None,
) -> Outcome:
    """Sample `n` responses to each question of `data` into the folder `out`, which goes on where it
    stopped, and fit a probe on them that reads these `layers` (None: the middle one and the last).

    Raises InputError if nothing can be fitted, StoreError for a folder with other samples,
    ConfigError for layers that the model has not, or a backend without states.
    """
    if not all(item.known for item in data.items):
        unknown = next(item.id for item in data.items if not item.known)
        raise InputError(f"Question {unknown!r} has no standard answer.", "Each one needs one.")
    digests = [item.digest for item in data.items]
    check_enough(digests, n)
    config = replace(config, strategy="majority", parameters={"n": n}, budget=None, probe="none")
    with Engine.from_pretrained(**config.of_engine, on_notice=on_notice) as engine:
        width, known = _holds(engine.backend)
        chosen = layers or (known[len(known) // 2], -1)
        if odd := [layer for layer in chosen if layer != -1 and layer not in known]:
            raise ConfigError(
                f"layers has {odd[0]}; this model has {known[0]} to {known[-1]}, and -1 for what"
                " the last one gives after its norm."
            )
        marks = CLAIMS if all(isinstance(i.grader, SceneGrader) for i in data.items) else {}
        recorder = Recorder(chosen, width, marks)
        engine.probe = recorder
        plan = resolve(engine.profile, config).plan
        stages = tuple(stage.tag for stage in plan)
        info = engine.backend.info
        made = {
            "data": data.digest,
            "weights": info.digest,
            "dtype": info.dtype,
            "layers": chosen,
            "marks": marks,
            "n": n,
            "greedy": True,
            "stages": stages,
            "sampling": [config.temperature, config.top_p, config.top_k],
            "seed": config.seed,
            "mode": config.mode,
            "detail": config.detail,
            "plan": repr(plan),
            "max_pixels": info.max_pixels,
        }
        folder, failed = SampleFolder(Path(out), made), dict[str, str]()

        def done(index: int, error: str) -> None:
            if error:
                failed[data.items[index].id] = error
            on_done(index, error)

        apart = np.flatnonzero(split(np.arange(len(digests)), digests).measuring).tolist()
        sample_all(engine, recorder, data.items, config, folder, stages, set(apart), done)
        engine.probe = None  # what follows is measured, and its states are of no use
        costs = measure_costs(engine, data.items, apart, config, folder.folder)
        digest = info.digest
    samples = folder.read(stages)
    for index in sorted({*range(len(data.items))} - {*samples.problem.astype(int).tolist()}):
        why = "It failed when it was sampled; take its file of samples away to try it again."
        failed.setdefault(data.items[index].id, why)
    parts, first = split(samples.problem, digests), samples.greedy > 0
    likeliest, sampled = parts.measuring & first, parts.measuring & ~first
    probe, fitted, notes = fit_probe(samples, parts, chosen, width, marks, digest)
    if not sampled.any():
        raise InputError("No response is left to measure on.", "Take more questions (--problems).")
    measured = measure(probe, samples, sampled)
    path = Path(out) / FILE
    probe.write(path)
    rows: tuple[Paying, ...] = ()
    more = ["Not one response's cost was measured: there are no rows for auto."]
    if costs is not None:
        votes, more = weighted(probe, samples, sampled), []
        begun = weighted(probe, samples, sampled, likeliest)
        rows = paying(votes, costs.further, begun, costs.greedy)
    written = _write_profile(config, probe, costs, rows) if write_profile else None
    heads = {
        name: {"penalty": each.penalty, "loss": each.loss, "base": each.base}
        for name, each in fitted.items()
    }
    said = (*notes, *sentences(measured), *more)
    outcome = Outcome(probe, path, measured, heads, written, said, failed, costs, rows)
    text = json.dumps(outcome.plain(), indent=2) + "\n"
    write_whole(Path(out) / "report.json", text, "The report", InputError, "Give another --out.")
    return outcome


def _holds(backend: Backend) -> tuple[int, tuple[int, ...]]:
    """How wide the states of a model are, and the layers that have them. Raises ConfigError for a
    backend that does not have them."""
    held: tuple[int, tuple[int, ...]] | None = getattr(backend, "holds", None)
    if held is None:
        raise ConfigError(
            f"The model {shown(backend.info.model)} is not in this process: nobody hands over its"
            " states.",
            "Fit on its folder (--model FOLDER), or use a token verifier.",
        )
    return held


def _write_profile(
    config: RunConfig, probe: Probe, costs: Costs | None, rows: tuple[Paying, ...]
) -> Path:
    """Beside the weights: the probe, and a profile that names it and has the rows of auto."""
    folder = Path(profile_path(config.model))
    profile = Profile.of(folder)
    probe.write(folder / FILE)
    auto = tuple(each.row for each in rows)  # those of another probe are gone with it
    sample = None if costs is None else costs.sample
    profile = replace(profile, probe=FILE, verifier="states", sample=sample, auto=auto)
    return profile.write(folder)
