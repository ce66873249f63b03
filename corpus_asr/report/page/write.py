"""A run's page, put together and written: one file of HTML that needs nothing else."""

import logging
from importlib import resources

from corpus_asr.logs import event
from corpus_asr.pages.html import Html, fill, joined, page, shared
from corpus_asr.report.page.data import PageData, load_page
from corpus_asr.report.page.found import lengths_and_confidence, samples, what_was_heard
from corpus_asr.report.page.overview import figures, header, progress, speed
from corpus_asr.report.page.problems import balance, failures, slowest
from corpus_asr.report.page.settings import reading, settings
from corpus_asr.report.statistics import Report
from corpus_asr.storage.run_state.start import PAGE_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import LOCAL, normalise, parent, redact_uri, scheme_of

_LOG = logging.getLogger(__name__)

# About 1 GiB per million, which the driver of a larger run may not have to spare.
MOST_AT_THE_END = 2_000_000

_BODY = """$header
<nav class="no-print" aria-label="Sections">$links</nav>
<main>$sections</main>
<footer class="quiet small"><p>Written by corpus-asr. This page holds all it shows and asks for \
nothing from the network.</p></footer>"""
_LINKS = {
    "progress": "Recordings",
    "speed": "Speed",
    "failures": "Failures",
    "heard": "Heard",
    "samples": "Samples",
    "slowest": "Slowest",
    "reading": "Tables",
    "settings": "Settings",
}


def render_page(data: PageData) -> Html:
    """Return the page."""
    sections = joined(
        (
            figures(data),
            progress(data),
            balance(data),
            speed(data),
            failures(data),
            what_was_heard(data),
            lengths_and_confidence(data),
            samples(data),
            slowest(data),
            reading(data),
            settings(data),
        )
    )
    links = [
        fill('<a href="#$name">$title</a> ', name=name, title=title)
        for name, title in _LINKS.items()
        if f'<h2 id="{name}">' in sections
    ]
    style = resources.files(__package__).joinpath("page.css").read_text("utf-8")
    return page(
        f"{data.report.uri} - corpus-asr report",
        fill(_BODY, header=header(data), links=links, sections=sections),
        styles=[style],
        scripts=[shared("sorting.js")],
    )


def write_page(store: OutputStore, uri: str, *, at_the_end: bool = False) -> Report:
    """Write the page of an output folder, and return what it counted.

    Args:
        store: the output folder.
        uri: where the page goes: a path or an address.
        at_the_end: whether the run itself writes it, after its last commit.

    Raises:
        ConfigError: the folder is not the output of a run.
        FetchError: the store does not answer, or the page cannot be written.
    """
    uri = normalise(uri)
    folder = parent(uri) if scheme_of(uri) == LOCAL else None
    found = load_page(store, folder=folder, at_the_end=at_the_end)
    filesystem.write_atomic(uri, render_page(found).encode(), store.options)
    return found.report


def write_page_at_the_end(store: OutputStore, *, num_recordings: int) -> None:
    """Write the page of a run that has just ended into its output folder.

    A page is no reason for a run to fail: what goes wrong is logged as a warning.
    """
    why = None
    if num_recordings > MOST_AT_THE_END:
        why = f"{num_recordings:,} recordings: it is left to `corpus-asr report --html`"
    else:
        try:
            write_page(store, store.address(PAGE_NAME), at_the_end=True)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
    if why is not None:
        event(_LOG, logging.WARNING, "page_not_written", uri=redact_uri(store.uri), why=why)
