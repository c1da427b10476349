"""What a training leaves beside its model: the curves, and a card that says how it was made."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cot_engine.errors import StoreError
from cot_engine.escape import visible
from cot_engine.files.writing import write_whole
from cot_engine.training.sft_config import SFTConfig

# The page's variables for a drawing that stands alone, by day and by night.
_CSS = """svg { --ink: #1c1a17; --soft: #6b655c; --rule: #d9d4cb; --paper: #fff; --c1: #0072b2;
  --c2: #c4500f; --c3: #00805a; background: var(--paper); font-family: sans-serif; }
@media (prefers-color-scheme: dark) { svg { --ink: #eae6df; --soft: #a8a196; --rule: #45413a;
  --paper: #191714; --c1: #5db4e6; --c2: #f0894a; --c3: #3ec79d; } }"""


def draw_curves(rows: list[dict[str, Any]], path: Path) -> bool:
    """Loss, held-out loss and learning rate over the steps, as an SVG file. False, and no file,
    where there are not two rows to connect."""
    from cot_engine.report import panels, svg

    names = {"loss": "loss", "held_out_loss": "held-out loss", "learning_rate": "learning rate"}
    found = {
        name: [(r["step"], r[name]) for r in rows if math.isfinite(r.get(name, math.nan))]
        for name in names
    }
    steps = [step for step, _ in found["loss"]]
    if len(set(steps)) < 2:
        return False
    drawing = svg.Drawing(svg.WIDE, 420)
    upper = panels.Panel(drawing, 56, 30, svg.WIDE - 20, 270)
    lower = panels.Panel(drawing, 56, 300, svg.WIDE - 20, 378)
    for panel, shown in ((upper, ("loss", "held_out_loss")), (lower, ("learning_rate",))):
        low, high = panels.around([v for name in shown for _, v in found[name]])
        low = low if panel is upper else 0.0
        panel.upwards(low, high, panels.round_ticks(low, high, 5), "")
        panel.x = panels.Scale(min(steps), max(steps), panel.left, panel.right)
        x = panel.left
        for name in filter(found.get, shown):
            color = svg.SERIES[list(names).index(name)]
            drawing.line([(panel.x(step), panel.y(v)) for step, v in found[name]], color, 1.6)
            drawing.text(x, panel.top - 10, names[name], color)
            x += svg.text_width(names[name]) + 18
    lower.floor(panels.round_ticks(min(steps), max(steps), 9), "{:,.0f}".format, "steps")
    last = f"loss {found['loss'][-1][1]:.4f} at step {steps[-1]:,}"
    drawn = drawing.svg("curves", f"Training curves: {last}", _CSS) + "\n"
    write_whole(path, drawn, "The drawing of the curves", StoreError)
    return True


def card(
    config: SFTConfig,
    facts: dict[str, Any],
    rows: list[dict[str, Any]],
    machine: dict[str, Any],
    *,
    steps: int,
    seconds: float,
    examples: int | None,
    held: int,
    note: str = "",
) -> str:
    """The model card, in Markdown. Everything in it was read or measured. `note` is about the
    profile of the model that it began with."""
    data, train = config.data, config.train
    source = data.rows or f"generated scenes, split {data.scenes!r}, seed {data.seed}"
    seen = steps * train.batch
    lines = [
        "# " + visible(Path(config.output).name),
        "",
        f"{visible(config.model.path)} ({facts['architecture']}), "
        + ("fine-tuned" if config.lora is None else f"with a LoRA of rank {config.lora.rank}")
        + f" by cot-engine {version('cot-engine')} on answers in the format {config.format!r}.",
        "",
        "| | |",
        "|---|---|",
        f"| data | {visible(source)}" + (f", {examples:,} rows" if examples else "") + " |",
        f"| held out | {held:,} examples |" if held else "| held out | none |",
        f"| steps | {steps:,} of {train.batch:,} examples: {seen:,} in all |",
        f"| trained weights | {facts['trained']:,} of {facts['parameters']:,} |",
        f"| hours | {seconds / 3600:.2f} |",
    ]
    for key, name in (("loss", "last loss"), ("held_out_loss", "held-out loss")):
        values = [row[key] for row in rows if key in row]
        if values:
            lines.append(f"| {name} | {values[-1]:.4f} per token of the answer |")
    lines += [f"| {key} | {visible(str(value))} |" for key, value in machine.items()]
    lines += [f"| weights it began with | {facts['digest']} |", f"| made | {_today()} |", ""]
    lines += [visible(note), ""] if note else []
    lines += ["The configuration:", "", "```json", json.dumps(config.plain(), indent=1), "```", ""]
    return "\n".join(lines)


def machine(adapter: Any, world: int) -> dict[str, Any]:
    """Hardware and versions, as the card lists them."""
    import torch

    if adapter.device.type == "cuda":
        hardware = torch.cuda.get_device_name(adapter.device)
    else:
        threads = torch.get_num_threads()
        hardware = f"{platform.machine()} CPU, {threads} of {os.cpu_count()} threads"
    if world > 1:
        hardware = f"{world} processes, each on {hardware}"
    names = ("torch", "transformers", "accelerate", "peft")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return {"hardware": hardware, "versions": f"Python {platform.python_version()}, {versions}"}


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())
