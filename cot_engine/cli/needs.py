"""What a model needs and what would be run, for `list models` and `--dry-run`: as JSON, and that in
words."""

from __future__ import annotations

from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Any

from cot_engine.backends.local.amount import SHARE, parse_memory
from cot_engine.backends.local.devices import device_list
from cot_engine.backends.local.here import here
from cot_engine.backends.local.needs import PICTURE, PROMPT, STAGES, STEP, N, Sizes, fit, read_needs
from cot_engine.backends.opening import backend_of
from cot_engine.cli.columns import show
from cot_engine.options.config import RunConfig
from cot_engine.show.words import plural

_ASSUMED = f"stage-beam, N={N}, a prompt of {PROMPT} tokens, {STAGES} stages of {STEP}"


def needs(
    model: str | Path, config: RunConfig | None = None, pictures: Sizes = (PICTURE,)
) -> dict[str, Any]:
    """What it needs, and how much of it is here: sizes in bytes, None where the folder's files do
    not say. Raises ModelError and InputError for a folder that will not do; loads nothing."""
    c = config or RunConfig()
    devices = device_list(c.device)
    at = here(devices[0], c.dtype)
    found = replace(read_needs(model, at.device, c.quantize), most=c.max_pixels)
    dtypes = ("float32", "bfloat16")
    ways = {d: found.weights(d) for d in dtypes} | {
        way: found.weights("bfloat16", way) for way in ("8bit", "4bit")
    }
    token = {d: found.token and found.token * size for d, size in zip(dtypes, (4, 2), strict=True)}
    problem = {d: found.problem(d, pictures) for d in dtypes}
    share = parse_memory(c.memory) / devices.count(devices[0])
    fits = fit(found, at, c.quantize, share, pictures)
    return {
        "architecture": found.architecture,
        "parameters": None if found.packed else found.numbers,
        "stored": found.stored,
        "quantised": found.packed,
        "weights": {found.packed: found.stored} if found.packed else ways,
        "token": token,
        "layers": found.layers,
        "window": found.window,
        "pictures": [
            {
                "width": width,
                "height": height,
                "tokens": found.places((width, height)),
                **{d: found.picture(d, (width, height)) for d in dtypes},
            }
            for width, height in pictures
        ],
        "problem": {**problem, "assumed": _ASSUMED},
        "here": {
            "device": at.device,
            "replicas": len(devices),
            "dtype": at.dtype,
            "quantize": c.quantize,
            "free": at.free,
            "weights": fits.weights,
            "memory": c.memory,
            "room": fits.room,
            "problems": fits.problems,
        },
    }


def lines(told: dict[str, Any]) -> dict[str, str]:
    """That in words, by what each line is about."""
    kind, token, problem = told["quantised"], told["token"], told["problem"]
    count = f"quantised already ({kind})" if kind else f"{_short(told['parameters'])} parameters"
    ways = ", ".join(f"{way} {amount(size)}" for way, size in told["weights"].items())
    spared = "" if kind else "what they spare in bfloat16; "
    seen = [_picture(each) for each in told["pictures"]]
    said = {
        "model": f"{told['architecture']}, {count}",
        "weights": f"{ways} ({spared}on disk {amount(told['stored'])})",
        "token": "config.json does not say what its keys and values take",
        "picture": "; ".join(seen),
        "problem": "not known",
        "here": _here(told["here"]),
    }
    if token["bfloat16"]:
        said["token"] = f"{_pair(token)} of keys and values in {plural(told['layers'], 'layer')}"
        if told["window"]:
            said["token"] += f"; windows of {told['window']:,} save nothing, all is kept"
    if problem["bfloat16"]:
        pictures = plural(len(seen), "such picture") if seen else "no picture"
        said["problem"] = (
            f"{_pair(problem)} in flight, {1e9 / problem['bfloat16']:.2g} per GB in bfloat16 "
            f"({problem['assumed']}, {pictures})"
        )
    return {name: text for name, text in said.items() if text}


def _picture(told: dict[str, Any]) -> str:
    size = f"{told['width']}x{told['height']}"
    if told["tokens"] is None:
        return f"{size}: how many tokens is not known before it is prepared"
    taken = "" if told["bfloat16"] is None else f", {_pair(told)}"
    return f"{size} is {plural(told['tokens'], 'token')}{taken}"


def dry_run(
    config: RunConfig,
    options: dict[str, Any],
    pictures: Sizes,
    json: bool,
    notes: tuple[str, ...] = (),
) -> None:
    """Print what would be run, `notes` on how it was chosen, and what its model needs. Raises what
    `needs` does."""
    backend = backend_of(config.model)
    told = needs(config.model, config, pictures) if backend == "local" else None
    if json:
        chosen = {"notes": list(notes)} if notes else {}
        found = {"options": options, **chosen, "model": config.model, "needs": told}
        print(dumps(found, indent=2))
        return
    rows = {"options": "  ".join(_option(key, value) for key, value in options.items())}
    if told is None:
        rows["model"] = f"{config.model} is opened by {backend}, which does not say what it needs"
    else:
        rows |= lines(told)
        rows["model"] = f"{config.model}: {rows['model']}"
    if notes:
        rows["chosen"] = " ".join(notes)
    show([(name, [text]) for name, text in rows.items()])


def _option(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(_option(*pair) for pair in value.items())
    said = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    return f"{name}={'none' if said is None else said}"


def _here(found: dict[str, Any]) -> str:
    way = ", ".join(filter(None, (found["device"], found["dtype"], found["quantize"])))
    if found["replicas"] > 1:
        way = f"the first of {found['replicas']} replicas on {way}"
    said = f"{way}: {amount(found['free'])} free, the weights take {amount(found['weights'])}"
    if found["weights"] > found["free"]:
        return f"{said}: they do not fit"
    memory = "" if found["memory"] == SHARE else f" (--memory {found['memory']})"
    said += f", keys and values may take {amount(found['room'])}{memory}"
    if found["problems"] is None:
        return said
    count = found["problems"]
    return f"{said}: {f'{count:,} in flight' if count else 'not enough for one problem'}"


def _pair(sizes: dict[str, Any]) -> str:
    return f"{amount(sizes['bfloat16'])} in bfloat16 ({amount(sizes['float32'])} in float32)"


def amount(size: int) -> str:
    """Bytes, in words."""
    return _scaled(size, (" bytes", " kB", " MB", " GB", " TB"))


def _short(count: int) -> str:
    return _scaled(count, ("", " thousand", " million", " billion", " trillion"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """Three digits, and a unit."""
    at = 0
    while value >= 999.5 and at < len(units) - 1:
        value, at = value / 1000, at + 1
    return f"{value:.3g}{units[at]}"
