"""The backend `local` as a plug-in: what there is to choose, without loading torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cot_engine.backends.local.amount import SHARE, check_pixels, parse_memory
from cot_engine.backends.local.devices import device_list

if TYPE_CHECKING:
    from cot_engine.backends.local.backend import LocalBackend
    from cot_engine.backends.replicas import Replicas

BUNDLED = "bundled"


def model_path(model: str | Path) -> str | Path:
    """The folder of the bundled model for its name; anything else as it is."""
    return Path(__file__).parents[2] / "bundled" if model == BUNDLED else model


def profile_path(model: str | Path) -> str | Path:
    """Where a model's profile would be: `model_path`, of a hub name what has been downloaded."""
    from cot_engine.backends.local.hub import cached

    return cached(model) or model_path(model)


@dataclass(frozen=True, slots=True)
class Local:
    """One model in this process, from a folder, by a name on the Hugging Face hub, or "bundled".

    `device` is auto, cuda, cuda:1, mps or cpu, or several with commas between them, each with a
    replica: cuda:0,cuda:1; `dtype` auto, float32, bfloat16 or float16;
    `quantize` 8bit or 4bit (bitsandbytes, vision tower and projector spared). `max_rows`
    candidates are written at once. `memory` is what keys and values may take: a share of what is
    free once the model is loaded (0.9), or an amount such as "20GB". `adapter` is the folder of a
    LoRA that is merged into the weights. Of a picture with more than `max_pixels` pixels the model
    is shown a smaller one.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantize: Literal["8bit", "4bit"] | None = None
    max_rows: int | None = None
    memory: float | str = SHARE
    adapter: str | Path | None = None
    max_pixels: int | None = None

    def open(
        self, model: str | Path, *, on_notice: Callable[[str], None] | None = None
    ) -> LocalBackend | Replicas:
        """Load it. "bundled" is the same model on every machine, its path is not: traces have the
        name that was given. Raises ModelError, and InputError for a parameter that will not do."""
        from cot_engine.backends.local import loading
        from cot_engine.backends.local.backend import LocalBackend

        parse_memory(self.memory)  # before the model is loaded
        check_pixels(self.max_pixels)
        devices = device_list(self.device)
        if len(devices) > 1:
            return self.replicas(model, devices, on_notice)
        loaded = loading.load(
            model_path(model), devices[0], self.dtype, self.quantize, self.adapter
        )
        loaded = replace(loaded, name=self.name(model))
        loaded.adapter.max_pixels = self.max_pixels
        if on_notice is not None:
            for note in loaded.notes:
                on_notice(note)
        return LocalBackend(loaded, self.max_rows, on_notice=on_notice, memory=self.memory)

    def name(self, model: str | Path) -> str:
        """What traces call it: as it was given, with its adapter."""
        return str(model) if self.adapter is None else f"{model} + {self.adapter}"

    def replicas(
        self,
        model: str | Path,
        devices: Sequence[str],
        on_notice: Callable[[str], None] | None = None,
    ) -> Replicas:
        """One on each device, in processes. Those on one device divide among them what keys and
        values may take, and torch's threads. Raises as `open` does."""
        from cot_engine.backends.local.hub import find_folder
        from cot_engine.backends.local.process import open_replicas

        folder = str(find_folder(model_path(model)))  # downloaded once
        each = []
        for device in devices:
            parts = devices.count(device)
            memory = parse_memory(self.memory) / parts
            each.append((replace(self, device=device, memory=memory), device, parts))
        return open_replicas(each, folder, self.name(model), on_notice)
