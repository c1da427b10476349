"""The templates of the pages, and what makes every text in them harmless.

Whatever a template prints is escaped, and its control characters are shown instead of obeyed: a
template cannot forget to. Only what is written in a template is markup.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2

from cot_engine.escape import visible


def render(name: str, **values: Any) -> str:
    """The page that a template ("show/search.html.jinja") makes of these values."""
    return environment().get_template(name).render(values)


def part(name: str, macro: str, *values: Any) -> str:
    """What one macro of a template makes of these values, as markup to be printed in a page."""
    return getattr(environment().get_template(name).module, macro)(*values)


@cache
def environment() -> jinja2.Environment:
    """What all templates are read with; they are named by their place in the package."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("cot_engine", ""),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,  # a name that is not there is an error, not nothing
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> str:
    """What is printed of a value, before it is escaped; markup of a macro's stays markup."""
    return visible(value if isinstance(value, str) else str(value))
