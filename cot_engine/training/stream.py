"""The order of training: which examples make up each step, the same in every run of a training.

Everything follows from the configuration and the step's number, so a resumed run goes on with the
very examples that were next, and no state of the data is ever saved. Several steps' examples are
drawn together and sorted by length, so that little is padded; the steps are then shuffled.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.errors import CotEngineError, InputError
from cot_engine.images.load import load_image
from cot_engine.training.examples import Encoder, Example, reworded
from cot_engine.training.row import standard_answer, unlearnable
from cot_engine.training.rows import BadRow, TrainingRow, read_rows
from cot_engine.training.sft_config import DataTable, SFTConfig

POOL = 8  # steps drawn together


@dataclass(frozen=True, slots=True)
class TrainingItem:
    """A question and the response to learn, and the (question, response) pairs that follow it;
    `pictures` are PIL images or files."""

    id: str
    question: str
    response: str
    pictures: tuple[Any, ...] = ()
    later: tuple[tuple[str, str], ...] = ()


class SceneStream:
    """The bundled world's problems `first`, `first` + 1, ..., without end."""

    def __init__(self, config: SFTConfig, split: str, first: int = 0) -> None:
        self.data, self.format, self.split, self.first = config.data, config.format, split, first
        self.batch = config.train.batch

    def __getitem__(self, index: int) -> TrainingItem:
        from cot_engine import scenes

        data = self.data
        more: dict[str, Any] = {}
        rng = random.Random(f"{data.seed} {self.split} {index}")
        early = self.split != "val" and index < data.text_first_steps * self.batch
        if rng.random() < (data.text_first if early else data.text_only):
            more["text_only"] = True
        if (drawn := rng.random()) < data.hinted:
            more["detail"] = "brief" if drawn < data.hinted / 2 else "full"
        problem = scenes.sample(data.seed, self.first + index, self.split, **more)
        response = reworded(problem.response, self.format, DEFAULT_PLAN, problem.answer)
        pictures = () if problem.image is None else (problem.image,)
        return TrainingItem(problem.id, problem.prompt, response, pictures)


class Rows:
    """Rows of a file, over and over, each time in another order."""

    def __init__(self, items: Sequence[TrainingItem], seed: int | None) -> None:
        self.items, self.seed = items, seed
        self._order = lru_cache(maxsize=2)(self._drawn)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> TrainingItem:
        epoch, place = divmod(index, len(self.items))
        return self.items[self._order(epoch)[place]]

    def _drawn(self, epoch: int) -> list[int]:
        order = list(range(len(self.items)))
        if self.seed is not None:
            random.Random(f"{self.seed} epoch {epoch}").shuffle(order)
        return order


class Steps(torch.utils.data.Dataset):
    """Step i as its micro-batches for one process of `world`: a list of what `Encoder.batch`
    returns. Every process sees the same steps and takes every `world`-th micro-batch of them.
    """

    def __init__(
        self,
        source: SceneStream | Rows,
        encoder: Encoder,
        config: SFTConfig,
        *,
        micro: int,
        limit: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.source, self.encoder, self.data = source, encoder, config.data
        self.batch, self.micro, self.limit = config.train.batch, micro, limit
        self.seed, self.rank, self.world = config.train.seed, rank, world
        self._pools = lru_cache(maxsize=2)(self._pool)

    def __getitem__(self, step: int) -> list[dict[str, torch.Tensor]] | CotEngineError:
        """The micro-batches, or what is wrong with them: a worker process that raised would bury
        it under its own traceback."""
        try:
            return self.micro_batches(step)
        except CotEngineError as error:
            return error

    def micro_batches(self, step: int) -> list[dict[str, torch.Tensor]]:
        items = self._pools(step // POOL)[step % POOL]
        parts = [items[at : at + self.micro] for at in range(0, len(items), self.micro)]
        return [self.collate(part) for part in parts[self.rank :: self.world]]

    def collate(self, items: Sequence[TrainingItem]) -> dict[str, torch.Tensor]:
        return self.encoder.batch([self.encoded(item) for item in items])

    def encoded(self, item: TrainingItem) -> Example:
        """Raises InputError if the example is longer than it may be."""
        example = self.encoder.example(item.question, item.response, _pixels(item), item.later)
        if len(example.ids) <= self.limit:
            return example
        return _shortened(example, item.id, self.limit, self.data)

    def _pool(self, pool: int) -> list[list[TrainingItem]]:
        n = self.batch
        drawn = [self.source[i] for i in range(pool * POOL * n, (pool + 1) * POOL * n)]
        drawn.sort(key=self._length)
        steps = [drawn[i * n : (i + 1) * n] for i in range(POOL)]
        random.Random(f"{self.seed} pool {pool}").shuffle(steps)
        return steps

    def _length(self, item: TrainingItem) -> tuple[bool, int]:
        """Longer texts later, pictures last: their tokens are not counted, for that would mean
        reading them twice."""
        count = self.encoder.tokenizer.backend_tokenizer.encode
        text = "".join(
            text for turn in ((item.question, item.response), *item.later) for text in turn
        )
        return bool(item.pictures), len(count(text, add_special_tokens=False).ids)


def held_out_batches(source: Any, count: int, steps: Steps) -> list[list[TrainingItem]]:
    """The held-out examples in micro-batches of similar length."""
    items = sorted((source[i] for i in range(count)), key=steps._length)
    return [items[at : at + steps.micro] for at in range(0, count, steps.micro)]


def _pixels(item: TrainingItem) -> list[Any]:
    return [load_image(p).pixels if isinstance(p, Path) else p for p in item.pictures]


def _shortened(example: Example, id: str, limit: int, data: DataTable) -> Example:
    if data.too_long == "cut" and example.prompt < limit:
        return example.cut(limit)
    raise InputError(
        f"{id}: {len(example.ids):,} tokens, of which {example.prompt:,} are the prompt's; the "
        f"limit is {limit:,}.",
        'Raise data.max_tokens, or set data.too_long to "drop" or "cut".',
    )


# --- reading rows --------------------------------------------------------------------------------


@dataclass(slots=True)
class Corpus:
    """What is trained on and what is held out, with `notes` about what was left out."""

    train: SceneStream | Rows
    held_out: SceneStream | Rows | None
    held: int
    notes: list[str]


def load_corpus(config: SFTConfig, encoder: Encoder, limit: int) -> Corpus:
    """Read and check the data before anything is trained. Raises InputError with a count and the
    first three of what is missing, unreadable or too long."""
    data = config.data
    if data.scenes is not None:
        count = int(data.held_out or 0)
        val = SceneStream(config, "val") if count else None
        return Corpus(SceneStream(config, data.scenes), val, count, [])
    assert data.rows is not None  # the configuration has scenes or rows
    notes: list[str] = []
    items = _checked(config, data.rows, encoder, limit, notes)
    held: list[TrainingItem] = []
    if isinstance(data.held_out, str):
        held = _checked(config, data.held_out, encoder, limit, notes)
    elif data.held_out:
        wanted = data.held_out if data.held_out >= 1 else math.ceil(data.held_out * len(items))
        count = int(wanted)
        if count >= len(items):
            raise InputError(
                f"held_out is {data.held_out:g}, but there are {len(items):,} rows.",
                "Leave some to train on.",
            )
        chosen = set(
            random.Random(f"{config.train.seed} held out").sample(range(len(items)), count)
        )
        held = [items[i] for i in sorted(chosen)]
        items = [item for i, item in enumerate(items) if i not in chosen]
    train = Rows(items, config.train.seed)
    return Corpus(train, Rows(held, None) if held else None, len(held), notes)


def _checked(
    config: SFTConfig, file: str, encoder: Encoder, limit: int, notes: list[str]
) -> list[TrainingItem]:
    data = config.data
    path = config.folder / file
    bad: list[str] = []
    items = []
    folder = config.folder / (data.images or ".")
    for row in read_rows(path):
        if isinstance(row, BadRow):
            bad.append(f"line {row.line}: {row.said}")
            continue
        item = _item(row, folder, config.format)
        wrong = [said for _, said in unlearnable(row)]
        missing = [path for path in item.pictures if not path.is_file()]
        wrong += [f"there is no picture {str(path)!r}" for path in missing]
        if wrong:
            bad.append(f"{row.id}: {wrong[0].rstrip('.')}")
            continue
        items.append(item)
    _refuse(
        bad, data.skip_bad, path, "rows cannot be used", "Mend them, or set data.skip_bad.", notes
    )
    bad, fitting = [], []
    for item in items:
        try:
            sizes = [_size(path) for path in item.pictures]
        except OSError as error:
            bad.append(f"{item.id}: a picture cannot be read: {error}")
            continue
        fitting.append((item, encoder.length(item.question, item.response, sizes, item.later)))
    _refuse(bad, data.skip_bad, path, "pictures cannot be read", "Or set data.skip_bad.", notes)
    long = [f"{item.id}: {n:,} tokens" for item, n in fitting if n > limit]
    if long and data.too_long != "cut":
        hint = 'Raise data.max_tokens, or set data.too_long to "drop" or "cut".'
        what = f"rows have more than {limit:,} tokens"
        _refuse(long, data.too_long == "drop", path, what, hint, notes)
        fitting = [(item, n) for item, n in fitting if n <= limit]
    elif long:
        notes.append(f"{path}: {len(long):,} rows are cut to {limit:,} tokens.")
    if not fitting:
        raise InputError(f"{str(path)!r} has no row to learn from.", "Give at least one.")
    return [item for item, _ in fitting]


def _item(row: TrainingRow, folder: Path, format: str) -> TrainingItem:
    # A standard answer is one question's.
    answer = None if row.later else standard_answer(row)
    taught = [(q, reworded(said, format, DEFAULT_PLAN, answer)) for q, said in row.turns]
    pictures = tuple(folder / name for name in row.images)
    return TrainingItem(row.id, *taught[0], pictures, tuple(taught[1:]))


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:  # the header alone
        return image.size


def _refuse(bad: list[str], skip: bool, path: Path, what: str, hint: str, notes: list[str]) -> None:
    if not bad:
        return
    some = "; ".join(bad[:3]) + ("; ..." if len(bad) > 3 else "")
    if not skip:
        raise InputError(f"{str(path)!r}: {len(bad):,} {what}: {some}.", hint)
    notes.append(f"{path}: {len(bad):,} {what} and are left out: {some}.")


def loader(steps: Steps, first: int, last: int, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """The micro-batches of steps `first` to `last` (not included), prepared ahead."""
    found = torch.utils.data.DataLoader(
        steps,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # the global one belongs to dropout, and must not be moved on
    )
    for step in found:
        if isinstance(step, CotEngineError):
            raise step
        yield from step
