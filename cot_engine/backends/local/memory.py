"""What keys and values may take, in tokens, and who gives way where it is not enough for all.

Three hold memory: the prefix trees of searches (and their encoded images), the slots of rows being
written, and the slots of a pass over prompts. Requests begin only while what they stand on fits
beside each other, with room for the longest of them to be written by one row; what waits is let go
of, longest unused first, and computed again when it is needed. That is charged to nobody: what a
search costs must not depend on what ran beside it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch

from cot_engine.backends.local.amount import free_ram, parse_memory
from cot_engine.backends.local.jobs import Job, Scope, Writing
from cot_engine.backends.local.kv import BLOCK, KVShape, blocks
from cot_engine.backends.local.prefix import let_go, walk


def budget_tokens(memory: float | str, shape: KVShape) -> int:
    """How many tokens' keys and values may be held on the device of `shape`."""
    amount = parse_memory(memory)
    if amount <= 1:
        amount *= free_bytes(shape.device)
    return max(BLOCK, int(amount) // max(1, shape.bytes_per_token))


def free_bytes(device: torch.device) -> int:
    """What a device has left; for a CPU what this process may still take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return free_ram()


class Memory:
    """`limit` tokens in all. `computed_again` counts those that were let go of and came back."""

    def __init__(self, limit: int, shape: KVShape) -> None:
        self.limit, self.shape = limit, shape
        self.scopes: weakref.WeakSet[Scope] = weakref.WeakSet()
        self.most = 0  # what the trees hold at most: exact after `count`, above it in between
        self.computed_again = 0
        self.let_go = 0

    # --- who may begin ---------------------------------------------------------------------------

    def fits(self, job: Job, active: Iterable[Job]) -> bool:
        """Whether `job` can run beside those that are running."""
        jobs = [*active, job]
        if sum(map(self._at_most, jobs)) <= self.limit:
            return True  # shared or not, without looking at the trees
        return self._together(jobs) <= self.limit

    def alone(self, job: Job) -> int:
        """What it takes at least."""
        return self._together([job])

    def _together(self, jobs: list[Job]) -> int:
        nodes = {id(n): len(n.keys) for job in jobs for s in job.sequences for n in s.end.path()}
        pictures = {
            (id(job.scope), digest): self.shape.tokens(features.nbytes)
            for job in jobs
            for digest, features in job.scope.features.items()
        }
        return sum(nodes.values()) + sum(pictures.values()) + max(map(self._written, jobs))

    def _at_most(self, job: Job) -> int:
        """What a job takes if it shares nothing."""
        pictures = sum(
            self.shape.tokens(features.nbytes) for features in job.scope.features.values()
        )
        return sum(len(s.ids) for s in job.sequences) + pictures + self._written(job)

    def _written(self, job: Job) -> int:
        """The slots of one row, as long as it may become, those of what it stands on, and what it
        hands over to the tree; or the slots of the longest prompt."""
        longest = max(len(sequence.ids) for sequence in job.sequences)
        if not isinstance(job, Writing):
            return blocks(longest) + 2 * BLOCK
        new = job.request.max_new_tokens
        crossing = (f.cross for f in job.scope.features.values() if f.cross is not None)
        pictures = self.shape.tokens(sum(cross.nbytes for cross in crossing))
        return blocks(longest) + blocks(new + BLOCK) + new + pictures + 2 * BLOCK

    # --- what is held ----------------------------------------------------------------------------

    def stored(self, tokens: int) -> None:
        self.most += tokens

    def count(self) -> int:
        """What the trees and the pictures of all searches take now."""
        self.most = sum(
            sum(len(n.keys) for root in s.roots.values() for n in walk(root) if n.kv is not None)
            + sum(self.shape.tokens(f.nbytes) for f in s.features.values())
            for s in list(self.scopes)
        )
        return self.most

    def room(self, slots: int) -> int:
        """What is free beside `slots` tokens of slots."""
        return self.limit - self.most - slots

    def make_room(self, tokens: int, slots: int, active: Iterable[Job]) -> bool:
        """See to it that so much is free beside `slots`, letting go of what no `active` job stands
        on, longest unused first. Whether it is."""
        if self.room(slots) >= tokens:
            return True
        self.count()
        short = tokens - self.room(slots)
        if short <= 0:
            return True
        active = list(active)
        spared = {id(n) for job in active for s in job.sequences for n in s.end.path()}
        busy = {id(job.scope) for job in active}
        scopes = list(self.scopes)
        for scope in scopes:
            if id(scope) not in busy:
                scope.features.clear()
        nodes = [n for scope in scopes for root in scope.roots.values() for n in walk(root)]
        self.let_go += let_go(nodes, spared, short)
        self.count()
        return self.room(slots) >= tokens
