"""From a folder (or a hub name) to a model, its adapter and its chat format, or a clear error."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cot_engine.backends.local.digest import digest_of
from cot_engine.backends.local.text import ChatText
from cot_engine.backends.models.family import Adapter
from cot_engine.backends.models.registry import adapter_for
from cot_engine.errors import InputError, ModelError, cut, install

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
    model: str | Path, device: str = "auto", dtype: str = "auto", quantize: Quantize | None = None
) -> Loaded:
    """Read a checkpoint. Never runs code that comes with it; reads safetensors only."""
    folder = find_folder(model)
    config = _read_config(folder)
    names = config.get("architectures") or [""]
    from transformers import AutoConfig

    with _explained(folder, "config.json cannot be read"):
        parsed = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind = adapter_for(names[0], getattr(parsed.get_text_config(), "model_type", "unnamed"))
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"{folder} holds no safetensors weights.",
            "Pickled checkpoints (.bin, .pt) can run code and are not read: convert them first, "
            "for example with transformers' save_pretrained.",
        )
    where = pick_device(device)
    kept = pick_dtype(dtype, where)
    network = _network(folder, names[0], where, kept, quantize, kind.spared)
    with _explained(folder, "its processor or tokenizer cannot be loaded"):
        processor = kind.load_processor(folder, parsed)
    if not getattr(processor.tokenizer, "is_fast", False):
        raise ModelError(
            f"{folder}: its tokenizer has no tokenizer.json.",
            "Convert it: AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers.",
        )
    adapter = kind(network, processor)
    notes = []
    if quantize and where.type == "cpu":
        notes.append(f"{quantize} weights save memory on a CPU; they do not make it faster.")
    text = ChatText(
        processor.tokenizer,
        adapter.image_tag,
        _template(processor, folder),
        _eos(network, processor.tokenizer),
    )
    if not text.template:
        notes.append("The model has no chat template; 'USER: ... ASSISTANT:' is used.")
    with _explained(folder, "the weights cannot be read"):
        digest = digest_of(weights)
    return Loaded(adapter, text, names[0], str(model), digest, tuple(notes))


def find_folder(model: str | Path) -> Path:
    """The local folder of a checkpoint; a hub name is looked up in the cache, then downloaded."""
    folder = Path(os.path.expanduser(model))  # and not Path's, which raises for a strange name
    if os.path.isdir(folder):
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder} is not a model folder: it has no config.json.",
                "Give the folder that save_pretrained or a download wrote.",
            )
        return folder
    name = str(model)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or os.path.isfile(folder)
    if not looks_local:
        from huggingface_hub import snapshot_download

        wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        for offline in (True, False):
            with contextlib.suppress(Exception):  # not in the cache; no net; no such repository
                found = Path(
                    snapshot_download(name, allow_patterns=wanted, local_files_only=offline)
                )
                if any(found.glob("*.safetensors")) and (found / "config.json").is_file():
                    return found
    near = f"Did you mean {' or '.join(known)}? " if (known := _near(folder)) else ""
    raise ModelError(
        f"There is no model folder {name!r}, and nothing of that name could be downloaded.",
        f"{near}Give a folder with config.json and safetensors weights, or a hub name like "
        "llava-hf/llava-1.5-7b-hf (hf download NAME fetches one while you are online).",
    )


def _near(folder: Path) -> list[str]:
    """Model folders beside a missing one whose names resemble it, and the bundled model."""
    known = {"bundled": "bundled"} if folder.parent == Path() else {}
    with contextlib.suppress(OSError):
        known |= {p.parent.name: str(p.parent) for p in folder.parent.glob("*/config.json")}
    return [known[name] for name in difflib.get_close_matches(folder.name, known, 3, 0.5)]


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


def _read_config(folder: Path) -> dict[str, Any]:
    with _explained(folder, "config.json is not readable"):
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@contextlib.contextmanager
def _explained(folder: Path, what: str) -> Any:
    """Turn whatever a damaged checkpoint raises in the libraries into a ModelError."""
    try:
        yield
    except (ModelError, InputError, KeyboardInterrupt, MemoryError):
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"Not enough memory on the device for {folder}.",
            "Use --quantize 8bit or 4bit, or a smaller model.",
        ) from error
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        raise ModelError(
            f"{folder}: {what}: {cut(lines[0], 300)}",
            "The checkpoint may be damaged or incomplete; download it again.",
        ) from error


def _network(
    folder: Path,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantize | None,
    spared: tuple[str, ...],
) -> Any:
    import transformers

    kwargs: dict[str, Any] = {}
    if quantize is not None:
        kwargs["quantization_config"] = _quantization(quantize, dtype, spared)
        kwargs["device_map"] = {"": device}
    quiet = logging.getLogger("transformers")
    level, bar = quiet.level, transformers.utils.logging.is_progress_bar_enabled()
    quiet.setLevel(logging.ERROR)  # it warns of missing weights, which are an error here
    transformers.utils.logging.disable_progress_bar()
    try:
        with _explained(folder, "the weights cannot be loaded"):
            model, report = getattr(transformers, name).from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **kwargs,
            )
    finally:
        quiet.setLevel(level)
        if bar:
            transformers.utils.logging.enable_progress_bar()
    _check(folder, report)
    if quantize is None:
        model = model.to(device)
    return model.eval().requires_grad_(False)


def _check(folder: Path, report: dict[str, Any]) -> None:
    """transformers only warns where a weight is missing and fills it with random numbers."""
    for kind, what in (("missing_keys", "lacks"), ("mismatched_keys", "has misshapen")):
        keys = [k if isinstance(k, str) else k[0] for k in report.get(kind) or ()]
        if keys:
            some = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
            raise ModelError(
                f"{folder} {what} {len(keys)} weights: {some}",
                "The checkpoint is incomplete or belongs to another config.json.",
            )
    if report.get("error_msgs"):
        raise ModelError(f"{folder}: {cut(report['error_msgs'][0], 300)}", "Download it again.")


def _quantization(quantize: str, dtype: torch.dtype, spared: tuple[str, ...]) -> Any:
    """bitsandbytes, sparing the vision tower and projector by their names from the root."""
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
        return BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_skip_modules=list(spared), llm_int8_threshold=0.0
        )
    if quantize == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=list(spared),
        )
    raise InputError(f"There is no quantisation {quantize!r}.", "Use 8bit or 4bit.")


def _template(processor: Any, folder: Path) -> str | None:
    found = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    if found:
        return found
    for name in ("chat_template.jinja", "chat_template.json"):
        path = folder / name
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            return json.loads(text)["chat_template"] if name.endswith(".json") else text
    return None


def _eos(model: Any, tokenizer: Any) -> set[int]:
    found: set[int | None] = set()
    for value in (
        getattr(model.generation_config, "eos_token_id", None),
        model.config.get_text_config().eos_token_id,
        tokenizer.eos_token_id,
    ):
        found.update(value if isinstance(value, (list, tuple)) else [value])
    return {i for i in found if i is not None}
