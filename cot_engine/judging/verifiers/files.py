"""Verifiers from small TOML files and by name: the one place where these become objects.

    kind = "token"                       # token, head or text
    model = "../Skywork-VL-Reward-7B"    # left out: the model that searches
    [[turns]]
    text = "{question}"

What a key means is said where its kind is: `tokens`, `heads`, `texts`, and for all `asked`.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from cot_engine.core.tables import Text, from_table, located, must, unknown
from cot_engine.errors import ConfigError, UnknownNameError, shown
from cot_engine.files.reading import read_bytes, read_toml
from cot_engine.judging.protocol import Judge, Scorer
from cot_engine.judging.verifiers.heads import HeadVerifier
from cot_engine.judging.verifiers.scale import Aggregate
from cot_engine.judging.verifiers.texts import TextJudge, TextVerifier
from cot_engine.judging.verifiers.tokens import TokenJudge, TokenVerifier
from cot_engine.judging.verifiers.words import Steps, Turn, Words

SUFFIX = ".toml"
FOLDER = Path(__file__).parent / "recipes"
KINDS: dict[tuple[str, bool], type] = {
    ("token", False): TokenVerifier,
    ("token", True): TokenJudge,
    ("head", False): HeadVerifier,
    ("text", False): TextVerifier,
    ("text", True): TextJudge,
}
KIND_NAMES = tuple(dict.fromkeys(kind for kind, _ in KINDS))
_number = Annotated[
    float, must("a finite number", lambda v: type(v) in (int, float) and abs(v) < 1e300, float)
]
_options = Annotated[
    dict[str, Any],
    must("a table of plain values", lambda v: isinstance(v, dict) and all(map(_plain, v.values()))),
]


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


@dataclass(frozen=True, slots=True)
class Table:
    """All that a file may say; None: it does not."""

    kind: Literal["token", "head", "text"]
    pairwise: bool = False
    about: Text | None = None
    model: Words | None = None
    backend: Text | None = None
    options: _options | None = None
    turns: tuple[Turn, ...] | None = None
    ask: Text | None = None
    steps: Steps | None = None
    sentence: Text | None = None
    sentences: dict[str, Words] | None = None
    opens: bool | None = None
    aggregate: Aggregate | None = None
    low: _number | None = None
    high: _number | None = None
    centre: _number | None = None
    spread: _number | None = None
    choices: tuple[str, ...] | None = None
    number: Literal["probability", "logit"] | None = None
    values: tuple[_number, ...] | None = None
    least_mass: _number | None = None
    head: Text | None = None
    output: int | None = None
    sigmoid: bool | None = None
    digest: Text | None = None
    pattern: Text | None = None
    length: int | None = None
    missing: _number | None = None
    first: tuple[str, ...] | None = None
    second: tuple[str, ...] | None = None
    tie: tuple[str, ...] | None = None


class Verifier:
    """Verifiers from files and by name."""

    @staticmethod
    def from_toml(path: str | Path, **changed: Any) -> Any:
        """The verifier in a file: a Scorer, or where it says `pairwise` a Judge. `changed` goes
        before what stands there, such as `model`, which may be a backend that is open, or "" for
        the model that searches. A relative path of a model or a head is one from the file's folder.
        Raises ConfigError naming the file and the key."""
        table = read_toml(path, "verifier", ConfigError)
        with located(path):
            return made({**table, **changed}, Path(path).parent)

    @staticmethod
    def recipe(name: str, **changed: Any) -> Any:
        """One of those that ship (`recipes()`), such as "yes-no", with `changed` as in
        `from_toml`. Raises UnknownNameError, and ConfigError."""
        if name not in recipes():
            raise UnknownNameError("recipe called", name, recipes())
        return Verifier.from_toml(FOLDER / f"{name}{SUFFIX}", **changed)


def recipes() -> list[str]:
    """The names of the verifiers that ship."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def all_names() -> list[str]:
    """The names that stand for verifiers without a file: kinds and recipes."""
    return [*KIND_NAMES, *recipes()]


def is_verifier(name: str) -> bool:
    """Whether a name, its parameters left aside, is a kind of verifier, a recipe's or a file's."""
    return name in KIND_NAMES or name.endswith(SUFFIX) or name in recipes()


def types() -> dict[str, Any]:
    """The types of what a verifier may be given beside its name."""
    return typing.get_type_hints(Table)


def named(name: str, parameters: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The verifier that a name with its parameters stands for. A model or a head in these is a path
    from here, not from the file. Raises ConfigError and UnknownNameError."""
    changed = {k: list(v) if isinstance(v, tuple) else v for k, v in parameters.items()}
    for key in ("model", "head"):
        if isinstance(found := changed.get(key), str) and os.path.exists(found):
            changed[key] = os.path.abspath(found)
    if name in KIND_NAMES:
        return made({"kind": name, **changed}, Path())
    return Verifier.from_toml(_file(name), **changed)


def source(name: str) -> bytes:
    """What a verifier of that name is made from beside code: its file. Raises ConfigError."""
    return b"" if name in KIND_NAMES else read_bytes(_file(name), "verifier", ConfigError)


def _file(name: str) -> Path:
    return Path(name).expanduser() if name.endswith(SUFFIX) else FOLDER / f"{name}{SUFFIX}"


def made(table: Mapping[str, Any], folder: Path) -> Scorer | Judge:
    """The verifier of a table; relative paths are from `folder`. Raises ConfigError."""
    open_model = None if isinstance(table.get("model", ""), str) else table["model"]
    if open_model is not None:  # a backend, which no file can hold
        if not callable(getattr(open_model, "generate", None)):
            raise ConfigError(
                f"model is {shown(open_model)}.",
                "It must be a text: a folder, a name or an address; or a backend that is open.",
            )
        table = {k: v for k, v in table.items() if k not in ("model", "backend", "options")}
    given = from_table(Table, dict(table))
    if "key_env" in (given.options or {}):  # whoever wrote it could have any secret sent to himself
        raise ConfigError("options has key_env.", "Put the key into COT_ENGINE_API_KEY.")
    part = KINDS.get((given.kind, given.pairwise))
    if part is None:
        raise ConfigError(
            f"The kind {given.kind} is not pairwise.",
            "Its numbers compare any two: leave pairwise out.",
        )
    values = {f.name: getattr(given, f.name) for f in fields(Table)}
    values = {k: v for k, v in values.items() if v is not None}
    for key in ("kind", "pairwise", "about"):
        values.pop(key, None)
    known = {f.name for f in fields(part) if f.init}
    for key in values:
        if key not in known:
            raise unknown(key, known, f"verifier of kind {given.kind}")
    for key in ("model", "head"):
        if isinstance(found := values.get(key), str):
            values[key] = _path(found, folder)
    _check_options(values.get("options", {}))
    values["model"] = open_model or values.get("model") or None
    verifier: Scorer | Judge = part(**values)
    return verifier


def _check_options(options: Mapping[str, Any]) -> None:
    """A key that stands in a file is read by whoever reads the file; what names the variable that
    holds one could have any secret sent to an address that stands beside it."""
    for key in options:
        if "key" in key.lower() or "token" in key.lower():
            raise ConfigError(
                f"The options have {shown(key)}.",
                "Keys come from the environment: COT_ENGINE_API_KEY is the one that is sent.",
            )


def _path(text: str, folder: Path) -> str:
    """A path from the folder, where there is something; a name or an address as it is."""
    beside = folder / Path(text).expanduser()
    if "://" not in text and (beside.exists() or text.startswith((".", "~", os.sep))):
        return os.path.abspath(beside)
    return text
