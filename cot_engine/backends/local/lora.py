"""A LoRA adapter beside a model: read, held against the network, merged into its weights by PEFT.

Merged, because every candidate shares its prefix with others: one network, no pass through two.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cot_engine.backends.local.digest import digest_of
from cot_engine.backends.local.folder import read_header
from cot_engine.backends.local.libraries import explained, quietly
from cot_engine.backends.local.packed import names_now
from cot_engine.errors import InputError, ModelError, cut, install, shown
from cot_engine.files.reading import read_json

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BEFORE = "base_model.model."  # what PEFT puts before each name
_BASE = "Give the model that it was trained on as --model"


@dataclass(frozen=True, slots=True)
class Lora:
    """A folder that holds an adapter, by what its small files say. `base`: of which model."""

    folder: Path
    base: str

    def digest(self, model: str) -> str:
        """16 hex digits naming a model of the digest `model` with this adapter merged."""
        own = digest_of([self.folder / SETTINGS, self.folder / WEIGHTS])
        return hashlib.sha256(f"{model}+{own}".encode()).hexdigest()[:16]


def read_lora(given: str | Path, packed: str | None) -> Lora:
    """Raises ModelError for a folder that holds no adapter that can be merged, InputError where
    weights are quantised (`packed`: how) or PEFT is not installed."""
    folder = Path(os.path.expanduser(given))
    if not folder.is_dir():
        raise ModelError(
            f"There is no adapter folder {str(given)!r}.",
            f"Give the folder with {SETTINGS}; hf download NAME fetches one.",
        )
    if not (folder / SETTINGS).is_file():
        whole = (folder / "config.json").is_file()
        raise ModelError(
            f"{folder} holds no adapter: it has no {SETTINGS}.",
            "It is a whole model: give it as --model."
            if whole
            else "Give the folder that PEFT's save_pretrained wrote.",
        )
    settings = read_json(folder / SETTINGS, "adapter's settings", ModelError)
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind != "LORA":
        raise ModelError(
            f"{folder} holds an adapter of the kind {shown(kind)}; only LORA can be merged.",
            "Merge it with the program that made it, and give the merged folder as --model.",
        )
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise ModelError(
            f"{folder} holds no {WEIGHTS}"
            f"{', only a pickled adapter_model.bin' if pickled else ''}.",
            "Pickled weights can run code and are not read: load the adapter with PEFT where you "
            "trust it, and save it again with save_pretrained."
            if pickled
            else "The download was not finished: go on with it.",
        )
    if packed is not None:
        raise InputError(
            f"An adapter cannot be merged into quantised weights ({packed}): they would be rounded "
            "twice.",
            "Leave out --quantize, give the base model as it was before it was quantised; or merge "
            "it there, save that, and quantise the merged folder.",
        )
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError(
            "Merging an adapter needs peft, which is not installed.", install("train")
        ) from error
    read_header(folder / WEIGHTS)
    return Lora(folder, str(settings.get("base_model_name_or_path") or "no model that it names"))


def merge(network: Any, lora: Lora) -> tuple[Any, str]:
    """The network with the adapter in its weights, and what to say of it. Raises ModelError."""
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    again = "Its files may be damaged: save or download it again."
    with explained(lora.folder, "its adapter cannot be read", again):
        config = LoraConfig.from_pretrained(str(lora.folder))
        held = load_file(lora.folder / WEIGHTS)
    if broken := [n for n, w in held.items() if w.is_floating_point() and not w.isfinite().all()]:
        raise ModelError(
            f"{lora.folder}: {len(broken)} of the adapter's weights hold nan or infinity, "
            f"{cut(broken[0])} first.",
            "Training went wrong there: take an earlier checkpoint.",
        )
    modules = {name for name, _ in network.named_modules()}
    weights, targets, homeless = {}, set(), []
    for name, weight in held.items():
        inner, mark, rest = name.removeprefix(_BEFORE).partition(".lora_")
        if not mark:  # a layer that was trained whole
            inner, mark, rest = inner.rpartition(".")
        now = next((each for each in names_now(inner) if each in modules), None)
        if now is None:
            homeless.append(inner)
            continue
        if mark != ".":
            targets.add(now)
        weights[f"{_BEFORE}{now}{mark}{rest}"] = weight
    if homeless or not targets:
        raise ModelError(
            f"{lora.folder}: the adapter is for {len(homeless)} modules that this model does not "
            f"have, {cut(homeless[0])} first."
            if homeless
            else f"{lora.folder}: the adapter holds no LoRA weights.",
            f"{_BASE}: it names {cut(lora.base)}.",
        )
    # Its file says which modules it changes, under whatever names they had where it was trained.
    config.target_modules = targets
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    for pattern in (config.rank_pattern, config.alpha_pattern):
        pattern |= {now: value for was, value in pattern.items() for now in names_now(was)}
    failed = explained(lora.folder, "the adapter cannot be merged", f"{_BASE}.")
    with quietly(), warnings.catch_warnings(action="ignore"), failed:
        fresh = PeftModel(network, config)
        # Without embeddings: to see whether they grew, PEFT would ask the hub for the base.
        wanted = get_peft_model_state_dict(fresh, save_embedding_layers=False)
        if differing := sorted(wanted.keys() ^ weights.keys()):
            where = "lacks" if differing[0] in wanted else "has no place for"
            raise ModelError(
                f"{lora.folder}: {len(differing)} weights differ from what {SETTINGS} describes; "
                f"it {where} {cut(differing[0])}.",
                "Take both files from the same training.",
            )
        for name, weight in weights.items():
            if weight.shape != wanted[name].shape:
                raise ModelError(
                    f"{lora.folder}: the adapter's {cut(name.removeprefix(_BEFORE))} is "
                    f"{list(weight.shape)}; this model's would be {list(wanted[name].shape)}.",
                    f"{_BASE}: it names {cut(lora.base)}.",
                )
        set_peft_model_state_dict(fresh, weights)
        with torch.no_grad():
            merged = fresh.merge_and_unload()
    return merged, f"The adapter {lora.folder} is merged into {len(targets)} modules."
