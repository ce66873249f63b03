"""The page over nights: each night's numbers as charts and in a table, and links to its summary.

Written next to the page of the archive after every night, from the summaries of past ones.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import quote

from corpus_asr.logs import event
from corpus_asr.report.html.charts import Chart, bars, number_ticks
from corpus_asr.report.html.formatting import hours, link
from corpus_asr.report.html.page import environment, render_document
from corpus_asr.report.nightly import STATE_BADGES, PastNight, read_nights
from corpus_asr.report.text import duration, now
from corpus_asr.storage.run_state.run_files import NIGHTS_NAME, PAGE_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import LOCAL, redact_uri, scheme_of
from corpus_asr.units import counted

_LOG = logging.getLogger(__name__)

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


class Quantity(NamedTuple):
    """What a chart shows of each night."""

    title: str
    caption: str
    value: Callable[[PastNight], float | None]
    words: Callable[[PastNight], str]
    """Of a night that has a value."""
    whole: bool = False
    highest: float | None = None
    """The end of the scale; None: above all values."""
    say: Callable[[float], str] = "{:,g}".format


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
    # Weighed by audio, of which a night may have none.
    sure = [
        (each.confidence, max(each.audio_s, 1e-3)) for each in nights if each.confidence is not None
    ]
    weight = sum(weight for _, weight in sure)
    mean = sum(confidence * weight for confidence, weight in sure) / weight if sure else None
    processed = sum(night.processed for night in nights)
    return render_document(
        environment().get_template("nights.html.j2"),
        uri=redact_uri(store.uri),
        nights=shown[::-1],
        charts=[(of.title, of.caption, _chart(shown, of)) for of in _QUANTITIES] if shown else [],
        has_report=store.exists(PAGE_NAME),
        done=sum(night.done for night in nights),
        failed=sum(night.failed for night in nights),
        processed=processed,
        audio_s=audio_s,
        rtfx=audio_s / wall_s if audio_s and wall_s else None,
        confidence=mean,
        written_at=now(),
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


_QUANTITIES = (
    Quantity(
        "Recordings", "Done in each night.", lambda night: night.done,
        lambda night: f"{counted(night.done, 'recording')} done, {night.remaining:,} remaining",
        whole=True,
    ),
    Quantity(
        "Audio", "Hours of committed audio.", lambda night: night.audio_s / 3600,
        lambda night: f"{hours(night.audio_s)} in {duration(night.wall_s)}",
    ),
    Quantity(
        "Failures", "Recordings that failed.", lambda night: night.failed,
        lambda night: f"{night.failed:,} of {counted(night.processed, 'recording')}",
        whole=True,
    ),
    Quantity(
        "RTFx", "Audio time over wall time of the whole night.",
        lambda night: night.rtfx if night.audio_s else None, lambda night: f"{night.rtfx:,.2f}",
    ),
    Quantity(
        "Confidence", "Mean over the audio of the night.", lambda night: night.confidence,
        lambda night: f"{night.confidence:,.2f}", highest=1.0, say="{:.1f}".format,
    ),
)  # fmt: skip


def _chart(nights: Sequence[Shown], of: Quantity) -> Chart:
    values = [of.value(each.night) for each in nights]
    every = -(-len(nights) // _MOST_DATES) or 1
    # Counted from the last night, whose date matters most.
    dated = {at for at in range(len(nights)) if (len(nights) - 1 - at) % every == 0}
    width = 100 / len(nights)
    return bars(
        [value or 0.0 for value in values],
        label=f"{of.title} of each night",
        # Without the year, which the title of each bar has.
        marks=[((at + 0.5) * width, nights[at].name[5:10]) for at in sorted(dated)],
        titles=[
            f"{each.name}: {'no audio' if value is None else of.words(each.night)}"
            for each, value in zip(nights, values, strict=True)
        ],
        ticks=number_ticks(of.highest or max(filter(None, values), default=1.0), whole=of.whole),
        say=of.say,
    )
