"""What went wrong on a page: failures by kind, a balance that is off, and what took long."""

from corpus_asr.pages.html import Html, fill
from corpus_asr.report.advice import advice
from corpus_asr.report.page.data import PageData
from corpus_asr.report.page.found import table
from corpus_asr.report.page.shown import cut, message
from corpus_asr.report.reasons import reason
from corpus_asr.report.statistics import FailureGroup
from corpus_asr.report.status import FINISHED
from corpus_asr.report.text import counted, duration

_MOST_KINDS = 40

_FAILURE = """<article class="card failure"><h3>$reason</h3>
<p><strong>$count</strong> <span class="quiet small">while $stage, <code>$kind</code></span></p>
<p><strong>What to do:</strong> $advice.</p>
<ul class="small">$examples</ul></article>"""
_EXAMPLE = '<li>$address<br><span class="quiet">$message</span></li>'
_SLOW = """<tr><th scope="row">$address</th><td class="number" data-value="$length">$shown</td>\
<td class="number" data-value="$extract">$extracted</td>\
<td class="number" data-value="$transcribe">$transcribed</td></tr>"""
_STAGES = {"extract": "extracting", "transcribe": "transcribing"}


def failures(data: PageData) -> Html:
    """Return what failed, why, and what to do about it."""
    groups = data.report.statistics.failures
    if not groups:
        text = Html('<p class="good">Nothing failed.</p>')
        return fill(
            '<section aria-labelledby="failures"><h2 id="failures">Failures</h2>$text</section>',
            text=text,
        )
    more = len(groups) - _MOST_KINDS
    return fill(
        '<section aria-labelledby="failures"><h2 id="failures">Failures</h2>'
        '<div class="cards wide">$groups</div>$more</section>',
        groups=[_failure(data, group) for group in groups[:_MOST_KINDS]],
        more=f"and {more:,} more kinds" if more > 0 else None,
    )


def _failure(data: PageData, group: FailureGroup) -> Html:
    examples = [
        fill(_EXAMPLE, address=data.links.to(one.uri), message=message(one.message, of=one.uri))
        for one in group.examples
    ]
    return fill(
        _FAILURE,
        reason=reason(group.kind),
        count=counted(group.recordings, "recording"),
        stage=_STAGES.get(group.stage, cut(group.stage, 60)),
        kind=cut(group.kind, 60),
        advice=advice(group.kind, retryable=group.retryable),
        examples=examples,
    )


def balance(data: PageData) -> Html:
    """Return whether every listed file ended exactly once."""
    found = data.report.statistics.balance
    problems = [cut(each, 600) for each in found.problems]
    if data.state == FINISHED and found.unfinished + found.waiting:
        problems.append(
            f"the run finished, yet {found.unfinished:,} recordings are only begun and "
            f"{found.waiting:,} are waiting"
        )
    if problems:
        return fill(
            '<p class="bad"><strong>The tables contradict each other:</strong></p><ul>$items</ul>',
            items=[fill("<li>$problem</li>", problem=problem) for problem in problems],
        )
    if found.listed is None:
        words = f"{found.ended:,} recordings ended exactly once; the listing is not known."
    elif found.ended == found.listed:
        words = f"All {found.listed:,} listed files ended exactly once."
    else:
        words = f"{found.ended:,} of {found.listed:,} listed files ended, each exactly once"
        words += " so far." if data.alive else "; run the same command again for the rest."
    return fill('<p class="quiet">$words</p>', words=words)


def slowest(data: PageData) -> Html:
    """Return the recordings that took longest."""
    found = data.details.slowest
    if not found:
        return Html("")
    rows = [
        fill(
            _SLOW,
            address=data.links.to(one.uri),
            length=f"{one.duration_s:.1f}",
            shown=duration(one.duration_s),
            extract=f"{one.extract_s:.3f}",
            extracted=duration(one.extract_s),
            transcribe=f"{one.transcribe_s:.3f}",
            transcribed=duration(one.transcribe_s),
        )
        for one in found
    ]
    return fill(
        '<section aria-labelledby="slowest"><h2 id="slowest">Slowest recordings</h2>'
        '<p class="quiet small">By extraction and the time from hand-over to result, which '
        "includes waiting for a turn: many are transcribed side by side.</p>$table</section>",
        table=table(
            ("recording", "length", "extraction", "hand-over to result"), rows, sortable=True
        ),
    )
