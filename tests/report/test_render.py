"""The report reads well whatever there is to say."""

import json
from dataclasses import replace

from corpus_asr.report.balance import Balance
from corpus_asr.report.render import as_data, render
from corpus_asr.report.statistics import (
    FailureExample,
    FailureGroup,
    LabelShare,
    LanguageShare,
    Report,
    Statistics,
)
from corpus_asr.report.text import duration

SOUND = Balance(
    listed=100, ended=100, unfinished=0, waiting=0, unlisted=0, superseded_parts=0, problems=()
)
MISSING = FailureGroup(
    stage="extract",
    kind="no_audio_stream",
    recordings=2,
    retryable=False,
    examples=(
        FailureExample(uri="s3://b/1.mp3", message="decoding s3://b/1.mp3: no audio stream " * 5),
        FailureExample(uri="s3://b/2.mp3", message="the store said no"),
    ),
)
FULL = Report(
    uri="s3://transcripts/podcasts",
    finished=True,
    run_id="20260101",
    model="openai/whisper-small",
    model_revision="abc123",
    wall_s=7200.0,
    speed=120.5,
    statistics=Statistics(
        ok=95,
        no_speech=3,
        failed=2,
        parts=140,
        audio_s=360_000.0,
        speech_s=180_000.0,
        segments=12_345,
        extract_s=900.0,
        transcribe_s=1400.0,
        skipped_packets=7,
        recordings_with_skipped_packets=1,
        devices=(("NVIDIA H200", 140),),
        languages=(
            LanguageShare(language="en", recordings=90, audio_s=300_000.0, segments=12_000),
            LanguageShare(language="de", recordings=5, audio_s=60_000.0, segments=345),
        ),
        confidence=(1, 0, 0, 0, 0, 10, 20, 200, 2_000, 10_114),
        failures=(MISSING,),
        audio_by_run_s=(("20260101", 867_600.0),),
        balance=SOUND,
    ),
)


def with_balance(balance: Balance, *, finished: bool = True) -> str:
    statistics = replace(FULL.statistics, balance=balance)
    return render(replace(FULL, statistics=statistics, finished=finished)).splitlines()[-1].strip()


def test_a_full_report_says_everything_within_the_width() -> None:
    text = render(FULL)
    for told in (
        "s3://transcripts/podcasts (finished)",
        "openai/whisper-small, revision abc123",
        "100: 95 with text, 3 without speech, 2 failed",
        "100.0 h in 140 parts; 50.0 h of it speech (50%)",
        "120.5 hours of audio per hour in the last run, which took 2.0 h",
        "10.0 s per part from hand-over to result, on NVIDIA H200",
        "7 broken packets skipped in 1 recording",
        "en  83.3 h  83%  90 recordings  12,000 segments",
        "de  16.7 h  17%   5 recordings     345 segments",
        "2 recordings: no_audio_stream, in extract",
        "s3://b/2.mp3: the store said no",
        "What to do: these hold no sound: leave them out",
        "all 100 listed files ended exactly once",
    ):
        assert told in text
    assert max(map(len, text.splitlines())) <= 100


def test_an_empty_output_is_said_plainly() -> None:
    statistics = Statistics(
        ok=0,
        no_speech=0,
        failed=0,
        parts=0,
        audio_s=0.0,
        speech_s=None,
        segments=0,
        extract_s=0.0,
        transcribe_s=0.0,
        skipped_packets=0,
        recordings_with_skipped_packets=0,
        devices=(),
        languages=(),
        confidence=(0,) * 10,
        failures=(),
        audio_by_run_s=(),
        balance=Balance(
            listed=None,
            ended=0,
            unfinished=0,
            waiting=0,
            unlisted=0,
            superseded_parts=0,
            problems=(),
        ),
    )
    report = Report(
        uri="out",
        finished=False,
        run_id=None,
        model=None,
        model_revision=None,
        wall_s=None,
        speed=None,
        statistics=statistics,
    )
    assert render(report).splitlines() == [
        "out (not finished: still running, or stopped)",
        "  recordings  none yet",
        "  audio       0.0 s in 0 parts; speech was not looked for",
        "  segments    0",
        "  balance     0 ended exactly once; the listing is not known",
    ]


def test_the_balance_of_a_stopped_run_says_how_to_go_on() -> None:
    stopped = Balance(
        listed=10, ended=6, unfinished=1, waiting=3, unlisted=0, superseded_parts=0, problems=()
    )
    told = with_balance(stopped, finished=False)
    assert "6 of 10 listed files ended" in told
    assert "run the same command again" in told


def test_a_finished_run_with_files_left_is_off() -> None:
    balance = Balance(
        listed=10, ended=8, unfinished=1, waiting=1, unlisted=0, superseded_parts=0, problems=()
    )
    assert with_balance(balance).startswith("- the run finished, yet 1 recordings are only begun")
    broken = replace(SOUND, problems=("committed more than once: 1 part",))
    assert with_balance(broken) == "- committed more than once: 1 part"


def test_the_data_of_a_report_is_json() -> None:
    data = json.loads(json.dumps(as_data(FULL)))
    assert data["statistics"]["devices"] == {"NVIDIA H200": 140}
    assert data["statistics"]["failures"][0]["examples"][1]["uri"] == "s3://b/2.mp3"
    assert data["statistics"]["balance"]["listed"] == 100


def test_durations_take_the_unit_that_suits_them() -> None:
    assert [duration(seconds) for seconds in (1.25, 90, 5_400, 36_000_000)] == [
        "1.2 s",
        "1.5 min",
        "1.5 h",
        "10,000.0 h",
    ]


def test_labels_are_told_in_place_of_text_the_most_frequent_first() -> None:
    shares = tuple(
        LabelShare(label=f"class {number}", recordings=1, audio_s=3600.0 / (number + 1))
        for number in range(22)
    )
    found = replace(FULL, statistics=replace(FULL.statistics, labels=shares, languages=()))
    text = render(found)
    assert "95 with labels" in text
    assert "  labels      12,345" in text
    assert "class 0 " in text
    assert "class 20" not in text
    assert "and 2 other labels, 5.6 min" in text
    assert "segments" not in text
    assert as_data(found)["statistics"]["labels"][0]["label"] == "class 0"
