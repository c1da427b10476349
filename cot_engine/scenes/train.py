"""Train the bundled model from scratch, on a CPU, in two parts.

    python -m cot_engine.scenes.train vision   --out RUN --minutes 9
    python -m cot_engine.scenes.train language --out RUN --minutes 90

`vision` teaches the tower to name, at every patch, the object in its cell, where it is, and which
cell holds the next object. `language` then freezes the tower and trains projector and language
model on staged responses; every `--save` minutes the model is written to RUN/model in its final
form. Both stop after `--minutes` of training, over which the learning rate follows a fixed curve,
so a slower machine sees fewer samples but always ends with the rate at 0. Both resume from
RUN/vision.pt and RUN/language.pt. Set OMP_WAIT_POLICY=passive where cores are shared.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import SceneProblem, sample
from .model import PATCH, build_model, build_processor
from .muon import Muon
from .world import COLOURS, GRID, SHAPES, SIDE, SIZES

IGNORE = -100
PATCHES = SIDE // PATCH  # patches a side of the image


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


def optimisers(modules: list[nn.Module]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, convolutions and vectors."""
    matrices, rest = [], []
    for module in modules:
        for name, p in module.named_parameters():
            (matrices if p.ndim == 2 and "embed" not in name else rest).append(p)
    return [
        Muon(matrices, lr=0.01),
        torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class Clock:
    """Training time: counts across resumed runs, and leaves out what happens between."""

    def __init__(self, minutes: float, spent: float = 0.0):
        self.total, self.spent, self.last = 60 * minutes, spent, time.monotonic()

    def done(self) -> float:
        """The share of the time that has passed."""
        now = time.monotonic()
        self.spent, self.last = self.spent + now - self.last, now
        return self.spent / self.total


def save(path: Path, state: dict) -> None:
    """Write beside and rename, so that a kill leaves the old file."""
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def step(opts: list[torch.optim.Optimizer], base: list[float], factor: float) -> None:
    for opt, lr in zip(opts, base, strict=True):
        for group in opt.param_groups:
            group["lr"] = lr * factor
        opt.step()
        opt.zero_grad(set_to_none=True)


# --- the vision tower -----------------------------------------------------------------------------

HEADS = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOURS),
    "size": len(SIZES),
    "cell": GRID * GRID,
    "next": GRID * GRID + 1,
}


def vision_batch(index: int, n: int = 64) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Pictures (n, 3, 64, 64), and for every head the class of each patch (n, 64)."""
    problems = [sample(1, index * n + i) for i in range(n)]
    classes = {head: np.full((n, GRID * GRID), IGNORE) for head in HEADS}
    classes["shape"][:] = len(SHAPES)  # empty
    classes["cell"][:] = np.arange(GRID * GRID)
    colours = list(COLOURS)
    for row, p in enumerate(problems):
        cells = [t.row * GRID + t.column for t in p.objects]
        for t, c in zip(p.objects, cells, strict=True):
            classes["shape"][row, c] = SHAPES.index(t.shape)
            classes["colour"][row, c] = colours.index(t.colour)
            classes["size"][row, c] = SIZES.index(t.size)
        for c in range(GRID * GRID):  # the first occupied cell after this one, or none
            classes["next"][row, c] = min((d for d in cells if d > c), default=GRID * GRID)
    per = PATCHES // GRID
    grids = {
        head: np.repeat(np.repeat(y.reshape(n, GRID, GRID), per, 1), per, 2).reshape(n, -1)
        for head, y in classes.items()
    }
    return pixels(problems), {head: torch.from_numpy(y) for head, y in grids.items()}


def train_vision(out: Path, minutes: float) -> None:
    torch.manual_seed(0)
    tower = build_model(300).model.vision_tower
    heads = nn.ModuleDict({head: nn.Linear(128, n) for head, n in HEADS.items()})
    opts = optimisers([tower, heads])
    base = [opt.param_groups[0]["lr"] for opt in opts]
    steps, spent, path = 0, 0.0, out / "vision.pt"
    if path.exists():
        state = torch.load(path)
        tower.load_state_dict(state["tower"])
        heads.load_state_dict(state["heads"])
        for opt, s in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(s)
        steps, spent = state["steps"], state["spent"]

    clock = Clock(minutes, spent)
    seen = {head: [0, 0] for head in HEADS}
    for x, y in prefetch(vision_batch, steps):
        done = clock.done()
        features = tower(x).last_hidden_state[:, 1:]
        loss = 0.0
        for head, linear in heads.items():
            logits, target = linear(features).flatten(0, 1), y[head].flatten()
            loss = loss + F.cross_entropy(logits, target, ignore_index=IGNORE)
            kept = (target != IGNORE) & (target != len(SHAPES) if head == "shape" else True)
            seen[head][0] += (logits.argmax(-1) == target)[kept].sum().item()
            seen[head][1] += kept.sum().item()
        loss.backward()
        step(opts, base, rate(done))
        steps += 1
        if steps % 50 == 0 or done >= 1:
            shares = {head: round(a / b, 4) for head, (a, b) in seen.items()}
            print(f"vision {steps} {done:.3f} loss {loss.item():.3f} {shares}", flush=True)
            seen = {head: [0, 0] for head in HEADS}
        if steps % 200 == 0 or done >= 1:
            save(
                path,
                {
                    "tower": tower.state_dict(),
                    "heads": heads.state_dict(),
                    "steps": steps,
                    "opts": [o.state_dict() for o in opts],
                    "spent": clock.spent,
                },
            )
        if done >= 1:
            return


# --- the language model ---------------------------------------------------------------------------

POOL = 8  # batches drawn together and sorted by length, so that little is padded
# The share of problems that are described instead of shown: large while the model learns to compare
# words, which needs no picture and costs half as much without, then small.
TEXT_ONLY, TEXT_FIRST, TEXT_POOLS = 0.2, 0.6, 240
HINTED = 0.08  # share asked to be brief, and share asked to be detailed


def language_pool(index: int, tokenizer, n: int) -> list[dict[str, torch.Tensor]]:
    """`POOL` batches of `n`: ids (n, t), target ids (n, t), which rows have pictures, pixels."""
    rng = random.Random(f"pool {index}")
    share, problems = TEXT_FIRST if index < TEXT_POOLS else TEXT_ONLY, []
    for i in range(POOL * n):
        detail = rng.choices(("normal", "brief", "full"), (1 - 2 * HINTED, HINTED, HINTED))[0]
        problems.append(
            sample(2, index * POOL * n + i, detail=detail, text_only=rng.random() < share)
        )
    prompts = tokenizer(
        [
            ("<s>" if p.text_only else "<s>" + "<image>" * PATCHES**2) + p.prompt + "\n"
            for p in problems
        ]
    ).input_ids
    replies = tokenizer([p.response + "</s>" for p in problems]).input_ids
    order = sorted(range(len(problems)), key=lambda i: len(prompts[i]) + len(replies[i]))
    batches = []
    for k in range(POOL):
        rows = order[k * n : (k + 1) * n]
        length = max(len(prompts[i]) + len(replies[i]) for i in rows)
        ids = torch.zeros(n, length, dtype=torch.long)
        targets = torch.full((n, length), IGNORE)
        for row, i in enumerate(rows):
            start, end = len(prompts[i]), len(prompts[i]) + len(replies[i])
            ids[row, :end] = torch.tensor(prompts[i] + replies[i])
            targets[row, start - 1 : end - 1] = torch.tensor(replies[i])
        shown = [i for i in rows if not problems[i].text_only]
        batches.append(
            {
                "ids": ids,
                "targets": targets,
                "tokens": int((ids != 0).sum()),
                "pixels": pixels([problems[i] for i in shown]) if shown else None,
            }
        )
    rng.shuffle(batches)
    return batches


def logits_and_loss(model, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss over the reply tokens, and whether each was the model's first choice.

    Rows are padded on the right, where a causal model cannot look: no attention mask is needed.
    """
    embeds = model.model.language_model.embed_tokens(batch["ids"])
    if batch["pixels"] is not None:
        with torch.no_grad():
            features = model.model.vision_tower(batch["pixels"]).last_hidden_state[:, 1:]
        features = model.model.multi_modal_projector(features)
        where = (batch["ids"] == model.config.image_token_id).unsqueeze(-1)
        embeds = embeds.masked_scatter(where, features)
    hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    kept = batch["targets"] != IGNORE
    logits, target = model.lm_head(hidden[kept]), batch["targets"][kept]
    return logits.argmax(-1) == target, F.cross_entropy(logits, target)


def train_language(out: Path, minutes: float, batch_size: int, save_every: float) -> None:
    torch.manual_seed(0)
    processor = build_processor()
    model = build_model(len(processor.tokenizer))
    tower = model.model.vision_tower
    tower.load_state_dict(torch.load(out / "vision.pt")["tower"])
    tower.requires_grad_(False)
    trained = [model.model.language_model, model.model.multi_modal_projector]
    opts = optimisers(trained)
    base = [opt.param_groups[0]["lr"] for opt in opts]
    pools, steps, spent, path = 0, 0, 0.0, out / "language.pt"
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        for opt, s in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(s)
        pools, steps, spent = state["pools"], state["steps"], state["spent"]

    clock, saved, right, total = Clock(minutes, spent), spent, 0, 0
    log = (out / "language.jsonl").open("a")
    for pool in prefetch(lambda i: language_pool(i, processor.tokenizer, batch_size), pools):
        pools += 1
        for batch in pool:
            done = clock.done()
            hits, loss = logits_and_loss(model, batch)
            loss.backward()
            nn.utils.clip_grad_norm_([p for m in trained for p in m.parameters()], 1.0)
            step(opts, base, rate(done))
            steps, right, total = steps + 1, right + hits.sum().item(), total + hits.numel()
            if steps % 50 == 0:
                row = {
                    "step": steps,
                    "samples": steps * batch_size,
                    "done": round(done, 4),
                    "loss": round(loss.item(), 4),
                    "token_accuracy": round(right / total, 4),
                    "per_second": round(steps * batch_size / clock.spent, 1),
                }
                print(row, flush=True)
                log.write(json.dumps(row) + "\n")
                log.flush()
                right = total = 0
            if done >= 1:
                break
        if done >= 1 or clock.spent - saved > 60 * save_every:
            saved = clock.spent
            save(
                path,
                {
                    "model": model.state_dict(),
                    "opts": [o.state_dict() for o in opts],
                    "pools": pools,
                    "steps": steps,
                    "spent": clock.spent,
                },
            )
            model.save_pretrained(out / "model")
            processor.save_pretrained(out / "model")
        if done >= 1:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=("vision", "language"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the run (resumed)")
    parser.add_argument("--minutes", type=float, required=True, help="of training, in all")
    parser.add_argument("--batch", type=int, default=32, help="samples a step (language)")
    parser.add_argument("--save", type=float, default=5, help="minutes between saves (language)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == "vision":
        train_vision(args.out, args.minutes)
    else:
        train_language(args.out, args.minutes, args.batch, args.save)


if __name__ == "__main__":
    main()
