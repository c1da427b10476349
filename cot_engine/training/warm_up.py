"""Make the untrained bundled model, its vision tower warmed up on direct supervision.

    python -m cot_engine.training.warm_up --out runs/warm --steps 2200

Trained together with a language model from scratch, a small tower learns nothing for long; told for
every patch what is there, it sees within minutes. The folder that this writes is what `cot-engine
train` begins with, the tower frozen. Runs are resumed; `--minutes` bounds one.
"""

from __future__ import annotations

import argparse
import io
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cot_engine.errors import StoreError
from cot_engine.files.writing import write_whole
from cot_engine.scenes import SceneProblem, sample
from cot_engine.scenes.charts import TALLEST
from cot_engine.scenes.model import PATCH, build_model, build_processor
from cot_engine.scenes.world import COLOURS, GRID, SHAPES, SIDE, SIZES, Thing
from cot_engine.training.clock import Clock
from cot_engine.training.muon import Muon
from cot_engine.training.network import share

IGNORE = -100
EVERY = 10.0
"""Seconds between lines of progress."""
CELLS = GRID * GRID
NO_BAR = len(COLOURS)
HEADS = {  # classes of each head; every patch is asked all that its picture has an answer to
    "shape": len(SHAPES) + 1,  # of the object in the cell; the last one: there is none
    "colour": len(COLOURS),
    "size": len(SIZES),
    "cell": CELLS,  # which cell this is: without it no position is left in the features
    "next": CELLS + 1,  # the first occupied cell after this one, or none
    "bar1": NO_BAR + 1,  # colours and heights of the bars over this column of patches
    "height1": TALLEST,
    "bar2": NO_BAR + 1,
    "height2": TALLEST,
}
assert SIDE // PATCH == GRID, "a patch is a cell"


def rate(done: float) -> float:
    """Learning-rate factor at `done` in 0..1: up over 2 %, flat, down to 0 over the second half."""
    return min(1.0, done / 0.02, max(0.0, 2 * (1 - done)))


def prefetch(make: Callable[[int], object], start: int) -> Iterator:
    """make(start), make(start + 1), ... computed one thread ahead."""
    ready: queue.Queue = queue.Queue(maxsize=8)

    def work() -> None:
        index = start
        while True:
            ready.put(make(index))
            index += 1

    threading.Thread(target=work, daemon=True).start()
    while True:
        yield ready.get()


def pixels(problems: list[SceneProblem]) -> torch.Tensor:
    """(n, 3, 64, 64) floats in -1..1, as the processor makes them."""
    stacked = np.stack([np.asarray(p.image) for p in problems])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def _label_things(things: tuple, row: dict[str, np.ndarray]) -> None:
    colours, cells = list(COLOURS), [t.row * GRID + t.column for t in things]
    row["shape"][:] = len(SHAPES)
    row["cell"][:] = np.arange(CELLS)
    for t, c in zip(things, cells, strict=True):
        row["shape"][c] = SHAPES.index(t.shape)
        row["colour"][c] = colours.index(t.colour)
        row["size"][c] = SIZES.index(t.size)
    for c in range(CELLS):
        row["next"][c] = min((d for d in cells if d > c), default=CELLS)


def _label_bars(bars: tuple, row: dict[str, np.ndarray]) -> None:
    colours, slot = list(COLOURS), (SIDE - 4) / len(bars)
    row["bar1"][:] = row["bar2"][:] = NO_BAR
    over: dict[int, list] = {}
    for i, bar in enumerate(bars):
        over.setdefault(int((2 + (i + 0.5) * slot) // PATCH), []).append(bar)
    for column, some in over.items():
        for k, bar in enumerate(some[:2], 1):
            row[f"bar{k}"][column::GRID] = colours.index(bar.colour)
            row[f"height{k}"][column::GRID] = bar.height - 1


def batch(
    index: int, n: int, seed: int = 1, split: str = "train"
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Pictures (n, 3, 64, 64), and for every head the class of each patch (n, 16)."""
    problems = [sample(seed, index * n + i, split) for i in range(n)]
    classes = {head: np.full((n, CELLS), IGNORE) for head in HEADS}
    for i, p in enumerate(problems):
        row = {head: y[i] for head, y in classes.items()}
        (_label_things if isinstance(p.objects[0], Thing) else _label_bars)(p.objects, row)
    return pixels(problems), {head: torch.from_numpy(y) for head, y in classes.items()}


def losses(tower: nn.Module, heads: nn.ModuleDict, x: torch.Tensor, y: dict) -> tuple:
    """The sum of the heads' mean losses, and each head's share of right patches.

    "No object" and "no bar" are left out of the shares: most patches are that.
    """
    with torch.autocast(x.device.type, torch.bfloat16):
        features = tower(x).last_hidden_state[:, 1:]
    loss: torch.Tensor | float = 0.0
    right: dict[str, float] = {}
    for head, linear in heads.items():
        logits, target = linear(features.float()).flatten(0, 1), y[head].flatten()
        kept = target != IGNORE
        if not kept.any():
            continue
        loss = loss + F.cross_entropy(logits, target, ignore_index=IGNORE)
        if head == "shape" or head.startswith("bar"):
            kept = kept & (target != HEADS[head] - 1)
        right[head] = (logits.argmax(-1) == target)[kept].float().mean().item()
    return loss, right


def held_out(tower: nn.Module, heads: nn.ModuleDict, device: str) -> dict[str, float]:
    """Each head's share of right patches on 512 pictures of the validation split."""
    shares: dict[str, list[float]] = {}
    with torch.no_grad():
        for index in range(8):
            x, y = batch(index, 64, seed=9, split="val")
            _, right = losses(tower, heads, x.to(device), {h: v.to(device) for h, v in y.items()})
            for head, share in right.items():
                shares.setdefault(head, []).append(share)
    return {head: round(sum(s) / len(s), 4) for head, s in shares.items()}


def optimisers(modules: list[nn.Module]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, convolutions and vectors."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in modules:
        for name, p in module.named_parameters():
            (matrices if p.ndim == 2 and "embed" not in name else rest).append(p)
    return [
        Muon(matrices, lr=0.01),
        torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def warm_up(out: str | Path, steps: int, size: int, minutes: float | None) -> None:
    """Train to `steps` steps of `size` pictures, or for `minutes`; then write the model folder."""
    out = Path(out)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = build_processor()
    model = build_model(len(processor.tokenizer))
    model.set_attn_implementation("eager")
    tower = model.model.vision_tower.to(device)
    vision: Any = model.config.vision_config
    width = vision.hidden_size
    heads = nn.ModuleDict({head: nn.Linear(width, n) for head, n in HEADS.items()}).to(device)
    opts = optimisers([tower, heads])
    base = [opt.param_groups[0]["lr"] for opt in opts]
    done, state_file, start = 0, out / "warm_up.pt", time.monotonic()
    said = 0.0
    out.mkdir(parents=True, exist_ok=True)
    if state_file.exists():
        state = torch.load(state_file)
        tower.load_state_dict(state["tower"])
        heads.load_state_dict(state["heads"])
        for opt, s in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(s)
        done = state["done"]

    clock = Clock(steps, done, minutes and 60 * minutes)

    def save() -> None:
        state = {"tower": tower.state_dict(), "heads": heads.state_dict(), "done": done}
        torch.save(state | {"opts": [o.state_dict() for o in opts]}, file := io.BytesIO())
        write_whole(state_file, file.getvalue(), "The state", StoreError)

    for x, y in prefetch(lambda index: batch(index, size), done):
        if done >= steps or (minutes and time.monotonic() - start > 60 * minutes):
            break
        loss, _ = losses(tower, heads, x.to(device), {h: v.to(device) for h, v in y.items()})
        loss.backward()
        for opt, lr in zip(opts, base, strict=True):
            for group in opt.param_groups:
                group["lr"] = lr * rate(done / steps)
            opt.step()
            opt.zero_grad(set_to_none=True)
        done += 1
        if done % 200 == 0 or clock.seconds - said >= EVERY:
            said = clock.seconds
            print(f"{clock.said(done)}, loss {loss.item():.3f}", flush=True)
        if done % 200 == 0:
            save()
    save()
    print(f"held out after {done} steps: {held_out(tower, heads, device)}")
    model.cpu().save_pretrained(out)
    processor.save_pretrained(out)
    share(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model (resumed)")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch", type=int, default=64, help="pictures a step")
    parser.add_argument("--minutes", type=float, help="stop after so long; run again to go on")
    parser.add_argument("--threads", type=int, help="of the CPU")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    warm_up(args.out, args.steps, args.batch, args.minutes)


if __name__ == "__main__":
    main()
