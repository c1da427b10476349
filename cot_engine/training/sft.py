"""One training, from its configuration to a model folder: set up, resumed, run, saved."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_engine.errors import ConfigError, InputError, ModelError, StoreError, install
from cot_engine.files.outputs import check_outputs
from cot_engine.files.writing import write_whole
from cot_engine.training.sft_config import SFTConfig, differences

OURS = {"checkpoints", "log.jsonl", "model", "adapter", "README.md", "curves.svg", "runs"}
"""What a training writes into its output."""


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a run of `train` came to. `model` is the folder of the finished model, None while steps
    are left; `loss` is the last one logged."""

    output: Path
    step: int
    steps: int
    model: Path | None
    loss: float | None
    held_out_loss: float | None
    seconds: float
    stopped: str = ""

    def plain(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in self.__slots__}
        return found | {"output": str(self.output), "model": self.model and str(self.model)}


def train(
    config: SFTConfig,
    *,
    minutes: float | None = None,
    resume: bool = False,
    restart: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    show: Callable[[dict[str, Any]], None] = lambda _: None,
    step: Callable[[int, str], None] = lambda done, said: None,
) -> TrainingOutcome:
    """Train until the last step, or for `minutes`, or until Ctrl-C; go on from the newest
    checkpoint of config.output, if there is one by the same configuration.

    `resume` insists on a checkpoint; `restart` throws the old ones away. `tell` gets sentences,
    `show` each row of log.jsonl with its "progress" ("120 of 3,000 (4 %), about 2 h 5 min left"),
    `step` between them how many steps are done and the same. Raises CotEngineError for everything
    that the user can mend.
    """
    output = Path(config.output)
    _check_sources(config, output)
    _needs()
    import torch

    from cot_engine.training.trainer import checkpoints

    _check_output(output)
    if restart:
        for old in checkpoints(output):
            shutil.rmtree(old)
        for name in ("log.jsonl",):
            (output / name).unlink(missing_ok=True)
    found = checkpoints(output)
    if resume and not found:
        raise InputError(
            f"{str(output)!r} has no checkpoint to go on from.", "Leave --resume out to start."
        )
    last = found[-1] if found else None
    if last is not None:
        _same_training(json.loads((last / "training.json").read_text("utf-8")), config, last)
    torch.manual_seed(config.train.seed)
    return _Run(config, output, last, minutes, tell, show, step).run()


class _Run:
    def __init__(
        self,
        config: SFTConfig,
        output: Path,
        last: Path | None,
        minutes: float | None,
        tell: Callable[[str], None],
        show: Callable[[dict[str, Any]], None],
        step: Callable[[int, str], None] = lambda done, said: None,
    ) -> None:
        from cot_engine.training.trainer import Watch

        self.config, self.output, self.last = config, output, last
        self.first = int(last.name) if last is not None else 0
        self.facts = json.loads((last / "training.json").read_text("utf-8")) if last else None
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.tell = tell if self.rank == 0 else (lambda _: None)
        self.rows: list[dict[str, Any]] = _kept_log(output / "log.jsonl", self.first, self.rank)
        log = output / "log.jsonl" if self.rank == 0 else None
        seconds = None if minutes is None else 60 * minutes

        def shown(row: dict[str, Any]) -> None:
            self.rows.append(row)
            show(row)

        self.watch = Watch(log, self.first, seconds, config.train.batch, shown, step)
        self.watch.spent = next((r["seconds"] for r in self.rows[::-1] if "seconds" in r), 0.0)

    def run(self) -> TrainingOutcome:
        from cot_engine.backends.local import loading
        from cot_engine.engine.facade import model_path
        from cot_engine.judging.profile import Profile
        from cot_engine.training.examples import Encoder
        from cot_engine.training.network import BITS, prepare
        from cot_engine.training.stream import Steps, held_out_batches, load_corpus
        from cot_engine.training.trainer import AnswerTrainer, learn_answers

        config = self.config
        micro = self._micro()
        self.source = loading.find_folder(_relative(config, model_path(config.model.path)))
        self.dropped = Profile.of(self.source).after_training()[1]
        self.tell(f"Loading {config.model.path}")
        # All weights were trained: they are read by the model's own loader, which knows the names
        # they were saved under. Trainer's would leave out, silently, those it does not know.
        whole = self.last if config.lora is None else None
        loaded = loading.load(
            whole or self.source,
            self._device(),
            config.model.dtype,
            BITS[config.quantize.bits] if config.quantize else None,
        )
        encoder = Encoder(loaded)
        text = loaded.adapter.text
        limit = min(config.data.max_tokens or 10**9, text.max_position_embeddings)
        corpus = load_corpus(config, encoder, limit)
        for note in corpus.notes:
            self.tell(f"Note: {note}")
        total = config.train.steps or self._steps_of(corpus.train)
        if self.first >= total:
            self.tell(f"All {total:,} steps are done.")
        steps = Steps(
            corpus.train,
            encoder,
            config,
            micro=micro,
            limit=limit,
            rank=self.rank,
            world=self.world,
        )
        held = held_out_batches(corpus.held_out, corpus.held, steps) if corpus.held else []
        network = prepare(loaded, config)
        learn_answers(loaded.adapter.model)
        trainer = AnswerTrainer(
            network,
            self._arguments(total, micro, bool(held), loaded.adapter.device.type),
            config,
            steps,
            first=self.first,
            held_out=held,
            processor_files=self.source,
            facts=self._facts(loaded, network),
            callbacks=[self.watch],
        )
        if self.last is not None and self.first < total:
            self.tell(f"Going on from step {self.first:,} of {total:,}.")
        if self.first < total:
            with self._interruptible():
                trainer.train(resume_from_checkpoint=str(self.last) if self.last else None)
        return self._finished(trainer, loaded, corpus, total)

    def _facts(self, loaded: Any, network: Any) -> dict[str, Any]:
        """What a checkpoint says of itself. Raises ModelError if the newest one grew from other
        weights than those at model.path now."""
        from cot_engine.backends.local.digest import digest_of
        from cot_engine.backends.local.folder import weight_files

        digest = digest_of(weight_files(self.source))
        if self.facts is not None and self.facts["digest"] != digest:
            raise ModelError(
                f"The checkpoint {str(self.last)!r} grew from other weights than those that "
                f"{self.config.model.path!r} holds now.",
                "Put the old ones back, name another output, or use --restart.",
            )
        parameters = list(network.parameters())
        return {
            "config": self.config.plain(),
            "architecture": loaded.architecture,
            "digest": digest,
            "parameters": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
        }

    def _finished(self, trainer: Any, loaded: Any, corpus: Any, total: int) -> TrainingOutcome:
        from cot_engine.training import record
        from cot_engine.training.network import save_model

        step = self._reached(trainer, total)
        names = ["model"] if self.config.lora is None else ["adapter", "model"]
        names = names[:1] if self.config.lora and not self.config.lora.merge else names
        made = [self.output / name for name in names]
        if step >= total:
            if self.rank == 0 and (self.first < total or not all(p.is_dir() for p in made)):
                text = record.card(
                    self.config,
                    trainer.facts,
                    self.rows,
                    record.machine(loaded.adapter, self.world),
                    steps=step,
                    seconds=self.watch.seconds,
                    examples=len(corpus.train) if self.config.data.rows else None,
                    held=corpus.held,
                    note=self.dropped,
                )
                save_model(trainer, loaded, self.config, self.source, self.output, text)
                if self.dropped and "model" in names:
                    self.tell(f"Note: {self.dropped}")
            trainer.accelerator.wait_for_everyone()
        model = self.output / "model" if step >= total and "model" in names else None
        return self._outcome(step, total, model)

    def _reached(self, trainer: Any, total: int) -> int:
        """The step at which training ended, its curves drawn. Raises ModelError if it diverged."""
        from cot_engine.training import record
        from cot_engine.training.trainer import checkpoints

        step = trainer.state.global_step if self.first < total else self.first
        if self.watch.diverged is not None:
            kept = checkpoints(self.output)
            raise ModelError(
                f"Step {step:,}: the loss is not a number any more.",
                "Lower train.learning_rate or train.clip and start again with --restart"
                + (
                    f", or with another output and model.path = {str(kept[-1])!r}." if kept else "."
                ),
            )
        if self.rank == 0:
            record.draw_curves(self.rows, self.output / "curves.svg")
        return step

    def _outcome(self, step: int, total: int, model: Path | None) -> TrainingOutcome:
        losses = [row["loss"] for row in self.rows if "loss" in row]
        held = [row["held_out_loss"] for row in self.rows if "held_out_loss" in row]
        return TrainingOutcome(
            self.output,
            step,
            total,
            model,
            losses[-1] if losses else None,
            held[-1] if held else None,
            round(self.watch.seconds, 2),
            "" if step >= total else "interrupted" if self.watch.stop else "time",
        )

    def _arguments(self, total: int, micro: int, held: bool, device: str) -> Any:
        from transformers import TrainingArguments

        train = self.config.train
        save = train.save_every or max(1, total // 10)
        pure = self.config.model.dtype == "bfloat16"  # nothing to cast
        return TrainingArguments(
            output_dir=str(self.output),
            max_steps=total,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=train.batch // (micro * self.world),
            max_grad_norm=train.clip,
            bf16=train.precision == "bf16" and not pure,
            use_cpu=device == "cpu",
            seed=train.seed,
            logging_steps=train.log_every,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=save,
            eval_strategy="steps" if held else "no",
            eval_steps=train.eval_every or save,
            ddp_find_unused_parameters=self.world > 1,
            ignore_data_skip=True,
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )

    def _micro(self) -> int:
        batch = self.config.train.batch
        if batch % self.world:
            raise ConfigError(
                f"batch is {batch}, and there are {self.world} processes.",
                "The batch is that of all together: make it a multiple of them.",
            )
        micro = self.config.train.micro_batch or batch // self.world
        if batch % (micro * self.world):
            raise ConfigError(
                f"batch is {batch}, micro_batch {micro}, and there are {self.world} processes.",
                f"The batch must be a multiple of {micro * self.world}.",
            )
        return micro

    def _steps_of(self, rows: Any) -> int:
        train = self.config.train
        # The configuration has steps or epochs, and scenes, which have no end, have steps.
        assert train.epochs is not None
        return max(1, round(train.epochs * len(rows) / train.batch))

    def _device(self) -> str:
        import torch

        device = self.config.model.device
        local = os.environ.get("LOCAL_RANK")
        if device == "auto" and local is not None and torch.cuda.is_available():
            return f"cuda:{local}"
        return device

    def _interruptible(self) -> Any:
        """The first Ctrl-C asks for a checkpoint at the end of the step; the second one stops."""
        from contextlib import contextmanager

        @contextmanager
        def held():
            if threading.current_thread() is not threading.main_thread():
                yield
                return

            here = os.getpid()

            def asked(*_: Any) -> None:
                if os.getpid() != here:  # a worker that prepares batches: it is told to end
                    return
                if self.watch.stop:
                    raise KeyboardInterrupt
                self.watch.stop = True
                self.tell("Stopping after this step, with a checkpoint; Ctrl-C again to stop now.")

            before = {s: signal.signal(s, asked) for s in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        return held()


# --- checks --------------------------------------------------------------------------------------


def _needs() -> None:
    try:
        import accelerate  # noqa: F401
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"Training needs {error.name}, which is not installed.",
            install("train"),
        ) from error


def _relative(config: SFTConfig, path: Any) -> Any:
    """A model folder given relative to the configuration's folder, or to the current one."""
    beside = config.folder / str(path)
    return beside if not os.path.isdir(path) and os.path.isdir(beside) else path


def _check_sources(config: SFTConfig, output: Path) -> None:
    """Raises InputError for what is learnt from, if the training would write over it."""
    data = config.data
    named = {"rows": data.rows, "images": data.images, "held_out": data.held_out}
    files = [(f"data.{k},", config.folder / v) for k, v in named.items() if isinstance(v, str)]
    model = ("model.path,", _relative(config, config.model.path))
    check_outputs([("output", output / name) for name in OURS], [*files, model])


def _check_output(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        foreign = [p.name for p in output.iterdir() if not p.name.startswith(".")]
    except OSError as error:
        raise InputError(
            f"The output {str(output)!r} cannot be used: {error.strerror}.", "Name another folder."
        ) from None
    if foreign and not OURS & set(foreign):
        raise InputError(
            f"The output {str(output)!r} holds other files: {', '.join(sorted(foreign)[:3])}.",
            "Name an empty folder, or one that a training made.",
        )


def _same_training(facts: dict[str, Any], config: Any, last: Path) -> None:
    found = differences(facts["config"], config.plain())
    if found:
        raise ConfigError(
            f"The checkpoint {str(last)!r} is from another configuration: "
            + "; ".join(found[:5])
            + ("; ..." if len(found) > 5 else "."),
            "Set it back, name another output, or use --restart to throw the checkpoints away.",
        )


def _kept_log(path: Path, first: int, rank: int) -> list[dict[str, Any]]:
    """The log up to the checkpoint: what a killed run wrote after it is done again."""
    rows = []
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line that a kill cut off
                continue
            if row["step"] <= first:
                rows.append(row)
        if rank == 0:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_whole(path, text, "The log", StoreError)
    return rows
