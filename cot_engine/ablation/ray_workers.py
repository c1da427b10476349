"""A grid on a Ray cluster: the same searches as on this machine, on as many workers as fit.

The tasks go out in chunks, whole problems each, and come back as rows. Only the driver stores
them. A chunk has no effect but its rows, which are named by their keys: one whose worker or node
died is done again, and nothing is lost or counted twice. A strategy's own error is a failed row,
as everywhere, and is not tried again.

Every node needs the same code, and the model and the pictures at the same paths; a worker that
has others refuses.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import platform
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cot_engine.ablation.grid import Cell
from cot_engine.ablation.records import ResultRow, without_pixels
from cot_engine.ablation.runner import SearchTask, Work, run_local
from cot_engine.engine.code import code_version
from cot_engine.errors import CotEngineError, install
from cot_engine.judging.profile import FILE as PROFILE
from cot_engine.judging.profile import Profile
from cot_engine.questions.pictures import FilePicture

if TYPE_CHECKING:
    from cot_engine.engine.facade import Engine

RETRIES = 5
"""How often a chunk is done again because its worker or node died. One that kills its worker
every time (out of memory, say) must end some day."""
_LOOK = 1.0  # seconds between looks at how large the cluster is: nodes come and go


def run_ray(
    work: Work,
    tasks: Iterable[SearchTask],
    on_row: Callable[[ResultRow], None],
    *,
    address: str | None = None,
    in_flight: int = 32,
    cpus: int = 1,
    gpus: float | None = None,
) -> None:
    """Do the tasks on the Ray cluster at `address`; `on_row` gets each row, here, when its chunk
    is done. An interrupt cancels what is under way.

    Without an address: the one that RAY_ADDRESS names, or one running on this machine, or a new
    one of this machine alone. Each worker has `cpus` threads and `gpus` (None: one if the run's
    model is on a GPU, else none), loads the model once, and does up to `in_flight` searches at a
    time on one batch. The connection stays, for the next tasks, until `ray.shutdown()` or the end
    of this process. Raises CotEngineError.
    """
    tasks = list(tasks)
    if not tasks:
        return
    ray = _connected(address)
    needs = _Needs(work.run.code, work.run.model, tuple(work.cells.values()), in_flight, cpus)
    if gpus is None:
        gpus = 1 if needs.device == "cuda" else 0
    slots = _slots(ray, cpus, gpus)
    if not slots:
        has = f"{ray.cluster_resources().get('CPU', 0):g} CPUs and"
        has += f" {ray.cluster_resources().get('GPU', 0):g} GPUs"
        raise CotEngineError(
            f"The Ray cluster has {has}; a worker needs {cpus} and {gpus:g}.",
            "Add a node that has them.",
        )
    # max_calls: else Ray ends a worker with a GPU after each chunk, and its model with it.
    remote = ray.remote(
        num_cpus=cpus, num_gpus=gpus, max_calls=0, max_retries=RETRIES, retry_exceptions=False
    )(search_chunk)
    shared = ray.put(needs)
    # Chunks large enough to fill a batch, and several for each worker, so that they end together.
    size = min(2 * in_flight, math.ceil(len(tasks) / (4 * slots)))
    chunks = _chunks(tasks, size)
    pending: list[Any] = []
    try:
        while True:
            ahead = 2 * max(slots, 1) - len(pending)
            pending += [remote.remote(shared, c) for c in itertools.islice(chunks, max(ahead, 0))]
            if not pending:
                return
            done, pending = ray.wait(pending, timeout=_LOOK)
            for chunk in done:
                for row in _rows(ray, chunk):
                    on_row(row)
            slots = _slots(ray, cpus, gpus)
    finally:
        for chunk in pending:  # an interrupt or an error: whoever waits for these is gone
            ray.cancel(chunk, force=True)


def _connected(address: str | None) -> Any:
    try:
        import ray
    except ImportError:
        raise CotEngineError("Ray is not installed.", install("ray")) from None
    if ray.is_initialized():
        return ray
    # Workers write warnings into the live display, and Ray tells its makers that it was used.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _reach(address or os.environ.get("RAY_ADDRESS", ""))
        quiet = logging.ERROR
        ray.init(address, log_to_driver=False, logging_level=quiet, include_dashboard=False)
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:
        where = address or os.environ.get("RAY_ADDRESS", "on this machine")
        raise CotEngineError(
            f"There is no connection to a Ray cluster ({where}): {error}.",
            "Start one (ray start --head), or name it: HOST:PORT. It must run the same versions"
            " of Ray and Python.",
        ) from None
    return ray


def _reach(address: str) -> None:
    """Raises OSError if nothing listens at HOST:PORT: Ray itself tries for many minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _slots(ray: Any, cpus: int, gpus: float) -> int:
    """How many workers fit on the nodes that are alive."""
    found = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            by_gpu = has.get("GPU", 0) // gpus if gpus else math.inf
            found += int(min(has.get("CPU", 0) // cpus, by_gpu))
    return found


def _chunks(tasks: list[SearchTask], size: int) -> Iterator[list[SearchTask]]:
    """At least `size` tasks each; those of one problem, which come together, stay together: its
    pictures are read once, and what a model keeps of them is of use."""
    chunk: list[SearchTask] = []
    for _, group in itertools.groupby(tasks, key=lambda task: task.key.item):
        chunk += group
        if len(chunk) >= size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _rows(ray: Any, chunk: Any) -> Iterator[ResultRow]:
    """The rows of a chunk. Raises CotEngineError where there are no more, after those there are."""
    try:
        rows = ray.get(chunk)
    except ray.exceptions.RayTaskError:
        raise  # what a worker raised, with its traceback: a defect
    except ray.exceptions.RayError as error:
        raise CotEngineError(
            f"A chunk of searches was given up after its workers died {RETRIES + 1} times:"
            f" {error}.",
            "If memory was short, give each worker more. What was stored is kept.",
        ) from None
    if isinstance(rows, Refusal):
        yield from rows.rows
        raise CotEngineError(rows.message, rows.hint)
    yield from rows


# --- on a worker ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Needs:
    """What a worker must have, and how it is to work."""

    code: str
    model: str
    cells: tuple[Cell, ...]
    in_flight: int
    threads: int

    @property
    def device(self) -> str:
        """Which kind: of its GPUs a worker sees only those that it was given."""
        device, _, _ = self.cells[0].config.device.partition(",")  # all cells share it
        return "cuda" if device.startswith("cuda") else device


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a worker does no searches, or no more: then with the `rows` that it had done. A value:
    not every error survives being pickled."""

    message: str
    hint: str
    rows: tuple[ResultRow, ...] = ()


def search_chunk(needs: _Needs, tasks: list[SearchTask]) -> list[ResultRow] | Refusal:
    """Do these searches here, on one batch, with the model that this process has loaded."""
    rows: list[ResultRow] = []

    def keep(row: ResultRow) -> None:  # the store keeps no pixels, so they need not travel
        rows.append(replace(row, trace=without_pixels(row.trace)) if row.trace else row)

    try:
        _check(needs, tasks)
        run_local(_engine(needs), tasks, keep, needs.in_flight)
    except CotEngineError as error:
        said = f"The worker on {platform.node()}: {error.message}"
        return Refusal(said, error.hint, tuple(rows))
    return rows


def _check(needs: _Needs, tasks: list[SearchTask]) -> None:
    from cot_engine.engine.facade import model_path

    model = needs.cells[0].config.model
    code = code_version((cell.config for cell in needs.cells), Profile.of(model_path(model)))
    if code != needs.code:
        raise CotEngineError(
            f"Its code is {code}, the run's is {needs.code}.",
            f"Install the same on every node, and give the model the same {PROFILE}.",
        )
    pictures = [p for task in tasks for p in task.item.pictures if isinstance(p, FilePicture)]
    for path in {picture.path for picture in pictures}:
        if not path.exists():
            # Else every search on this node would be filed as failed.
            raise CotEngineError(
                f"It has no file {str(path)!r}.", "Share the folder of the data with every node."
            )


_loaded: tuple[Any, Engine] | None = None


def _key(needs: _Needs) -> tuple[Any, ...]:
    """What a model is loaded with; with its digest, because its files may have changed since."""
    config = needs.cells[0].config
    parts = (config.model, needs.device, config.dtype, config.quantize, config.adapter)
    return (*parts, config.max_pixels, needs.model)


def _engine(needs: _Needs) -> Engine:
    """The model, loaded once for a process. Raises ModelError, or CotEngineError for another one
    than the run's."""
    global _loaded
    key = _key(needs)
    if _loaded is not None and _loaded[0] == key:
        return _loaded[1]
    import torch

    from cot_engine.engine.facade import Engine

    if _loaded is not None:
        _loaded[1].close()
        _loaded = None
    torch.set_num_threads(needs.threads)  # else each of its workers would use the whole machine
    model, device, dtype, quantize, adapter, most, digest = key
    engine = Engine.from_pretrained(
        model, device=device, dtype=dtype, quantize=quantize, adapter=adapter, max_pixels=most
    )
    if engine.backend.info.digest != digest:
        engine.close()
        raise CotEngineError(
            f"Its model {model!r} has the digest {engine.backend.info.digest}, the run's is"
            f" {digest}.",
            "Give every node the same weights.",
        )
    _loaded = (key, engine)
    return engine
