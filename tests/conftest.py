"""One thread per process: results do not depend on it, and two cores are shared better."""

import gc
import os
import sys
from textwrap import dedent

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from command_line import cli, picture  # noqa: F401  (fixtures; after what torch reads)
from real_engine import engine, problems  # noqa: F401

settings.register_profile("shared", deadline=None)  # a core that is shared makes any time long
settings.load_profile("shared")


def pytest_collection_finish():
    """What the imports made stays to the end: no collection of garbage walks through it again.

    statsmodels collects by itself in every comparison of p-values: 0.4 s each among all that torch,
    transformers and four thousand tests keep, and nearly nothing so.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(package, module source, entry points by group) puts a package on the path."""
    made = []

    def put(package: str, source: str, group: str = "strategies", **points: str) -> None:
        module = package.replace("-", "_")
        folder = tmp_path / package
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name.replace('_', '-')} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[cot_engine.{group}]", *lines]))
        (folder / f"{module}.py").write_text(dedent(source))
        monkeypatch.syspath_prepend(folder)
        made.append(module)

    yield put
    for module in made:
        sys.modules.pop(module, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, as it is on the disk."""
    from tiny_models import build

    return build("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def loaded(folder):
    """The tiny model, which never ends a reply by itself."""
    from cot_engine.backends.local.loading import load

    made = load(folder, device="cpu")
    made.text.eos = frozenset()
    return made


@pytest.fixture
def backend(loaded):
    from cot_engine.backends.local.backend import LocalBackend

    with LocalBackend(loaded) as made:
        yield made
