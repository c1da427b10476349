"""The pictures of a report: small ones, in the page itself, no more of them than it can carry."""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

from cot_engine.ablation.store import Store
from cot_engine.images.thumbnails import MOST

ROOM = 1_000_000  # bytes of pictures in a page, as it holds them: in base64
_PIXELATED = 128  # pixels of a side below which a picture is enlarged with sharp edges
_KINDS = ("png", "jpeg")


class Pictures:
    """Gives each problem's picture to a page, or says why there is none. `why` counts the reasons,
    `spent` the bytes."""

    def __init__(self, store: Store) -> None:
        self._store, self._room = store, ROOM
        self.spent = 0
        self.why: Counter[str] = Counter()

    def of(self, item: str, problem: str) -> dict[str, Any]:
        """What the template prints: `data`, a data URI, or "" and `absent`, the reason."""
        small = self._store.picture(item)
        if small is None:
            return self._absent("not kept")
        if not small.of:
            return self._absent("no picture")
        if small.kind not in _KINDS or not small.data or len(small.data) > MOST:
            return self._absent("not readable")
        data = f"data:image/{small.kind};base64,{base64.b64encode(small.data).decode('ascii')}"
        if self.spent + len(data) > self._room:
            return self._absent("left out")
        self.spent += len(data)
        one = "Picture" if small.of == 1 else f"Pictures 1 to {small.shown} of {small.of}"
        tiny = max(small.width, small.height) <= _PIXELATED
        return {
            "data": data,
            "alt": f"{one} of problem {problem}",
            "tiny": tiny,
            "more": small.of - small.shown,
            "absent": "",
        }

    def _absent(self, why: str) -> dict[str, Any]:
        self.why[why] += 1
        return {"data": "", "absent": why}
