"""What a page is made of: everything read once, in bounded memory."""

import datetime
from dataclasses import dataclass
from typing import Any

from corpus_asr.config.run import CLASSIFY_AUDIO
from corpus_asr.report.details import Details, Gatherer
from corpus_asr.report.load import load_report
from corpus_asr.report.page.shown import Links
from corpus_asr.report.statistics import Report
from corpus_asr.report.status import FINISHED, STOPPED, Status, load_status
from corpus_asr.storage.run_state.run_files import Snapshot
from corpus_asr.storage.run_state.start import CONFIG_NAME, RUN_NAME
from corpus_asr.storage.run_state.tables import OutputStore


@dataclass(frozen=True, slots=True, kw_only=True)
class PageData:
    """All of it."""

    report: Report
    status: Status
    details: Details
    config: dict[str, Any]
    run: dict[str, Any]
    """What the last run that finished noted; empty where none did."""
    links: Links
    written_at: datetime.datetime
    at_the_end: bool
    """Whether the run itself writes it, as the last it does while it still holds the lock."""

    @property
    def state(self) -> str:
        """What the run is at: a key of `STATE_WORDS`."""
        ended = self.at_the_end and self.status.state != FINISHED
        return STOPPED if ended else self.status.state

    @property
    def alive(self) -> bool:
        """Whether the run is at work, as far as can be seen from outside."""
        return self.status.alive and not self.at_the_end

    @property
    def seen(self) -> Snapshot | None:
        """What the workers of the last run counted."""
        return self.status.snapshot or self.report.snapshot

    @property
    def classifies(self) -> bool:
        """Whether there are labels in place of text."""
        return self.config.get("pipeline") == CLASSIFY_AUDIO


def load_page(
    store: OutputStore,
    *,
    folder: str | None,
    at_the_end: bool = False,
    now: datetime.datetime | None = None,
) -> PageData:
    """Read what a page shows.

    Args:
        store: the output folder.
        folder: where the page is to lie on this machine; None if it lies elsewhere.
        at_the_end: whether the run itself writes it, after its last commit.
        now: the time; for tests.

    Raises:
        ConfigError: the folder is not the output of a run.
        FetchError: the store does not answer, or a run is just finishing here; try again.
    """
    gatherer = Gatherer(store)
    report = load_report(store, gatherer)
    return PageData(
        report=report,
        status=load_status(store, now=now),
        details=gatherer.details(),
        config=store.read_json(CONFIG_NAME) or {},
        run=(store.read_json(RUN_NAME) or {}) if report.finished else {},
        links=Links(folder),
        written_at=now or datetime.datetime.now(datetime.UTC),
        at_the_end=at_the_end,
    )
