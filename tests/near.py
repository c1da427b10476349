"""How far numbers are apart, so that nan is never near anything."""

from __future__ import annotations

import math
from collections.abc import Iterable


def largest(differences: Iterable[float]) -> float:
    """The largest absolute value. `max` would drop every nan but a first one: here it is an
    AssertionError, as having nothing to compare is."""
    sizes = [abs(float(value)) for value in differences]
    assert sizes, "nothing was compared"
    assert not any(map(math.isnan, sizes)), "nan is no difference"
    return max(sizes)
