"""Tables sort at a click in a browser, by value; numbers from the largest down at first."""

import pytest

from corpus_asr.pages.html import Html, page, shared
from tests.support.html import browsed

TABLE = Html(
    '<table class="sortable"><thead><tr><th scope="col">name</th>'
    '<th scope="col" class="number">length</th></tr></thead><tbody>'
    '<tr><td>b</td><td data-value="90">1.5 min</td></tr>'
    '<tr><td>c</td><td data-value="3">3 s</td></tr>'
    '<tr><td>a</td><td data-value="7200">2 h</td></tr></tbody></table>'
)


@pytest.mark.parametrize(
    ("clicks", "order", "sort"),
    [
        ([0], "abc", ("ascending", "")),
        ([0, 0], "cba", ("descending", "")),
        ([1], "abc", ("", "descending")),
        ([0, 1, 1], "cba", ("", "ascending")),
    ],
    ids=str,
)
def test_a_click_sorts_and_another_turns_the_order(clicks, order, sort, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page("sorting", TABLE, scripts=[shared("sorting.js")]))
    seen = browsed(path, click=" ".join(f"th:nth-child({column + 1})>button" for column in clicks))
    assert seen.complaints == []
    rows = seen.document.all("tbody")[0].all("tr")
    assert "".join(row.all("td")[0].text for row in rows) == order
    assert tuple(head.attributes.get("aria-sort", "") for head in seen.document.all("th")) == sort
