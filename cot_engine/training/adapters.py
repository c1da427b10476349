"""LoRA and QLoRA by PEFT: where the adapters go, and the model with them merged in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from cot_engine.errors import InputError, ModelError
from cot_engine.training.sft_config import SFTConfig


def add_lora(loaded: Any, config: SFTConfig) -> Any:
    """The network with trainable adapters, every other weight frozen. Raises InputError if a name
    matches no linear layer."""
    from peft import LoraConfig, get_peft_model

    network, lora = loaded.adapter.model, config.lora
    assert lora is not None  # only who trains adapters comes here
    network.requires_grad_(False)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a fraction will do: PEFT divides it
        lora_dropout=lora.dropout,
        target_modules=targets(loaded, lora.targets),
        task_type=None,
    )
    return get_peft_model(network, settings)


def targets(loaded: Any, wanted: tuple[str, ...]) -> list[str]:
    """The full names of the linear layers that `wanted` names by their ends; "auto" are all of the
    language model's."""
    network = loaded.adapter.model
    linear = [name for name, m in network.named_modules() if isinstance(m, torch.nn.Linear)]
    inside = f"model.{loaded.adapter.lm_path}."
    found: dict[str, None] = {}
    for name in wanted:
        if name == "auto":
            hits = [n for n in linear if n.startswith(inside)]
        else:
            hits = [n for n in linear if re.search(rf"(^|\.){re.escape(name)}$", n)]
        if not hits:
            ends = sorted({n.rpartition(".")[2] for n in linear if n.startswith(inside)})
            raise InputError(
                f"lora.targets names {name!r}, which is the end of no linear layer's name.",
                f'The language model has {", ".join(ends)}; "auto" is all of them.',
            )
        found |= dict.fromkeys(hits)
    return list(found)


def load_adapter(network: Any, folder: Path) -> None:
    """The adapter's weights from a checkpoint. Raises ModelError if they are not all there."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter_model.safetensors")
    if weights.keys() != get_peft_model_state_dict(network).keys():
        raise ModelError(
            f"{str(folder)!r}: its adapter does not fit the model.",
            "It belongs to another architecture or other targets: use --restart.",
        )
    set_peft_model_state_dict(network, weights)


def merged(network: Any, loaded: Any, config: SFTConfig, source: Path) -> Any:
    """A plain model with the adapter's weights added. Under quantised weights, the original ones
    are read again: adding to rounded ones would round twice."""
    if config.quantize is None:
        return network.merge_and_unload()
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    from cot_engine.backends.local import loading

    plain = loading.load(source, "cpu", str(loaded.adapter.dtype).removeprefix("torch."))
    plain.adapter.model.requires_grad_(False)
    fresh = PeftModel(plain.adapter.model, network.peft_config["default"])
    set_peft_model_state_dict(fresh, get_peft_model_state_dict(network))
    return fresh.merge_and_unload()
