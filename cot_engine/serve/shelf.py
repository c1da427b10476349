"""Finished traces: the last ones in memory, within a bound in bytes, or all in a folder."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from cot_engine.errors import TraceError
from cot_engine.files.reading import read_bytes
from cot_engine.files.writing import write_whole

if TYPE_CHECKING:
    from cot_engine.serve.ticket import Ticket

_ID = re.compile(r"[a-z]+-[0-9a-f]{24}")
_CLIENT = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Shelf:
    """Tickets that are over, by id, the latest `most` that fit into `most_bytes`."""

    def __init__(self, most: int, most_bytes: int, folder: Path | None = None) -> None:
        self.most, self.most_bytes, self.folder = most, most_bytes, folder
        self.bytes = 0
        self._tickets: OrderedDict[str, Ticket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tickets)

    def get(self, id: str) -> Ticket | None:
        """The ticket of that id, if it is still here."""
        return self._tickets.get(id)

    def put(self, ticket: Ticket, size: int) -> None:
        """Keep it, and let go of the oldest as far as there is no room."""
        self._tickets[ticket.id] = ticket
        self.bytes += size
        while self._tickets and (len(self) > self.most or self.bytes > self.most_bytes):
            _, old = self._tickets.popitem(last=False)
            self.bytes -= old.size

    def write(self, client: str, id: str, lines: bytes) -> None:
        """Keep a trace in the folder, if there is one. Raises TraceError."""
        if self.folder is not None:
            path = self.folder / _folder(client) / f"{id}.jsonl"
            write_whole(path, lines, "The trace", TraceError)

    def read(self, client: str, id: str) -> bytes | None:
        """A client's trace that is in the folder, as it was written; None if there is none."""
        if self.folder is None or not _ID.fullmatch(id):
            return None
        path = self.folder / _folder(client) / f"{id}.jsonl"
        return read_bytes(path, "trace", TraceError) if path.is_file() else None


def _folder(client: str) -> str:
    """Where the traces of a client are: only the names of keys are fit for a path."""
    return client if _CLIENT.fullmatch(client) else "anyone"
