"""Grids on Ray: the rows of a run on this machine, whatever dies meanwhile.

A real cluster of three nodes, all on this machine, and the bundled model.
"""

from __future__ import annotations

import signal
import socket
import sys
import tempfile
from dataclasses import replace
from functools import partial

import pytest

from cot_engine.ablation.grid import parse_ablation
from cot_engine.ablation.ray_workers import run_ray
from cot_engine.ablation.runner import SearchTask, ablate, plan_run, run_local
from cot_engine.ablation.store import Store
from cot_engine.engine.facade import Engine
from cot_engine.errors import CotEngineError
from cot_engine.questions.data import load_data
from cot_engine.testing import alike

GRID = {
    "run": {"temperature": 2.0, "top_p": 1.0, "top_k": 0},
    "match": {"unit": "flops", "reference": "stage-beam n=2"},
    "cells": [
        {"strategy": "stage-beam", "n": 2},
        {"strategy": "best-of-n", "matched": True},
    ],
}


@pytest.fixture
def planned(tmp_path):
    """The work and its store, done on this machine."""
    path = tmp_path / "local.sqlite"
    with Engine.from_pretrained() as engine, Store(path, create=True) as store:
        data = load_data("scenes", n=5)
        work = plan_run(parse_ablation(GRID, name="test"), data, engine, "cot-engine ablate")
        ablate(work, store, partial(run_local, engine, in_flight=4))
        yield work, store


@pytest.fixture
def cluster(monkeypatch):
    """A head that does no work, and two nodes of one CPU. A test that hangs is ended."""
    pytest.importorskip("ray", reason="Ray is not installed")
    import ray
    from ray.cluster_utils import Cluster

    def end(*_):
        raise TimeoutError("the test of Ray hangs")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(500)
    made = Cluster()
    # Ray puts sockets there, so the name must be short; and a note of the cluster's address.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        try:
            for cpus in (0, 1, 1):
                made.add_node(
                    num_cpus=cpus, object_store_memory=100_000_000, include_dashboard=False
                )
            yield made
        finally:
            signal.alarm(60)
            ray.shutdown()
            made.shutdown()
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def results(work, store):
    return {
        row.key: (row.answer, row.correct, row.allotted, row.spent, row.usage, row.candidates)
        for row in store.rows(work.run)
    }


@pytest.mark.slow
def test_on_a_cluster(planned, cluster, tmp_path):
    """One test: each would start a cluster and load the models again."""
    _a_node_dies_and_nothing_is_lost_or_done_twice(*planned, cluster, tmp_path)
    _workers_refuse_another_run_and_file_what_fails(planned[0], cluster)


def test_ray_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    run_ray(None, [], print)  # nothing to be done: nothing is needed
    with pytest.raises(CotEngineError, match=r"Ray is not installed.*pip install 'ray"):
        run_ray(None, [None], print)


def test_nothing_listens_there(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        for given in (address, None):
            with pytest.raises(CotEngineError, match=f"no connection.*{address}.*refused"):
                run_ray(None, [None], print, address=given)


def _a_node_dies_and_nothing_is_lost_or_done_twice(work, local, cluster, tmp_path):
    execute = partial(run_ray, work, address=cluster.address, in_flight=4)
    came = []

    def interrupt(row):
        came.append(row.key)
        if len(came) == 3:
            raise KeyboardInterrupt

    def kill(row):
        came.append(row.key)
        if len(came) == 8:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    with Store(tmp_path / "ray.sqlite", create=True) as store:
        with pytest.raises(KeyboardInterrupt):
            ablate(work, store, execute, on_row=interrupt)
        assert len(list(store.rows(work.run))) == 3
        ablate(work, store, execute, on_row=kill)
        assert sorted(came) == sorted(work.run.keys())
        ablate(work, store, execute, on_row=came.append)
        assert len(came) == len(list(work.run.keys()))

        found, wanted = results(work, store), results(work, local)
        assert found.keys() == wanted.keys() == set(work.run.keys())
        for key, row in wanted.items():
            assert found[key][:4] == row[:4]
            traces = [s.trace(work.run, key).canonical() for s in (store, local)]
            assert alike(*traces)


def _workers_refuse_another_run_and_file_what_fails(work, cluster):
    execute = partial(run_ray, address=cluster.address, in_flight=4)
    tasks = [replace(task, allotted=1.0) for task in _tasks(work)[:3]]
    rows = []
    execute(work, tasks, rows.append)  # errors of the searches: rows, and the rest goes on
    assert {(row.key, row.status) for row in rows} == {(task.key, "failed") for task in tasks}
    assert all("budget" in row.error.lower() for row in rows)

    for field, said in (("code", "Its code is cot-engine"), ("model", "has the digest")):
        other = replace(work, run=replace(work.run, **{field: "another"}))
        with pytest.raises(CotEngineError, match=f"The worker on .*{said}.*run's is another"):
            execute(other, tasks, rows.append)
    with pytest.raises(CotEngineError, match=r"a worker needs 1000 and 0.*Add a node"):
        execute(work, tasks, rows.append, cpus=1000)
    assert len(rows) == 3


def _tasks(work):
    return [
        SearchTask(key, work.cells[key.cell], work.items[key.item]) for key in list(work.run.keys())
    ]
