"""Answering `Measure`: what a model makes of dialogues that are there, at their places.

All places of a dialogue are in one forward pass: the node of its tokens is split at them once it is
computed, each part with its final state.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from cot_engine.backends.local.failures import not_numbers
from cot_engine.backends.local.jobs import Measuring, Sequence
from cot_engine.backends.local.prefix import insert, mark
from cot_engine.core.requests import Measured

if TYPE_CHECKING:
    from cot_engine.backends.models.family import Adapter


def upto(sequence: Sequence, place: int) -> Sequence:
    """The beginning of a sequence."""
    made = replace(sequence, ids=sequence.ids[:place], keys=sequence.keys[:place])
    made.root = sequence.root
    return made


def mark_places(job: Measuring) -> None:
    """See to it that the final states at all places are there once the job's sequences are."""
    for sequence, places in zip(list(job.sequences), job.places, strict=True):
        for place in places:
            if not mark(sequence.end, place):
                made = upto(sequence, place)
                made.end = insert(made.root, made.keys)
                job.sequences.append(made)


def measured(job: Measuring, adapter: Adapter, at_once: int) -> Measured:
    """What the states at the places come to; logits are computed for so many places `at_once`.
    Raises ModelError for what is not numbers."""
    states = [
        insert(sequence.root, sequence.keys[:place]).state
        for sequence, places in zip(job.sequences, job.places, strict=False)
        for place in places
    ]
    found: list[list[float]] = []
    for at in range(0, len(states), at_once):
        some = torch.stack(states[at : at + at_once])
        if job.choices:
            found += adapter.logits(some).float().log_softmax(-1)[:, job.choices].tolist()
        else:
            found += some.float().tolist()
    if job.choices:
        job.tally.flops += adapter.flops.head(len(states))
    if not all(math.isfinite(value) for row in found for value in row):
        raise not_numbers(job.request)
    rows = iter(found)
    numbers = tuple(tuple(tuple(next(rows)) for _ in places) for places in job.places)
    return Measured(numbers, job.usage())
