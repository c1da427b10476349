"""What a process says to the one that computes for it, and back: pickles, each with its length.

Only ever between a process and its own child, over the pipes it was started with. A picture travels
once for each search: after that it is named by its digest.
"""

from __future__ import annotations

import io
import pickle
import threading
from typing import IO, Any

from cot_engine.core.requests import Choose, Generate, Measure
from cot_engine.errors import BackendGone, CotEngineError, InputError, ModelError
from cot_engine.images.load import Image

ERRORS: dict[str, type[CotEngineError]] = {
    kind.__name__: kind for kind in (InputError, BackendGone, ModelError)
}
"""What an error is on the other side, the first of these that it is: not all can be pickled."""


REQUESTS = (Generate, Choose, Measure)


def _pictures(request: Generate | Choose | Measure) -> tuple[Image, ...]:
    return request.images if isinstance(request, Measure) else request.prompt.images


class Wire:
    """`send` from any thread, `receive` in one. Messages are (number, what, value)."""

    def __init__(self, into: IO[bytes], out: IO[bytes]) -> None:
        self._into, self._out = into, out
        self._lock = threading.Lock()
        self._sent: dict[str, set[str]] = {}  # by scope, the digests of pictures
        self._known: dict[str, dict[str, Image]] = {}

    def send(self, number: int, what: str, value: Any) -> None:
        """Raises OSError or ValueError if nobody listens any more."""
        packed = io.BytesIO()
        with self._lock:
            known: set[str] = set()
            if isinstance(value, REQUESTS):
                known = self._sent.setdefault(value.scope, set())
                packed.write(_head(value.scope))
            else:
                packed.write(_head(""))
            _Packer(packed, known).dump((number, what, value))
            if isinstance(value, REQUESTS):
                known |= {image.digest for image in _pictures(value)}
            elif what == "release":
                self._sent.pop(value, None)
            data = packed.getvalue()
            self._out.write(len(data).to_bytes(8, "little") + data)
            self._out.flush()

    def receive(self) -> tuple[int, str, Any]:
        """Raises EOFError when the other side has ended."""
        packed = io.BytesIO(self._exactly(int.from_bytes(self._exactly(8), "little")))
        scope = packed.read(int.from_bytes(packed.read(4), "little")).decode()
        known = self._known.get(scope, {})
        number, what, value = _Unpacker(packed, known).load()
        if isinstance(value, REQUESTS):
            known |= {image.digest: image for image in _pictures(value)}
            self._known[scope] = known
        elif what == "release":
            self._known.pop(value, None)
        return number, what, value

    def _exactly(self, size: int) -> bytes:
        data = self._into.read(size)
        if len(data) < size:
            raise EOFError
        return data


def _head(scope: str) -> bytes:
    name = scope.encode()
    return len(name).to_bytes(4, "little") + name


class _Packer(pickle.Pickler):
    def __init__(self, file: IO[bytes], known: set[str]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.known = known

    def persistent_id(self, obj: Any) -> str | None:
        return obj.digest if isinstance(obj, Image) and obj.digest in self.known else None


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: IO[bytes], known: dict[str, Image]) -> None:
        super().__init__(file)
        self.known = known

    def persistent_load(self, pid: str) -> Image:
        return self.known[pid]
