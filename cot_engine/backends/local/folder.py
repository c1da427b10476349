"""What can be seen of a checkpoint before anything large is built: config.json against the headers
of the weights, which are read without the weights themselves."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_engine.errors import ModelError, cut, shown
from cot_engine.files.reading import read_json

_HEADER = 100_000_000  # bytes; what safetensors itself allows
_TEXT_LAYER = re.compile(
    r"^(?:model\.)?(?:language_model\.|text_model\.)?(?:model\.)?layers\.(\d+)\."
)
_VISION_LAYER = re.compile(
    r"^((?:.*\.)?(?:vision_tower|vision_model|visual)\b.*?(?:layers?|blocks))\.(\d+)\."
)
_BELONG = "config.json and weights belong together: take both from the same checkpoint."
_LAYERS = ("num_hidden_layers", "depth")
_MOST_LAYERS = 1_000  # where no weights' names say how many there are
_PACKED = 8  # quantised weights in one number, at most


@dataclass(frozen=True, slots=True)
class Headers:
    """The names and shapes of all weights in a folder, and the bytes that they take there."""

    shapes: dict[str, tuple[int, ...]]
    stored: int

    @property
    def numbers(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def in_layers(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The weights of the language model's layers, without what comes before `self_attn`."""
        for name, shape in self.shapes.items():
            if match := _TEXT_LAYER.match(name):
                yield name[match.end() :], shape

    def layers(self) -> int:
        """How many layers of the language model there are."""
        found = (_TEXT_LAYER.match(name) for name in self.shapes)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    def vision_layers(self) -> set[int]:
        """How many the stacks of the vision tower have."""
        stacks: dict[str, int] = {}
        for match in (_VISION_LAYER.match(name) for name in self.shapes):
            if match:
                stacks[match[1]] = max(stacks.get(match[1], 0), int(match[2]) + 1)
        return set(stacks.values())


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, which names one architecture and is not quantised for another library."""
    path = folder / "config.json"
    config = read_json(path, "config.json", ModelError)
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds {shown(config)}, not an object.", "Download it again.")
    names = config.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        lacks = "does not say" if names is None else f"says {shown(names)} for"
        raise ModelError(
            f"{path} {lacks} which architecture the weights have.",
            'It needs "architectures": ["LlavaForConditionalGeneration"] or the like, as the '
            "original checkpoint's config.json has it.",
        )
    return config


def weight_files(folder: Path) -> list[Path]:
    """The files that will be loaded, by name: what else lies beside them (a probe, the head of a
    reward model, another format's copy) is no part of the weights. Raises ModelError for one that
    is missing."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    if index.is_file():
        listed = read_json(index, "index of weights", ModelError)
        places = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
            raise ModelError(f"{index} does not say where the weights are.", "Download it again.")
        files = [folder / Path(name).name for name in sorted(set(places.values()))]
        if missing := [path.name for path in files if not path.is_file()]:
            raise ModelError(
                f"{folder} lacks {len(missing)} of {len(files)} files of weights: {missing[0]}",
                "The download was not finished: go on with it.",
            )
        return files
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    raise ModelError(
        f"{folder} holds {cut(found[0])}, but neither model.safetensors nor its index.",
        "Give the checkpoint in the format of transformers (model.safetensors, or "
        "model.safetensors.index.json and its files).",
    )


def read_headers(folder: Path) -> Headers:
    """Of the files that will be loaded. Raises ModelError for one that is missing or cut short."""
    shapes: dict[str, tuple[int, ...]] = {}
    stored = 0
    for path in weight_files(folder):
        more, size = read_header(path)
        shapes, stored = shapes | more, stored + size
    return Headers(shapes, stored)


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], int]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_HEADER, size - 8):
                raise ValueError("it ends within its header")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        ends = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in entries.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path.parent}: the weights cannot be loaded: {path.name} is no safetensors file: "
            f"{cut(str(error), 200)}",
            "Download it again (a pointer of git-lfs is not the file itself).",
        ) from error
    if 8 + length + ends > size:
        raise ModelError(
            f"{path.parent}: the weights cannot be loaded: {path.name} is cut short: it has "
            f"{size:,} of {8 + length + ends:,} bytes.",
            "The download was not finished: go on with it.",
        )
    return shapes, ends


def check_sizes(folder: Path, parsed: Any, headers: Headers, packed: bool) -> None:
    """Refuse a config.json that is not of these weights, before a network of its sizes is built."""
    text, vision = parsed.get_text_config(), parsed.vision_config
    for name, value in {**_numbers(text), **_numbers(vision)}.items():
        if not 0 < value <= _MOST_LAYERS:
            raise ModelError(f"{folder}: config.json gives {name} as {value:,}.", _BELONG)
    layers = headers.layers()
    if layers != text.num_hidden_layers:
        raise ModelError(
            f"{folder}: config.json gives the language model {text.num_hidden_layers:,} layers; "
            f"the weights hold {layers}.",
            _BELONG,
        )
    deep, stacks = next(iter(_numbers(vision).values()), None), headers.vision_layers()
    if deep is not None and stacks and deep not in stacks:
        raise ModelError(
            f"{folder}: config.json gives the vision tower {deep:,} layers; the weights hold "
            f"{' and '.join(map(str, sorted(stacks)))}.",
            _BELONG,
        )
    embedding = _embedding(headers)
    if embedding is not None and not packed and embedding[1] != text.hidden_size:
        raise ModelError(
            f"{folder}: config.json gives hidden_size as {text.hidden_size:,}; the embeddings are "
            f"{embedding[1]:,} wide.",
            _BELONG,
        )


def check_built(folder: Path, built: int, headers: Headers, packed: bool) -> None:
    """Refuse a network of `built` numbers that is far larger than what the files hold."""
    held = headers.numbers * (_PACKED if packed else 1)
    if built > 2 * held + 1_000_000:  # an output matrix may be the input one
        raise ModelError(
            f"{folder}: config.json describes a network of {built:,} numbers; the weights hold "
            f"{held:,}.",
            _BELONG,
        )


def _numbers(config: Any) -> dict[str, int]:
    found = {name: getattr(config, name, None) for name in _LAYERS}
    return {name: value for name, value in found.items() if type(value) is int}


def _embedding(headers: Headers) -> tuple[int, ...] | None:
    found = (s for name, s in headers.shapes.items() if name.endswith("embed_tokens.weight"))
    return next((shape for shape in found if len(shape) == 2), None)
