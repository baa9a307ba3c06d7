"""Nothing that comes from outside becomes an element."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppll.reports.markup import Markup, style_sheet, tag


class Reader(HTMLParser):
    """What a browser makes of a page: its elements, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(), st.text())
def test_text_stays_text(child: str, value: str) -> None:
    found = Reader(tag("p", child, title=value))
    assert found.elements == ["p"]
    assert [name for name, _ in found.attributes] == ["title"]
    assert len(found.text) == len(child)


def test_elements_are_kept_and_none_is_left_out() -> None:
    assert tag("p", tag("b", "<"), None, class_=None) == "<p><b>&lt;</b></p>"
    assert tag("meta", http_equiv="a") == '<meta http-equiv="a">'


def test_text_that_looks_like_markup_is_none() -> None:
    joined = Markup("<b>") + "<i>"  # joining makes plain text of it
    assert tag("p", joined) == "<p>&lt;b&gt;&lt;i&gt;</p>"


def test_names_and_styles_are_our_own() -> None:
    with pytest.raises(AssertionError):
        tag("p onclick=x")
    with pytest.raises(AssertionError):
        style_sheet("</style><script>")
