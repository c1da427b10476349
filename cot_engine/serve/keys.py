"""Who may ask: API keys, from the environment only, with what each may spend."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cot_engine.core.tables import Text, from_table, located, must
from cot_engine.errors import ConfigError
from cot_engine.files.reading import read_toml
from cot_engine.options.layers import SERVE_KEY_FILE, SERVE_KEYS
from cot_engine.serve.limits import Allowance

LEAST = 16
"""Characters of a key. A shorter one can be guessed."""
_HOW = f"Make one: python -c 'import secrets; print(secrets.token_urlsafe())'; set {SERVE_KEYS}."
_NAME = must("1 to 64 letters, digits, - or _", lambda v: isinstance(v, str) and _is_name(v))


def _is_name(text: str) -> bool:
    return (
        0 < len(text) <= 64 and text.isascii() and text.replace("-", "").replace("_", "").isalnum()
    )


@dataclass(frozen=True, slots=True)
class _Key:
    name: Annotated[str, _NAME]
    key: Text
    budget: str | None = None
    total: str | None = None
    per: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class _File:
    key: tuple[_Key, ...]


class Keys:
    """The keys of all clients, by name. They are kept as digests, and compared in a time that
    says nothing about them."""

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        self._digests = {name: _digest(key) for name, key in (keys or {}).items()}

    def __bool__(self) -> bool:
        return bool(self._digests)

    def client(self, key: str) -> str | None:
        """Whose key it is; None if it is nobody's."""
        found, digest = None, _digest(key)
        for name, own in self._digests.items():  # all of them, whichever it is
            if hmac.compare_digest(own, digest):
                found = name
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def keys_from(
    environment: Mapping[str, str], default: Allowance
) -> tuple[Keys, dict[str, Allowance]]:
    """The keys that the environment names, and what their clients may spend: `default`, but for
    what a file says of them. Raises ConfigError."""
    found: dict[str, str] = {}
    allowances: dict[str, Allowance] = {}
    listed = [key.strip() for key in environment.get(SERVE_KEYS, "").split(",") if key.strip()]
    for number, key in enumerate(listed, 1):
        found[f"key-{number}"] = key
    if path := environment.get(SERVE_KEY_FILE):
        with located(path):
            for each in from_table(_File, read_toml(Path(path), "file of keys", ConfigError)).key:
                if each.name in found:
                    raise ConfigError(f"There are two keys {each.name!r}.", "Rename one.")
                found[each.name] = each.key
                allowances[each.name] = _allowance(each, default)
    for name, key in found.items():
        if len(key) < LEAST:
            raise ConfigError(
                f"The API key {name!r} has {len(key)} characters; the least is {LEAST}.", _HOW
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                f"The API key {name!r} has characters that no header can carry.", _HOW
            )
    if len({*found.values()}) < len(found):
        raise ConfigError("Two API keys are the same.", "Give each client its own.")
    return Keys(found), allowances


def _allowance(each: _Key, default: Allowance) -> Allowance:
    own = {
        name: value
        for name in ("budget", "total", "per", "n")
        if (value := getattr(each, name)) is not None
    }
    values = {name: getattr(default, name) for name in ("budget", "total", "per", "n")}
    return Allowance(**{**values, **own})
