"""A process of its own, for what only a process shows (a kill, a full disk, an exit code), in a
twentieth of a second: forked from one that has imported torch and transformers already, which takes
five. For what imports or an interpreter's start matter to, use subprocess."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",  # transformers' training imports it
        "peft",
        "transformers.trainer",
        "transformers.models.llava.modeling_llava",
        "transformers.models.llava.processing_llava",
        "cot_engine.cli.ablate",
        "cot_engine.backends.local.backend",
        "cot_engine.training.trainer",
    ]
)


def _python(arguments: list[str], cwd: Path, env: dict[str, str], files: list[str]) -> None:
    """What `python *arguments` does, in this process."""
    sys.stdin.close()
    for descriptor, path in enumerate(files, 1):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    # Whoever runs the tests in the background may have had interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        runpy.run_path(arguments[0], run_name="__main__")


class Forked:
    """`python *arguments` as it runs; `returncode` as of subprocess."""

    def __init__(self, *arguments: object, cwd: Path, env: dict[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._files = [os.path.join(self._folder.name, name) for name in ("out", "err")]
        given = (list(map(str, arguments)), cwd, dict(env or os.environ), self._files)
        self._process = _server.Process(target=_python, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def ended(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """What it was, once it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise AssertionError(f"It hangs: {self._files}")
        said = [Path(path).read_text() if Path(path).exists() else "" for path in self._files]
        self._folder.cleanup()
        return subprocess.CompletedProcess((), self.returncode, *said)


def run(*arguments: object, **how: object) -> subprocess.CompletedProcess[str]:
    """Run to its end, and give what it wrote."""
    return Forked(*arguments, **how).ended()
