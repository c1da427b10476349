"""A trace with a leaf of the wrong type is refused, or everything that is done with one works."""

from __future__ import annotations

import make_traces
import pytest
from mutated_traces import mutants, use

from cot_engine.core.events import event_from_json, event_to_json
from cot_engine.errors import TraceError


@pytest.mark.parametrize("name", ["stage_beam", "interrupted"])
def test_a_trace_with_any_leaf_replaced(name):
    """By None, true, texts, numbers, lists, objects, and by what is no JSON: see VALUES and RAW.
    All small traces: `python tests/mutated_traces.py`."""
    refused = 0
    for at, (what, data) in enumerate(mutants(getattr(make_traces, name)())):
        if at % 4 == 0 or what.endswith(('= "x"', "= []")):  # a part of them, which takes 2 s
            try:
                refused += use(data) == "TraceError"
            except Exception as error:
                raise AssertionError(what) from error
    assert refused > 300


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"calls":4', '"calls":true', r"usage\.calls is true, not a whole number"),
        ('"seed":7', '"seed":"7"', r'seed is "7", not a whole number'),
        ('"temperature":0.6', '"temperature":null', r"sampling\.temperature is null, not a number"),
        ('"orders":"both"', '"orders":"all"', r'orders is "all", not "both" or "one"'),
        ('"max_images":1', '"max_images":1.5', r"backend\.max_images is 1\.5"),
        ('"size":[64,64]', '"size":[64]', r"images\[0\]\.size is \[64\], not a list of 2"),
        ('"mode":"trained",', "", r"mode is missing"),
        ('"data":"', '"image":{},"data":"', r"images\[0\] has no field 'image'"),
        ('"data":"', '"data":"!', "data"),
    ],
)
def test_the_place_is_named(old, new, said):
    lines = [event_to_json(event) for event in make_traces.stage_beam()]
    line = next(line for line in lines if old in line)
    with pytest.raises(TraceError, match=said):
        event_from_json(line.replace(old, new, 1))
