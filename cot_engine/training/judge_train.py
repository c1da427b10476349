"""What a judge learns from: verdict, consistency, marks and kept answers as one loss, and Hugging
Face's Trainer over it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F

from cot_engine.backends.local import loading
from cot_engine.engine.facade import model_path
from cot_engine.errors import ConfigError
from cot_engine.escape import visible
from cot_engine.judging.profile import Profile
from cot_engine.training import record, sft
from cot_engine.training.examples import IGNORE, Encoder
from cot_engine.training.judge_config import JudgeConfig, JudgeTable
from cot_engine.training.judge_data import JudgedPair, JudgeEncoder, JudgeSteps, Problems, plan_of
from cot_engine.training.network import BITS, prepare, save_model
from cot_engine.training.pairs import Done
from cot_engine.training.trainer import AnswerTrainer, states

PARTS = ("verdict", "consistency", "marks", "kept")
HEAD = "judge_marks"
_WATCHED = 480  # held-out pairs that are looked at while training
_HEAD_FILE = "judge_marks.safetensors"


class Marks(torch.nn.Module):
    """From a token's state to how likely it is that what was said is true: [..., width] -> [...],
    log-odds. A vector and a number rather than a matrix, which Muon would take for its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(width))
        self.bias = torch.nn.Parameter(torch.zeros(()))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states.float() @ self.weight + self.bias


def marks_layer(wanted: int | None, layers: int) -> int:
    """After which of a language model's layers marks are read. Raises ConfigError."""
    if wanted is not None and wanted > layers:
        raise ConfigError(
            f"judge.marks_layer is {wanted}, but the model has {layers} layers.",
            "Leave it out for two thirds of them.",
        )
    return wanted or max(1, round(layers * 2 / 3))


def learn_judging(adapter: Any, table: JudgeTable, choices: tuple[int, int]) -> None:
    """Give an adapter's network a forward that returns a judge's loss on `JudgeEncoder.batch`.

    Its `totals` [3] are of the whole step: verdicts, weights of marks, learnt tokens of answers. So
    the losses of a step's micro-batches add up to the step's, a mean of each part. The last parts'
    sums are in `network.judge_parts`.
    """
    network = adapter.model
    layer = marks_layer(table.marks_layer, int(adapter.text.num_hidden_layers))
    if table.marks:
        head = Marks(int(adapter.text.hidden_size)).to(adapter.device)
        network.add_module(HEAD, head)
    one, two = choices

    def forward(
        self: Any,
        labels: torch.Tensor,
        judged: int,
        marks: torch.Tensor,
        totals: torch.Tensor,
        num_items_in_batch: Any = None,
        pictured: torch.Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, torch.Tensor]:
        marked = bool(table.marks) and judged > 0
        *inner, last = states(self, inputs, pictured, layer if marked else None)
        learnt = labels[:, 1:] != IGNORE
        logits = self.lm_head(last[:, :-1][learnt]).float()
        targets = labels[:, 1:][learnt]
        # The first `judged` rows are verdicts, and each of them has one learnt token.
        verdicts, right = logits[:judged], targets[:judged]
        parts = {}
        if judged:
            parts["verdict"] = F.cross_entropy(verdicts, right, reduction="sum") / totals[0]
            margins = (verdicts[:, one] - verdicts[:, two]).view(-1, 2)
            both = margins.sum(1).square().sum() / (totals[0] / 2)
            parts["consistency"] = table.consistency * both
        if marked:
            at = marks != 0
            said = getattr(self, HEAD)(inner[0][at])
            truth, weight = (marks[at] > 0).float(), marks[at].abs()
            loss = F.binary_cross_entropy_with_logits(said, truth, weight=weight, reduction="sum")
            parts["marks"] = table.marks * loss / totals[1]
        if len(targets) > judged:
            kept = F.cross_entropy(logits[judged:], targets[judged:], reduction="sum")
            parts["kept"] = table.keep_weight * kept / totals[2]
        self.judge_parts = {name: value.detach() for name, value in parts.items()}
        found: dict[str, Any] = {"loss": sum(parts.values())}
        if judged and not self.training:
            found["margins"] = margins
        return found

    network.forward = MethodType(forward, network)


class JudgeTrainer(AnswerTrainer):
    """`AnswerTrainer` over `JudgeSteps`. `held` are pairs that are never trained on."""

    steps: JudgeSteps

    def __init__(self, *args: Any, held: Sequence[JudgedPair], base: Any, **more: Any) -> None:
        self.held, self.base = held, base
        self._sums: Counter[str] = Counter()
        batches = [list(held)] if held else []
        super().__init__(*args, held_out=batches, **more)

    # --- what is told ---

    def compute_loss(self, *args: Any, **more: Any) -> Any:
        found = super().compute_loss(*args, **more)
        for name, value in self.base.judge_parts.items():
            self._sums[name] += value
        return found

    def log(self, logs: dict[str, float], *args: Any, **more: Any) -> None:
        if "loss" in logs and self._sums:
            steps = max(1, self.state.global_step - self._since)
            self._since = self.state.global_step
            logs |= {f"judge_{name}": float(v) / steps for name, v in self._sums.items()}
            self._sums.clear()
        super().log(logs, *args, **more)

    _since = 0

    def train(self, *args: Any, **more: Any) -> Any:
        self._since = self.first
        return super().train(*args, **more)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out pairs: the loss of the verdict, and by stage how often the margin of both orders
        leans to the better candidate and how often both orders name the same place."""
        model = self.model_wrapped
        module = self.accelerator.unwrap_model(model, keep_torch_compile=True)
        model.eval()
        size, world = max(1, self.steps.micro // 2), self.steps.world
        ordered = sorted(self.held, key=lambda judged: judged.length)
        names = sorted({judged.pair.stage for judged in ordered})
        counts = torch.zeros(len(names), 3, dtype=torch.float64)  # pairs, right, flipped
        loss = torch.zeros(1, dtype=torch.float64)
        parts = [ordered[at : at + size] for at in range(0, len(ordered), size)]
        with torch.no_grad():
            for part in parts[self.steps.rank :: world]:
                totals = torch.tensor([2.0 * len(ordered), 1.0, 1.0])
                batch = self.steps.collate(part) | {"totals": totals}
                batch = self._prepare_inputs(batch)
                with self.accelerator.autocast():
                    margins = module(**batch)["margins"].double().cpu()
                loss += self.base.judge_parts["verdict"].double().cpu()
                for judged, (here, swapped) in zip(part, margins.tolist(), strict=True):
                    sign = 1 - 2 * judged.pair.better
                    row = counts[names.index(judged.pair.stage)]
                    row += torch.tensor([1.0, sign * (here - swapped) > 0, here * swapped > 0])
        model.train()
        if world > 1:
            for sums in (counts, loss):
                moved = sums.to(self.args.device)
                torch.distributed.all_reduce(moved)
                sums.copy_(moved)
        metrics = {"eval_loss": loss.item()}
        for name, (pairs, right, flipped) in zip(names, counts.tolist(), strict=True):
            metrics[f"judge_right_{name}"] = right / pairs
            metrics[f"judge_flips_{name}"] = flipped / pairs
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    # --- checkpoints: the head is kept beside the model, never in it ---

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with without_head(self.base) as head:
            super()._save(output_dir, None)
        if head is not None and self.args.should_save:
            from safetensors.torch import save_file

            file = self._folder(output_dir) / _HEAD_FILE
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()}, file
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if (head := getattr(self.base, HEAD, None)) is not None:
            from safetensors.torch import load_file

            head.load_state_dict(load_file(Path(resume_from_checkpoint) / _HEAD_FILE))


@contextmanager
def without_head(network: Any) -> Any:
    """The network without what was added for training; yields it (None if there is none)."""
    head = getattr(network, HEAD, None)
    if head is not None:
        delattr(network, HEAD)
    try:
        yield head
    finally:
        if head is not None:
            network.add_module(HEAD, head)


# --- one training ---


class JudgeRun(sft._Run):
    """`train`'s run, with a judge's data, loss and trainer."""

    def __init__(
        self,
        config: JudgeConfig,
        problems: Problems,
        done: Iterable[Done],
        measured: Sequence[Done],
        last: Path | None,
        minutes: float | None,
        tell: Callable[[str], None],
        show: Callable[[dict[str, Any]], None],
        step: Callable[[int, str], None] = lambda done, said: None,
    ) -> None:
        super().__init__(config.sft, config.output, last, minutes, tell, show, step)
        self.judge, self.problems = config, problems
        self.done, self.measured = list(done), measured

    def run(self) -> sft.TrainingOutcome:
        config, table = self.config, self.judge.judge
        micro = self._micro()
        self.source = loading.find_folder(sft._relative(config, model_path(config.model.path)))
        self.dropped = Profile.of(self.source).after_training()[1]
        self.tell(f"Loading {config.model.path} to train")
        whole = self.last if config.lora is None else None
        loaded = loading.load(
            whole or self.source,
            self._device(),
            config.model.dtype,
            BITS[config.quantize.bits] if config.quantize else None,
        )
        encoder = JudgeEncoder(Encoder(loaded), table.prompt, table.false_weight)
        limit = min(config.data.max_tokens or 10**9, loaded.adapter.text.max_position_embeddings)
        steps = JudgeSteps(
            *(self.judge, encoder, plan_of(self.judge), self.problems.train, self.done),
            micro=micro, limit=limit, rank=self.rank, world=self.world,
        )  # fmt: skip
        total = config.train.steps
        assert total is not None  # judge_config says so
        network = prepare(loaded, config)
        learn_judging(loaded.adapter, table, encoder.choices)
        held = self._watched(steps)
        trainer = JudgeTrainer(
            network,
            self._arguments(total, micro, bool(held), loaded.adapter.device.type),
            config,
            steps,
            first=self.first,
            held=held,
            base=loaded.adapter.model,
            processor_files=self.source,
            facts=self._facts(loaded, network) | {"config": self.judge.plain()},
            callbacks=[self.watch],
        )
        if self.first < total:
            if self.last is not None:
                self.tell(f"Going on from step {self.first:,} of {total:,}.")
            with self._interruptible():
                trainer.train(resume_from_checkpoint=self.last and str(self.last))
        return self._ended(trainer, loaded, total)

    def _watched(self, steps: JudgeSteps) -> list[JudgedPair]:
        """Held-out pairs that are looked at while training: as many of each stage, if there are."""
        by_stage: dict[str, list[JudgedPair]] = {}
        for each in self.measured:
            for pair in each.pairs:
                judged = steps.judged(each.index, pair, self.problems.held_out)
                by_stage.setdefault(pair.stage, []).append(judged)
        return [j for some in by_stage.values() for j in some[: _WATCHED // len(by_stage)]]

    def _ended(self, trainer: Any, loaded: Any, total: int) -> sft.TrainingOutcome:
        step = self._reached(trainer, total)
        model = self.output / "model" if step >= total else None
        if self.rank == 0 and model is not None:
            if self.first < total or not model.is_dir():
                with without_head(trainer.base):
                    card = self._card(trainer, record.machine(loaded.adapter, self.world))
                    save_model(trainer, loaded, self.config, self.source, self.output, card)
            profile = Profile.of(model)
            Profile("self", self.judge.judge.prompt, profile.likelihood_weight).write(model)
        trainer.accelerator.wait_for_everyone()
        return self._outcome(step, total, model)

    def _card(self, trainer: Any, machine: dict[str, Any]) -> str:
        """The model card, in Markdown: all of it was read or measured."""
        pairs = {at: len(found) for at, found in trainer.steps.by_stage.items()}
        rows = {
            "trained from": visible(self.config.model.path),
            "pairs": ", ".join(f"{at} {n:,}" for at, n in pairs.items()) or "corrupted ones alone",
            "data": visible(self.judge.pairs.data),
            "steps": f"{trainer.state.global_step:,} of {self.config.train.batch:,}, of which "
            f"{trainer.steps.corrupted:,} corrupted pairs and {trainer.steps.kept:,} answers",
            "trained weights": f"{trainer.facts['trained']:,} of {trainer.facts['parameters']:,}",
            "hours": f"{self.watch.seconds / 3600:.2f}",
            **machine,
        }
        lines = [f"| {key} | {visible(str(value))} |" for key, value in rows.items()]
        table = json.dumps(self.judge.plain(), indent=1)
        name = visible(self.output.name)
        return (
            f"# {name}\n\nTrained by cot-engine to judge pairs of its own candidates, asked with "
            f"the {self.judge.judge.prompt} prompt.\n\n| | |\n|---|---|\n"
            + "\n".join(lines)
            + f"\n\nThe configuration:\n\n```json\n{table}\n```\n"
        )
