"""The network as it is trained, and the folders that it is saved in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from cot_engine.errors import InputError, StoreError
from cot_engine.judging import profile
from cot_engine.judging.profile import Profile
from cot_engine.training.folders import writing_folder
from cot_engine.training.sft_config import SFTConfig

_OWN = ("config.json", "generation_config.json", "adapter_config.json", profile.FILE)
"""Files that new weights have of their own."""
BITS: dict[int, Literal["8bit", "4bit"]] = {4: "4bit", 8: "8bit"}
"""What loading calls the bits that weights are quantized to."""
VISION = ("vision_tower", "visual", "vision_model")
"""What the architectures call their vision towers."""


def prepare(loaded: Any, config: SFTConfig) -> Any:
    """The network as it is trained: what is frozen, adapters added, attention and compilation set.

    Raises ModelError or InputError for names that match nothing.
    """
    network, settings = loaded.adapter.model, config.model
    network.set_attn_implementation(settings.attention)
    network.requires_grad_(config.quantize is None)
    for wanted in settings.freeze:
        names = VISION if wanted == "vision" else (wanted,)
        hit = False
        for name, parameter in network.named_parameters():
            path = f".{name.removeprefix('model.')}", f".{name}"
            if any(p.startswith(f".{n}.") or p == f".{n}" for p in path for n in names):
                hit = True
                parameter.requires_grad_(False)
        if not hit:
            some = sorted(
                {n.removeprefix("model.").split(".")[0] for n, _ in network.named_parameters()}
            )
            raise InputError(
                f"model.freeze names {wanted!r}, which no module's name begins with.",
                f'The modules are {", ".join(some)}; "vision" is the vision tower.',
            )
    if config.train.gradient_checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    if config.lora is not None:
        from cot_engine.training.adapters import add_lora

        network = add_lora(loaded, config)
    if settings.compile:
        loaded.adapter.lm.compile(dynamic=True)
    return network


def save_model(
    trainer: Any, loaded: Any, config: SFTConfig, source: Path, output: Path, card: str
) -> None:
    """output/model (and, of a LoRA, output/adapter), each there when it is whole. Raises
    StoreError if the disk is full."""

    def placed(name: str, write: Callable[[Path], None]) -> None:
        hint = "Free some space and give the same command again: all steps are done and kept."
        with writing_folder(output / name, StoreError, hint) as beside:
            write(beside)
            take_over(source, beside)
            (beside / "README.md").write_text(card, encoding="utf-8")
            share(beside)

    if config.lora is None:
        placed("model", trainer.model.save_pretrained)
    else:
        from cot_engine.training.adapters import merged

        placed("adapter", trainer.model.save_pretrained)
        if config.lora.merge:
            placed(
                "model",
                lambda to: merged(trainer.model, loaded, config, source).save_pretrained(to),
            )


def take_over(source: Path, target: Path) -> str:
    """What a folder of trained weights takes from the model that they grew out of, for all who
    write one; returns what is to be said of what it does not take ("" if nothing).

    Tokenizer, image processor and chat template are copied as they are: saving them anew would
    rewrite what some libraries read. Of the profile (cot_engine.json) goes what still holds; an
    adapter alone has none. Raises ConfigError for a profile that cannot be read.
    """
    for path in source.iterdir():
        kept = path.suffix in (".json", ".jinja", ".model", ".txt") and path.is_file()
        if kept and path.name not in _OWN and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)
    return take_profile(source, target) if (target / "config.json").is_file() else ""


def take_profile(source: Path, target: Path) -> str:
    """As `take_over`, the profile alone."""
    holds, said = Profile.of(source).after_training()
    if holds != Profile():
        holds.write(target)
    return said


def share(folder: Path) -> None:
    """Give a model's files of weights the mode of its other files: safetensors makes them readable
    to their owner alone, and whoever serves a model is often somebody else."""
    for other in [*folder.glob("*.json")][:1]:
        for file in folder.glob("*.safetensors"):
            shutil.copymode(other, file)
