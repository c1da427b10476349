"""The thread that owns the model: it takes requests, prefills what they lack, and decodes.

Requests arrive through a queue and are answered in the event loop they came from. Whatever is in
flight shares forward passes. Running out of memory halves what is attempted at once.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch

from cot_engine.backends.local.decode import Batch
from cot_engine.backends.local.failures import attempt, failure, not_numbers, out_of_memory
from cot_engine.backends.local.jobs import (
    Choosing,
    DecodeRow,
    Job,
    Measuring,
    Scope,
    Writing,
)
from cot_engine.backends.local.measuring import mark_places, measured
from cot_engine.backends.local.memory import Memory, budget_tokens
from cot_engine.backends.local.model_thread import ModelThread
from cot_engine.backends.local.prefill import Planned, Prefill, columns_of
from cot_engine.backends.local.prefix import cut, evict, insert, recompute_end, unplan
from cot_engine.backends.local.reading import Reading
from cot_engine.backends.local.room import Room
from cot_engine.backends.local.states import place
from cot_engine.backends.local.text import ChatText
from cot_engine.backends.models.family import Adapter
from cot_engine.core.requests import Chosen, Finish, Generated, Generation, Measured
from cot_engine.errors import ModelError

SCOPE_BYTES = 2 << 30  # keys and values kept for one search
CALM = 200
"""Turns without running out of memory, after which more is attempted again."""
STALL = 8192  # columns of prompts, after which those who write have a turn
HEADS = 256  # verdicts' logits are computed for so many at once: a row of them takes a megabyte


class Worker:
    """`max_rows` candidates decode at once; one prefill takes prompts of `prefill_columns` tokens
    together, what is cached of them and padding included."""

    def __init__(
        self,
        adapter: Adapter,
        text: ChatText,
        max_rows: int,
        prefill_columns: int,
        context: int,
        notice: Callable[[str], None],
        memory: float | str,
    ) -> None:
        self.adapter = adapter
        self.text = text
        self.max_rows = max_rows
        self.prefill_columns = prefill_columns
        self.notice = notice
        self.lock = threading.Lock()  # guards the prefix trees: estimates read them elsewhere
        shape = adapter.kv_shape()
        self.scope_tokens = max(2 * context, SCOPE_BYTES // max(1, shape.bytes_per_token))
        self.memory = Memory(budget_tokens(memory, shape), shape)
        self.prefill = Prefill(adapter, shape, self.lock, self.memory)
        self.batch = Batch(adapter, shape, notice)
        self.room = Room(self.memory, self.batch, self.prefill, self.lock, self._in_flight)
        self.queue: deque[Job] = deque()  # there is no room yet to begin them
        self.jobs: list[Job] = []  # whose prompts are not computed yet
        self.waiting: deque[DecodeRow] = deque()  # rows without a slot
        self.changed = True  # who runs, since it was found that the next one does not fit
        self.usual = (max_rows, prefill_columns)
        self.stalled = 0  # columns of prompts since rows had their turn
        self.calm = 0  # turns since memory ran out
        self.step = 0.0  # seconds that the last forward pass of all rows took
        self.thread = ModelThread(self)

    # --- called from elsewhere -------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Raises ModelError once the worker is closed, and in a forked child."""
        self.thread.submit(job)

    def close(self) -> None:
        """Fail what is in flight, now; wait about a second at most for the thread to end."""
        self.thread.close()

    # --- the thread ------------------------------------------------------------------------------

    def serve(self) -> None:
        """Answer what arrived and all that arrives meanwhile; a trouble of one turn ends there."""
        if self.adapter.device.type == "cuda":  # each thread has a current GPU of its own
            torch.cuda.set_device(self.adapter.device)
        while not self.thread.over:
            arrived = self.thread.arrived()
            if not (arrived or self.queue or self.jobs or self.waiting or self.batch.rows):
                return
            error = attempt(functools.partial(self._turn, arrived))
            if error is not None:
                self._recover(arrived, error)

    def _recover(self, arrived: Job | None, error: BaseException) -> None:
        """A bug: those in flight hear of it, others go on."""
        everybody = self._in_flight() | ({arrived} if arrived else set())
        self.drop()
        self._fail(everybody, error)

    def drop(self) -> None:
        self.jobs, self.waiting = [], deque()
        self.batch.clear()
        self.prefill.clear()

    def _turn(self, arrived: Job | None) -> None:
        """Take in what arrived, or else do one forward pass of whatever is due; prompts first, so
        that their rows join early, but not so many that those who write wait long."""
        if arrived is not None:
            self._admit(arrived)
            return
        self._drop_cancelled()
        self._begin_what_fits()
        writing = self.batch.rows or self.waiting
        if self.jobs and not (writing and self.stalled > STALL) and self._prefill():
            return
        self.stalled = 0
        if writing:
            self._decode()
        self._recovered()

    def _admit(self, job: Job) -> None:
        with self.lock:
            for sequence in job.sequences:
                key = tuple(image.digest for image in sequence.images)
                found = job.scope.root(key if self.adapter.prompt_depends_on_images else ())
                sequence.root, sequence.end = found, insert(found, sequence.keys)
                if self.adapter.in_parts:
                    cut(sequence.end)
            if isinstance(job, Measuring):
                mark_places(job)
        self.memory.scopes.add(job.scope)
        self.queue.append(job)
        self.changed = True

    def _begin_what_fits(self) -> None:
        """In the order in which they came: nobody is overtaken for ever."""
        while self.queue and self.changed:
            job, active = self.queue[0], self._in_flight()
            if active and not self.memory.fits(job, active):
                self.changed = False  # until one of them is over
                return
            self.queue.popleft()
            if active or self.memory.fits(job, ()):
                self.jobs.append(job)
                continue
            self._fail(
                [job],
                ModelError(
                    f"This takes the memory of {self.memory.alone(job):,} tokens at least: all that"
                    f" it asks ({len(job.sequences)} prompts, replies so far included), and one row"
                    f" to compute it; there is room for {self.memory.limit:,}.",
                    "Use more --memory, fewer candidates, a smaller image, fewer tokens a stage, or"
                    " --quantize.",
                ),
            )

    def _rows(self) -> list[DecodeRow]:
        return [*self.batch.rows, *self.waiting]

    def _in_flight(self) -> set[Job]:
        return {*self.jobs, *(row.job for row in self._rows())}

    def _drop_cancelled(self) -> None:
        if gone := [job for job in (*self.queue, *self.jobs) if job.over]:
            self.queue = deque(job for job in self.queue if not job.over)
            self.jobs = [job for job in self.jobs if not job.over]
            self.changed = True
            self._unplan(gone)
        for row in [row for row in self._rows() if row.job.over]:
            self._discard(row)

    def _unplan(self, gone: list[Job]) -> None:
        others = (*self._in_flight(), *self.queue)
        with self.lock:
            spare = {id(sequence.end) for job in others for sequence in job.sequences}
            for sequence in (sequence for job in gone for sequence in job.sequences):
                if hasattr(sequence, "end"):  # else it was not even taken in
                    unplan(sequence.end, spare)

    def _discard(self, row: DecodeRow) -> None:
        self.changed = True
        self.batch.leave(row)
        if row in self.waiting:
            self.waiting.remove(row)

    def _fail(self, jobs: Iterable[Job], error: BaseException) -> None:
        jobs = list(jobs)
        for job in jobs:
            if not job.over:
                job.fail(failure(error))
        self._drop_cancelled()
        busy = {id(job.scope) for job in (*self._in_flight(), *self.queue)}
        self._unplan(jobs)
        for job in jobs:
            job.leave()
            if id(job.scope) not in busy:
                job.scope.features.clear()

    # --- prompts ---------------------------------------------------------------------------------

    def _prefill(self) -> bool:
        """One pass over prompts, if there is room for it now; and the jobs that are ready begin."""
        for sequence in (s for job in self.jobs for s in job.sequences):
            end = sequence.end
            if end.hidden is None and not end.redo and (end.paid or not end.pending):
                with self.lock:
                    recompute_end(end)
        writing = bool(self.batch.rows or self.waiting)
        most = min(self.prefill_columns, STALL) if writing else self.prefill_columns
        parts = self.room.planned(self.jobs, most)
        if parts is None:
            return False
        if parts:
            self.stalled += columns_of(parts)
            error = attempt(lambda: self.prefill.run(parts))
            if error is not None:
                self.prefill.clear()  # as large as what failed
                self._prefill_failed(parts, error)
                return True
        for job in self.jobs:
            if isinstance(job, Choosing) and job.request.headway is not None:
                job.request.headway.finished = sum(
                    not any(node.pending for node in s.end.path()) for s in job.sequences
                )
        ready = [
            j for j in self.jobs if not any(n.pending for s in j.sequences for n in s.end.path())
        ]
        if ready:
            self._begin(ready)
        return True

    def _prefill_failed(self, parts: list[Planned], error: BaseException) -> None:
        jobs = list({id(p.job): p.job for p in parts}.values())
        if not out_of_memory(error):
            self._fail(jobs, error)
        elif self.batch.trim() or self.room.let_go():
            pass  # there is room now that nobody used
        elif len(parts) > 1:
            self.prefill_columns = max(1, min(self.prefill_columns, columns_of(parts)) // 2)
            self.notice(
                f"Out of memory: prompts of {self.prefill_columns} tokens together are now "
                "computed at a time. Nothing was lost."
            )
        elif len(self.batch.rows) > 1:
            self._halve_rows()
        else:
            self._fail(
                jobs,
                ModelError(
                    f"Not enough memory for a prompt of {parts[0].node.end} tokens.",
                    "Use a smaller image, --quantize, or a smaller model.",
                ),
            )
        self._free()

    def _begin(self, jobs: list[Job]) -> None:
        """The prompts are computed: answer `Choose` and `Measure`, draw the first tokens of
        `Generate`.

        They stay among `self.jobs` until then: what they stand on must not be evicted.
        """
        for job in (job for job in jobs if isinstance(job, Choosing | Measuring)):
            error = attempt(functools.partial(self._tell, job))
            if error is not None:
                self._fail([job], error)
        writing = [job for job in jobs if isinstance(job, Writing)]
        if writing:
            error = attempt(functools.partial(self._start, writing))
            if error is not None:
                self._fail(writing, error)
        self.jobs = [job for job in self.jobs if job not in jobs]

    def _tell(self, job: Choosing | Measuring) -> None:
        if isinstance(job, Choosing):
            self._choose(job)
        else:
            self._measure(job)

    def _choose(self, job: Choosing) -> None:
        chosen: list[list[float]] = []
        for at in range(0, len(job.sequences), HEADS):
            some = job.sequences[at : at + HEADS]
            logits = self.adapter.logits(torch.stack([s.end.state for s in some])).float()
            chosen += logits.log_softmax(-1)[:, job.choices].tolist()
        job.tally.flops += self.adapter.flops.head(len(job.sequences))
        # One nan or +inf, or nothing but -inf, makes nan of all of a row.
        if any(math.isnan(value) for row in chosen for value in row):
            raise not_numbers(job.request)
        self._answer(job, Chosen(tuple(map(tuple, chosen)), job.usage()))

    def _measure(self, job: Measuring) -> None:
        with self.lock:
            found = measured(job, self.adapter, HEADS)
        self._answer(job, found)

    def _start(self, jobs: list[Writing]) -> None:
        rows: list[DecodeRow] = []
        for job in jobs:
            if job.marking is not None:
                self.batch.tap(job.marking.layers)
            if self.adapter.prompt_depends_on_images:
                self.prefill.pictures(job, job.sequences[0].images)
            start = len(job.sequences[0].ids)
            own = [DecodeRow(job, i, start) for i in range(len(job.request.seeds))]
            if job.request.headway is not None:
                ids = [row.ids for row in own]
                job.request.headway.written = Reading(self.text, job.sequences[0].ids, ids)
            rows += own
            job.tally.flops += self.adapter.flops.head(1)
        self.waiting.extend(self._take(rows, *self.batch.first(jobs, rows)))

    # --- rows ------------------------------------------------------------------------------------

    def _decode(self) -> None:
        joining = self.room.seated(self.waiting, self.max_rows)
        drawn: list[list[Any]] = []
        began = time.monotonic()

        def step() -> None:
            self.batch.join(joining)
            drawn.extend(self.batch.step())

        error = attempt(step)
        if error is None:
            self.step = time.monotonic() - began
            self._take(list(self.batch.rows), drawn[0], drawn[1], self.batch.held)
            return
        missing = [row for row in joining if row not in self.batch.rows]
        self.waiting.extendleft(reversed(missing))
        self._decode_failed(error)

    def _recovered(self) -> None:
        """What was halved for lack of memory is doubled again after a while."""
        self.calm += 1
        if self.calm >= CALM and (self.max_rows, self.prefill_columns) != self.usual:
            self.calm = 0
            self.max_rows = min(self.usual[0], 2 * self.max_rows)
            self.prefill_columns = min(self.usual[1], 2 * self.prefill_columns)

    def _decode_failed(self, error: BaseException) -> None:
        rows = self._rows()
        self.calm = 0
        if out_of_memory(error) and (self.batch.trim() or self.room.let_go()):
            pass
        elif out_of_memory(error) and self.max_rows > 1 and len(rows) > 1:
            self._halve_rows()
        else:
            if out_of_memory(error):
                error = ModelError(
                    "Not enough memory to write even one candidate.",
                    "Use a smaller image, --quantize, or a smaller model.",
                )
            self._fail({row.job for row in rows}, error)
            self.batch.clear()
        self._free()

    def _halve_rows(self) -> None:
        self.max_rows = max(1, min(self.max_rows, len(self._rows())) // 2)
        self.waiting.extendleft(reversed(self.batch.park(min(self.max_rows, len(self.batch.rows)))))
        self.notice(
            f"Out of memory: {self.max_rows} candidates are now written at once. Nothing was lost."
        )

    def _free(self) -> None:
        if self.adapter.device.type == "cuda":
            torch.cuda.empty_cache()

    def _take(
        self,
        rows: list[DecodeRow],
        tokens: list[int],
        logprobs: list[float],
        held: torch.Tensor | None = None,
    ) -> list[DecodeRow]:
        """Give each row its new token; finish those that end. Returns the others. `held` are the
        states [2, rows, layers, width] from which the tokens were drawn."""
        ahead = time.monotonic() + self.step  # when another token would be there
        going = []
        for at, (row, token, logprob) in enumerate(zip(rows, tokens, logprobs, strict=True)):
            job = row.job
            if not math.isfinite(logprob):
                self.batch.wipe(row)
                self._unsound(row)
            if job.over:
                continue
            if job.request.headway is not None:
                job.request.headway.tokens += 1
            states = None if held is None else held[:, at]
            if token in self.text.eos:
                self._reach(row, "", states)
                self._finish(row, "eos", len(row.ids))
                continue
            row.ids.append(token)
            row.logprobs.append(logprob)
            self._mark(row, states)
            look, row.pending = job.watch.telling(token, row.pending)
            keep = job.watch.cut(row.sequence.ids, row.ids) if look else None
            finish: Finish
            if keep is not None:
                finish = "stop"
            elif len(row.ids) >= job.request.max_new_tokens:
                finish = "length"
            elif job.request.deadline is not None and ahead > job.request.deadline:
                finish = "budget"
            else:
                going.append(row)
                continue
            self._reach(row, "", states, len(row.ids) - 1)
            self._finish(row, finish, len(row.ids) if keep is None else keep)
        return going

    def _mark(self, row: DecodeRow, states: torch.Tensor | None) -> None:
        """Note the places that the row's newest token is, if its request wants any."""
        marking = row.job.marking
        if marking is not None:
            for mark in marking.found(row.sequence.ids, row.ids, row.marks):
                self._reach(row, mark, states, len(row.ids) - 1)

    def _reach(
        self, row: DecodeRow, mark: str, states: torch.Tensor | None, token: int | None = None
    ) -> None:
        marking = row.job.marking
        if marking is not None and states is not None:
            of = [self.batch.taps.layers.index(layer) for layer in marking.layers]
            token = len(row.ids) if token is None else token
            row.places.append(place(mark, token, states, of, sum(row.logprobs)))

    def _finish(self, row: DecodeRow, finish: Finish, keep: int) -> None:
        """Make the row a generation, hand its keys and values to the tree, free its slot."""
        job, sequence = row.job, row.sequence
        if finish != "stop":
            keep = self.text.whole(sequence.ids, row.ids[:keep])
        ids = tuple(row.ids[:keep])
        # The last kept token counts as not in the cache: its final state was not kept, and it is
        # needed to go on from there.
        tokens = min(row.length - row.start, keep - 1)
        if tokens > 0 and not job.scope.released:
            with self.lock:
                self._store(row, ids[:tokens])
        self._discard(row)
        job.tally.decoded += len(row.ids) + (finish == "eos")
        crossed = self.adapter.crossed(sequence.images)
        job.tally.flops += self.adapter.flops.steps(row.start, row.own + 1, crossed)
        text = self.text.added(sequence.ids, ids)
        places = tuple(each for each in row.places if each.token < keep or not each.mark)
        job.results[row.index] = Generation(text, ids, sum(row.logprobs[:keep]), finish, places)
        if job.request.headway is not None:
            job.request.headway.finished = len(job.results)
        if len(job.results) == len(job.request.seeds):
            generations = tuple(job.results[i] for i in range(len(job.results)))
            self._answer(job, Generated(generations, job.usage()))

    def _store(self, row: DecodeRow, ids: tuple[int, ...]) -> None:
        """Each new node gets memory of its own: a view would hold what others have already."""
        for node in insert(row.sequence.end, ids).path():
            if node.kv is None and node.start >= row.start:
                node.kv = self.batch.copy(row, node.start, node.end)
                node.paid = True
                self.memory.stored(len(node.keys))

    def _unsound(self, row: DecodeRow) -> None:
        job = row.job
        if not job.over:
            written = self.text.added(row.sequence.ids, row.ids)
            job.fail(not_numbers(job.request, written))

    def _answer(self, job: Job, answer: Generated | Chosen | Measured) -> None:
        self.changed = True
        if job in self.jobs:
            self.jobs.remove(job)
        self._tidy(job.scope)
        job.resolve(answer)

    def _tidy(self, scope: Scope) -> None:
        """Keep a search's prefixes within bounds, sparing what its requests in flight stand on."""
        busy = self._in_flight()
        spare = {id(n) for j in busy if j.scope is scope for s in j.sequences for n in s.end.path()}
        with self.lock:
            for root in scope.roots.values():
                evict(root, self.scope_tokens, spare)
