"""Where a RunConfig comes from: defaults < TOML file < environment (COT_ENGINE_*) < flags.

Every error names the value, where it stands, what is allowed, and near misses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cot_engine.core.stages import Plan
from cot_engine.errors import ConfigError, UnknownNameError, shown
from cot_engine.files.reading import named, read_toml
from cot_engine.options.config import KEYS, SHORT, RunConfig

PREFIX = "COT_ENGINE_"
TEACHER_KEY = "COT_ENGINE_TEACHER_KEY"
"""Where `data build` looks for the key of its server: no setting of a search."""
SERVE_KEYS, SERVE_KEY_FILE = "COT_ENGINE_SERVE_KEYS", "COT_ENGINE_SERVE_KEY_FILE"
"""Where `serve` looks for the keys of its clients, and for the name of a file with them."""
SERVER_KEY = "COT_ENGINE_API_KEY"
"""Where a model behind a server finds its key, unless key_env names another."""
_NO_OPTIONS = (TEACHER_KEY, SERVE_KEYS, SERVE_KEY_FILE, SERVER_KEY)


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
    own = {key: values[key] for key in SHORT if key in values}
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
        if name.startswith(PREFIX) and text and name not in _NO_OPTIONS:
            key = name.removeprefix(PREFIX).lower()
            if key not in (*KEYS, *SHORT):
                known = [PREFIX + known.upper() for known in (*KEYS, *SHORT)]
                known += _NO_OPTIONS
                error = UnknownNameError("environment variable called", name, known)
                raise ConfigError(error.message, error.hint)
            values[key] = typed(key, text)
    return values


def typed(key: str, text: str) -> Any:
    """The text of a variable or flag as a value of its field; nonsense stays text, and
    RunConfig says what is allowed."""
    if key == "parameters":
        return parse_parameters(text.split(","))
    if key in SHORT:
        return scalar(text)
    default = getattr(RunConfig(), key)
    number = key == "max_pixels" if default is None else not isinstance(default, (str, Plan))
    return scalar(text) if number else text


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
