"""What a rule takes a prediction to say."""

from __future__ import annotations

from typing import NamedTuple

NONE = "Z"
"""The letter of no option: the prediction refuses to choose, or says that none is right."""


class Said(NamedTuple):
    """`value` is what was extracted: a letter, Yes or No, a number as text; "" if the rule finds
    that there is nothing, None if it leaves the question open. `rule` says in words how."""

    value: str | None
    rule: str


OPEN = Said(None, "no rule applies")
