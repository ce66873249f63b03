"""The middle of a page: languages or labels, lengths, how sure the model was, samples to read."""

import itertools
from collections.abc import Iterable, Sequence

from corpus_asr.confidence import HIGH_CONFIDENCE, LOW_CONFIDENCE
from corpus_asr.pages.charts import bar, histogram
from corpus_asr.pages.html import Html, fill
from corpus_asr.report.details import DURATION_EDGES_S, Sample
from corpus_asr.report.page.data import PageData
from corpus_asr.report.page.shown import (
    clock,
    cut,
    hours,
    language_attributes,
    language_name,
    sample_text,
)

_MOST_ROWS = 30  # Whisper knows a hundred languages, a classifier may know thousands of labels

_TABLE = """<div class="scrolls"><table class="$kind"><thead><tr>$head</tr></thead>
<tbody>$rows</tbody></table></div>"""
_HEAD = '<th scope="col"$kind>$name</th>'
_ROW = """<tr><th scope="row">$name</th><td class="bars">$bar</td>\
<td class="number" data-value="$value">$shown</td><td class="number">$share</td>$more</tr>"""
_NUMBER = '<td class="number" data-value="$value">$shown</td>'
_SAMPLE = """<li class="sample card"><blockquote$language_attributes>$text</blockquote>
<p class="small quiet">$address<br><span class="times">$times</span>$language · $sure</p></li>"""


def what_was_heard(data: PageData) -> Html:
    """Return the languages of a transcription, or the labels of a classification."""
    found = data.report.statistics
    rows: list[tuple[str, float, tuple[int, ...]]]
    title, head = "Languages", ["language", "", "audio", "share", "recordings", "segments"]
    if data.classifies:
        title, head = "Labels", ["label", "", "audio", "share", "recordings"]
        rows = [(cut(one.label, 60), one.audio_s, (one.recordings,)) for one in found.labels]
    else:
        rows = [
            (language_name(one.language), one.audio_s, (one.recordings, one.segments))
            for one in found.languages
        ]
    if not rows:
        return Html("")
    total = sum(seconds for _, seconds, _ in rows) or 1.0
    most = max(seconds for _, seconds, _ in rows) or 1.0
    shown = [
        _row(name, seconds, hours(seconds), seconds / total, seconds / most, counts)
        for name, seconds, counts in rows[:_MOST_ROWS]
    ]
    left = _others(len(rows) - len(shown), sum(seconds for _, seconds, _ in rows[_MOST_ROWS:]))
    return _section("heard", title, table(head, shown, sortable=True), left)


def _row(
    name: str, value: float, shown: str, share: float, width: float, counts: Iterable[int]
) -> Html:
    return fill(
        _ROW,
        name=name,
        bar=bar(width),
        value=f"{value:.1f}",
        shown=shown,
        share=f"{share:.0%}" if share >= 0.01 or not share else "<1%",
        more=[fill(_NUMBER, value=count, shown=f"{count:,}") for count in counts],
    )


def _others(count: int, seconds: float) -> Html | None:
    if not count:
        return None
    return fill(
        '<p class="quiet">and $n others with $much</p>', n=f"{count:,}", much=hours(seconds)
    )


def table(head: Sequence[str], rows: Iterable[Html], *, sortable: bool = False) -> Html:
    """Return a table; the columns from the third on hold numbers."""
    names = [
        fill(
            _HEAD if name else "<td></td>",
            name=name,
            kind=Html(' class="number"' if number > 1 else ""),
        )
        for number, name in enumerate(head)
    ]
    return fill(_TABLE, kind="sortable" if sortable else "", head=names, rows=list(rows))


def lengths_and_confidence(data: PageData) -> Html:
    """Return how long the recordings are, and how sure the model was of what it wrote."""
    return fill(
        '<section aria-labelledby="spread"><h2 id="spread">Lengths and confidence</h2>'
        '<div class="cards">$lengths$confidence</div></section>',
        lengths=_lengths(data.details.durations),
        confidence=_confidence(data),
    )


def _lengths(counts: Sequence[int]) -> Html:
    total, most = sum(counts), max(counts)
    if not total:
        return Html("")
    edges = [_edge(seconds) for seconds in DURATION_EDGES_S]
    names = [f"under {edges[0]}", *map(" to ".join, itertools.pairwise(edges))]
    names.append(f"{edges[-1]} and more")
    there = [number for number, count in enumerate(counts) if count]
    rows = [
        _row(name, count, f"{count:,}", count / total, count / most, ())
        for name, count in list(zip(names, counts, strict=True))[there[0] : there[-1] + 1]
    ]
    return fill(
        '<figure class="card"><figcaption><h3>Recordings by length</h3></figcaption>$table'
        "</figure>",
        table=table(("length", "", "recordings", "share"), rows),
    )


def _edge(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:g} h"


def _confidence(data: PageData) -> Html:
    counts = data.report.statistics.confidence
    total = sum(counts)
    if not total:
        return Html("")
    what = "windows" if data.classifies else "segments"
    width = 1 / len(counts)
    titles = [
        f"{n * width:.1f} to {(n + 1) * width:.1f}: {count:,} {what} ({count / total:.0%})"
        for n, count in enumerate(counts)
    ]
    edges = ["" if number % 2 else f"{number * width:.1f}" for number in range(len(counts) + 1)]
    rows = [fill("<tr><td>$words</td></tr>", words=title) for title in titles]
    sure = (
        "The probability of each window's likeliest label."
        if data.classifies
        else "The estimated share of right words in each segment."
    )
    return fill(
        '<figure class="card"><figcaption><h3>Confidence</h3><p class="quiet small">$sure Number '
        'of $what, from 0 (guessed) to 1 (sure).</p></figcaption>$chart<details class="small">'
        "<summary>As a table</summary><table><tbody>$rows</tbody></table></details></figure>",
        sure=sure,
        what=what,
        chart=histogram(counts, label="Confidence", edges=edges, titles=titles),
        rows=rows,
    )


def samples(data: PageData) -> Html:
    """Return what is worth reading: what the model was least sure of, and a draw of the rest."""
    details = data.details
    if not details.random:
        return Html("")
    marks = Html("")
    if any(one.words for one in (*details.random, *details.unsure)):
        marks = fill(
            '<p class="small quiet">Words are marked by their probability: '
            '<mark class="unsure">below $unsure</mark>, <mark class="doubtful">below $doubtful'
            "</mark>.</p>",
            unsure=f"{HIGH_CONFIDENCE:.0%}",
            doubtful=f"{LOW_CONFIDENCE:.0%}",
        )
    what = "Windows" if data.classifies else "Samples"
    return _section(
        "samples",
        f"{what} to read",
        marks,
        _list(data, "Least confident", "At most two of a recording.", details.unsure),
        _list(data, "At random", "Each as likely as any other.", details.random),
    )


def _list(data: PageData, title: str, words: str, found: Sequence[Sample]) -> Html:
    return fill(
        '<h3>$title</h3><p class="small quiet">$words</p><ul class="samples">$items</ul>',
        title=title,
        words=words,
        items=[_sample(data, one) for one in found],
    )


def _sample(data: PageData, one: Sample) -> Html:
    if one.labels:
        named = [f"{cut(label, 60)} {probability:.0%}" for label, probability in one.labels]
        text = fill(
            "<strong>$first</strong>$rest",
            first=named[0],
            rest=[f" · {each}" for each in named[1:]],
        )
    else:
        text = sample_text(one)
    return fill(
        _SAMPLE,
        language_attributes=language_attributes(one.language),
        text=text,
        address=data.links.to(one.uri, start_s=one.start_s),
        times=f"{clock(one.start_s)}\u2013{clock(one.end_s)}",
        language=f" · {language_name(one.language)}" if one.language else None,
        sure=fill(
            '<span class="$kind">$share sure</span>',
            kind=_kind(one.confidence),
            share=f"{one.confidence:.0%}",
        ),
    )


def _kind(confidence: float) -> str:
    if confidence < LOW_CONFIDENCE:
        return "bad"
    return "warn" if confidence < HIGH_CONFIDENCE else "good"


def _section(name: str, title: str, *content: Html | None) -> Html:
    return fill(
        '<section aria-labelledby="$name"><h2 id="$name">$title</h2>$content</section>',
        name=name,
        title=title,
        content=list(content),
    )
