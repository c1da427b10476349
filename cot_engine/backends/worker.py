"""The thread that owns the model: it takes requests, prefills what they lack, and decodes.

Requests arrive through a queue and are answered in the event loop they came from. Whatever is in
flight shares forward passes. Running out of memory halves what is attempted at once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable

import torch

from cot_engine.backends.adapters import Adapter
from cot_engine.backends.decode import Batch
from cot_engine.backends.jobs import Job, Row, Scope
from cot_engine.backends.prefill import Part, Prefill, columns_of, out_of_memory, plan
from cot_engine.backends.prefix import evict, insert, recompute_end
from cot_engine.backends.text import ChatText
from cot_engine.errors import ModelError
from cot_engine.flops import Flops
from cot_engine.types import Choose, Chosen, Finish, Generated, Generation

SCOPE_BYTES = 2 << 30  # keys and values kept for one search


class Worker:
    """`max_rows` candidates decode at once; one prefill takes prompts of `prefill_columns` tokens
    together, what is cached of them and padding included."""

    def __init__(
        self,
        adapter: Adapter,
        text: ChatText,
        flops: Flops,
        max_rows: int,
        prefill_columns: int,
        context: int,
        notice: Callable[[str], None],
    ) -> None:
        self.adapter = adapter
        self.text = text
        self.max_rows = max_rows
        self.prefill_columns = prefill_columns
        self.notice = notice
        self.lock = threading.Lock()  # guards the prefix trees: estimates read them elsewhere
        shape = adapter.kv_shape()
        self.flops = flops
        self.scope_tokens = max(2 * context, SCOPE_BYTES // max(1, shape.bytes_per_token))
        self.prefill = Prefill(adapter, shape, flops, self.lock)
        self.batch = Batch(adapter, shape, flops)
        self.inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.jobs: list[Job] = []  # whose prompts are not computed yet
        self.waiting: deque[Row] = deque()  # rows without a slot
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="cot-engine-model", daemon=True)
        self.thread.start()

    # --- called from elsewhere -------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        if self.closed:
            job.fail(ModelError("The backend is closed."))
        self.inbox.put(job)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.inbox.put(None)
        if threading.current_thread() is not self.thread:
            self.thread.join(timeout=60)

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        with torch.inference_mode():
            while self._receive():
                try:
                    self._work()
                except Exception as error:  # a bug: those in flight hear of it, others go on
                    self._fail([*self.jobs, *(row.job for row in self._rows())], error)
                    self.batch.clear()
        for job in {*self.jobs, *(row.job for row in self._rows())}:
            job.fail(ModelError("The backend was closed while this request was in flight."))
        self.jobs, self.waiting = [], deque()
        self.batch.clear()

    def _work(self) -> None:
        """One forward pass of whatever is due; prompts first, so that their rows join early."""
        self._drop_cancelled()
        if self.jobs:
            self._prefill()
        elif self.batch.rows or self.waiting:
            self._decode()

    def _receive(self) -> bool:
        """Take in all that arrived; wait only when there is nothing to do. False: stop."""
        idle = not (self.jobs or self.waiting or self.batch.rows)
        while True:
            try:
                job = self.inbox.get(block=idle)
            except queue.Empty:
                return not self.closed
            idle = False
            if job is None or self.closed:
                if job is not None:
                    self.jobs.append(job)
                return False
            self._admit(job)

    def _admit(self, job: Job) -> None:
        with self.lock:
            for sequence in job.sequences:
                key = tuple(image.digest for image in sequence.images)
                root = job.scope.root(key if self.adapter.prompt_depends_on_images else ())
                sequence.end = insert(root, sequence.keys)
        self.jobs.append(job)

    def _rows(self) -> list[Row]:
        return [*self.batch.rows, *self.waiting]

    def _drop_cancelled(self) -> None:
        if any(job.over for job in self.jobs):
            self.jobs = [job for job in self.jobs if not job.over]
        for row in [row for row in self._rows() if row.job.over]:
            self._discard(row)

    def _discard(self, row: Row) -> None:
        self.batch.leave(row)
        if row in self.waiting:
            self.waiting.remove(row)

    def _fail(self, jobs: list[Job], error: BaseException) -> None:
        for job in jobs:
            if not job.over:
                job.fail(error)
        self._drop_cancelled()

    # --- prompts ---------------------------------------------------------------------------------

    def _prefill(self) -> None:
        for sequence in (s for job in self.jobs for s in job.sequences):
            if not sequence.end.pending and sequence.end.hidden is None:
                with self.lock:
                    recompute_end(sequence.end)
        parts = plan(self.jobs, self.prefill_columns)
        if parts:
            try:
                self.prefill.run(parts)
            except Exception as error:
                self._prefill_failed(parts, error)
                return
        for job in self.jobs:
            if isinstance(job.request, Choose) and job.request.headway is not None:
                job.request.headway.finished = sum(
                    not any(node.pending for node in s.end.path()) for s in job.sequences
                )
        ready = [
            j for j in self.jobs if not any(n.pending for s in j.sequences for n in s.end.path())
        ]
        if not ready:
            return
        self.jobs = [job for job in self.jobs if job not in ready]
        try:
            self._begin(ready)
        except Exception as error:
            self._fail(ready, error)

    def _prefill_failed(self, parts: list[Part], error: Exception) -> None:
        jobs = list({id(p.job): p.job for p in parts}.values())
        if not out_of_memory(error):
            self._fail(jobs, error)
        elif len(parts) > 1:
            self.prefill_columns = max(1, min(self.prefill_columns, columns_of(parts)) // 2)
            self._say(
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
        """The prompts are computed: answer `Choose`, draw the first tokens of `Generate`."""
        rows = []
        for job in jobs:
            job.tally.flops += self.flops.head(len(job.sequences))
            if isinstance(job.request, Choose):
                hidden = torch.stack([sequence.end.hidden for sequence in job.sequences])
                logits = self.adapter.logits(hidden).float()
                chosen = logits.log_softmax(-1)[:, job.choices].tolist()
                answer = Chosen(tuple(map(tuple, chosen)), job.usage())
                self._tidy(job.scope)
                job.resolve(answer)
            else:
                start = len(job.sequences[0].ids)
                rows += [Row(job, i, start) for i in range(len(job.request.seeds))]
        if rows:
            hidden = torch.stack([row.sequence.end.hidden for row in rows])
            self.waiting.extend(self._take(rows, *self.batch.first(hidden, rows)))

    # --- rows ------------------------------------------------------------------------------------

    def _decode(self) -> None:
        room = self.max_rows - len(self.batch.rows)
        joining = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        try:
            self.batch.join(joining)
            joining = []
            drawn = self.batch.step()
        except Exception as error:
            missing = [row for row in joining if row not in self.batch.rows]
            self.waiting.extendleft(reversed(missing))
            self._decode_failed(error)
            return
        self._take(list(self.batch.rows), *drawn)

    def _decode_failed(self, error: Exception) -> None:
        rows = self._rows()
        if out_of_memory(error) and self.max_rows > 1 and len(rows) > 1:
            self._halve_rows()
        else:
            if out_of_memory(error):
                error = ModelError(
                    "Not enough memory to write even one candidate.",
                    "Use a smaller image, --quantize, or a smaller model.",
                )
            self._fail(list({id(r.job): r.job for r in rows}.values()), error)
            self.batch.clear()
        self._free()

    def _halve_rows(self) -> None:
        self.max_rows = max(1, min(self.max_rows, len(self._rows())) // 2)
        self.waiting.extendleft(reversed(self.batch.park(min(self.max_rows, len(self.batch.rows)))))
        self._say(
            f"Out of memory: {self.max_rows} candidates are now written at once. Nothing was lost."
        )

    def _free(self) -> None:
        if self.adapter.device.type == "cuda":
            torch.cuda.empty_cache()

    def _say(self, note: str) -> None:
        self.notice(note)

    def _take(self, rows: list[Row], tokens: list[int], logprobs: list[float]) -> list[Row]:
        """Give each row its new token; finish those that end. Returns the others."""
        now = time.monotonic()
        going = []
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            job = row.job
            job.tally.decoded += 1
            if job.request.headway is not None:
                job.request.headway.tokens += 1
            if token in self.text.eos:
                self._finish(row, "eos", len(row.ids))
                continue
            row.ids.append(token)
            row.logprobs.append(logprob)
            look, row.pending = job.watch.telling(token, row.pending)
            keep = job.watch.cut(row.sequence.ids, row.ids) if look else None
            if keep is not None:
                self._finish(row, "stop", keep)
            elif len(row.ids) >= job.request.max_new_tokens:
                self._finish(row, "length", len(row.ids))
            elif job.request.deadline is not None and now >= job.request.deadline:
                self._finish(row, "budget", len(row.ids))
            else:
                going.append(row)
        return going

    def _finish(self, row: Row, finish: Finish, keep: int) -> None:
        """Make the row a generation, hand its keys and values to the tree, free its slot."""
        job, sequence = row.job, row.sequence
        if finish != "stop":
            keep = self.text.whole(sequence.ids, row.ids[:keep])
        ids = tuple(row.ids[:keep])
        # The last kept token counts as not in the cache: its final state was not kept, and it is
        # needed to go on from there.
        tokens = min(row.length - row.start, keep - 1)
        if tokens > 0 and not job.scope.released:
            kv = self.batch.tail(row, tokens)
            with self.lock:
                self._store(row, ids[:tokens], kv)
        self._discard(row)
        text = self.text.added(sequence.ids, ids)
        job.results[row.index] = Generation(text, ids, sum(row.logprobs[:keep]), finish)
        if job.request.headway is not None:
            job.request.headway.finished = len(job.results)
        if len(job.results) == len(job.request.seeds):
            generations = tuple(job.results[i] for i in range(len(job.results)))
            answer = Generated(generations, job.usage())
            self._tidy(job.scope)
            job.resolve(answer)

    def _store(self, row: Row, ids: tuple[int, ...], kv: torch.Tensor) -> None:
        end = insert(row.sequence.end, ids)
        for node in end.path():
            if node.kv is None and node.start >= row.start:
                node.kv = kv[..., node.start - row.start : node.end - row.start, :]

    def _tidy(self, scope: Scope) -> None:
        """Keep a search's prefixes within bounds, sparing what its requests in flight stand on."""
        busy = [*self.jobs, *(row.job for row in self._rows())]
        spare = {id(n) for j in busy if j.scope is scope for s in j.sequences for n in s.end.path()}
        with self.lock:
            for root in scope.roots.values():
                evict(root, self.scope_tokens, spare)
