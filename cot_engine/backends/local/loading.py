"""From a folder (or a hub name) to a model, its adapter and its chat format, or a clear error."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cot_engine.backends.local.digest import digest_of
from cot_engine.backends.local.folder import (
    Headers,
    check_built,
    check_sizes,
    read_config,
    read_headers,
    weight_files,
)
from cot_engine.backends.local.hub import find_folder
from cot_engine.backends.local.libraries import explained, quietly
from cot_engine.backends.local.lora import merge, read_lora
from cot_engine.backends.local.packed import check_packed, prepare, unpacked
from cot_engine.backends.local.processor import (
    check_words,
    end_tokens,
    load_processor,
    template_of,
    ungranted,
)
from cot_engine.backends.local.text import ChatText
from cot_engine.backends.models.family import Adapter
from cot_engine.backends.models.registry import adapter_for, known
from cot_engine.errors import InputError, ModelError, cut, install, shown

_AGAIN = "The files may be damaged or incomplete: download them again."
_CONFIG = "Compare config.json with that of the original checkpoint."

Quantize = Literal["8bit", "4bit"]


@dataclass(frozen=True, slots=True)
class Loaded:
    adapter: Adapter
    text: ChatText
    architecture: str
    name: str
    digest: str
    notes: tuple[str, ...]


def load(
    model: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    quantize: Quantize | None = None,
    adapter: str | Path | None = None,
) -> Loaded:
    """Read a checkpoint. Never runs code that comes with it; reads safetensors only.

    What is wrong with it is found as early as it can be: first what small files say.
    """
    folder = find_folder(model)
    config = read_config(folder)
    name = config["architectures"][0]
    known(name, config)
    where = pick_device(device)
    kept = pick_dtype(dtype, where)
    wanted = None if quantize is None else _quantization(quantize, kept)
    packed = check_packed(folder, config, quantize, where.type)
    lora = None if adapter is None else read_lora(adapter, packed or quantize)
    headers = read_headers(folder)
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    if (type_ := config.get("model_type")) not in list(CONFIG_MAPPING):
        raise ModelError(
            f"{folder}: config.json gives model_type as {shown(type_)}, which transformers "
            f"{__version__} does not know.",
            f"{_CONFIG} A newer transformers may know it.",
        )
    with explained(folder, "config.json cannot be read", _CONFIG):
        parsed = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind = adapter_for(name, parsed)
    check_sizes(folder, parsed, headers, packed is not None)
    processor = load_processor(folder, kind, parsed)
    template = template_of(processor.chat_template, folder)
    check_words(folder, processor.tokenizer)
    _check_built(folder, name, parsed, headers, packed is not None)
    if wanted is not None:
        wanted.llm_int8_skip_modules = list(kind.spared)
    said = [] if packed is None else prepare(parsed, packed, where.type)
    network, unused = _network(folder, parsed, where, kept, wanted, packed)
    if lora is not None:
        network, merged = merge(network, lora)
        said.append(merged)
    _check_numbers(folder, network)
    family = kind(network.eval().requires_grad_(False), processor)
    _check_vocabulary(folder, family)
    notes = [*unused, *ungranted(folder), *said]
    if quantize and where.type == "cpu":
        notes.append(f"{quantize} weights save memory on a CPU; they do not make it faster.")
    eos = end_tokens(folder, config, processor.tokenizer, kind.ends)
    if not eos:
        notes.append("The model's files name no end token: every reply goes on to its limit.")
    text = ChatText(processor.tokenizer, family.image_tag, template, eos, kind.thought)
    if not template:
        notes.append("The model has no chat template; 'USER: ... ASSISTANT:' is used.")
    text.check()
    if text.thinks:
        notes.append(f"{text.thinks}: it is left empty, and the stages are what the model thinks.")
    with explained(folder, "the weights cannot be read", _AGAIN):
        digest = digest_of(weight_files(folder))
        digest = digest if lora is None else lora.digest(digest)
    return Loaded(family, text, name, str(model), digest, tuple(notes))


def pick_device(device: str) -> torch.device:
    """auto: a GPU if there is one. Raises InputError."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return torch.device(next(kind for kind in there if there[kind]))
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in there:
        raise InputError(f"There is no device {device!r}.", "Use auto, cuda, mps or cpu.")
    if not there[found.type]:
        raise InputError(
            f"This machine (or this build of torch) has no {found.type} device.",
            "Use --device cpu.",
        )
    count = torch.cuda.device_count() if found.type == "cuda" else 1
    if (found.index or 0) >= count:
        raise InputError(
            f"There is no device {device!r}: this machine shows {count} of that kind.",
            f"Use {found.type}:0" + (f" to {found.type}:{count - 1}." if count > 1 else "."),
        )
    return found


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on a GPU that has it, float16 on other GPUs, float32 on a CPU."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        if device.type == "cpu":
            return torch.float32
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if bf16 else torch.float16
    if dtype not in known:
        raise InputError(f"There is no dtype {dtype!r}.", f"Use auto, {', '.join(known)}.")
    return known[dtype]


def _check_built(folder: Path, name: str, parsed: Any, headers: Headers, packed: bool) -> None:
    """Build the network without memory behind it, and hold its size against the weights'."""
    import transformers

    with quietly(), explained(folder, "config.json describes no network", _CONFIG):
        with torch.device("meta"):
            built = getattr(transformers, name)(parsed)
        count = sum(parameter.numel() for parameter in built.parameters())
    check_built(folder, count, headers, packed)


def _network(
    folder: Path,
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Any,
    packed: str | None,
) -> tuple[Any, list[str]]:
    """The model, and what to say of weights that it does not use.

    Where accelerate is there, each weight goes to its device as it is read. Otherwise all are
    brought to their dtype in the machine's own memory first.
    """
    import transformers

    kwargs: dict[str, Any] = {}
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    if quantization is not None or packed is not None or _streams(device):
        kwargs["device_map"] = {"": device}
    with quietly(), explained(folder, "the weights cannot be loaded", _AGAIN, device):
        model, report = getattr(transformers, config.architectures[0]).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **kwargs,
        )
    notes = _check(folder, model, report)
    if packed is not None:
        unpacked(model)
    if "device_map" not in kwargs:
        with explained(folder, "the weights cannot be loaded", _AGAIN, device):
            model = model.to(device)
    elif packed == "bitsandbytes":  # what is not quantised keeps the dtype it was saved in
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return model, notes


def _streams(device: torch.device) -> bool:
    """On a CPU weights of the dtype they are saved in stay in their file, mapped."""
    return device.type != "cpu" and importlib.util.find_spec("accelerate") is not None


def _check(folder: Path, model: Any, report: dict[str, Any]) -> list[str]:
    """transformers only warns where a weight is missing and fills it with random numbers, or where
    it has no place for one. What stands beside the network alone is named, not refused."""
    for kind, what in (("missing_keys", "lacks"), ("mismatched_keys", "has misshapen")):
        keys = [k if isinstance(k, str) else k[0] for k in report.get(kind) or ()]
        if keys:
            raise ModelError(
                f"{folder} {what} {len(keys)} weights: {_some(keys)}",
                "The checkpoint is incomplete or belongs to another config.json.",
            )
    if report.get("error_msgs"):
        raise ModelError(f"{folder}: {cut(report['error_msgs'][0], 300)}", _AGAIN)
    unused = sorted(report.get("unexpected_keys") or ())
    inside = {name for name, _ in model.named_modules()} - {"", "model"}
    within = [key for key in unused if any(part in inside for part in _around(key))]
    if within:
        raise ModelError(
            f"{folder} has {len(within)} weights for which the network of its config.json has no "
            f"place: {_some(within)}",
            "Without them it would answer otherwise than it was trained to. The weights belong to "
            "another config.json, or are those of an adapter that was not merged.",
        )
    if not unused:
        return []
    return [f"{len(unused)} weights in the model's folder are not used: {_some(unused)}"]


def _around(key: str) -> list[str]:
    """The names of the modules that a weight may be in, with the model's own prefix and without."""
    parts = key.split(".")[:-1]
    names = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return [*names, *(f"model.{name}" for name in names)]


def _some(keys: list[str]) -> str:
    return ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")


def _check_numbers(folder: Path, model: Any) -> None:
    """One weight that is not a number makes every answer nothing but padding."""
    broken = []
    for name, parameter in model.named_parameters():
        scales = getattr(parameter, "quant_state", None)
        values = [parameter, getattr(parameter, "SCB", None), getattr(scales, "absmax", None)]
        for value in values:
            if value is None or not value.is_floating_point() or not value.numel():
                continue
            value = value.float() if value.element_size() == 1 else value
            if not all(torch.isfinite(end) for end in torch.aminmax(value.detach())):
                broken.append(name)
                break
    if broken:
        raise ModelError(
            f"{folder} has {len(broken)} weights that hold nan or infinity: {_some(broken)}",
            "Training or conversion went wrong there, or float16 was too narrow for them: try "
            "--dtype float32 or bfloat16, or take an earlier checkpoint.",
        )


def _quantization(quantize: str, dtype: torch.dtype) -> Any:
    """bitsandbytes; what is spared is said once the family is known."""
    from transformers import BitsAndBytesConfig

    try:
        import accelerate  # noqa: F401
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise InputError(
            "Quantisation needs bitsandbytes and accelerate, which are not both installed.",
            install("quantize"),
        ) from error
    if quantize == "8bit":
        # Threshold 0: with outlier columns a row's result would depend on the rows beside it.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    if quantize == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    raise InputError(f"There is no quantisation {quantize!r}.", "Use 8bit or 4bit.")


def _check_vocabulary(folder: Path, adapter: Adapter) -> None:
    """Refuse tokens that have no embedding, and an image token that is not the tokenizer's."""
    tokenizer, rows = adapter.processor.tokenizer, adapter.embed.weight.shape[0]
    vocabulary = tokenizer.get_vocab()
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= rows)
    if beyond:
        raise ModelError(
            f"{folder}: {len(beyond)} tokens of its tokenizer have no embedding, {beyond[0][1]!r} "
            f"first: the model knows {rows:,} tokens, the tokenizer names {len(vocabulary):,}.",
            "After adding tokens, call resize_token_embeddings of transformers and train them; or "
            "take the tokenizer of the original checkpoint.",
        )
    tag, wanted = adapter.placeholder_text, adapter.placeholder
    if vocabulary.get(tag) != wanted:
        raise ModelError(
            f"{folder}: config.json gives the image token as {wanted} (image_token_index or "
            f"image_token_id); the tokenizer's {tag!r} is {vocabulary.get(tag)}.",
            "Pictures would not be seen. Take both files from the same checkpoint.",
        )
