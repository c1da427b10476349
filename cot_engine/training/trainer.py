"""Hugging Face's Trainer, told how our examples come, how loss is taken, and how to save safely."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

from cot_engine.errors import ModelError, StoreError, said
from cot_engine.training.clock import Clock
from cot_engine.training.examples import IGNORE
from cot_engine.training.folders import is_full, put_folder
from cot_engine.training.muon import Muon
from cot_engine.training.network import take_over
from cot_engine.training.sft_config import SFTConfig
from cot_engine.training.stream import Steps, loader

CHECKPOINTS = "checkpoints"


def learn_answers(network: torch.nn.Module) -> None:
    """Give a vision-language model a forward that returns the loss of the answer's tokens alone.

    The output layer runs only where a token is learnt: over a long prompt and a vocabulary of a
    hundred thousand words, the logits nobody needs would be most of the memory. It is the model's
    own forward, not a wrapper, so that DDP, PEFT and autocast see it.
    """

    def forward(
        self: Any,
        labels: torch.Tensor,
        num_items_in_batch: Any = None,
        pictured: torch.Tensor | None = None,
        **inputs: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        hidden = states(self, inputs, pictured)[-1][:, :-1]
        learnt = labels[:, 1:] != IGNORE
        logits = self.lm_head(hidden[learnt]).float()
        loss = F.cross_entropy(logits, labels[:, 1:][learnt], reduction="sum")
        return {"loss": loss if num_items_in_batch is None else loss / num_items_in_batch}

    network.forward = MethodType(forward, network)


def states(
    network: Any,
    inputs: dict[str, torch.Tensor],
    pictured: torch.Tensor | None,
    layer: int | None = None,
) -> tuple[torch.Tensor, ...]:
    """The last layer's states of a batch, after those of `layer` where one is named. Rows that have
    other numbers of pictures (`pictured`; see `models.mllama`) go through the model apart."""

    def looked(**part: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = network.model(**part, use_cache=False, output_hidden_states=layer is not None)
        inner = () if layer is None else (out.hidden_states[layer],)
        return *inner, out.last_hidden_state

    if pictured is None:
        return looked(**inputs)
    groups = [(n, pictured == n) for n in pictured.unique().tolist()]
    found = [looked(**_shown(inputs, rows, n)) for n, rows in groups]
    order = torch.cat([rows.nonzero().flatten() for _, rows in groups]).argsort()
    return tuple(torch.cat(parts)[order] for parts in zip(*found, strict=True))


def _shown(
    inputs: dict[str, torch.Tensor], rows: torch.Tensor, pictures: int
) -> dict[str, torch.Tensor]:
    """The inputs of those rows of a batch, which have so many pictures each."""
    found = {"input_ids": inputs["input_ids"][rows]}
    if pictures:
        for key in inputs.keys() - found.keys():
            found[key] = inputs[key][rows][:, :pictures]
        found["cross_attention_mask"] = inputs["cross_attention_mask"][rows][:, :, :pictures]
    return found


class Optimizers(torch.optim.Optimizer):
    """Several optimizers as one, each with its own parameters and rates."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts keep their state in ours, so that it is saved and loaded as one."""
        at = 0
        for part in self.parts:
            size = len(part.param_groups)
            part.param_groups, part.state = self.param_groups[at : at + size], self.state
            at += size

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for part in self.parts:
            part.step()


def make_optimizer(network: torch.nn.Module, config: SFTConfig) -> torch.optim.Optimizer:
    """AdamW, or Muon for the matrices inside the layers and AdamW for the rest; weights decay in
    matrices alone."""
    train = config.train
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    if not trained:
        raise ModelError("Every weight is frozen.", "Freeze fewer modules, or add a [lora] table.")
    matrices = [p for _, p in trained if p.ndim >= 2]
    vectors = [p for _, p in trained if p.ndim < 2]
    if train.optimizer == "adamw":
        groups = [
            {"params": matrices, "weight_decay": train.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=config.rate, betas=train.betas, fused=None)
    inner = [
        p for name, p in trained if p.ndim == 2 and "embed" not in name and "lm_head" not in name
    ]
    chosen = set(map(id, inner))
    rest = [p for _, p in trained if id(p) not in chosen]
    muon = Muon(inner, lr=config.rate, weight_decay=train.weight_decay)
    adamw = torch.optim.AdamW(rest, lr=train.other_rate, betas=train.betas, weight_decay=0.0)
    return Optimizers(muon, adamw)


def make_schedule(optimizer: torch.optim.Optimizer, config: SFTConfig, steps: int) -> Any:
    """The learning rate's course over `steps`, by transformers' own curves."""
    train = config.train
    warmup = round(train.warmup * steps) if train.warmup < 1 else int(train.warmup)
    if train.schedule == "warmup-stable-decay":
        decay = round(train.decay * steps)
        more = {
            "num_stable_steps": max(0, steps - warmup - decay),
            "num_decay_steps": decay,
            "decay_type": "linear",
        }
        return get_scheduler(
            "warmup_stable_decay", optimizer, warmup, steps, scheduler_specific_kwargs=more
        )
    names = {"constant": "constant_with_warmup"}
    return get_scheduler(names.get(train.schedule, train.schedule), optimizer, warmup, steps)


class AnswerTrainer(Trainer):
    """Trainer over `Steps`, from step `first` on. Checkpoints appear whole or not at all:
    output/checkpoints/N is renamed from a folder beside it when all is written."""

    steps: Any  # `Steps`, or what deals its batches as these do

    def __init__(
        self,
        network: torch.nn.Module,
        args: TrainingArguments,
        config: SFTConfig,
        steps: Steps,
        *,
        first: int,
        held_out: list[list[Any]],
        processor_files: Path,
        facts: dict[str, Any],
        callbacks: list[TrainerCallback],
    ) -> None:
        optimizer = make_optimizer(network, config)
        schedule = make_schedule(optimizer, config, args.max_steps)
        super().__init__(
            network,
            args,
            eval_dataset=held_out or None,
            optimizers=(optimizer, schedule),
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        self.config, self.steps, self.first = config, steps, first
        self.held_out, self.processor_files, self.facts = held_out, processor_files, facts
        self.model_accepts_loss_kwargs = True  # our forward divides by the tokens of a whole step

    # --- data ------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        return loader(self.steps, self.first, self.args.max_steps, self.config.data.workers)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counting the parameters at every step is not free

    # --- held-out loss ---------------------------------------------------------------------------

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The mean loss of a held-out answer's token; each process takes its part."""
        model = self.model_wrapped
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for items in self.held_out[self.steps.rank :: self.steps.world]:
                batch = self._prepare_inputs(self.steps.collate(items))
                learnt = (batch["labels"][:, 1:] != IGNORE).sum()
                module = self.accelerator.unwrap_model(model, keep_torch_compile=True)
                with self.accelerator.autocast():
                    sums += torch.stack([module(**batch)["loss"].double(), learnt.double()])
        model.train()
        if self.steps.world > 1:
            torch.distributed.all_reduce(sums)
        metrics = {"eval_loss": (sums[0] / sums[1]).item()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    # --- checkpoints -----------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._folder() / ".saving")

    def _folder(self, given: str | None = None) -> Path:
        folder = given or self.args.output_dir
        assert folder is not None  # the arguments always name one
        return Path(folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output = self._folder()
        target = output / CHECKPOINTS / str(self.state.global_step)
        beside = output / ".saving"
        if target.exists():
            return
        failure = ""
        try:
            if self.args.should_save:
                shutil.rmtree(beside, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
        except Exception as error:
            if not is_full(error):
                raise
            failure = said(error)
        self.accelerator.wait_for_everyone()
        if failure:
            if self.args.should_save:
                shutil.rmtree(beside, ignore_errors=True)
            raise StoreError(
                f"Step {self.state.global_step}: the checkpoint cannot be written: {failure}.",
                "Free some space and give the same command again: it goes on from the checkpoint "
                "before.",
            )
        if self.args.should_save:
            made = beside / f"checkpoint-{self.state.global_step}"
            (made / "training.json").write_text(json.dumps(self.facts, indent=1))
            put_folder(made, target)
            with suppress(OSError):
                beside.rmdir()
            for old in checkpoints(output)[: -self.config.train.keep]:
                shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights were read when the model was loaded; an adapter's are read here."""
        if self.config.lora is not None:
            from cot_engine.training.adapters import load_adapter

            load_adapter(self.model, Path(resume_from_checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = self._folder(output_dir)
        network: Any = self.model
        folder.mkdir(parents=True, exist_ok=True)
        network.save_pretrained(folder, state_dict=state_dict)
        take_over(self.processor_files, folder)


def checkpoints(output: Path) -> list[Path]:
    """The whole checkpoints of a training, oldest first."""
    found = [p for p in (output / CHECKPOINTS).glob("*") if p.name.isdigit()]
    return sorted((p for p in found if (p / "training.json").is_file()), key=lambda p: int(p.name))


# --- what happens beside -------------------------------------------------------------------------


class Watch(TrainerCallback):
    """Stops at the time limit or on request, writes log.jsonl, and tells `show` of each row, with
    how far the training is. Between rows `step` hears of that, once a second at most."""

    def __init__(
        self,
        log: Path | None,
        first: int,
        seconds: float | None,
        batch: int,
        show: Callable[[dict[str, Any]], None],
        step: Callable[[int, str], None] = lambda done, said: None,
    ) -> None:
        self.log, self.first, self.limit, self.batch, self.show = log, first, seconds, batch, show
        self.step, self.told = step, 0.0
        self.clock = Clock(0, first, seconds)
        self.last_time = time.monotonic()
        self.last_step = first
        self.stop = False
        self.spent = 0.0  # seconds of training in earlier runs
        self.diverged: int | None = None

    @property
    def seconds(self) -> float:
        return self.spent + self.clock.seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.clock = Clock(args.max_steps, self.first, self.limit)
        self.last_time = self.clock.began

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        over = self.limit is not None and self.clock.seconds >= self.limit
        stop = self.stop or over
        if args.world_size > 1:  # all processes must stop at the same step
            flag = torch.tensor(float(stop), device=args.device)
            torch.distributed.all_reduce(flag)
            stop = bool(flag.item())
        if stop:
            control.should_save = control.should_training_stop = True
        if stop or state.global_step >= args.max_steps:
            control.should_log = True
        if self.log is not None and time.monotonic() - self.told >= 1:
            self.told = time.monotonic()
            self.step(state.global_step, self.clock.said(state.global_step))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        logs = logs or {}
        if "loss" not in logs and "eval_loss" not in logs:
            return
        row: dict[str, Any] = {"step": state.global_step}
        now = time.monotonic()
        if "eval_loss" in logs:
            row["held_out_loss"] = round(logs["eval_loss"], 6)
        else:
            examples = (state.global_step - self.last_step) * self.batch
            row |= {
                "loss": round(logs["loss"], 6),
                "learning_rate": logs["learning_rate"],
                "grad_norm": round(logs.get("grad_norm", 0.0), 6),
                "examples_per_second": round(examples / max(now - self.last_time, 1e-9), 2),
                "seconds": round(self.seconds, 2),
            }
            if not math.isfinite(logs["loss"]):
                self.diverged = state.global_step
                control.should_training_stop = True
                control.should_save = False
        row |= {k: round(v, 6) for k, v in logs.items() if k.startswith("judge_")}
        self.last_time, self.last_step = now, state.global_step  # measuring is no part of the rate
        if self.log is not None:
            with suppress(OSError), self.log.open("a") as file:  # a full disk fails at a checkpoint
                file.write(json.dumps(row) + "\n")
            self.show(row | {"progress": self.clock.said(state.global_step)})
