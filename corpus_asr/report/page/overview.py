"""The top of a page: state, headline numbers, how far the run is, speed, and what held it up."""

import itertools
from collections.abc import Sequence

from corpus_asr.pages.charts import Step, steps
from corpus_asr.pages.html import Html, fill, joined
from corpus_asr.report.bottleneck import bottleneck, engine_words, extract_words, repeated_words
from corpus_asr.report.page.data import PageData
from corpus_asr.report.page.shown import cut, hours
from corpus_asr.report.status import DEAD, FINISHED, SILENT, STATE_WORDS, STOPPED
from corpus_asr.report.text import counted, duration
from corpus_asr.storage.run_state.run_files import Moment

_TROUBLE = {DEAD: "bad", STOPPED: "warn", SILENT: "warn", FINISHED: "good"}
# Without a commit for less than this at the end, nothing is wrong.
_QUIET_S = 60.0
_MOST_BUSY_STEPS = 30

_TIMES = "\N{MULTIPLICATION SIGN}"

_HEADER = """<header>
<p class="quiet small">corpus-asr report</p>
<h1><bdi>$uri</bdi></h1>
<p><span class="badge $kind">$state</span> $advice</p>
<p class="quiet small">$model$run Written $written.</p>
</header>"""
_FIGURE = """<div class="figure"><dt>$name</dt><dd><strong>$value</strong>\
<span class="quiet small">$more</span></dd></div>"""
_PROGRESS = """<section aria-labelledby="progress"><h2 id="progress">Recordings</h2>
<svg class="progress" width="100%" height="16" role="img" aria-label="$label">
<rect class="track" width="100%" height="16" rx="3"/>$bars</svg>
<ul class="legend">$legend</ul>$left</section>"""
_CHART = """<figure class="card"><figcaption><h3>$title</h3><p class="quiet small">$words</p>
</figcaption>$chart<details class="small"><summary>As a table</summary><div class="scrolls"><table>
<thead><tr>$head</tr></thead><tbody>$rows</tbody></table></div></details></figure>"""


def header(data: PageData) -> Html:
    """Return what the page is of."""
    report = data.report
    revision = f", revision {report.model_revision}" if report.model_revision else ""
    state, _, advice = STATE_WORDS[data.state].replace("; ", ": ", 1).partition(": ")
    return fill(
        _HEADER,
        uri=cut(report.uri),
        kind=_TROUBLE.get(data.state, ""),
        state=_sentence(state),
        advice=_sentence(advice) + "." if advice else "",
        model=f"{cut(report.model)}{revision}. " if report.model else "",
        run=f"Run {report.run_id}." if report.run_id else "",
        written=f"{data.written_at:%Y-%m-%d %H:%M} UTC",
    )


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def figures(data: PageData) -> Html:
    """Return the headline numbers."""
    report, found, details = data.report, data.report.statistics, data.details
    speech = None
    if found.speech_s is not None and found.audio_s > 0:
        speech = f"{found.speech_s / found.audio_s:.0%} of it speech"
    total = found.balance.ended + found.balance.unfinished + found.balance.waiting
    cells: list[tuple[str, str, str | Html | None]] = [
        ("Audio", hours(found.audio_s), speech),
        ("Recordings", f"{found.balance.ended:,}", f"of {total:,}"),
        ("Windows and labels" if data.classifies else "Segments", f"{found.segments:,}", None),
    ]
    if details.words is not None:
        about = "about " if details.words_estimated else ""
        cells.append(("Words", f"{about}{details.words:,}", None))
    if report.speed is not None:
        cells.append(("Speed", f"{report.speed:,.1f}{_TIMES}", "times real time, last run"))
    if report.wall_s is not None:
        cells.append(("Time", duration(report.wall_s), "last run"))
    share: Html | None = None
    if found.failed:
        words = f"{found.failed / (total or 1):.1%} of all"
        share = fill('<a href="#failures">$words</a>', words=words)
    cells.append(("Failed", f"{found.failed:,}", share))
    return fill(
        '<dl class="figures">$cells</dl>',
        cells=[fill(_FIGURE, name=name, value=value, more=more) for name, value, more in cells],
    )


def progress(data: PageData) -> Html:
    """Return how many recordings are done, and in what way."""
    found, balance = data.report.statistics, data.report.statistics.balance
    parts = [
        ("ok", "with labels" if data.classifies else "with text", found.ok),
        ("none", "without speech", found.no_speech),
        ("failed", "failed", found.failed),
        ("begun", "begun", balance.unfinished),
        ("waiting", "waiting", balance.waiting),
    ]
    total = sum(count for _, _, count in parts) or 1
    bars, at = [], 0.0
    for kind, words, count in parts[:-1]:
        bars.append(
            fill(
                '<rect class="$kind" x="$x%" width="$width%" height="16"><title>$title</title>'
                "</rect>",
                kind=kind,
                x=f"{100 * at:.3f}",
                width=f"{100 * count / total:.3f}",
                title=f"{count:,} {words}",
            )
        )
        at += count / total
    legend = [
        fill(
            '<li><svg width="12" height="12" aria-hidden="true"><rect class="$kind" width="12" '
            'height="12" rx="2"/></svg> $count $words</li>',
            kind=kind,
            count=f"{count:,}",
            words=words,
        )
        for kind, words, count in parts
        if count
    ]
    told = ", ".join(f"{count:,} {words}" for _, words, count in parts if count) or "none"
    return fill(_PROGRESS, label=told, bars=bars, legend=legend, left=_time_left(data))


def _time_left(data: PageData) -> Html | None:
    seen = data.seen
    if data.state == FINISHED or seen is None:
        return None
    words = f"This run: {seen.files:,} of {seen.planned:,} planned recordings in "
    words += f"{duration(seen.elapsed_s)}"
    if data.alive and seen.time_left_s is not None:
        words += f", about {duration(seen.time_left_s)} left"
    return fill("<p>$words.</p>", words=words)


def speed(data: PageData) -> Html:
    """Return how fast the run was over its time, and what its stages did meanwhile."""
    seen = data.seen
    if seen is None:
        return Html("")
    charts = []
    moments = seen.history
    if len(found := speed_steps(moments)) > 1:
        chart = steps(
            found, label="Speed over time", say=lambda value: f"{value:,g}{_TIMES}", area=True
        )
        words = (
            "Hours of audio per hour between commits, over the time since the run began: "
            f"{seen.speed:,.1f} on the whole."
        )
        charts.append(_figure("Speed over time", words, chart, ("times real time",), found))
    if len(found := busy_steps(moments)) > 1:
        chart = steps(
            found, label="Busy shares over time", say=lambda value: f"{value:.0%}", top=1.0
        )
        legend = Html(
            "Share of its time each stage was at work: "
            '<span class="key key-1">extraction</span>, <span class="key key-2">engines</span>.'
        )
        heads = ("extraction", "engines")
        charts.append(_figure("What was at work", legend, chart, heads, found))
    if not charts:
        charts.append(Html('<p class="quiet">Too short for a chart of its speed.</p>'))
    return fill(
        '<section aria-labelledby="speed"><h2 id="speed">Speed</h2>'
        '<div class="cards">$charts</div>$why</section>',
        charts=charts,
        why=_where_time_went(data),
    )


def _figure(
    title: str, words: str, chart: Html, heads: tuple[str, ...], found: Sequence[Step]
) -> Html:
    names = ("from", "to", *heads)
    rows = [
        fill("<tr>$cells</tr>", cells=[_cell(each) for each in _row(step, heads)]) for step in found
    ]
    head = [fill('<th scope="col" class="number">$name</th>', name=name) for name in names]
    return fill(_CHART, title=title, words=words, chart=chart, head=head, rows=rows)


def _row(step: Step, heads: tuple[str, ...]) -> list[str]:
    say = "{:,.1f}" if len(heads) == 1 else "{:.0%}"
    values = ["-" if value is None else say.format(value) for value in step.values]
    return [duration(step.start_s), duration(step.stop_s), *values]


def _cell(text: str) -> Html:
    return fill('<td class="number">$text</td>', text=text)


def speed_steps(moments: Sequence[Moment]) -> list[Step]:
    """Return the speed between commits: what several moments without one lead up to is one step."""
    found = []
    for last, now in itertools.pairwise(_with_commits(moments)):
        rate = (now.audio_s - last.audio_s) / (now.elapsed_s - last.elapsed_s)
        title = f"{duration(last.elapsed_s)} to {duration(now.elapsed_s)}: {rate:,.1f}{_TIMES}"
        found.append(
            Step(start_s=last.elapsed_s, stop_s=now.elapsed_s, values=(rate,), title=title)
        )
    return found


def _with_commits(moments: Sequence[Moment]) -> list[Moment]:
    found = list(moments[:1])
    for now in moments[1:]:
        if now.audio_s > found[-1].audio_s and now.elapsed_s > found[-1].elapsed_s:
            found.append(now)
    if found and moments[-1].elapsed_s - found[-1].elapsed_s >= _QUIET_S:
        found.append(moments[-1])
    if len(found) > 2 and 2 * _apart(found[-2:]) < _apart(found[-3:-1]):
        del found[-2]  # what the end flushes in a moment was heard in the time before it
    return found


def _apart(moments: Sequence[Moment]) -> float:
    return moments[-1].elapsed_s - moments[0].elapsed_s


def busy_steps(moments: Sequence[Moment]) -> list[Step]:
    """Return the shares of their time in which extraction and the engines were at work.

    Workers count what is done, not what they are in the middle of: short stretches say little.
    """
    found = []
    every = -(-len(moments) // _MOST_BUSY_STEPS) or 1
    for last, now in itertools.pairwise([*moments[:-1:every], *moments[-1:]]):
        if now.elapsed_s <= last.elapsed_s:
            continue
        shares = (
            _share(now.extract_s - last.extract_s, now.extract_alive_s - last.extract_alive_s),
            _share(now.engine_s - last.engine_s, now.transcribe_alive_s - last.transcribe_alive_s),
        )
        told = ["unknown" if share is None else f"{share:.0%}" for share in shares]
        title = f"{duration(last.elapsed_s)} to {duration(now.elapsed_s)}: "
        title += f"extraction {told[0]}, engines {told[1]}"
        found.append(Step(start_s=last.elapsed_s, stop_s=now.elapsed_s, values=shares, title=title))
    return found


def _share(part: float, whole: float) -> float | None:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else None


def _where_time_went(data: PageData) -> Html:
    seen = data.seen
    assert seen is not None
    found, rows = seen.activity, []
    if found.extract_share is not None:
        rows.append(("Extraction", extract_words(found, seen.extract_workers)))
    if found.engine_share is not None:
        rows.append(("Engines", engine_words(found, seen.transcribe_workers)))
    if found.commits:
        mean = duration(found.commit_s / found.commits)
        rows.append(("Commits", f"{counted(found.commits, 'commit')} of {mean} each"))
    if repeated := repeated_words(seen):
        rows.append(("Repeated", ", ".join(repeated)))
    verdict = bottleneck(
        found, elapsed_s=seen.elapsed_s, transcribe_workers=seen.transcribe_workers
    )
    if verdict is not None:
        rows.append(
            (
                "Bottleneck",
                fill(
                    "<strong>$stage</strong>: $why. What would move it: $advice.",
                    stage=verdict.stage,
                    why=verdict.why,
                    advice=verdict.advice,
                ),
            )
        )
    return fill(
        '<dl class="facts">$rows</dl>',
        rows=joined(
            fill("<dt>$name</dt><dd>$words</dd>", name=name, words=words) for name, words in rows
        ),
    )
