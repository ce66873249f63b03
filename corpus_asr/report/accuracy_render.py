"""An evaluation for people.

In: an `Evaluation`. Out: lines of text. Knows nothing of how it came about.
"""

from collections.abc import Iterator

from corpus_asr.report.accuracy import Score
from corpus_asr.report.accuracy_summary import Comparison, Evaluation, Group, WordTimes
from corpus_asr.report.text import counted, printable, row, table, wrapped
from corpus_asr.storage.stores.uri import redact_uri

_MOST_CHARACTERS = 200
_HEADER = ("", "recordings", "words", "WER", "CER", "wrong", "left out", "added")


def render(found: Evaluation) -> str:
    """Return an evaluation as text."""
    return "\n".join(_lines(found))


def _lines(found: Evaluation) -> Iterator[str]:
    yield f"{found.output} beside {found.references}"
    yield row("compared", counted(found.everything.recordings, "recording"))
    if found.failed:
        yield row("failed", f"{found.failed:,}: what is missing of them counts as left out")
    if found.missing:
        yield row("missing", f"{found.missing:,} references are not in the run, or not done yet")
    yield from table("in all", [_HEADER, _cells(found.everything)])
    for title, groups in found.groups.items():
        yield from table(title, [_HEADER, *map(_cells, groups)])
    if found.languages:
        yield from _languages(found)
    if found.word_times is not None:
        yield from _word_times(found.word_times)
    if found.comparison is not None:
        yield from _comparison(found.comparison)
    label = "worst"
    for each in found.worst:
        if each.words.errors:
            yield from _worst(each, label)
            label = ""


def _cells(group: Group) -> tuple[str, ...]:
    words = group.words
    counts = (words.substitutions, words.deletions, words.insertions)
    return (
        group.name, f"{group.recordings:,}", f"{words.said:,}", _percent(words.rate),
        _percent(group.letters.rate), *(f"{count:,}" for count in counts),
    )  # fmt: skip


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.2%}"


def _languages(found: Evaluation) -> Iterator[str]:
    right = sum(heard.get(said, 0) for said, heard in found.languages.items())
    of = sum(sum(heard.values()) for heard in found.languages.values())
    yield row("language", f"right in {right:,} of {of:,}")
    for said, heard in found.languages.items():
        others = [f"{code} {count:,}" for code, count in heard.items() if code != said]
        if others:
            yield from wrapped(f"{said} heard as {', '.join(others)}")


def _word_times(times: WordTimes) -> Iterator[str]:
    yield from wrapped(
        f"{times.compared:,} of {times.of:,} words compared; starts differ by "
        f"{times.start_median_s * 1000:.0f} ms (median), {times.start_p95_s * 1000:.0f} ms (95%), "
        f"ends by {times.end_median_s * 1000:.0f} and {times.end_p95_s * 1000:.0f} ms; both within "
        f"200 ms in {times.close_share:.1%}",
        label="word times",
    )


def _comparison(beside: Comparison) -> Iterator[str]:
    verdict = "no clear difference"
    if beside.clearly_better or beside.clearly_worse:
        verdict = "clearly better" if beside.clearly_better else "clearly worse"
    yield from wrapped(
        f"{beside.other}: {_percent(beside.other_wer)}, here {_percent(beside.wer)} over "
        f"{counted(beside.recordings, 'recording')}; difference {beside.difference:+.2%} (95%: "
        f"{beside.low:+.2%} to {beside.high:+.2%}, p = {beside.p_value:.3f}): {verdict}",
        label="against",
    )


def _worst(each: Score, label: str) -> Iterator[str]:
    yield from wrapped(
        f"{_percent(each.words.rate)}  {redact_uri(each.reference.uri)}", label=label
    )
    yield from wrapped(f"said:  {_cut(each.reference.text)}", bullet="  ")
    yield from wrapped(f"heard: {_cut(each.heard.text)}", bullet="  ")


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
