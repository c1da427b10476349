"""The backend `server` as a plug-in: what there is to choose, and the addresses that it opens."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args
from urllib.parse import parse_qsl

from cot_engine.backends.local.amount import check_pixels
from cot_engine.backends.server.dialect import Dialect, Task
from cot_engine.backends.server.http import Line, check_base_url, is_exposed
from cot_engine.errors import ConfigError, ModelError, UnknownNameError, shown

if TYPE_CHECKING:
    from cot_engine.backends.replicas import Replicas
    from cot_engine.backends.server.backend import ServerBackend
    from cot_engine.backends.server.pooling import PoolingBackend
    from cot_engine.backends.server.sizes import Sizes

KEY = "COT_ENGINE_API_KEY"
_OF: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "bool": {"true": True, "false": False}.__getitem__,
}


@dataclass(frozen=True, slots=True)
class Server:
    """A model behind an OpenAI-compatible server, such as vLLM or SGLang, by its address:
    http://host:8000/v1. Several with commas between them are replicas.

    `served` is what the server calls the model, if it has several. `key_env` names the environment
    variable with the key. At most `at_once` requests are open at a time on each replica, each for
    `timeout` seconds at most, retries included; `retries` are for what passes by itself. `sizes` is
    a folder with the model's config.json and tokenizer (its weights need not be there): with it
    floating-point operations are counted. `context` is the longest prompt and reply, in tokens,
    where the server does not say. Of a picture with more than `max_pixels` pixels a smaller one is
    sent. `task` is what it is asked for: chat, which searching takes, or of a reward model or a
    reranker its pooling, classify, score or rerank, for verifiers. `activation`: whether such a
    server lays its own last step on the numbers, a norm, a sigmoid or a softmax; None: not on what
    it pools, and on others as it was started. Any of these but `key_env` may stand behind the
    address: http://host:8000/v1#served=NAME&sizes=FOLDER.
    """

    models: ClassVar[str] = r"https?://.*"

    served: str | None = None
    key_env: str = KEY
    at_once: int = 128
    timeout: float = 600.0
    retries: int = 5
    sizes: str | Path | None = None
    context: int | None = None
    max_pixels: int | None = None
    task: Task = "chat"
    activation: bool | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("at_once", 1, 4096), ("retries", 0, 100)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(
                    f"{name} is {shown(value)}.", f"It must be a whole number, {low} to {high}."
                )
        if not 0 < self.timeout <= 86_400:
            raise ConfigError(f"timeout is {shown(self.timeout)}.", "It must be 0 to 86400.")
        check_pixels(self.max_pixels)
        if self.task not in get_args(Task):
            raise ConfigError(
                f"task is {shown(self.task)}.", f"It must be {' or '.join(get_args(Task))}."
            )
        if self.activation is not None and (
            type(self.activation) is not bool or self.task == "chat"
        ):
            raise ConfigError(
                f"activation is {shown(self.activation)}, and task {self.task}.",
                "It is true or false, for a server that pools, classifies, scores or reranks.",
            )
        if self.context is not None and self.context < 16:
            raise ConfigError(f"context is {shown(self.context)}.", "It must be 16 at least.")

    def open(
        self, model: str, *, on_notice: Callable[[str], None] | None = None
    ) -> ServerBackend | PoolingBackend | Replicas:
        """Connect, and find out what the server can do. Raises ModelError for one that is not
        there or cannot continue a message, and InputError for an address or a parameter that will
        not do."""
        from cot_engine.backends.replicas import Replicas
        from cot_engine.backends.server.verdicts import SAID

        addresses, own = split(str(model))
        how = replace(self, **own)
        sizes = how._sizes()
        with ThreadPoolExecutor(len(addresses)) as pool:  # each is waited for
            opened = list(pool.map(lambda at: how._one(str(model), at, sizes), addresses))
        notes = dict.fromkeys(note for each in opened for note in each.info.notes)
        notes.pop(SAID["token ids"], None)  # as it should be
        for note in notes:
            with suppress(Exception):  # it is no part of what is computed
                on_notice and on_notice(note)
        return opened[0] if len(opened) == 1 else Replicas(opened, on_notice)

    def probe(self, model: str) -> list[tuple[str, Dialect]]:
        """What each of the servers can do, by its address. Raises as `open` does."""
        addresses, own = split(str(model))
        how = replace(self, **own)
        return [(address, how._found(address)[1]) for address in addresses]

    def _sizes(self) -> Sizes | None:
        if self.sizes is None:
            return None
        from cot_engine.backends.server.sizes import Sizes

        return Sizes(self.sizes)

    def _one(self, name: str, address: str, sizes: Sizes | None) -> ServerBackend | PoolingBackend:
        from cot_engine.backends.server.backend import ServerBackend

        if self.task != "chat":
            return self._pooling(name, address, sizes)

        asking, dialect = self._found(address)
        notes = [*self._exposed(asking.line), *dialect.notes]
        if sizes is None:
            notes.append(
                "The model's sizes are not known: no floating-point operations are counted "
                "(sizes=FOLDER names a folder with its config.json); give budgets in tokens."
            )
        return ServerBackend(
            asking, replace(dialect, notes=tuple(notes)), name, sizes, self.max_pixels
        )

    def _found(self, address: str) -> tuple[Any, Dialect]:
        """The server, ready to be asked, and what it can do."""
        from cot_engine.backends.server.asking import Asking
        from cot_engine.backends.server.probe import Probe

        key = os.environ.get(self.key_env, "").strip()
        line = Line(address, key, "The model's address")
        asking = Asking(line, self.at_once, self.timeout, self.retries)
        # Whoever opens it waits: what does not answer at once is said to be gone at once.
        first = Asking(line, self.at_once, min(self.timeout, 120.0), min(self.retries, 2))
        probe = Probe(first, self.served, self.context)

        async def find() -> Dialect:
            try:
                return await probe.dialect()
            finally:
                await line.aclose()

        return asking, _apart(find)

    def _pooling(self, name: str, address: str, sizes: Sizes | None) -> PoolingBackend:
        """A server that gives numbers: what it calls its model is all that is found out."""
        from cot_engine.backends.server.asking import Asking
        from cot_engine.backends.server.pooling import PoolingBackend

        line = Line(address, os.environ.get(self.key_env, "").strip(), "The model's address")
        asking = Asking(line, self.at_once, self.timeout, self.retries)
        first = Asking(line, self.at_once, min(self.timeout, 120.0), min(self.retries, 2))

        async def find() -> dict[str, Any]:
            try:
                return await first.value("models")
            finally:
                await line.aclose()

        listed = _apart(find).get("data")
        models = {m["id"]: m for m in listed if isinstance(m, dict) and "id" in m} if listed else {}
        served = self.served or next(iter(models), None)
        if served is None or (models and served not in models):
            known = ", ".join(map(str, models)) or "none"
            raise ModelError(
                f"The server at {line.base_url} has no model {shown(served)}.", f"It has: {known}."
            )
        said = models.get(served, {}).get("max_model_len")
        context = self.context or (said if type(said) is int and said > 0 else 32_768)
        notes = tuple(self._exposed(line))
        return PoolingBackend(
            *(asking, self.task, str(served), context, name, sizes, self.max_pixels, notes),
            activation=self.activation,
        )

    def _exposed(self, line: Line) -> list[str]:
        if not (line.has_key and is_exposed(line.base_url)):
            return []
        return ["The key goes to another machine unencrypted (http, not https)."]


def sizes_of(model: str) -> str | None:
    """The folder that an address names for the model's sizes; None for what is no address, too.
    Raises as `split` does."""
    sizes = split(model)[1].get("sizes") if re.fullmatch(Server.models, model) else None
    return None if sizes is None else str(sizes)


def split(model: str) -> tuple[list[str], dict[str, Any]]:
    """The addresses in a model's name, and the parameters that stand behind them. Raises
    ConfigError and UnknownNameError."""
    text, _, behind = model.partition("#")
    addresses = [check_base_url(part.strip(), "The model's address") for part in text.split(",")]
    if len(set(addresses)) < len(addresses):
        raise ConfigError("An address is named twice.", "Name each replica once.")
    own: dict[str, Any] = {}
    if behind and "=" not in behind:
        raise ConfigError(
            f"{shown(behind)} stands behind the address.", f"Do you mean #served={behind}?"
        )
    known = {f.name: str(f.type) for f in fields(Server)}
    for name, value in parse_qsl(behind, keep_blank_values=True):
        if name == "key_env":  # whoever writes a grid could have any secret sent to himself
            raise ConfigError(
                "key_env stands behind the address, and may be anybody's word.",
                f"Put the key into {KEY}, or give key_env to Engine.from_pretrained.",
            )
        if name not in known:
            raise UnknownNameError("parameter of a server called", name, known)
        kind = known[name].split(" ")[0]
        try:
            own[name] = _OF.get(kind, str)(value)
        except (KeyError, ValueError):
            wanted = "true or false" if kind == "bool" else "a number"
            raise ConfigError(f"{name} is {shown(value)}.", f"Give {wanted}.") from None
    return addresses, own


def _apart(work: Callable[[], Any]) -> Any:
    """The result of asynchronous work, which may be asked for where an event loop runs already."""
    done: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(asyncio.run(work()))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
