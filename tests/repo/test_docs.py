"""The guides: each is in the index, and what they link to is there."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted((*(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "notebooks" / "README.md"))


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    return [link for link in found if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_what_a_guide_links_to_is_there(page: Path):
    assert [link for link in links(page) if not (page.parent / link).exists()] == []


def test_the_index_has_every_guide():
    index = REPOSITORY / "docs" / "README.md"
    listed = {(index.parent / link).resolve() for link in links(index)}
    assert [page for page in PAGES if page != index and page.resolve() not in listed] == []
