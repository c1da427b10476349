"""What a checkpoint needs, by its small files and the headers of its weights: nothing is loaded.

**Weights.** Loaded in a dtype, all numbers take its size. 8bit and 4bit (bitsandbytes) make the
matrices of the language model's layers smaller: a byte a number and 4 a row; half a byte a number
and 4 for every 64. What a family spares (vision tower, projector, embeddings, output matrix,
experts) keeps the dtype. Of a folder that is quantised already, what its files hold is said.

**A token** takes, in every self-attention layer, a key and a value as wide as `k_proj` is. Sliding
windows save nothing: what they have passed is kept.

**A picture** takes a token's keys and values for each of its places, and the features that go
there; in a model that crosses (Mllama) the cross-attention keys and values of all its tiles
instead.

**A problem in flight**, searched by stage-beam: prompt, pictures and the stages before the last are
there once for all candidates, and each of N candidates has its own last stage. All of it is held
twice: in the tree where it is kept and in the slots where it is read.

    bytes = 2 * ((PROMPT + (STAGES - 1) * STEP + N * STEP) * token + pictures)

Not counted: what judges read, which gives way before any of this; what a pass computes with; the
GPU's own libraries (about half a GB).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from cot_engine.backends.local.amount import SHARE, parse_memory
from cot_engine.backends.local.folder import (
    Headers,
    check_sizes,
    read_config,
    read_headers,
)
from cot_engine.backends.local.here import Here
from cot_engine.backends.local.hub import find_folder
from cot_engine.backends.local.opener import model_path
from cot_engine.backends.local.packed import check_packed
from cot_engine.backends.models.places import Files, crossed, places
from cot_engine.backends.models.registry import ARCHITECTURES, known
from cot_engine.errors import ModelError
from cot_engine.files.reading import read_json

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number, by dtype."""
PROMPT, STEP, STAGES, N = 256, 256, 4, 4
"""Tokens of a prompt without its pictures and of a step, stages of a plan, candidates of each."""
PICTURE = (1024, 768)
"""Of what size a picture is taken to be."""
Sizes = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Needs:
    """`numbers` are all weights, of which `smaller` in `rows` rows are those that 8bit and 4bit
    touch; `stored` is what the files hold, in bytes. `token` numbers of keys and values a token,
    in `layers` layers; `feature` numbers of a place's features, `cross` of all that cross-attention
    layers hold of a picture. `token` is None where the files do not say. `packed`: how the folder
    is quantised already; `most` pixels of a picture are shown to it."""

    architecture: str
    numbers: int
    smaller: int
    rows: int
    stored: int
    packed: str | None
    layers: int
    token: int | None
    feature: int
    cross: int | None
    window: int | None
    config: Files
    images: Files
    most: int | None = None

    def weights(self, dtype: str, quantize: str | None = None) -> int:
        """Bytes, once loaded."""
        if self.packed is not None:
            return self.stored
        if quantize is None:
            return self.numbers * SIZES[dtype]
        own = self.smaller + 4 * self.rows if quantize == "8bit" else self.smaller * 9 // 16
        return (self.numbers - self.smaller) * SIZES[dtype] + own

    def places(self, size: tuple[int, int] = PICTURE) -> int | None:
        """Tokens of a picture of that width and height, None where the files do not say."""
        return places(
            ARCHITECTURES[self.architecture][0], self.config, self.images, *size, self.most
        )

    def picture(self, dtype: str, size: tuple[int, int] = PICTURE) -> int | None:
        """Bytes of a picture in a search."""
        count = self.places(size)
        if count is None or self.token is None or self.cross is None:
            return None
        return (count * (self.token + self.feature) + self.cross) * SIZES[dtype]

    def problem(self, dtype: str, pictures: Sizes = (PICTURE,)) -> int | None:
        """Bytes of a problem in flight, as above."""
        seen = [self.picture(dtype, size) for size in pictures]
        if self.token is None or any(each is None for each in seen):
            return None
        tokens = PROMPT + (STAGES - 1 + N) * STEP
        return 2 * (tokens * self.token * SIZES[dtype] + sum(filter(None, seen)))


def read_needs(model: str | Path, device: str = "cpu", quantize: str | None = None) -> Needs:
    """Of a folder, a hub name that is in the cache, or "bundled".

    Raises ModelError and InputError for what loading would refuse on the way so far; downloads
    nothing.
    """
    folder = find_folder(model_path(model), download=False)
    config = read_config(folder)
    name = config["architectures"][0]
    known(name, config)
    packed = check_packed(folder, config, quantize, device.partition(":")[0])
    headers = read_headers(folder)
    text = _of(config, "text_config") or config
    smaller = [
        shape
        for name, shape in headers.in_layers()
        if name.endswith("_proj.weight") and ".experts." not in name and len(shape) == 2
    ]
    own, crossing = _widths(text, headers, packed is not None)
    hidden = _whole(text, "hidden_size")
    _check_sizes(folder, config, text, headers, packed is not None)
    if not hidden:
        found = (s for n, s in headers.shapes.items() if n.endswith("embed_tokens.weight"))
        hidden = next(found, (0, 0))[-1]
    deep = _of(config, "vision_config").get("deepstack_visual_indexes")
    levels = 1 + (len(deep) if isinstance(deep, list) else 0)
    tiles = crossed(config) if crossing else 0
    return Needs(
        architecture=name,
        numbers=headers.numbers,
        smaller=sum(map(math.prod, smaller)),
        rows=sum(shape[0] for shape in smaller),
        stored=headers.stored,
        packed=packed,
        layers=len(own),
        token=2 * sum(own) or None,
        feature=0 if crossing else levels * hidden,
        cross=None if tiles is None else 2 * sum(crossing) * tiles,
        window=_window(text),
        config=config,
        images=_images(folder),
    )


def _widths(text: Files, headers: Headers, packed: bool) -> tuple[list[int], list[int]]:
    """How wide keys are in each layer, of self-attention and of cross-attention: as the weights
    have it; as config.json has it where these are packed."""
    if not packed:
        keys = [(n, shape[0]) for n, shape in headers.in_layers() if n.endswith("k_proj.weight")]
        across = [width for name, width in keys if name.startswith("cross_attn")]
        return [width for name, width in keys if name.startswith("self_attn")], across
    heads = _whole(text, "num_attention_heads")
    dim = _whole(text, "head_dim") or _whole(text, "hidden_size") // max(1, heads)
    width = (_whole(text, "num_key_value_heads") or heads) * dim
    found = text.get("cross_attention_layers")
    crossing = len(found) if isinstance(found, list) else 0
    return [width] * (headers.layers() - crossing), [width] * crossing


def _check_sizes(folder: Path, config: Files, text: Files, headers: Headers, packed: bool) -> None:
    """As at loading, but what config.json leaves to transformers is not held against anything."""
    hidden = _whole(text, "hidden_size")
    inner = SimpleNamespace(
        num_hidden_layers=_whole(text, "num_hidden_layers") or headers.layers(), hidden_size=hidden
    )
    vision = SimpleNamespace(**_of(config, "vision_config"))
    parsed = SimpleNamespace(get_text_config=lambda: inner, vision_config=vision)
    check_sizes(folder, parsed, headers, packed or not hidden)


def _of(values: Files, key: str) -> Files:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _whole(values: Files, key: str) -> int:
    """A number of config.json; 0 where there is none."""
    found = values.get(key)
    return found if type(found) is int else 0


def _window(text: Files) -> int | None:
    """How wide its sliding windows are, if it has any."""
    kinds = text.get("layer_types")
    some = "sliding_attention" in kinds if isinstance(kinds, list) else None
    used = text.get("use_sliding_window", True) if some is None else some
    return _whole(text, "sliding_window") or None if used else None


def _images(folder: Path) -> Files:
    """What the folder says of its image processor, wherever it stands."""
    found: Files = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if os.path.isfile(folder / name):
            read = read_json(folder / name, "image processor's configuration", ModelError)
            if isinstance(read, dict):
                found |= _of(read, "image_processor") or read
    return found


@dataclass(frozen=True, slots=True)
class Fit:
    """A model on a device: bytes of its `weights`, of what keys and values may take (`room`) and of
    one `problem`; how many `problems` that is, None where it is not known."""

    here: Here
    quantize: str | None
    weights: int
    room: int
    problem: int | None

    @property
    def problems(self) -> int | None:
        return None if self.problem is None else self.room // self.problem


def fit(
    needs: Needs,
    here: Here,
    quantize: str | None = None,
    memory: float | str = SHARE,
    pictures: Sizes = (PICTURE,),
) -> Fit:
    """How much of a device a model would take. `memory` is as `--memory` has it."""
    weights = needs.weights(here.dtype, quantize)
    left, amount = max(0, here.free - weights), parse_memory(memory)
    room = int(left * amount if amount <= 1 else min(left, amount))
    return Fit(here, quantize, weights, room, needs.problem(here.dtype, pictures))
