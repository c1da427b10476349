"""The thread that runs the model, from its start to its end, and nobody left waiting for it.

It ends with `close`, with its owner's last reference, or with a fork, whose child has no threads.
From then on requests are refused; those in flight are told at once, before the thread is waited
for, which may be in the middle of a long forward pass.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from typing import Protocol

import torch

from cot_engine.backends.local.failures import attempt, emptied
from cot_engine.backends.local.jobs import Job
from cot_engine.errors import BackendGone, ModelError, said

AT_EXIT = 10.0  # seconds that the end of the interpreter waits for it
PATIENCE = 1.0  # seconds that closing waits for a forward pass; the thread then ends by itself


class Owner(Protocol):
    def serve(self) -> None:
        """Answer `arrived` and all that arrive meanwhile; return when nothing is left to do,
        or when it is `over`."""
        ...

    def drop(self) -> None:
        """Let go of everything in flight."""
        ...


class ModelThread:
    """`submit` from any thread; in the model's, the owner takes in what `arrived`.

    The thread holds its owner only while there is work, so an owner that nobody uses any more is
    collected without being closed, and its thread ends.
    """

    def __init__(self, owner: Owner) -> None:
        self.inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: look whether to end
        self.first: Job | None = None  # what the thread woke up for
        self.jobs: set[Job] = set()  # submitted and still wanted: whom to tell
        self.over = ""  # why nothing is taken in any more
        # Reentrant: the garbage collector or a signal may come in between and end a request.
        self.guard = threading.RLock()
        self.process = os.getpid()
        self.handle = threading.Thread(
            target=_live, args=(self, weakref.ref(owner)), name="cot-engine-model", daemon=True
        )
        weakref.finalize(owner, self.inbox.put, None).atexit = False
        _living.add(self)
        self.handle.start()

    def check(self) -> None:
        """Raises ModelError if no request can be answered here: a BackendGone if nowhere."""
        if os.getpid() != self.process:  # before any lock: it may have been held while forking
            raise ModelError(
                "This process was forked from the one that loaded the model, and the thread that "
                "runs the model stayed there.",
                "Load the model in the child, or start it with multiprocessing's 'spawn'.",
            )
        if self.over:
            raise BackendGone(self.over, "Load the model again.")

    def submit(self, job: Job) -> None:
        """Raises ModelError as `check` does. Every job that is taken is answered."""
        self.check()
        with self.guard:
            self.check()
            self.jobs.add(job)
        self.inbox.put(job)

    def forget(self, job: Job) -> None:
        """It was answered, or is not wanted any more."""
        job.cancelled = True
        if os.getpid() == self.process:
            with self.guard:
                self.jobs.discard(job)

    def arrived(self) -> Job | None:
        """A request that was submitted and not taken in yet, if there is one."""
        if self.first is not None:
            job, self.first = self.first, None
            return job
        try:
            return self.inbox.get_nowait()
        except queue.Empty:
            return None

    def wait(self) -> bool:
        """Until something arrives; False if it is time to end."""
        self.first = self.inbox.get()
        return self.first is not None and not self.over

    def end(self, why: str) -> None:
        """Take nothing in any more and fail what is in flight."""
        with self.guard:
            self.over = self.over or why
            jobs, self.jobs = self.jobs, set()
        for job in jobs:
            job.fail(BackendGone(f"{why} This request was in flight.", "Load the model again."))

    def close(self) -> None:
        """From any thread, the model's own too, any number of times."""
        if os.getpid() != self.process:
            self.over = self.over or "The backend is closed."
            return
        self.end("The backend is closed.")
        self.inbox.put(None)
        if threading.current_thread() is not self.handle:
            self.handle.join(PATIENCE)


_living: weakref.WeakSet[ModelThread] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """A thread that the interpreter ends in the middle of a forward pass takes the process with
    it: torch's frames do not let an exception through. So each gets time to come out of one."""
    for life in list(_living):
        life.close()
        if os.getpid() == life.process:
            life.handle.join(AT_EXIT)


def _live(life: ModelThread, owner: weakref.ref[Owner]) -> None:
    try:
        with torch.inference_mode():
            while not life.over and life.wait():
                if (found := owner()) is None:
                    break
                found.serve()
                del found  # while there is nothing to do the thread holds nothing of its owner
    except BaseException as error:
        emptied(error)
        life.end(f"The model's thread has ended: {said(error)}")
    finally:
        life.end("The backend is closed.")
        if (found := owner()) is not None:
            attempt(found.drop)
