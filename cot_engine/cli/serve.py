"""`cot-engine serve`: check what is cheap to check, listen, load the model, serve until it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from cot_engine.errors import ConfigError, CotEngineError, TraceError, install
from cot_engine.files.writing import check_writable
from cot_engine.options.config import RunConfig
from cot_engine.options.layers import SERVE_KEY_FILE, SERVE_KEYS, load_config

_FLAGS = {
    **{name: f"--max-{name}" for name in ("queue", "n", "pictures", "upload")},
    **{name: f"--{name}" for name in ("per", "grace")},
    **{"pixels": "--max-picture", "seconds": "--timeout"},
}
"""What the command line calls the fields of Limits and Allowance."""


def run(
    config_file: str | None,
    flags: dict[str, Any],
    *,
    host: str,
    port: int,
    name: str | None,
    hosts: list[str],
    limits: dict[str, Any],
    quiet: bool,
) -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise CotEngineError(f"Serving needs {error.name}.", install("serve")) from None
    from cot_engine.cli import process
    from cot_engine.engine.facade import BUNDLED, Engine, profile_path
    from cot_engine.judging.profile import Profile
    from cot_engine.serve.desk import Desk, resolved_within
    from cot_engine.serve.guard import LOOPBACK
    from cot_engine.serve.keys import keys_from
    from cot_engine.serve.server import address_of, is_loopback, listening

    config = load_config(config_file, os.environ, flags)
    allowed = limits_of(config, limits)
    resolved_within(Profile.of(profile_path(config.model)), config, {}, allowed.allowance.n)
    keys, clients = keys_from(os.environ, allowed.allowance)
    allowed = allowed.with_clients(clients)
    if not keys and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets other machines ask, and there are no API keys.",
            f"Whoever reaches it could spend this machine and read others' traces: set {SERVE_KEYS}"
            f" or {SERVE_KEY_FILE}, or leave --host out.",
        )
    # On the loopback a page elsewhere could ask under a name of its own that leads here.
    known = LOOPBACK if is_loopback(host) else frozenset[str]()
    names = known | {each.lower() for each in hosts}

    if config.model == BUNDLED:
        process.small_model()

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    with listening(host, port) as at:  # before what takes long
        say(f"Loading {config.model}.")
        with Engine.from_pretrained(**config.of_engine, on_notice=say) as engine:
            from cot_engine.serve.app import make_app
            from cot_engine.serve.page import routes as page
            from cot_engine.serve.server import serve

            desk = Desk(engine, allowed, config)
            called = name or _called(config.model, engine.backend.info.digest)
            app = make_app(
                *(desk, called),
                keys=keys,
                hosts=names,
                routers=[page.router()],
                public=("/health", *page.PUBLIC),
            )
            where = address_of(host, at.getsockname()[1])
            print(f"{where}/v1 serves {called}; {where}/ is a page to ask at.", flush=True)
            serve(app, desk, at, say, quiet)


def limits_of(config: RunConfig, given: dict[str, Any]) -> Any:
    """The limits of the command line. Raises ConfigError."""
    from cot_engine.serve.limits import Allowance, Limits

    values = {key: value for key, value in given.items() if value is not None}
    own = {key: values.pop(key) for key in ("budget", "total", "per", "n") if key in values}
    if "folder" in values:
        values["folder"] = Path(values["folder"])
        if values["folder"].exists() and not values["folder"].is_dir():
            raise ConfigError(f"--traces {values['folder']} is a file.", "Name a folder.")
        check_writable(values["folder"] / "trace.jsonl", "A trace", TraceError)
    try:
        return Limits(**values, allow_url=config.allow_url, allowance=Allowance(**own))
    except ConfigError as error:
        name, space, rest = error.message.partition(" ")
        raise ConfigError(_FLAGS.get(name, name) + space + rest, error.hint) from None


def _called(model: str, digest: str) -> str:
    """What clients call it: no path of this machine, and no address of another, whose own name for
    it is what its weights are known by."""
    if "://" in model:
        return digest.partition(" ")[0]
    return Path(model).resolve().name if Path(model).is_dir() else model
