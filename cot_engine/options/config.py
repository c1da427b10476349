"""One RunConfig from defaults < TOML file < environment (COT_ENGINE_*) < flags.

`RunConfig` is a plain frozen value that checks itself and does no input or output; `load_config`
reads the layers. Every error names the value, where it stands, what is allowed, and near misses.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from cot_engine.core.stages import DEFAULT_PLAN, DETAILS, Detail, Plan
from cot_engine.errors import ConfigError, InputError, UnknownNameError, shown
from cot_engine.files.reading import named, read_toml
from cot_engine.images.download import AllowUrl

MAX_N = 1024
"""The most candidates of one selection, and the most searches in flight."""
MAX_QUESTION = 20_000
"""Characters. It is some 5,000 tokens of English: beyond it the question is the wrong place."""
PREFIX = "COT_ENGINE_"
TEACHER_KEY = "COT_ENGINE_TEACHER_KEY"
"""Where `data build` looks for the key of its server: no setting of a search."""
_SHORT = ("n", "keep")  # parameters of a strategy that a layer may also give beside the others

_CHOICES: dict[str, tuple[Any, ...]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "quantize": (None, "8bit", "4bit"),
    "orders": ("both", "one"),
    "judge_image": ("seen", "blank", "swap"),
    "detail": DETAILS,
    "mode": ("auto", "trained", "prompted"),
}
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides how a question is answered, but the question and the images.

    `parameters` are those of the strategy (its dataclass fields, such as n and keep); `plan` is a
    Plan or the path of a TOML file with one; `budget` is an amount and a unit (see `parse_budget`).
    Raises ConfigError for a value of the wrong type or out of range.
    """

    model: str = "bundled"
    device: str = "auto"
    dtype: str = "auto"
    quantize: Literal["8bit", "4bit"] | None = None
    strategy: str = "stage-beam"
    parameters: dict[str, Any] = field(default_factory=dict, hash=False)
    judge: str = "auto"
    tournament: str = "knockout"
    orders: Literal["both", "one"] = "both"
    judge_image: Literal["seen", "blank", "swap"] = "seen"
    plan: Plan | str | Path = DEFAULT_PLAN
    detail: Detail = "normal"
    mode: Literal["auto", "trained", "prompted"] = "auto"
    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 50
    seed: int = 0
    budget: str | None = None
    in_flight: int = 32
    allow_url: AllowUrl = False

    def __post_init__(self) -> None:
        if isinstance(self.model, Path):
            object.__setattr__(self, "model", str(self.model))  # part of the hash, as a text
        for name in ("model", "strategy", "judge", "tournament"):
            _text(name, getattr(self, name))
        _text("device", self.device)
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(
                f"device is {shown(self.device)}.", "It must be auto, cpu, mps, cuda or cuda:N."
            )
        for name, allowed in _CHOICES.items():
            _one_of(name, getattr(self, name), allowed)
        if not isinstance(self.plan, (Plan, str, Path)):
            raise ConfigError(
                f"plan is {shown(self.plan)}.", "Give a Plan or the path of a TOML file."
            )
        if self.budget is not None:
            _text("budget", self.budget)
        _number("temperature", self.temperature, 0, 100)
        _number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise ConfigError("top_p is 0.", "It must be more than 0 and at most 1 (1: off).")
        _number("top_k", self.top_k, 0, 1_000_000, whole=True)
        _number("seed", self.seed, 0, 2**63 - 1, whole=True)
        _number("in_flight", self.in_flight, 1, MAX_N, whole=True)
        if not isinstance(self.allow_url, bool) and self.allow_url != "inner":
            said = f"allow_url is {shown(self.allow_url)}."
            raise ConfigError(said, 'It must be true, false or "inner".')
        if not isinstance(self.parameters, dict):
            raise ConfigError(f"parameters is {shown(self.parameters)}.", "Give names with values.")
        for name in ("n", "keep"):  # of every strategy that has them
            if name in self.parameters:
                _number(name, self.parameters[name], 1, MAX_N, whole=True)

    def hash(self) -> str:
        """16 hex digits that are equal for equal configurations, in any process and version of
        Python. A plan given as a path counts as that path."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plan = values["plan"]
        values["plan"] = asdict(plan) if isinstance(plan, Plan) else str(plan)
        text = json.dumps(values, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


KEYS = tuple(f.name for f in fields(RunConfig))


def check_question(question: str) -> str:
    """The question as it came, if it can be asked. Raises InputError."""
    if not isinstance(question, str):
        raise InputError(f"The question is a {type(question).__name__}.", "Give a text.")
    if not question.strip():
        raise InputError("The question is empty.", "Write what you want to know.")
    if len(question) > MAX_QUESTION:
        raise InputError(
            f"The question has {len(question):,} characters; the limit is {MAX_QUESTION:,}.",
            "Shorten it.",
        )
    try:
        question.encode()
    except UnicodeEncodeError:
        raise InputError(
            "The question holds bytes that are not UTF-8.", "Write it in UTF-8."
        ) from None
    return question


# --- the layers ----------------------------------------------------------------------------------


def load_config(
    file: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Defaults, then the TOML `file`, then COT_ENGINE_* of `environment`, then `flags`.

    A plan is read here, one named in the file relative to the file. Parameters of several layers
    add up, but a layer that names another strategy begins afresh: they belong to their strategy.
    """
    config = RunConfig()
    if file is not None:
        values = read_toml(file, "configuration", ConfigError)
        config = _apply(config, values, f" in {named(file)}", Path(file).parent)
    if environment is not None:
        values, where = _from_environment(environment), " in the environment"
        config = _apply(config, values, where, Path())
    return _apply(config, dict(flags or {}), "", Path())


def files_of(
    file: str | Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> list[tuple[str, str | Path | None]]:
    """What `load_config` reads of these layers, named as errors do. Raises ConfigError."""
    there = {} if file is None else read_toml(file, "configuration", ConfigError)
    plans = [(Path(file or "").parent, there), (Path(), {"plan": environment.get(PREFIX + "PLAN")})]
    plans.append((Path(), dict(flags)))
    named_plans = [(at, table.get("plan")) for at, table in plans]
    found = [("the plan", at / plan) for at, plan in named_plans if plan and isinstance(plan, str)]
    return [("the configuration", file), *found]


def _apply(config: RunConfig, values: dict[str, Any], where: str, folder: Path) -> RunConfig:
    own = {key: values[key] for key in _SHORT if key in values}
    if own and isinstance(values.get("parameters", {}), dict):
        rest = {key: value for key, value in values.items() if key not in own}
        values = rest | {"parameters": values.get("parameters", {}) | own}
    for key in values:
        if key not in KEYS:
            error = UnknownNameError(f"configuration key{where} called", key, KEYS)
            more = " A parameter of the strategy stands under [parameters]."
            raise ConfigError(error.message, error.hint + more)
    try:
        same = values.get("strategy", config.strategy) == config.strategy
        parameters = values.get("parameters", {})
        if same and isinstance(parameters, dict):
            parameters = {**config.parameters, **parameters}
        config = replace(config, **{**values, "parameters": parameters})
    except ConfigError as error:
        raise ConfigError(f"{error.message.removesuffix('.')}{where}.", error.hint) from None
    if not isinstance(config.plan, Plan):
        return replace(config, plan=Plan.from_toml(folder / config.plan))
    return config


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """COT_ENGINE_TOP_K=20 as {"top_k": 20}; empty ones do not count."""
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if name.startswith(PREFIX) and text and name != TEACHER_KEY:
            key = name.removeprefix(PREFIX).lower()
            if key not in (*KEYS, *_SHORT):
                known = [PREFIX + known.upper() for known in (*KEYS, *_SHORT)]
                error = UnknownNameError("environment variable called", name, known)
                raise ConfigError(error.message, error.hint)
            values[key] = typed(key, text)
    return values


def typed(key: str, text: str) -> Any:
    """The text of a variable or flag as a value of its field; nonsense stays text, and
    RunConfig says what is allowed."""
    if key == "parameters":
        return parse_parameters(text.split(","))
    if key in _SHORT:
        return scalar(text)
    default = getattr(RunConfig(), key)
    return text if default is None or isinstance(default, (str, Plan)) else scalar(text)


def parse_parameters(pairs: list[str]) -> dict[str, Any]:
    """["n=4", "mode=fast"] as {"n": 4, "mode": "fast"}. Raises ConfigError for another form."""
    parameters: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name.isidentifier() and equals and value):
            raise ConfigError(f"A parameter is {shown(pair)}.", "Write name=value, such as n=4.")
        parameters[name] = scalar(value)
    return parameters


def scalar(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# --- checks --------------------------------------------------------------------------------------


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name} is {shown(value)}.", "Give a text that is not empty.")


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        known = [item for item in allowed if item is not None]
        near = UnknownNameError(name, shown(value).strip("'"), known).hint
        listed = f"It must be {', '.join(known[:-1])} or {known[-1]}."
        hint = f"{near} {listed}" if near.startswith("Did") else listed
        raise ConfigError(f"{name} is {shown(value)}.", hint)


def _number(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    kinds = int if whole else (int, float)
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if not (good and low <= value <= high):  # NaN is not; no integer is turned into a float
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} is {shown(value)}.", f"It must be {kind} from {low} to {high}.")
