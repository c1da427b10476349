"""What is being written, as text, for whoever watches."""

from __future__ import annotations

from collections.abc import Sequence

from cot_engine.backends.local.text import BROKEN, CONTEXT, ChatText


class Reading:
    """Makes text of rows of token ids that grow in another thread, when it is called, in that of
    the caller: of what has come since the last call only. One caller at a time.

    It holds the ids alone: a row's keys and values may go before those who watch do.
    """

    def __init__(self, text: ChatText, before: Sequence[int], rows: Sequence[list[int]]) -> None:
        self.text, self.rows = text, rows
        self.before = list(before[-CONTEXT:])
        self.known = [("", 0)] * len(rows)  # of each row, the text of how many ids

    def __call__(self) -> list[str]:
        """What each row reads so far."""
        return [self._row(k, list(ids)) for k, ids in enumerate(self.rows)]

    def _row(self, k: int, ids: list[int]) -> str:
        text, at = self.known[k]
        if len(ids) == at:
            return text
        more = self.text.added([*self.before, *ids[:at]], ids[at:])
        if not more.endswith(BROKEN):  # else half a character has come: read it again with the rest
            self.known[k] = text + more, len(ids)
        return text + more.rstrip(BROKEN)
