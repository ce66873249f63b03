"""Nights are judged by those before; in summaries, what comes from recordings means nothing."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from corpus_asr.report.nightly import (
    Archive,
    Night,
    NightState,
    alarms,
    as_data,
    chat,
    headline,
    markdown,
    over_limit,
    warnings_of,
)
from corpus_asr.report.numbers import ClassShare, FailureExample, FailureGroup
from corpus_asr.report.run import NightNumbers
from tests.support.nightly import night, past


def failing(uri: str, message: str = "no answer", *, retryable: bool = True) -> FailureGroup:
    return FailureGroup(
        stage="extract", kind="timeout" if retryable else "not_audio", recordings=1234,
        retryable=retryable, examples=(FailureExample(uri=uri, message=message),),
    )  # fmt: skip


FULL = night(
    state=NightState.time_limit,
    retried=1234,
    remaining=5,
    failed=1234,
    failures=(failing("s3://pod/a.mp3"), failing("s3://pod/b.txt", retryable=False)),
    languages=(ClassShare(name="en", recordings=8, audio_s=7200.0, segments=99),),
    low_confidence=12,
    skipped=7,
    no_longer_retried=("s3://pod/e.mp3",),
    over_limit="too many",
    warnings=("no new recordings",),
    past=(past(), past(date="2026-11-19", state="aborted")),
)


def test_everything_stands_in_the_summary() -> None:
    assert headline(FULL) == (
        "Nightly run of 2026-11-21, time limit reached; the next run continues: 10 recordings "
        "done, 1,234 failed, 5 remaining; 10.0 h of audio in 1.0 h"
    )
    text = markdown(FULL)
    for line in (
        "> **Attention:** too many",
        "> **Attention:** no new recordings",
        "| - failed before |      1,234 |",
        "10.0 h of audio in 1.0 h, RTFx 10.0; ",
        "; from 01:00 (UTC+01:00) to 02:00 (UTC+01:00).",
        "The archive: 998 of 1,000 listed recordings done, 2 failed, 1,000.0 h of audio.",
        "- **timeout** (extract): 1,234; check the network, then run again: each run retries these",
        "    - `s3://pod/a.mp3`: no answer",
        "- **not\\_audio** (extract): 1,234; these are not audio",
        "Skipped after too many failed attempts: 7 recordings.",
        "- no longer retried: `s3://pod/e.mp3`",
        "| en       |          8 | 2.0 h |",
        "Low confidence: 12 recordings; `report.html` has the segments of least confidence.",
    ):
        assert line in text
    assert [line.split(" | ")[1].strip() for line in text.splitlines()[-3:]] == [
        "time limit", "done", "aborted",
    ]  # fmt: skip

    text = markdown(night())
    for words in ("Failures", "Languages", "Low confidence: ", "Skipped", "changed", "before"):
        assert words not in text


@pytest.mark.parametrize(
    "name",
    ["<!channel>.mp3", "a&b\x1b[2J`*x*`\n# Fine", "a\u202e|[x](http://evil).mp3", "\udcff.mp3"],
)
def test_names_and_messages_are_no_markup(name: str) -> None:
    hostile = replace(
        FULL,
        findings=replace(
            FULL.findings,
            failures=(failing(f"s3://pod/{name}", f"reading {name}: *no*"),),
        ),
        error=f"reading {name}",
    )
    text = markdown(hostile)
    assert "\x1b" not in text
    assert "\n# Fine" not in text
    plain = [line for line in text.splitlines() if "`" not in line]
    assert not any("<!" in line and "\\<!" not in line for line in plain)
    assert "\\*no\\*" in text
    message = chat(hostile, "s3://out/nights/x.md")
    assert "<" not in message
    assert ">" not in message
    assert "\x1b" not in message
    assert message.count("\n") == 5
    json.dumps(message).encode()


def test_what_hooks_did_is_counted_and_their_failures_are_named() -> None:
    counts = {"recordings": 8, "failed": 2, "left": 0}
    found = night(hooks={"redact": counts})
    assert "hook redact: 2 recordings failed; see the log" in alarms(found)
    assert "hook redact" in markdown(found)
    assert as_data(found)["hooks"] == {"redact": counts}
    assert alarms(night(hooks={"redact": counts | {"failed": 0}})) == alarms(night())


def test_erased_recordings_that_are_skipped_are_counted() -> None:
    row = r"\| erased, skipped +\| +2 \|"
    assert re.search(row, markdown(night(erased=2)))
    assert "erased" not in markdown(night())


def test_a_chat_gets_the_first_kinds_of_failures_only() -> None:
    many = replace(FULL.findings, failures=FULL.findings.failures * 10)
    message = chat(replace(FULL, findings=many, webhook_error=None), "s3://out/nights/x.md")
    assert message.count("such as s3://pod/") == 5
    assert message.endswith("s3://transcripts/podcasts, see s3://out/nights/x.md")


def test_a_summary_has_all_the_numbers() -> None:
    data = json.loads(json.dumps(as_data(FULL)))
    assert NightNumbers(**data["numbers"]) == FULL.numbers
    assert data["planned"] == 1244
    assert data["archive"] == {
        "done": 998, "failed": 2, "audio_s": 3_600_000.0, "earlier": 0, "gone": 0,
    }  # fmt: skip
    assert Archive(**data["archive"]) == FULL.archive


USUAL = (past(), past(), past())


def test_a_budget_is_exceeded_by_its_share_not_by_one_recording() -> None:
    cases = (
        (10, 100, 0.1, False),
        (11, 100, 0.1, True),
        (1, 1, 0.1, False),  # one bad file of one
        (2, 5, 0.1, True),
        (1, 100, 0.0, True),
        (0, 100, 0.0, False),
        (0, 0, 0.0, False),
        (100, 100, 1.0, False),
    )
    for failed, ended, limit, exceeded in cases:
        words = over_limit(night(done=ended - failed, failed=failed), limit)
        assert (words is not None) is exceeded, (failed, ended, limit)
        if words is not None:
            assert words.startswith(f"{failed:,} of {ended:,} recordings failed")


BROKEN = past(state="aborted", listed=0, new=0, done=0)


def test_what_is_unusual_is_said_once() -> None:
    cases: tuple[tuple[Night, Sequence[NightNumbers], str | None], ...] = (
        (night(), USUAL, None),
        (night(new=0, done=0, audio_s=0.0), USUAL,
         "no new recordings, for the first time in 4 nightly runs (usually 10)"),
        (night(new=0), (*USUAL, past(new=0)), None),  # not the first time
        (night(new=0), USUAL[:2], None),  # who knows what is usual
        (night(listed=800), (past(listed=1000),), "800 recordings are listed"),
        (night(listed=950), (past(listed=1000),), None),
        (night(done=7, failed=3), USUAL, "30.0% of the recordings failed, usually 0.0%"),
        (night(done=8, failed=2), USUAL, None),  # two files
        (night(done=7, failed=3), (past(done=8, failed=2),) * 3, None),
        (night(done=7, failed=3), USUAL[:2], None),
        (night(low_confidence=4), USUAL, "40.0% of the transcripts have low confidence, usually"),
        (night(low_confidence=4), (past(low_confidence=2),) * 3, None),
        (night(rtfx=4.9), USUAL, "RTFx 4.9, usually 10.0"),
        (night(rtfx=5.0), USUAL, None),
        (night(rtfx=1.0, audio_s=3600.0), USUAL, None),  # a short night
        (night(rtfx=1.0), (past(audio_s=0.0, rtfx=0.0),) * 3, None),
        (night(remaining=30), (past(remaining=20), past(remaining=10)), "the backlog grows"),
        (night(remaining=30), (past(remaining=20), past(remaining=0)), None),
        (night(remaining=20), (past(remaining=20), past(remaining=10)), None),
        (night(remaining=30), (past(remaining=20),), None),
        # Nights that broke off neither warn nor count.
        (night(state=NightState.aborted, listed=0, new=0), USUAL, None),
        (night(), (BROKEN, *USUAL), None),
        (night(new=0), (BROKEN, *USUAL), "no new recordings, for the first time in 4 nightly runs"),
    )  # fmt: skip
    for tonight, before, words in cases:
        warnings = warnings_of(tonight, before)
        assert len(warnings) == (words is not None), (words, warnings)
        assert "".join(warnings).startswith(words or "")
