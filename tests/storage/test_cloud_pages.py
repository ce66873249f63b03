"""Folders of gs:// and az:// are listed in pages, so that memory does not grow with them."""

from itertools import islice

import pytest

from corpus_asr.config.run import SourceSettings
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.stores.filesystem import list_pages
from tests.support.clouds import Listed, ListedAzure, ListedGoogle, listed

KINDS = pytest.mark.parametrize("kind", [ListedGoogle, ListedAzure])


@KINDS
@pytest.mark.parametrize("depth", [None, 1])
def test_a_page_is_one_request_and_no_more_is_asked_than_is_read(
    kind: type[Listed], depth: int | None
) -> None:
    with listed(kind, 10_000_000) as uri:
        pages = list(islice(list_pages(uri, depth=depth), 3))
        assert Listed.requests == 3
    # The folder's own key is none of its files.
    assert [len(page.uris) for page in pages] == [1000, 1000, 1000]
    assert pages[1].uris[0] == f"{uri}000001000.mp3"
    assert (pages[1].sizes[0], pages[1].etags[0]) == (1000, "e1000")


@KINDS
def test_listing_gives_every_file_once(kind: type[Listed]) -> None:
    with listed(kind, 2500) as uri:
        rows = [row for batch in FileListing(SourceSettings(uri=(uri,))) for row in
                batch["uri"].to_pylist()]  # fmt: skip
        assert Listed.requests <= 4
    assert rows == [f"{uri}{number:09d}.mp3" for number in range(2500)]


@KINDS
def test_names_that_begin_alike_are_asked_for_alone(kind: type[Listed]) -> None:
    with listed(kind, 30) as uri:
        [page] = list_pages(f"{uri}00000002")
    assert page.uris == [f"{uri}{number:09d}.mp3" for number in range(20, 30)]


@KINDS
def test_a_folder_without_files_has_none(kind: type[Listed]) -> None:
    with listed(kind, 0) as uri:
        assert [page.uris for page in list_pages(uri)] == [[]]
