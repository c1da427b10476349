"""The harnesses that the adapters are tested in, each in an environment of its own: they pin, and
break over, other versions of the same packages.

    python tests/adapters/environments.py FOLDER [NAME ...]     # inspect, lmms-eval, vlmevalkit

Made once, 4 minutes and 6.5 GB for all; each time this checkout of cot-engine is put into them,
which takes seconds. docs/harnesses.md has the same commands by hand, and why they are needed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIP = "pip>=26"  # it finds versions that fit each other in a fraction of the time of pip 23
READY = "cot-engine-ready"  # a file in the environment: what it was made with, once all is there
TORCHVISION = "torchvision==0.28.0"  # the one that belongs to the torch of constraints.txt

# The registry's torchvision is built for CUDA. Without that its library does not load, and two
# operators are missing that its Python half describes at import; nothing here calls them.
SITE = '''\
import sys


class _Before:
    """Once, right before torchvision is imported: the operators that it describes."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            _Before.kept = torch.library.Library("torchvision", "DEF")
            _Before.kept.define("nms(Tensor dets, Tensor scores, float threshold) -> Tensor")
            _Before.kept.define("qnms(Tensor dets, Tensor scores, float threshold) -> Tensor")


sys.meta_path.insert(0, _Before())
'''


_ONE = threading.Lock()


@dataclass(frozen=True)
class Harness:
    """`packages` are installed, `removed` taken out again; `site` is run by each of its Pythons."""

    packages: tuple[str, ...]
    removed: tuple[str, ...] = ()
    site: str = ""


HARNESSES = {
    "inspect": Harness(("inspect-ai==0.3.285",)),
    # It reaches into a module of filelock that 4 has no more. It does without torchvision.
    "lmms-eval": Harness(("lmms-eval==0.7.3", "filelock<4"), removed=("torchvision",)),
    # VLMEvalKit as the registry has it. It does not load without torchvision.
    "vlmevalkit": Harness(("ms-vlmeval==0.0.20",), site=SITE),
}


def environment(name: str, venv: Path) -> Path:
    """The interpreter of the environment of one harness, which is made if it is not there yet.
    Raises CalledProcessError."""
    python, wanted = venv / "bin" / "python", repr((HARNESSES[name], _pins()))
    ready = venv / READY
    if not (python.exists() and ready.exists() and ready.read_text("utf-8") == wanted):
        _make(HARNESSES[name], venv)
        ready.write_text(wanted, "utf-8")
    with _ONE:  # it leaves files in the checkout
        _call(*_pip(venv), "install", "--no-deps", "-e", str(ROOT))
    return python


def _make(harness: Harness, venv: Path) -> None:
    _call(sys.executable, "-m", "venv", "--clear", str(venv))
    (venv / "pins.txt").write_text("\n".join(_pins()), "utf-8")
    pip, pins = _pip(venv), ("-c", str(venv / "pins.txt"))
    _call(*pip, "install", PIP)
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    # Not compiled: of 60,000 modules a harness imports a few thousand.
    _call(*pip, "install", "--no-compile", *pins, *harness.packages, *ours)
    if harness.removed:
        _call(*pip, "uninstall", "-y", *harness.removed)
    if harness.site:
        (site,) = venv.glob("lib/python*/site-packages")
        (site / "sitecustomize.py").write_text(harness.site, "utf-8")


def _pip(venv: Path) -> tuple[str, ...]:
    return (str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-q")


def _pins() -> list[str]:
    """torch and transformers as everything else here is tested with; then no CUDA is pulled in
    where those are builds for CPUs."""
    text = (ROOT / "constraints.txt").read_text("utf-8")
    return [*re.findall(r"^(?:torch|transformers)==\S+", text, re.MULTILINE), TORCHVISION]


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the environments that harnesses run in.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=[*HARNESSES], metavar="NAME")
    args = parser.parse_args()

    def make(name: str) -> None:
        began = time.monotonic()
        try:
            environment(name, args.folder.resolve() / name)
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", None) or str(error)
            print(f"{name} cannot be installed here: {said[-2000:]}", flush=True)
        else:
            print(f"{name}: ready after {time.monotonic() - began:.0f} s", flush=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, args.names))


if __name__ == "__main__":
    main()
