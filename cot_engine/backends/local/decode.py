"""The decode batch: rows of all requests, one token each a step, joining and leaving at will."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cot_engine.backends.local.jobs import DecodeRow, Writing
from cot_engine.backends.local.kv import BLOCK, KVShape, Slots, blocks
from cot_engine.backends.local.sampling import RowSampling, draw, keys, seed64
from cot_engine.backends.local.shared import Shared
from cot_engine.backends.local.states import Taps
from cot_engine.backends.local.step import COLUMNS, GRAPHS, Layout, Rows, Step, bucket
from cot_engine.backends.models.family import Adapter, Features
from cot_engine.errors import said

SMALL_BYTES = 1 << 30
SLACK = BLOCK  # columns that may be there and not be read, on a CPU
ONCE = 2  # steps that a layout runs without a graph, before it is worth one


class Batch:
    """Row i of `rows` has slot i of `slots` for what is its own; a row that leaves is replaced by
    the last one. What rows stand on is in `prefixes`, the pictures that they look at through
    cross-attention layers in `pictures` (None: there are no such layers)."""

    def __init__(self, adapter: Adapter, shape: KVShape, notice: Callable[[str], object]) -> None:
        self.adapter, self.notice = adapter, notice
        self.shape = shape
        # An image's placeholder in a reply would stand for an image that is not there.
        vocabulary = adapter.head.weight.shape[0]
        self.banned = adapter.placeholder if adapter.placeholder < vocabulary else None
        self.room = 1 << 62  # tokens of slots there may be; see `memory`
        self.rows: list[DecodeRow] = []
        self.slots = Slots(shape)
        self.prefixes = Shared(shape)
        crossing = adapter.crossing_shape()
        self.pictures = None if crossing is None else Shared(crossing)
        # On a GPU steps are captured as graphs, for few sizes; `notice` hears if that fails.
        self.graphs = self.buckets = shape.device.type == "cuda"
        self.clock = 0.0  # seconds of steps, each divided by its rows
        self.taps = Taps(adapter)
        # Of each row, what the tapped layers hold now, and what they held added up: [2, rows,
        # layers, width]. None where none is tapped.
        self.held: torch.Tensor | None = None
        self._steps: OrderedDict[Layout, Step] = OrderedDict()
        self._step: Step | None = None
        self._pool: Any = None

    def tap(self, layers: tuple[int, ...]) -> None:
        """Keep the states of these layers from now on."""
        had = len(self.taps.layers)
        if self.taps.want(layers):
            self._moved()
            width, added = self.adapter.head.weight.shape[-1], len(self.taps.layers) - had
            more = torch.zeros(2, len(self.rows), added, width, device=self.shape.device)
            self.held = more if self.held is None else torch.cat([self.held, more], 2)

    def _changed(self) -> None:
        """Rows came or went."""
        self._step = None

    def _moved(self) -> None:
        """Nothing is where it was."""
        self._step = None
        self._steps.clear()

    @property
    def tokens(self) -> int:
        """What the slots take."""
        beside = 0 if self.pictures is None else self.pictures.slots.data.nbytes
        return self.slots.tokens + self.prefixes.slots.tokens + self.shape.tokens(beside)

    def takes(self, rows: list[DecodeRow], beside: bool = False) -> int:
        """What slots for these take, with some columns to grow into; or, `beside` what there is,
        once the slots there are have grown for them."""
        total = 0
        for slots, count, columns in self._sizes(rows, BLOCK):
            if beside and (count > slots.rows or columns > slots.columns):
                count, columns = max(count, slots.rows), max(columns, slots.columns)
            elif beside:
                count, columns = slots.rows, slots.columns
            total += slots.shape.bytes_per_token * count * columns
        return self.shape.tokens(total)

    def _sizes(self, rows: list[DecodeRow], more: int = 0) -> list[tuple[Slots, int, int]]:
        """Rows and columns that each of the slots needs for these rows."""
        prefixes = dict(map(_prefix, rows))
        sizes = [
            (self.slots, len(rows), max(row.own for row in rows) + 1 + more),
            (self.prefixes.slots, len(prefixes), max(prefixes.values())),
        ]
        if self.pictures is not None:
            pictures = dict(map(self._picture, rows))
            sizes.append((self.pictures.slots, len(pictures), max(pictures.values())))
        return [(slots, self._count(n), self._width(columns)) for slots, n, columns in sizes]

    def _count(self, rows: int) -> int:
        return bucket(rows) if self.buckets else rows

    def _width(self, columns: int) -> int:
        return -(-columns // COLUMNS) * COLUMNS if self.buckets else blocks(columns)

    def join(self, rows: list[DecodeRow]) -> None:
        """Give each row a slot, and what it stands on one, if it is the first that does."""
        if not rows:
            return
        self._reserve(self._sizes([*self.rows, *rows]))
        for row in rows:
            row.since = self.clock
            self.rows.append(row)
            self._hold(row)
            try:
                self._sit(row)
            except BaseException:
                self.leave(row)  # it is what it was, and nobody joins what was filled half
                raise
            row.tail = row.held = None
        self._changed()

    def _hold(self, row: DecodeRow) -> None:
        """The last of the rows brings what was added up of it before it was parked."""
        if self.held is not None:
            new = self.held.new_zeros(2, 1, *self.held.shape[2:])
            if row.held is not None:
                new[:, 0, : row.held.shape[1]] = row.held
            self.held = torch.cat([self.held, new], 1)

    def _sit(self, row: DecodeRow) -> None:
        """The last of the rows gets what belongs in its slot, and in those that it shares."""
        prefixes, pictures = self.prefixes, self.pictures
        if row.tail is not None:
            self.slots.put(len(self.rows) - 1, 0, row.tail)
        row.group = prefixes.join(*_prefix(row))
        if row.group.rows == 1:
            for node in row.sequence.end.path():
                prefixes.slots.put(row.group.slot, node.start, node.kv)
        if pictures is not None:
            row.pictures = pictures.join(*self._picture(row))
            if row.pictures.rows == 1 and row.pictures.length:
                cross, row.pictures.seen = self.adapter.beside(*_looked(row))
                pictures.slots.put(row.pictures.slot, 0, cross)

    def _picture(self, row: DecodeRow) -> tuple[Hashable, int]:
        """Which pictures a row looks at, from where, and how many columns they take."""
        digests = tuple(image.digest for image in row.sequence.images)
        key = id(row.job.scope), digests, _looked(row)[1]
        return key, self.adapter.crossed(row.sequence.images)

    def _reserve(self, sizes: list[tuple[Slots, int, int]]) -> None:
        """Growing copies everything, so while that is cheap more is taken than asked for; on a CPU
        more rows, but exactly the columns that are read."""
        exact = not self.buckets
        least, generous = [], []
        for slots, rows, columns in sizes:
            had = slots.rows, slots.columns
            fitting = had[1] - SLACK <= columns if exact else True
            if rows <= had[0] and columns <= had[1] and fitting:
                continue
            rows, columns = max(rows, had[0]), columns if exact else max(columns, had[1])
            least.append((slots, rows, columns))
            if rows * columns * slots.shape.bytes_per_token < SMALL_BYTES:
                rows += rows if rows > had[0] else 0
                columns += 0 if exact or columns == had[1] else COLUMNS
            generous.append((slots, rows, columns))
        if not least:
            return
        taken = sum(s.shape.bytes_per_token * rows * cols for s, rows, cols in generous)
        fits = self.shape.tokens(taken) + self.tokens <= self.room
        self._moved()
        used = {id(slots): count for slots, count in self._used()}
        for slots, rows, columns in generous if fits else least:
            slots.fit(rows, columns, used[id(slots)])

    def _used(self) -> list[tuple[Slots, int]]:
        """Of each of the slots, how many rows there are in it."""
        used = [(self.slots, len(self.rows)), (self.prefixes.slots, len(self.prefixes.groups))]
        if self.pictures is not None:
            used.append((self.pictures.slots, len(self.pictures.groups)))
        return used

    def copy(self, row: DecodeRow, start: int, end: int) -> torch.Tensor:
        """The keys and values of the row's tokens at start..end, in memory of their own."""
        start, end = start - row.start, end - row.start
        if row.tail is not None:
            return row.tail[..., start:end, :].clone()
        return self.slots.take(self.rows.index(row), start, end)

    def wipe(self, row: DecodeRow) -> None:
        """Zero the row's slot: what is masked still meets the softmax's 0, and 0 * nan is nan, so
        the row that has this slot next would not be a number either."""
        if row in self.rows:
            self.slots.data[:, :, self.rows.index(row)] = 0

    def leave(self, row: DecodeRow) -> None:
        if row not in self.rows:
            return
        at, last = self.rows.index(row), len(self.rows) - 1
        if at != last:
            self.slots.move(last, at, self.rows[last].own)
            self.rows[at] = self.rows[last]
        if self.held is not None:  # in new memory: others may be reading it
            self.held = self.held[:, [last if k == at else k for k in range(last)]]
        self.rows.pop()
        self._left(row)

    def _left(self, row: DecodeRow) -> None:
        row.job.tally.seconds += self.clock - row.since
        if row.group is not None:
            self.prefixes.leave(row.group)
        if self.pictures is not None and row.pictures is not None:
            self.pictures.leave(row.pictures)
        row.group = row.pictures = None
        self._changed()

    def park(self, keep: int) -> list[DecodeRow]:
        """Take all but the first `keep` rows out, losing nothing; they can join again."""
        parked = self.rows[keep:]
        for at, row in enumerate(parked, keep):
            if row.own:
                row.tail = self.slots.saved(at, 0, row.own)
            if self.held is not None:
                row.held = self.held[:, at].clone()
        del self.rows[keep:]
        if self.held is not None:
            self.held = self.held[:, :keep]
        for row in parked:
            self._left(row)
        self.trim()
        return parked

    def trim(self) -> bool:
        """Give back the slots of rows that have left; whether there were any."""
        spare = [(slots, used) for slots, used in self._used() if slots.rows > used]
        for slots, used in spare:
            slots.shrink(used)
            self._moved()
        return bool(spare)

    def clear(self) -> None:
        self.rows = []
        if self.held is not None:
            self.held = self.held[:, :0]
        self.slots = Slots(self.shape)
        self.prefixes.clear()
        if self.pictures is not None:
            self.pictures.clear()
        self._moved()

    def step(self) -> tuple[list[int], list[float]]:
        """Feed every row its last token; return each row's next one and its log-probability."""
        began = time.perf_counter()
        count = len(self.rows)
        longest = max(row.own for row in self.rows) + 1
        step = self._step
        if step is None or step.layout.columns < longest:
            self._reserve(self._sizes(self.rows))
            step = self._step = self._loaded(longest)
        if self.graphs and step.graph is None and step.uses == ONCE:
            self._capture(step)
        step.uses += 1
        tokens, logprobs = step.run(count)
        if self.held is not None and step.states is not None:
            states = step.states[:count]
            self.held = torch.stack([states, self.held[1] + states])
        self.clock += (time.perf_counter() - began) / count
        for row in self.rows:
            row.length += 1
        return tokens, logprobs

    def _loaded(self, longest: int) -> Step:
        """The step for the rows that there are, knowing what there is to know of them."""
        rows, prefixes, pictures = self._known(), self.prefixes, self.pictures
        width = int(np.bincount(rows.group).max())
        picture_width = 1 if rows.picture is None else int(np.bincount(rows.picture).max())
        layout = Layout(
            rows=self._count(len(self.rows)),
            columns=self._width(longest) if self.buckets else self.slots.columns,
            groups=self._count(len(prefixes.groups)),
            width=self._count(width),
            prefix=self._width(prefixes.longest) if self.buckets else prefixes.slots.columns,
            pictures=0 if rows.seen is None else self._count(len(rows.seen)),
            picture_width=self._count(picture_width),
            picture_columns=0 if rows.seen is None else rows.seen.shape[-1],
            drawing=rows.settings.kind,
        )
        step = self._steps.get(layout)
        if step is None:
            beside = None if pictures is None else pictures.slots
            parts = (self.adapter, layout, self.slots, prefixes.slots, beside, self.banned)
            step = Step(*parts, self.taps)
            if self.buckets:
                self._steps[layout] = step
            if len(self._steps) > GRAPHS:
                self._steps.popitem(last=False)
        elif self.buckets:
            self._steps.move_to_end(layout)
        step.load(rows)
        return step

    def _capture(self, step: Step) -> None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        self.graphs = step.capture(
            self._pool,
            lambda error: self.notice(
                f"This model's steps could not be captured as CUDA graphs ({said(error)}); they "
                "are computed one operation at a time, which is slower."
            ),
        )
        step.load(self._known())

    def first(self, jobs: list[Writing], rows: list[DecodeRow]) -> tuple[list[int], list[float]]:
        """The first tokens of new `rows`, from the final states of their jobs' prompts: logits are
        computed once for each prompt, as they are charged, however many rows begin there."""
        hidden = torch.stack([job.sequences[0].end.state for job in jobs])
        at = {id(job): i for i, job in enumerate(jobs)}
        device = self.shape.device
        seeds = torch.from_numpy(_seeds(rows)).to(device)
        first = keys(seeds, torch.zeros_like(seeds))
        of = torch.tensor([at[id(row.job)] for row in rows], device=device)
        settings = RowSampling.of([row.job.request.sampling for row in rows], device)
        tokens, logprobs = draw(self.adapter.logits(hidden), settings, first, self.banned, of)
        return tokens.tolist(), logprobs.tolist()

    def _known(self) -> Rows:
        """Token i of a row is drawn with key i of its own stream."""
        rows, pictures = self.rows, self.pictures
        starts = np.array([row.start for row in rows])
        known = Rows(
            ids=np.array([row.ids[-1] for row in rows]),
            own=np.array([row.own for row in rows]),
            starts=starts,
            offsets=starts + np.array([row.sequence.delta for row in rows]),
            seeds=_seeds(rows),
            counters=np.array([len(row.ids) for row in rows]),
            group=np.array([row.group.slot for row in rows]),
            lengths=np.array([group.length for group in self.prefixes.groups]),
            settings=RowSampling.of([row.job.request.sampling for row in rows]),
        )
        if pictures is None or not pictures.longest:
            return known
        columns = self._width(pictures.longest)
        seen = torch.zeros(len(pictures.groups), 1, 1, columns, dtype=torch.bool)
        for group in pictures.groups:
            # Who has none looks at anything: looking at nothing would be no number.
            seen[group.slot, ..., : group.length or columns] = (
                True if group.seen is None else group.seen
            )
        return replace(
            known,
            picture=np.array([row.pictures.slot for row in rows]),
            seen=seen,
            some=np.array([float(row.pictures.length > 0) for row in rows]),
        )


def _seeds(rows: list[DecodeRow]) -> np.ndarray:
    return np.array([seed64(row.job.request.seeds[row.index]) for row in rows])


def _prefix(row: DecodeRow) -> tuple[Hashable, int]:
    """What a row stands on, and how long that is."""
    return row.sequence.end, row.start


def _looked(row: DecodeRow) -> tuple[tuple[Features, ...], tuple[int, ...]]:
    return row.job.scope.pictures(row.sequence)
