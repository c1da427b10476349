"""How many places a picture takes in a prompt, by the small files of a checkpoint alone.

What the adapter of a family finds out by preparing the picture, without torch and without pixels.
`config` is config.json, `images` what the folder says of its image processor. Tests hold each
formula against the processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Files = dict[str, Any]
_MOST_TILES = 200  # of a picture, in a row: a file that says more is not believed


def places(
    family: str, config: Files, images: Files, width: int, height: int, most: int | None = None
) -> int | None:
    """Of a picture of these sizes in pixels, of which `most` are shown to the model; None where the
    files do not say."""
    if most is not None:
        try:
            told = BOUNDS[family](images, most) if family in BOUNDS else {}
        except (LookupError, TypeError, AttributeError):
            return None
        images = {k: v for k, v in images.items() if k not in ("min_pixels", "max_pixels")} | told
        width, height = (width, height) if told else smaller(width, height, most)
    return _said(FAMILIES.get(family), config, images, width, height)


def smaller(width: int, height: int, most: int) -> tuple[int, int]:
    """A picture's size with at most `most` pixels, its shape kept as far as whole pixels allow."""
    if width * height <= most:
        return width, height
    scale = math.sqrt(most / (width * height))
    short = max(1, math.floor(min(width, height) * scale))
    long = min(math.floor(max(width, height) * scale), most // short)
    return (long, short) if width > height else (short, long)


def crossed(config: Files) -> int | None:
    """How many vision tokens cross-attention layers hold of a picture: all tiles, padding too."""
    return _said(_tiles, config)


def _said(formula: Callable[..., int] | None, *given: Any) -> int | None:
    try:
        return max(0, int(formula(*given))) or None if formula is not None else None
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None


def _tiles(config: Files) -> int:
    vision = config["vision_config"]
    return vision["max_num_tiles"] * ((vision["image_size"] // vision["patch_size"]) ** 2 + 1)


def _llava(config: Files, images: Files, width: int, height: int) -> int:
    vision = config["vision_config"]
    if vision.get("model_type") == "pixtral":  # a family of its own
        return _pixtral(config, images, width, height)
    own = vision.get("model_type", "clip_vision_model") == "clip_vision_model"
    default = config.get("vision_feature_select_strategy", "default") == "default"
    return (vision["image_size"] // vision["patch_size"]) ** 2 + own - default


def _llava_next(config: Files, images: Files, width: int, height: int) -> int:
    """The whole picture, and its tiles without their padding, each row with a token for its end."""
    rows, columns, _ = _unpadded(config, images, width, height)
    return rows * columns + rows + _llava(config, images, width, height)


def _onevision(config: Files, images: Files, width: int, height: int) -> int:
    """Of a picture alone: as LLaVA-NeXT's, but of many tiles the patches are made fewer."""
    rows, columns, patches = _unpadded(config, images, width, height)
    most = int(config.get("vision_aspect_ratio", "anyres_max_9").removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (most * patches**2))
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    vision = config["vision_config"]
    default = config.get("vision_feature_select_strategy", "full") == "default"
    return rows * columns + rows + (vision["image_size"] // vision["patch_size"]) ** 2 - default


def _pixtral(config: Files, images: Files, width: int, height: int) -> int:
    """Whole tokens cover the picture, once its longest edge is no longer than is allowed."""
    patch, merge = config["vision_config"]["patch_size"], config.get("spatial_merge_size", 1)
    scale = max(1, max(width, height) / images["size"]["longest_edge"])
    return math.prod(math.ceil(math.floor(n / scale) / (patch * merge)) for n in (width, height))


def _unpadded(config: Files, images: Files, width: int, height: int) -> tuple[int, int, int]:
    """Rows and columns of patches in all tiles but for their padding, and of one tile."""

    def gain(size: tuple[int, int]) -> tuple[int, int]:
        scale = min(size[1] / width, size[0] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, used - size[0] * size[1]

    pinpoints = images.get("image_grid_pinpoints") or config["image_grid_pinpoints"]
    best = max(pinpoints, key=gain)
    side = config["vision_config"]["image_size"]
    patches = side // config["vision_config"]["patch_size"]
    rows, columns = (size // side * patches for size in best)
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    return rows, columns, patches


def _qwen(config: Files, images: Files, width: int, height: int) -> int:
    """Neighbouring patches make a token; sizes are rounded to whole ones, within bounds."""
    vision, size = config["vision_config"], images.get("size") or {}
    factor = images.get("patch_size", vision.get("patch_size", 14)) * images.get("merge_size", 2)
    least = images.get("min_pixels") or size.get("shortest_edge", 56 * 56)
    most = images.get("max_pixels") or size.get("longest_edge", 28 * 28 * 1280)
    down, across = round(height / factor), round(width / factor)
    scale = math.sqrt(height * width / most)
    if down * across * factor**2 > most:
        down = max(1, math.floor(height / scale / factor))
        across = max(1, math.floor(width / scale / factor))
    elif down * across * factor**2 < least:
        scale = math.sqrt(least / (height * width))
        down, across = math.ceil(height * scale / factor), math.ceil(width * scale / factor)
    return down * across


def _glm(config: Files, images: Files, width: int, height: int) -> int:
    """As Qwen's, but the bounds count each picture as a film's frames, and no side is shorter than
    a token's."""
    patch = images.get("patch_size", config["vision_config"].get("patch_size", 14))
    short, frames = patch * images.get("merge_size", 2), images.get("temporal_patch_size", 2)
    scale = max(1, short / height, short / width)
    size = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000, **images.get("size", {})}
    bounds = {name: pixels / frames for name, pixels in size.items()}
    return _qwen(config, {**images, "size": bounds}, int(width * scale), int(height * scale))


def _internvl(config: Files, images: Files, width: int, height: int) -> int:
    """The tiles of the grid whose shape is nearest, and the whole picture if they are several."""
    vision, size = config["vision_config"], images["size"]
    side, patch = vision.get("image_size", 448), vision.get("patch_size", 14)
    (tall, wide), (down, across) = (s if isinstance(s, list) else [s, s] for s in (side, patch))
    each = int((tall // down) * (wide // across) * config.get("downsample_ratio", 0.5) ** 2)
    least, most = images.get("min_patches", 1), images.get("max_patches", 12)
    sides = range(1, min(most, _MOST_TILES) + 1)
    grids = sorted(
        ((a, b) for a in sides for b in sides if least <= a * b <= most), key=lambda g: g[0] * g[1]
    )
    best, off = (1, 1), math.inf
    for grid in grids:
        now = abs(width / height - grid[0] / grid[1])
        covered = size["height"] * size["width"] * grid[0] * grid[1]
        if now < off or (now == off and width * height > 0.5 * covered):
            best, off = grid, now
    tiles = best[0] * best[1]
    return each * (tiles + (tiles > 1))


def _idefics3(config: Files, images: Files, width: int, height: int) -> int:
    """As many tiles as the picture fills, once it was brought to the size of the longest edge."""
    vision = config["vision_config"]
    each = (vision["image_size"] // vision["patch_size"]) ** 2 // config.get("scale_factor", 2) ** 2
    if not images.get("do_image_splitting", True):
        return each
    tile = images["max_image_size"]["longest_edge"]
    long = min(images["size"]["longest_edge"], 4096)
    short = max(1, int(long * min(width, height) / max(width, height)))
    short += short % 2
    across = math.ceil(long / tile)
    tiles = across * math.ceil(int(across * tile * short / long) / tile)
    return each * (tiles + (tiles > 1))


def bound_area(images: Files, most: int) -> Files:
    """Of Qwen's processors, which bring each picture between two bounds."""
    size = images.get("size") or {}
    least = images.get("min_pixels") or size.get("shortest_edge", 56 * 56)
    own = images.get("max_pixels") or size.get("longest_edge", 28 * 28 * 1280)
    return {"size": {"shortest_edge": min(least, most), "longest_edge": min(own, most)}}


def bound_film(images: Files, most: int) -> Files:
    """Of GLM's, whose bounds count each picture as a film's frames."""
    size = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000, **images.get("size", {})}
    frames = images.get("temporal_patch_size", 2)
    bounds = ("shortest_edge", "longest_edge")
    return {"size": {name: min(size[name], most * frames) for name in bounds}}


def bound_edge(images: Files, most: int) -> Files:
    """Of Idefics's processors, which bring each picture to one size, small ones too: so many tiles
    that a square of them has no more pixels, one at least."""
    tile = images["max_image_size"]["longest_edge"]
    edge = max(1, math.isqrt(most) // tile) * tile
    return {"size": {"longest_edge": min(images["size"]["longest_edge"], edge)}}


def bound_tiles(images: Files, most: int) -> Files:
    """Of InternVL's processor, which fills tiles, whatever the size: one at least."""
    size = images["size"]
    tiles = max(1, min(images.get("max_patches", 12), most // (size["height"] * size["width"])))
    return {"max_patches": tiles, "min_patches": min(images.get("min_patches", 1), tiles)}


BOUNDS: dict[str, Callable[[Files, int], Files]] = {
    "qwen2_vl": bound_area,
    "qwen3_vl": bound_area,
    "qwen3_vl_moe": bound_area,
    "glm4v": bound_film,
    "idefics3": bound_edge,
    "internvl": bound_tiles,
}
"""What the image processor of a family is told, by its own settings, so that a picture has at most
so many pixels. The others are shown a picture that was made smaller before."""

FAMILIES: dict[str, Callable[[Files, Files, int, int], int]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _onevision,
    "mistral3": _pixtral,
    "mllama": lambda *_: 1,
    "qwen2_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_vl_moe": _qwen,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "glm4v": _glm,
    "gemma3": lambda config, *_: config.get("mm_tokens_per_image", 256),
}
"""By the file of the family, as the registry has it."""
