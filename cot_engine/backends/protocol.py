"""What a model must be able to do for a search: answer stateless requests, sharing prefixes itself.

A request says everything: this prompt, this much of the reply so far, continue until there. What
a backend can reuse (an encoded image, keys and values of a prefix) it keeps behind this interface.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from cot_engine.core.requests import (
    BackendInfo,
    Choose,
    Chosen,
    Generate,
    Generated,
    Measure,
    Measured,
)
from cot_engine.core.usage import Usage
from cot_engine.errors import InputError, shown


@runtime_checkable
class Backend(Protocol):
    """Implementations must pass `cot_engine.testing.check_backend`; one that runs its model in this
    process `check_exact` too.

    All methods may be called from many searches at once, on one event loop.
    """

    @property
    def info(self) -> BackendInfo:
        """What the model is, the same for as long as it is loaded."""
        ...

    async def generate(self, request: Generate) -> Generated:
        """Sample one continuation per seed. In this process candidate i depends on its seed and
        prefix alone: on other rows only by rounding, which at float32 changes the last digits of
        its log-probability and at lower precision may change what is drawn.

        `max_new_tokens` is cut to what the context holds. Raises InputError if prompt + prefix
        leave no room for a single token.
        """
        ...

    async def choose(self, request: Choose) -> Chosen:
        """Log-probabilities of the choices after each tail, generating nothing."""
        ...

    def estimate(self, request: Generate | Choose) -> Usage:
        """The most that this request can cost, given what its scope holds already. Used to reserve
        before a call.

        `decoded` is len(seeds) * max_new_tokens for a Generate. Who does not know what the model
        reads in its own tokens gives the other units as well as it can.
        """
        ...

    def release(self, scope: str) -> None:
        """Forget what was kept for a search. Unknown scopes are fine."""
        ...

    def close(self) -> None:
        """Stop and free the model. Requests in flight end, and later ones, with a ModelError."""
        ...


@runtime_checkable
class Measuring(Backend, Protocol):
    """A backend that also tells what its model makes of texts that are there: what verifiers by
    tokens and by heads need."""

    async def measure(self, request: Measure) -> Measured:
        """Numbers at places of dialogues, generating nothing. Raises InputError for what this
        model cannot be asked."""
        ...

    def estimate(self, request: Generate | Choose | Measure) -> Usage:
        """As of any backend, of a Measure too."""
        ...


def measuring(backend: Backend) -> Measuring:
    """The backend, if it can measure. Raises InputError."""
    if isinstance(backend, Measuring):
        return backend
    raise InputError(
        f"The backend {shown(backend.info.name)} tells nothing of texts that are there already, so"
        " that no verifier by tokens or by a head can be asked of it.",
        "Bind the verifier to a model of its own (model = FOLDER or an address), or use one that is"
        " asked in writing: kind text.",
    )


class Opener(Protocol):
    """How a kind of backend comes to a model: the plug-in kind "backend" (see `plugins`).

    A frozen dataclass; its fields are the parameters, such as a device. It may have a `models`, a
    regular expression: it then opens what is called so where nobody names a backend.
    """

    def open(self, model: str, *, on_notice: Callable[[str], None] | None = None) -> Backend:
        """The backend for a model as its user calls it. `on_notice` is told, in any thread, what
        the user should know. Raises ModelError if there is no such model."""
        ...
