"""The page over nights: each night's numbers as charts and in a table, and links to its summary.

Written next to the page of the archive after every night, from the summaries of past ones.
"""

import datetime
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import quote

from corpus_asr.logs import event
from corpus_asr.report.html.charts import Chart, bars, number_ticks
from corpus_asr.report.html.formatting import hours, link
from corpus_asr.report.html.page import environment, render_document
from corpus_asr.report.nightly import STATE_BADGES, PastNight, read_nights
from corpus_asr.report.text import duration
from corpus_asr.storage.run_state.run_files import PAGE_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import LOCAL, redact_uri, scheme_of
from corpus_asr.units import counted

_LOG = logging.getLogger(__name__)

NIGHTS_NAME = "nights.html"
# A year, and the most that is read after a night: a small object each.
MOST_NIGHTS = 366
_MOST_DATES = 5  # below a chart


class Shown(NamedTuple):
    """A night on the page."""

    night: PastNight
    name: str
    """Its date, and its number where the day had several."""
    target: str | None
    """Of the link to its summary; None where the page cannot lead there."""
    badge: str
    state: str


def write_nights_page(store: OutputStore, summaries: OutputStore) -> None:
    """Write the page of a folder of summaries into the output folder, or log why not."""
    try:
        html = nights_page(store, summaries)
        store.write_bytes(NIGHTS_NAME, html.encode())
    except Exception as error:  # a page is no reason for a night to fail
        why = f"{type(error).__name__}: {error}"
        event(_LOG, logging.WARNING, "page_not_written", uri=redact_uri(store.uri), why=why)


def nights_page(store: OutputStore, summaries: OutputStore) -> str:
    """Return the page over the last nights as HTML."""
    # The night's comparison with those before it has logged what cannot be read.
    read = read_nights(summaries, MOST_NIGHTS, complaints=logging.DEBUG)
    shown = [_shown(night, name, store, summaries) for name, night in read]
    nights = [each.night for each in shown]
    audio_s, wall_s = sum(each.audio_s for each in nights), sum(each.wall_s for each in nights)
    certain = [each for each in nights if each.confidence is not None]
    processed = sum(night.processed for night in nights)
    return render_document(
        environment().get_template("nights.html.j2"),
        uri=redact_uri(store.uri),
        nights=shown[::-1],
        charts=_charts([(each.name, each.night) for each in shown]) if shown else [],
        has_report=store.exists(PAGE_NAME),
        done=sum(night.done for night in nights),
        failed=sum(night.failed for night in nights),
        processed=processed,
        audio_s=audio_s,
        rtfx=audio_s / wall_s if audio_s and wall_s else None,
        confidence=_mean(certain),
        written_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _shown(night: PastNight, name: str, store: OutputStore, summaries: OutputStore) -> Shown:
    address = summaries.address(f"{name}.md")
    inside = address.removeprefix(f"{store.uri.rstrip('/')}/")
    if inside != address:
        target: str | None = f"./{quote(inside)}"
    else:
        here = store.uri if scheme_of(store.uri) == LOCAL else None
        target = link(address, folder=here)[1]
    idle = night.state == "done" and not night.processed
    return Shown(
        night=night,
        name=name,
        target=target,
        badge="" if idle else STATE_BADGES.get(night.state, ""),
        state="nothing to do" if idle else night.state.replace("_", " "),
    )


def _mean(nights: Sequence[PastNight]) -> float | None:
    weights = [max(night.audio_s, 1e-3) for night in nights]
    if not nights:
        return None
    sums = (each.confidence * w for each, w in zip(nights, weights, strict=True) if each.confidence)
    return sum(sums) / sum(weights)


def _charts(nights: Sequence[tuple[str, PastNight]]) -> list[tuple[str, str, Chart]]:
    """Return title, caption and chart of each quantity."""
    plain = "{:,g}".format
    charts: list[tuple[str, str, Callable[[PastNight], float | None], Callable[[float], str]]] = [
        ("Recordings", "Done in each night.", lambda night: night.done, plain),
        ("Audio", "Hours of committed audio.", lambda night: night.audio_s / 3600, plain),
        ("Failures", "Recordings that failed.", lambda night: night.failed, plain),
        ("RTFx", "Audio time over wall time of the whole night.", _rtfx, plain),
        ("Confidence", "Mean over the audio of the night.", _confidence, "{:.1f}".format),
    ]
    return [
        (title, caption, _chart(nights, title, value, say)) for title, caption, value, say in charts
    ]


def _rtfx(night: PastNight) -> float | None:
    return night.rtfx if night.audio_s else None


def _confidence(night: PastNight) -> float | None:
    return night.confidence


def _chart(
    nights: Sequence[tuple[str, PastNight]],
    title: str,
    value: Callable[[PastNight], float | None],
    say: Callable[[float], str],
) -> Chart:
    values = [value(night) for _, night in nights]
    every = -(-len(nights) // _MOST_DATES) or 1
    # Counted from the last night, whose date matters most.
    dated = {at for at in range(len(nights)) if (len(nights) - 1 - at) % every == 0}
    words = [
        f"{name}: {_words(title, night, each)}"
        for (name, night), each in zip(nights, values, strict=True)
    ]
    whole = title in ("Recordings", "Failures")
    width = 100 / len(nights)
    return bars(
        [each or 0.0 for each in values],
        label=f"{title} of each night",
        # Without the year, which the title of each bar has.
        marks=[((at + 0.5) * width, nights[at][0][5:10]) for at in sorted(dated)],
        titles=words,
        ticks=number_ticks(
            1.0 if title == "Confidence" else max(filter(None, values), default=1.0), whole=whole
        ),
        say=say,
    )


def _words(title: str, night: PastNight, value: float | None) -> str:
    if value is None:
        return "no audio"
    match title:
        case "Audio":
            return f"{hours(night.audio_s)} in {duration(night.wall_s)}"
        case "Failures":
            return f"{night.failed:,} of {counted(night.processed, 'recording')}"
        case "Recordings":
            return f"{counted(night.done, 'recording')} done, {night.remaining:,} remaining"
        case _:
            return f"{value:,.2f}"
