"""One decode step as a function of buffers that stay where they are.

What a step needs to know of its rows is written into the buffers when rows come or go; the step
itself feeds each row's last token, draws the next, and writes that back into them, so that step
follows step without a word from Python. On a GPU it is captured as a CUDA graph for each `Layout`
that comes by twice; eager, on a CPU and for a layout that comes once, it is the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cot_engine.backends.local.attention import Seats, seating
from cot_engine.backends.local.failures import out_of_memory
from cot_engine.backends.local.kv import Fork, RowCache, Slots, constants
from cot_engine.backends.local.sampling import RowSampling, draw, keys
from cot_engine.backends.local.states import Taps
from cot_engine.backends.models.family import Adapter, Looking, Pass

GRAPHS = 64  # kept at a time; each has some memory of its own
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256)
COLUMNS = 128  # own and shared columns are read in multiples of this, where graphs are captured


@dataclass(frozen=True, slots=True)
class Layout:
    """The sizes of all buffers, and the kind of drawing: what a graph is captured for.

    Groups are of prefixes, and of pictures (0: the rows have none); `columns` are the rows' own.
    """

    rows: int
    columns: int
    groups: int
    width: int
    prefix: int
    pictures: int
    picture_width: int
    picture_columns: int
    drawing: tuple[int, bool, bool, bool, bool, bool]


@dataclass(frozen=True, slots=True)
class Rows:
    """What there is to know of the rows of a step, on the host. [rows], but for `lengths` [groups],
    `seen` [picture groups, 1, 1, columns] and those of `settings` [rows, 1]."""

    ids: np.ndarray
    own: np.ndarray
    starts: np.ndarray
    offsets: np.ndarray
    seeds: np.ndarray
    counters: np.ndarray
    group: np.ndarray
    lengths: np.ndarray
    settings: RowSampling
    picture: np.ndarray | None = None
    seen: torch.Tensor | None = None
    some: np.ndarray | None = None


def bucket(count: int) -> int:
    """How many rows or groups a graph for `count` is captured for."""
    return next((size for size in ROWS if size >= count), -(-count // 64) * 64)


class Step:
    """The buffers of a `layout`, over slots that may not move. `uses`: how often it ran."""

    def __init__(
        self,
        adapter: Adapter,
        layout: Layout,
        slots: Slots,
        prefixes: Slots,
        pictures: Slots | None,
        banned: int | None,
        taps: Taps,
    ) -> None:
        self.adapter, self.layout, self.banned = adapter, layout, banned
        self.taps = taps
        shape, rows, groups = slots.shape, layout.rows, layout.groups
        device = shape.device

        def whole(*size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.long, device=device)

        self.ids, self.own, self.starts, self.offsets = (whole(rows, 1) for _ in range(4))
        self.seeds, self.counters, self.live = whole(rows), whole(rows), whole(rows, 1)
        # Rows and groups that nobody has read one column of what is in their slots: never none,
        # which would be no number. Such rows stay where they are.
        self.lengths = torch.ones(groups, dtype=torch.long, device=device)
        self.seats = Seats(groups, layout.width, whole(groups * layout.width), whole(rows))
        warm = torch.ones(rows, 1, dtype=torch.float64, device=device)
        widest = torch.ones(rows, 1, dtype=torch.long, device=device)
        self.settings = RowSampling(warm, widest, warm.clone(), *layout.drawing)
        fork = Fork(prefixes, self.seats, self.lengths, layout.prefix, adapter.windows)
        self.cache = RowCache(slots, rows, layout.columns, fork)
        self.looking = None
        if pictures is not None and layout.pictures:
            count, columns = layout.pictures, layout.picture_columns
            self.looking = Looking(
                pictures.data[:, :, :count, :, :columns],
                torch.zeros(count, 1, 1, columns, dtype=shape.dtype, device=device),
                torch.zeros(rows, dtype=shape.dtype, device=device),
                Seats(
                    count, layout.picture_width, whole(count * layout.picture_width), whole(rows)
                ),
            )
        self.out = torch.zeros(2, rows, dtype=torch.float64, device=device)
        self.states: torch.Tensor | None = None  # [rows, layers, width], of layers that are tapped
        if taps.layers:
            width = adapter.head.weight.shape[-1]
            self.states = torch.zeros(rows, len(taps.layers), width, device=device)
        self.uses = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.kept: tuple[torch.Tensor, ...] = ()

    def load(self, rows: Rows) -> None:
        """Write what there is to know of the rows into the buffers."""
        for name in ("ids", "own", "starts", "offsets", "seeds", "counters", "lengths"):
            _put(getattr(self, name), getattr(rows, name))
        self.own[len(rows.own) :] = 0
        self.live.zero_()[: len(rows.own)] = 1
        for mine, theirs in zip(self.settings.tensors(), rows.settings.tensors(), strict=True):
            _put(mine, theirs)
        _sit(self.seats, rows.group)
        if self.looking is not None and rows.seen is not None:
            hidden = torch.zeros(rows.seen.shape).masked_fill_(~rows.seen, float("-inf"))
            self.looking.mask.zero_()
            self.looking.mask[: len(hidden)] = hidden.to(self.looking.mask)
            _put(self.looking.some, rows.some)
            _sit(self.looking.seats, rows.picture)

    def forward(self) -> None:
        """The step itself: from what the buffers say to `out`, and to what they say next."""
        passed = Pass(
            self.ids, self.own, self.own + self.offsets, [], [], self.starts, self.looking
        )
        self.cache.place(self.own)
        extra = self.adapter.extra(passed, self.cache)
        with self.taps.open():
            hidden = self.adapter.forward(passed, self.cache, extra=extra)
            if self.states is not None:
                self.states.copy_(self.taps.read(hidden))
        logits = self.adapter.logits(hidden[:, 0])
        tokens, logprobs = draw(logits, self.settings, keys(self.seeds, self.counters), self.banned)
        self.ids.copy_(tokens[:, None])
        self.own += self.live
        self.counters += 1
        self.out[0], self.out[1] = tokens, logprobs

    def run(self, count: int) -> tuple[list[int], list[float]]:
        """The next token and its log-probability of the first `count` rows. One copy to the host,
        which is the only thing that is waited for."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self.forward()
        tokens, logprobs = self.out[:, :count].cpu().numpy()
        return tokens.astype(np.int64).tolist(), logprobs.tolist()

    def capture(self, pool: Any, said: Callable[[BaseException], object]) -> bool:
        """Record the step as a CUDA graph; whether that went well. Nothing is lost if not: the
        buffers are to be loaded again either way. Raises what running out of memory raises."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                self.forward()  # what is made once, is made now
            torch.cuda.current_stream().wait_stream(beside)
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self.forward()
        except Exception as error:  # whatever a model does that a graph cannot
            if out_of_memory(error):
                raise
            said(error)
            return False
        self.graph = graph
        # The graph reads what its masks were made of for as long as it lives.
        self.kept = constants(self.cache.columns, self.cache.slots.shape.dtype, self.own.device)
        return True


def _put(buffer: torch.Tensor, values: np.ndarray | torch.Tensor | None) -> None:
    """At the beginning of a buffer; what is behind keeps what it had."""
    assert values is not None
    found = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
    target = buffer.view(len(buffer), -1)[: len(found)]
    target.copy_(found.view(len(found), -1), non_blocking=True)


def _sit(seats: Seats, group: np.ndarray | None) -> None:
    assert group is not None
    row, seat, width = seating(group, seats.groups)
    if width < seats.width:
        place = seat % width + seat // width * seats.width
        row = np.zeros(seats.groups * seats.width, np.int64)
        row[place], seat = np.arange(len(group)), place
    _put(seats.row, row)
    _put(seats.seat, seat)
