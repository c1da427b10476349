"""The backend `local` as a plug-in: what there is to choose, without loading torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cot_engine.backends.local.backend import LocalBackend

BUNDLED = "bundled"


def model_path(model: str | Path) -> str | Path:
    """The folder of the bundled model for its name; anything else as it is."""
    return Path(__file__).parents[2] / "bundled" if model == BUNDLED else model


@dataclass(frozen=True, slots=True)
class Local:
    """One model in this process, from a folder, by a name on the Hugging Face hub, or "bundled".

    The parameters are those of `LocalBackend.load`.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantize: Literal["8bit", "4bit"] | None = None
    max_rows: int | None = None

    def open(self, model: str, *, on_notice: Callable[[str], None] | None = None) -> LocalBackend:
        """Load it. "bundled" means the same model on every machine, its path does not: it keeps
        its name. Raises ModelError."""
        from cot_engine.backends.local.backend import LocalBackend

        return LocalBackend.load(model_path(model), on_notice=on_notice, name=model, **asdict(self))
