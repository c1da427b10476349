"""What `cot-engine train` does, read from one TOML file and checked before anything is loaded.

    output = "runs/my-model"
    format = "staged"              # "no-tags": the stages' texts alone; "direct": the bare answer

    [model]
    path = "llava-hf/llava-1.5-7b-hf"
    freeze = ["vision"]

    [data]
    rows = "train.jsonl"           # or scenes = "train": the bundled synthetic world
    images = "pictures"
    held_out = 0.02

    [train]
    epochs = 1
    batch = 64
    micro_batch = 4
    learning_rate = 1e-5

    [lora]                         # leave it out to train all weights that are not frozen
    rank = 16

Every key is a field of one of the tables below, whose docstrings say what it does. Paths are
relative to the file's folder, but `output`, which is relative to where the command runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cot_engine.core.plain import plain
from cot_engine.core.tables import Text, between, from_table, is_text, located, must
from cot_engine.errors import ConfigError, UnknownNameError, shown
from cot_engine.files.reading import parse_toml, read_extended

Config = TypeVar("Config")

FORMATS = ("staged", "no-tags", "direct")
Schedule = Literal["linear", "cosine", "constant", "warmup-stable-decay"]


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _is_held_out(value: Any) -> bool:
    if type(value) not in (int, float):
        return is_text(value)
    return 0 < value < 2**63 and (value < 1 or value == int(value))


def _is_betas(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, float) and 0 <= v < 1 for v in value)
    )


Texts = Annotated[tuple[str, ...], must('a list of texts, such as ["vision"]', _are_texts, tuple)]
Seed = Annotated[int, between(0, 2**31 - 1)]
Share = Annotated[float, between(0, 1)]
Count = Annotated[int, between(1, 10**9)]
Betas = Annotated[tuple[float, float], must("two numbers from 0 to less than 1", _is_betas, tuple)]
HeldOut = Annotated[
    str | float,
    must("a file, a whole number, or a share of the rows between 0 and 1", _is_held_out),
]


@dataclass(frozen=True, slots=True)
class ModelTable:
    """[model]: `path` is a folder, a hub name or "bundled". `freeze` names modules whose weights
    stay as they are, by the beginning of their names; "vision" is the vision tower, whatever it is
    called. `dtype` is what the weights are kept in, `attention` transformers' implementation;
    `compile` compiles the language model with torch.compile."""

    path: Text
    freeze: Texts = ()
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Text = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    compile: bool = False


@dataclass(frozen=True, slots=True)
class DataTable:
    """[data]: either `rows`, a file of LLaVA-CoT-100k's format with its pictures in the folder
    `images`, or `scenes`, a split of the bundled world, without end, drawn from `seed`.

    `held_out`: a file of rows; or how many of the rows (or scenes of the split "val") are kept
    from training for the held-out loss; less than 1 is a share of the rows. `skip_bad` leaves out
    rows that cannot be read and those whose picture is missing, instead of stopping. `max_tokens`
    is the longest example, image tokens included [what the model takes]; `too_long` what happens
    to longer ones: "error", "drop", or "cut" (the answer's end is lost). `text_only` and `hinted`
    are shares of the scenes: described instead of shown; asked to be brief or to be detailed (half
    each). Before step `text_first_steps` the share of described ones is `text_first`. `workers`
    are processes that prepare batches; with 0 it is done between steps."""

    rows: Text | None = None
    images: Text | None = None
    scenes: Literal["train"] | None = None
    seed: Seed = 2
    held_out: HeldOut | None = None
    skip_bad: bool = False
    max_tokens: Annotated[int, between(16, 10_000_000)] | None = None
    too_long: Literal["error", "drop", "cut"] = "error"
    text_only: Share = 0.0
    text_first: Share = 0.0
    text_first_steps: Annotated[int, between(0, 10**9)] = 0
    hinted: Share = 0.0
    workers: Annotated[int, between(0, 64)] = 1


@dataclass(frozen=True, slots=True)
class LoraTable:
    """[lora]: low-rank adapters (Hu et al., 2021) by PEFT on the modules whose names end in one of
    `targets` ["auto": every linear layer of the language model]. `merge` also writes a model with
    the adapter merged in."""

    rank: Annotated[int, between(1, 4096)] = 16
    alpha: Annotated[float, between(0, 65536)] = 32.0
    dropout: Annotated[float, between(0, 0.99)] = 0.0
    targets: Texts = ("auto",)
    merge: bool = True


@dataclass(frozen=True, slots=True)
class QuantizeTable:
    """[quantize]: the frozen weights under a LoRA in 4 bits (nf4: QLoRA, Dettmers et al., 2023)
    or 8 bits, by bitsandbytes."""

    bits: Literal[4, 8] = 4


@dataclass(frozen=True, slots=True)
class TrainTable:
    """[train]: `steps` optimizer steps, or `epochs` of the rows; `batch` examples a step, of which
    `micro_batch` [all] at a time on each device. `learning_rate` is AdamW's, or with optimizer =
    "muon" Muon's, for the matrices inside the layers, and `other_rate` AdamW's for the rest.
    `warmup` is a number of steps, or a share of them if less than 1; with "warmup-stable-decay"
    the rate falls linearly to 0 over the last `decay` (a share). `weight_decay` acts on matrices;
    `clip` is the largest norm of the gradient [0: off]. `precision`: the arithmetic ("bf16" is
    autocast where the weights are float32). Every `save_every` steps [a tenth of all] a checkpoint
    is written, of which `keep` stay; every `eval_every` steps [as save_every] the held-out loss is
    measured."""

    steps: Count | None = None
    epochs: Annotated[float, between(1e-6, 10_000)] | None = None
    batch: Annotated[int, between(1, 1_000_000)] = 32
    micro_batch: Annotated[int, between(1, 100_000)] | None = None
    learning_rate: Annotated[float, between(0, 10)] | None = None
    other_rate: Annotated[float, between(0, 10)] = 2e-3
    warmup: Annotated[float, between(0, 10**9)] = 0.03
    schedule: Schedule = "cosine"
    decay: Share = 0.2
    weight_decay: Share = 0.0
    betas: Betas = (0.9, 0.999)
    clip: Annotated[float, between(0, 1e6)] = 1.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: Seed = 0
    save_every: Count | None = None
    keep: Annotated[int, between(1, 1000)] = 2
    eval_every: Count | None = None
    log_every: Count = 10
    gradient_checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class SFTConfig:
    """A whole training. Raises ConfigError for values that do not fit together."""

    output: Text
    model: ModelTable
    data: DataTable
    train: TrainTable
    format: Text = "staged"
    lora: LoraTable | None = None
    quantize: QuantizeTable | None = None
    folder: Path = field(default=Path(), metadata={"read": False})

    def __post_init__(self) -> None:
        data, train = self.data, self.train
        if self.format not in FORMATS:
            raise UnknownNameError("format called", self.format, FORMATS)
        if (data.rows is None) == (data.scenes is None):
            raise ConfigError(
                "[data] needs either rows or scenes.",
                'Such as rows = "train.jsonl", or scenes = "train" for the bundled world.',
            )
        if data.scenes is not None:
            _only(data, ("images", "skip_bad"), "rows")
            if isinstance(data.held_out, str) or 0 < (data.held_out or 0) < 1:
                raise ConfigError(
                    f"held_out is {data.held_out!r}.", "Of scenes, give how many, such as 512."
                )
            if data.too_long == "drop":
                raise ConfigError('too_long is "drop".', "Scenes have no end: use error or cut.")
        else:
            _only(data, ("text_only", "text_first", "text_first_steps", "hinted"), "scenes")
        if (train.steps is None) == (train.epochs is None):
            raise ConfigError("[train] needs either steps or epochs.", "Such as steps = 1000.")
        if train.epochs is not None and data.scenes is not None:
            raise ConfigError("[train] has epochs.", "Scenes have no end: give steps.")
        micro = train.micro_batch
        if micro is not None and train.batch % micro:
            raise ConfigError(
                f"batch is {train.batch} and micro_batch is {micro}.",
                "The batch must be a multiple of the micro-batch.",
            )
        if self.quantize is not None and self.lora is None:
            raise ConfigError(
                "[quantize] stands without [lora].",
                "Quantised weights cannot be trained themselves: add a [lora] table.",
            )
        if self.lora is not None and train.optimizer == "muon":
            raise ConfigError('optimizer is "muon".', 'Use "adamw" with [lora].')

    @property
    def rate(self) -> float:
        """The peak learning rate: what [train] says, or what suits the kind of training."""
        if self.train.learning_rate is not None:
            return self.train.learning_rate
        return 0.01 if self.train.optimizer == "muon" else 2e-4 if self.lora else 1e-5

    def plain(self) -> dict[str, Any]:
        """The configuration as JSON has it, without its folder."""
        return plain(self)

    def hash(self) -> str:
        """16 hex digits over all that decides what is learnt."""
        text = json.dumps(_deciding(self.plain()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


# What may differ between the runs that make up one training.
_FREE = {"train": {"save_every", "keep", "eval_every", "log_every"}, "data": {"workers"}}
_FREE_MODEL = {"device", "compile", "attention"}


def _deciding(plain: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in plain.items() if key != "output"}
    for table, free in (*_FREE.items(), ("model", _FREE_MODEL)):
        kept[table] = {key: value for key, value in kept[table].items() if key not in free}
    return kept


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """ "train.batch was 32 and is 64", ... of two plain configurations, where it matters."""
    found = []
    before, now = _flat(_deciding(before)), _flat(_deciding(now))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            found.append(f"{key} was {before.get(key)!r} and is {now.get(key)!r}")
    return found


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        here = prefix + key
        flat |= _flat(value, f"{here}.") if isinstance(value, dict) else {here: value}
    return flat


def _only(table: Any, keys: Iterable[str], owner: str) -> None:
    defaults = {f.name: f.default for f in fields(table)}
    for key in keys:
        if getattr(table, key) != defaults[key]:
            raise ConfigError(f"[data] has {key}, which belongs to {owner}.", "Leave it out.")


# --- reading -------------------------------------------------------------------------------------


def load_config(path: str | Path, settings: Iterable[str] = (), **flags: Any) -> SFTConfig:
    """Read a training's configuration. `settings` are "train.steps=100", ...; `flags` replace keys
    of the top. Raises ConfigError naming the file, the key and what is allowed."""
    return read_config(path, parse_config, settings, **flags)


def read_config(
    path: str | Path,
    parse: Callable[[dict[str, Any], Path], Config],
    settings: Iterable[str] = (),
    **flags: Any,
) -> Config:
    """What `parse` makes of a TOML file's table and folder, its errors with the file's name."""
    table, extended = read_extended(path, "configuration", ConfigError)
    table |= {key: value for key, value in flags.items() if value is not None}
    for setting in settings:
        _set(table, setting)
    with located(path, *extended):
        return parse(table, Path(path).parent)


def parse_config(table: dict[str, Any], folder: Path = Path()) -> SFTConfig:
    """The training that a parsed TOML file describes. Raises ConfigError or UnknownNameError."""
    needed: dict[str, Any] = {"model": {}, "data": {}, "train": {}}
    return replace(from_table(SFTConfig, needed | table), folder=folder)


def _set(table: dict[str, Any], setting: str) -> None:
    """Apply "train.steps=100"; a value that is no TOML is a text."""
    key, sign, value = setting.partition("=")
    if not sign or not key.strip():
        raise ConfigError(
            f"--set got {shown(setting)}.", "Write KEY=VALUE, such as train.steps=100."
        )
    try:
        parsed = parse_toml(f"value = {value}")["value"]
    except (ValueError, KeyError):
        parsed = value.strip()
    *tables, last = key.strip().split(".")
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set got {shown(setting)}.", f"{name} is not a table.")
    table[last] = parsed
