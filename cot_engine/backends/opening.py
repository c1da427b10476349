"""From what a user calls a model to the backend that answers for it: the only way there is."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cot_engine import plugins
from cot_engine.backends.local.opener import BUNDLED, Local
from cot_engine.backends.local.opener import profile_path as _local_profile
from cot_engine.backends.protocol import Backend, Opener
from cot_engine.backends.server.opener import Server, sizes_of
from cot_engine.core.parts import Part, guard
from cot_engine.errors import ConfigError, StrategyError, shown

BACKENDS: dict[str, Callable[..., Opener]] = {"local": Local, "server": Server}
"""Those with a name that need no package. `local` opens what no other one claims."""

_LOCAL = frozenset(field.name for field in fields(Local))
_log = logging.getLogger("cot_engine")


def open_backend(
    model: str | Path,
    backend: str | Opener | None = None,
    parameters: Mapping[str, Any] = MappingProxyType({}),
    *,
    on_notice: Callable[[str], None] | None = None,
) -> Backend:
    """Open a model. `backend` says by which kind: an opener, or its name (which may have parameters
    in brackets); None: the kind that claims models called so, else `local`.

    Raises ModelError, ConfigError for a parameter that only a model in this process has, and what
    `plugins.make` raises.
    """
    backend = backend_of(model) if backend is None else backend
    _check_own(model, backend, parameters)
    opener = plugins.make("backend", backend, parameters)
    part = Part("backend", opener, backend if isinstance(backend, str) else "")
    with guard(part):
        opened = opener.open(str(model), on_notice=on_notice)
    if isinstance(opened, type) or not isinstance(opened, Backend):
        part.broke(f"opened {shown(opened)}", "It needs the methods of a Backend.")
    return opened


def profile_path(model: str | Path) -> str | Path:
    """Where a model's profile would be: in its folder, of a hub name where it was downloaded, of a
    server in the folder that its address names. Raises InputError for an address that will not
    do."""
    return _local_profile(sizes_of(str(model)) or model)


def _check_own(model: str | Path, backend: str | Opener, parameters: Mapping[str, Any]) -> None:
    """Raises ConfigError for parameters of `local` that this backend does not have."""
    name = plugins.spelled(backend)[0] if isinstance(backend, str) else ""
    if name in ("", "local"):
        return
    own = {*plugins.parameters("backend", name)}
    odd = [key for key in parameters if key not in own and key in _LOCAL]
    if odd:
        raise ConfigError(
            f"{', '.join(odd)} is for a model in this process; {shown(str(model))} is opened by "
            f"the backend {name}.",
            "Leave it out. What a server runs, on what and how, is said where it is started.",
        )


def backend_of(model: str | Path) -> str:
    """The name of the backend that opens a model called so. Raises ConfigError if several do.

    A folder is `local`'s, whatever others claim; so is the bundled model. One that cannot be
    imported claims nothing.
    """
    text, claims = str(model), []
    if text == BUNDLED or os.path.isdir(text):
        return "local"
    for name in plugins.names("backend"):
        try:
            claimed = getattr(plugins.load("backend", name), "models", None)
        except StrategyError as error:
            _log.warning("%s", error.message)
            continue
        if isinstance(claimed, str) and re.fullmatch(claimed, text):
            claims.append(name)
    if len(claims) > 1:
        raise ConfigError(
            f"Several backends open a model called {shown(text)}: {', '.join(claims)}.",
            f"Say which: Engine.from_pretrained(model, backend={claims[0]!r}).",
        )
    return claims[0] if claims else "local"
