"""What a template prints is text, whoever wrote it, and no template can forget to escape."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cot_engine
from cot_engine.escape import terminal
from cot_engine.show.templates import environment, render

ANY = st.text(st.characters(exclude_categories=[]))
PRINTED = '<p title="{{ text }}">{{ text }}</p>'
ROOT = Path(cot_engine.__file__).parent
TEMPLATES = sorted(ROOT.rglob("*.*.jinja"))


class Reader(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.attributes: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        assert (tag, len(attrs)) == ("p", 1)
        self.attributes.append(attrs[0][1])

    def handle_data(self, data):
        self.text += data


@given(ANY)
def test_what_is_printed_is_one_text(text):
    """Through a macro and a filter too, which return what counts as markup."""
    source = f"{{% macro p() %}}{PRINTED}{{% endmacro %}}{{{{ p() }}}}{{{{ text|trim(chars='') }}}}"
    read = Reader(environment().from_string(source).render(text=text))
    assert read.attributes == [terminal(text)] and read.text == 2 * terminal(text)


def test_without_escaping_this_would_tell():
    """The negative control: a template with `|safe`, or an environment that does not escape."""
    text = '"><script>1</script>'
    plain = jinja2.Environment(autoescape=False, finalize=environment().finalize)
    for made in (
        environment().from_string(PRINTED.replace("}}</p>", "|safe }}</p>")),
        plain.from_string(PRINTED),
    ):
        with pytest.raises(AssertionError):
            Reader(made.render(text=text))


def test_a_name_that_is_not_there_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        environment().from_string("{{ nobody }}").render()
    with pytest.raises(jinja2.UndefinedError):
        render("show/document.html.jinja")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_goes_round_it(path):
    """Nothing is declared safe; a value in an attribute stands in quotes."""
    source = path.read_text("utf-8")
    assert not re.search(r"\|\s*safe\b|\bautoescape\b|Markup", source)
    assert not re.search(r"=\{\{", source)


def test_no_module_declares_anything_safe():
    assert len(TEMPLATES) == 10  # of pages and drawings; a model's chat template is none of them
    for module in ROOT.rglob("*.py"):
        assert "Markup" not in module.read_text("utf-8"), module
