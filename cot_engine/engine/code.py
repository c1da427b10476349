"""Which code made a result: the version, and a digest of every source that can change one."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cot_engine import plugins
from cot_engine.backends.opening import backend_of
from cot_engine.errors import CotEngineError
from cot_engine.options.auto import is_auto, possible

if TYPE_CHECKING:
    from cot_engine.judging.profile import Profile
    from cot_engine.options.config import RunConfig

# What only shows results, scores them anew or makes models cannot change what a search with a given
# model does. Questions that a benchmark's reader gives are named by all that is in them.
_ASIDE = frozenset(
    "answering benchmarks cli show report serve training __main__.py testing statistics.py".split()
)
_OF_ABLATION = ("matching.py", "worth.py", "runner.py")  # the rest of it only stores and reports


def code_version(configs: Iterable[RunConfig], profile: Profile) -> str:
    """Such as "cot-engine 0.1.0 (3fa9c1d2) torch 2.13.0 transformers 5.23.0".

    The digest in brackets is over this package's sources and those of the strategies, judges,
    verifiers and backends that the configurations name, wherever they come from, and over what the
    model's profile has to say to these judges, and of strategies if one is "auto": with one
    changed, no old result is counted.
    """
    digest = hashlib.sha256(_package().encode())
    parts: set[tuple[plugins.Kind, str]]
    configs = tuple(configs)
    if left_open := [config for config in configs if is_auto(config.strategy)]:
        digest.update(repr((profile.auto, sorted((profile.sample or {}).items()))).encode())
        configs = tuple(config for config in configs if not is_auto(config.strategy))
        configs += tuple(each for config in left_open for each in possible(profile, config))
    parts = {("strategy", config.strategy) for config in configs}
    parts |= {("judge", config.judge) for config in configs if config.judge != "auto"}
    parts |= {("backend", backend_of(config.model)) for config in configs}
    parts |= {("scorer", name) for config in configs for name in _verifiers(config, profile)}
    for kind, name in sorted(parts):
        digest.update(f"{kind} {name}".encode() + _source(kind, name))
        if kind == "judge" and (given := profile.parameters(name)):
            digest.update(repr(given).encode())
    versions = [f"cot-engine {_version('cot-engine')} ({digest.hexdigest()[:8]})"]
    versions += [f"{name} {_version(name)}" for name in ("torch", "transformers")]
    return " ".join(versions)


def _verifiers(config: RunConfig, profile: Profile) -> set[str]:
    """The scorers that a strategy's parameters name, if it has one for that."""
    part = plugins.load("strategy", config.strategy)
    defaults = {f.name: f.default for f in fields(part)} if is_dataclass(part) else {}
    given = {**defaults, **config.parameters, **plugins.spelled(config.strategy)[1]}
    named = {value for key in ("verifier", "scorer") if isinstance(value := given.get(key), str)}
    return {profile.verifier or "likelihood" if name == "auto" else name for name in named}


@functools.cache
def _package() -> str:
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        aside = inside.parts[0] in _ASIDE
        if not aside and (inside.parts[0] != "ablation" or inside.name in _OF_ABLATION):
            digest.update(inside.as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _source(kind: plugins.Kind, name: str) -> bytes:
    if kind in ("judge", "scorer") and plugins.is_verifier(name):
        return plugins.source_of(name)
    part = plugins.load(kind, name)
    try:
        file = inspect.getsourcefile(part if callable(part) else type(part))
        if file is None:
            raise OSError("it has no file")
        return Path(file).read_bytes()
    except (TypeError, OSError) as error:
        raise CotEngineError(
            f"The source of the {kind} {name!r} cannot be read: {error}.",
            "Results are filed by it: install the package that has it as source.",
        ) from None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
