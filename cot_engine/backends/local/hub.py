"""What a user calls a model: a folder, or a name on the Hugging Face hub. Imports no torch.

A hub name is looked up in the cache, then downloaded; a download that was cut off goes on where it
ended. What the hub has against it (gated, misspelt, pickled weights) is passed on.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from collections.abc import Collection
from pathlib import Path

from cot_engine.errors import ModelError, cut

WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_NAME = (
    "Give a folder with config.json and safetensors weights, or a hub name like "
    "llava-hf/llava-1.5-7b-hf (hf download NAME fetches one while you are online)."
)


def find_folder(model: str | Path, *, download: bool = True) -> Path:
    """The local folder of a checkpoint, which its files' names say nothing against. Raises
    ModelError."""
    folder = Path(os.path.expanduser(model))  # and not Path's, which raises for a strange name
    if os.path.isdir(folder):
        _fit(str(folder), [path.name for path in folder.iterdir()])
        return folder
    name = str(model)
    near = f"Did you mean {' or '.join(known)}? " if (known := _near(folder)) else ""
    if _is_hub_name(name) and not os.path.isfile(folder):
        if (found := cached(name)) is None and not download:
            raise ModelError(
                f"There is no model folder {name!r}, and it is not in the hub's cache. Nothing is "
                "downloaded to say what it needs.",
                f"{near}Fetch it first: hf download {name}",
            )
        return found or _download(name, near)
    raise ModelError(f"There is no model folder {name!r}.", near + _NAME)


def _is_hub_name(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") == 1


def cached(name: str | Path) -> Path | None:
    """Where a hub name's files are on this machine, if they are all there. Asks nobody."""
    if not _is_hub_name(str(name)) or os.path.exists(name):
        return None
    with contextlib.suppress(Exception):  # a name that the hub could not have; not in the cache
        from huggingface_hub import snapshot_download

        found = Path(snapshot_download(str(name), allow_patterns=WANTED, local_files_only=True))
        index = found / "model.safetensors.index.json"
        needed = {"config.json"}
        if index.is_file():
            needed |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if any(found.glob("*.safetensors")) and all((found / file).is_file() for file in needed):
            return found
    return None


def _download(name: str, near: str) -> Path:
    """Fetch it, with the token of HF_TOKEN and no other. `near` is what to say of folders whose
    names resemble it."""
    from huggingface_hub import HfApi, snapshot_download

    token = os.environ.get("HF_TOKEN") or False
    try:
        there = HfApi(token=token).model_info(name).siblings or []
        _fit(name, [file.rfilename for file in there if "/" not in file.rfilename])
        return Path(snapshot_download(name, allow_patterns=WANTED, token=token))
    except ModelError:
        raise
    except Exception as error:  # whatever the hub, the net and the disk have to say
        raise _refused(name, error, near + _NAME) from error


def _refused(name: str, error: Exception, hint: str) -> ModelError:
    from huggingface_hub import errors

    page = f"https://huggingface.co/{name}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    why = cut(" ".join(lines), 300)
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"The hub keeps {name!r} behind a gate: {why}",
            f"Ask for access at {page}, then set HF_TOKEN to a token of that account.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"There is no model folder {name!r}, and the hub knows no model of that name that this "
            "token may see.",
            f"Check its spelling at https://huggingface.co/models?search={name.split('/')[1]}; "
            f"for a private one set HF_TOKEN. {hint}",
        )
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return ModelError(
            f"There is no model folder {name!r}, it is not in the hub's cache, and the hub cannot "
            f"be asked: {why}",
            hint,
        )
    if isinstance(error, errors.HFValidationError):
        return ModelError(f"There is no model folder {name!r}, and no hub has it: {why}", hint)
    return ModelError(
        f"There is no model folder {name!r}, and the hub did not send it: {type(error).__name__}: "
        f"{why}",
        f"Try again (what has come already is kept), or: hf download {name}. {hint}",
    )


def _near(folder: Path) -> list[str]:
    """Model folders beside a missing one whose names resemble it, and the bundled model."""
    known = {"bundled": "bundled"} if folder.parent == Path() else {}
    with contextlib.suppress(OSError):
        known |= {p.parent.name: str(p.parent) for p in folder.parent.glob("*/config.json")}
    return [known[name] for name in difflib.get_close_matches(folder.name, known, 3, 0.5)]


def _base(where: str) -> str:
    """Which one, where an adapter's folder says so."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        text = Path(where, "adapter_config.json").read_text(encoding="utf-8")
        if named := json.loads(text).get("base_model_name_or_path"):
            return f" ({cut(str(named))})"
    return ""


def _fit(where: str, names: Collection[str]) -> None:
    """Raise ModelError for what the names of a checkpoint's files already say against it."""
    if "adapter_config.json" in names:
        beside = "config.json" in names and "model.safetensors" in names
        raise ModelError(
            f"{where} holds an adapter (adapter_config.json, as LoRA has it)"
            f"{' beside its weights' if beside else ' and no model of its own'}.",
            "Move its files to a folder of their own, and name that with --adapter if it is wanted."
            if beside
            else f"Give the model that it was trained on{_base(where)}, and this folder with "
            f"--adapter: --model BASE --adapter {where}",
        )
    if "config.json" not in names:
        if "params.json" in names or any(name.endswith(".gguf") for name in names):
            kind = "GGUF" if "params.json" not in names else "the maker's own format"
            raise ModelError(
                f"{where} holds weights in {kind}, without a config.json.",
                "Give the same model in the format of transformers (config.json, safetensors).",
            )
        raise ModelError(
            f"{where} is not a model folder: it has no config.json.",
            "Give the folder that save_pretrained or a download wrote.",
        )
    if not any(name.endswith(".safetensors") for name in names):
        pickled = sorted(name for name in names if name.endswith(_PICKLED))
        raise ModelError(
            f"{where} holds no safetensors weights"
            f"{f', only pickled ones ({cut(pickled[0])})' if pickled else ''}.",
            "Pickled checkpoints (.bin, .pt) can run code and are not read: convert them first, "
            "for example with transformers' save_pretrained."
            if pickled
            else "Fetch the whole checkpoint, for example with hf download.",
        )
