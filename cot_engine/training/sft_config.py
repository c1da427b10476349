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
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from cot_engine.errors import ConfigError, CotEngineError, UnknownNameError, shown
from cot_engine.files.reading import parse_toml, read_toml

Config = TypeVar("Config")

FORMATS = ("staged", "no-tags", "direct")
SCHEDULES = ("linear", "cosine", "constant", "warmup-stable-decay")


def _text(default: Any = MISSING, *choices: str) -> Any:
    return _field(default, {"kind": "text", "choices": choices})


def _whole(default: Any, low: int, high: int) -> Any:
    return _field(default, {"kind": "whole", "low": low, "high": high})


def _number(default: Any, low: float, high: float) -> Any:
    return _field(default, {"kind": "number", "low": low, "high": high})


def _switch(default: bool) -> Any:
    return _field(default, {"kind": "switch"})


def _texts(default: tuple[str, ...]) -> Any:
    return _field(default, {"kind": "texts"})


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    return (
        field(metadata=metadata)
        if default is MISSING
        else field(default=default, metadata=metadata)
    )


@dataclass(frozen=True, slots=True)
class ModelTable:
    """[model]: `path` is a folder, a hub name or "bundled". `freeze` names modules whose weights
    stay as they are, by the beginning of their names; "vision" is the vision tower, whatever it is
    called. `dtype` is what the weights are kept in, `attention` transformers' implementation;
    `compile` compiles the language model with torch.compile."""

    path: str = _text()
    freeze: tuple[str, ...] = _texts(())
    dtype: str = _text("auto", "auto", "float32", "bfloat16")
    device: str = _text("auto")
    attention: str = _text("sdpa", "sdpa", "eager", "flash_attention_2", "flex_attention")
    compile: bool = _switch(False)


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

    rows: str | None = _text(None)
    images: str | None = _text(None)
    scenes: str | None = _text(None, "train")
    seed: int = _whole(2, 0, 2**31 - 1)
    held_out: str | float | None = _field(None, {"kind": "held_out"})
    skip_bad: bool = _switch(False)
    max_tokens: int | None = _whole(None, 16, 10_000_000)
    too_long: str = _text("error", "error", "drop", "cut")
    text_only: float = _number(0.0, 0, 1)
    text_first: float = _number(0.0, 0, 1)
    text_first_steps: int = _whole(0, 0, 10**9)
    hinted: float = _number(0.0, 0, 1)
    workers: int = _whole(1, 0, 64)


@dataclass(frozen=True, slots=True)
class LoraTable:
    """[lora]: low-rank adapters (Hu et al., 2021) by PEFT on the modules whose names end in one of
    `targets` ["auto": every linear layer of the language model]. `merge` also writes a model with
    the adapter merged in."""

    rank: int = _whole(16, 1, 4096)
    alpha: float = _number(32.0, 0, 65536)
    dropout: float = _number(0.0, 0, 0.99)
    targets: tuple[str, ...] = _texts(("auto",))
    merge: bool = _switch(True)


@dataclass(frozen=True, slots=True)
class QuantizeTable:
    """[quantize]: the frozen weights under a LoRA in 4 bits (nf4: QLoRA, Dettmers et al., 2023)
    or 8 bits, by bitsandbytes."""

    bits: int = _field(4, {"kind": "one", "choices": (4, 8)})


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

    steps: int | None = _whole(None, 1, 10**9)
    epochs: float | None = _number(None, 1e-6, 10_000)
    batch: int = _whole(32, 1, 1_000_000)
    micro_batch: int | None = _whole(None, 1, 100_000)
    learning_rate: float | None = _number(None, 0, 10)
    other_rate: float = _number(2e-3, 0, 10)
    warmup: float = _number(0.03, 0, 10**9)
    schedule: str = _text("cosine", *SCHEDULES)
    decay: float = _number(0.2, 0, 1)
    weight_decay: float = _number(0.0, 0, 1)
    betas: tuple[float, float] = _field((0.9, 0.999), {"kind": "betas"})
    clip: float = _number(1.0, 0, 1e6)
    optimizer: str = _text("adamw", "adamw", "muon")
    precision: str = _text("fp32", "fp32", "bf16")
    seed: int = _whole(0, 0, 2**31 - 1)
    save_every: int | None = _whole(None, 1, 10**9)
    keep: int = _whole(2, 1, 1000)
    eval_every: int | None = _whole(None, 1, 10**9)
    log_every: int = _whole(10, 1, 10**9)
    gradient_checkpointing: bool = _switch(False)


@dataclass(frozen=True, slots=True)
class SFTConfig:
    """A whole training. Raises ConfigError for values that do not fit together."""

    output: str
    model: ModelTable
    data: DataTable
    train: TrainTable
    format: str = "staged"
    lora: LoraTable | None = None
    quantize: QuantizeTable | None = None
    folder: Path = Path()

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
        table = asdict(self)
        del table["folder"]
        return json.loads(json.dumps(table))

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

_TABLES = {
    "model": ModelTable,
    "data": DataTable,
    "train": TrainTable,
    "lora": LoraTable,
    "quantize": QuantizeTable,
}
_TOP = ("output", "format", *_TABLES)


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
    path = Path(path)
    table = read_toml(path, "configuration", ConfigError)
    table |= {key: value for key, value in flags.items() if value is not None}
    for setting in settings:
        _set(table, setting)
    try:
        return parse(table, path.parent)
    except CotEngineError as error:
        message = f"{error.message.removesuffix('.')}, in {str(path)!r}."
        raise ConfigError(message, error.hint) from None


def parse_config(table: dict[str, Any], folder: Path = Path()) -> SFTConfig:
    """The training that a parsed TOML file describes. Raises ConfigError or UnknownNameError."""
    _known("key called", table, _TOP)
    for key in ("output", "format"):
        if key in table and (not isinstance(table[key], str) or not table[key].strip()):
            raise ConfigError(f"{key} is {shown(table[key])}.", "It must be a text.")
    if "output" not in table:
        raise ConfigError("output is missing.", 'Name the folder to write: output = "runs/NAME".')
    parts: dict[str, Any] = {}
    for name, kind in _TABLES.items():
        if name in table or name in ("model", "data", "train"):
            parts[name] = _table(name, kind, table.get(name, {}))
    return SFTConfig(
        output=table["output"], format=table.get("format", "staged"), folder=folder, **parts
    )


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


def _table(name: str, kind: type, values: Any) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{name} is {shown(values)}.", f"Write it as a table, [{name}].")
    known = {f.name: f for f in fields(kind)}
    _known(f"key of [{name}] called", values, known)
    for key, f in known.items():
        if f.default is MISSING and key not in values:
            raise ConfigError(f"[{name}] has no {key}.", f'Add it, such as {key} = "...".')
    checked = {key: _checked(f"{name}.{key}", known[key].metadata, v) for key, v in values.items()}
    return kind(**checked)


def _checked(name: str, rule: Any, value: Any) -> Any:
    """The value as its dataclass wants it. Raises ConfigError."""
    kind = rule["kind"]

    def wrong(must: str) -> ConfigError:
        return ConfigError(f"{name} is {shown(value)}.", f"It must be {must}.")

    if kind == "text":
        if not isinstance(value, str) or not value.strip():
            raise wrong("a text")
        if rule["choices"] and value not in rule["choices"]:
            raise wrong(" or ".join(rule["choices"]))
    elif kind == "switch":
        if not isinstance(value, bool):
            raise wrong("true or false")
    elif kind in ("whole", "number"):
        low, high = rule["low"], rule["high"]
        number = isinstance(value, (int, float) if kind == "number" else int)
        if not number or isinstance(value, bool) or not low <= value <= high:
            some = "a whole number" if kind == "whole" else "a number"
            raise wrong(f"{some}, {low:,} to {high:,}")
        return float(value) if kind == "number" else value
    elif kind == "texts":
        if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
            raise wrong('a list of texts, such as ["vision"]')
        return tuple(value)
    elif kind == "betas":
        pair = isinstance(value, list) and len(value) == 2
        if not pair or not all(isinstance(v, float) and 0 <= v < 1 for v in value):
            raise wrong("two numbers from 0 to less than 1")
        return tuple(value)
    elif kind == "one":
        if value not in rule["choices"] or isinstance(value, bool):
            raise wrong(" or ".join(map(str, rule["choices"])))
    elif kind == "held_out":
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        good = number and 0 < value < 2**63 and (value < 1 or value == int(value))
        if not good and not (isinstance(value, str) and value.strip()):
            raise wrong("a file, a whole number, or a share of the rows between 0 and 1")
    return value


def _known(what: str, table: dict[str, Any], known: Iterable[str]) -> None:
    for key in table:
        if key not in known:
            raise UnknownNameError(what, key, known)
