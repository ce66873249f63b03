import io
from dataclasses import replace

from corpus_asr.activity import Activity, FailureCount
from corpus_asr.runtime.commit import tally_of
from corpus_asr.runtime.progress import Progress, Tally
from tests.support.tables import results_of

FAILED = {
    "uri": "https://host/a.mp3?sig=secret", "status": "failed", "duration_s": None,
    "size_bytes": None, "error_stage": "extract", "error_kind": "not_audio", "retryable": False,
}  # fmt: skip
FAILURE = FailureCount(
    stage="extract", kind="not_audio", count=1, retryable=False, examples=("https://host/a.mp3",)
)


def test_a_recording_counts_when_its_last_part_is_committed():
    tally = tally_of(
        results_of(
            {"part": 0, "last_part": False, "attempts": 2},
            {"part": 1, "last_part": True},
            FAILED,
        )
    )
    assert tally == Tally(
        parts=3, files=2, failed=1, audio_s=20.0, size_bytes=1000, retried=1, failures=(FAILURE,)
    )
    twice = replace(FAILURE, count=2)
    assert tally + tally == Tally(
        parts=6, files=4, failed=2, audio_s=40.0, size_bytes=2000, retried=2, failures=(twice,)
    )


def test_the_line_says_done_failed_left_speed_and_time_left():
    now_s = iter([0.0, 0.0, 3600.0])
    progress = Progress(total_files=4, total_bytes=4000, stream=None, clock=lambda: next(now_s))
    with progress:
        progress.add(Tally(parts=2, files=1, failed=1, audio_s=7200.0, size_bytes=1000))
        assert progress.line() == (
            "1/4 files, 1 failed, 3 left; 2.00 h of audio, 2.0 h per hour; "
            "elapsed 1:00:00, left 3:00:00"
        )


def test_without_a_terminal_the_first_and_the_last_line_are_printed():
    stream = io.StringIO()
    with Progress(total_files=1, total_bytes=0, stream=stream) as progress:
        progress.set(Tally(parts=1, files=1))
    first, last = stream.getvalue().splitlines()
    assert first.startswith("0/1 files")
    assert last.startswith("1/1 files")


def test_on_a_terminal_the_line_is_redrawn():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress(total_files=2, total_bytes=0, stream=stream) as progress:
        progress.add(Tally(parts=1, files=2))
    assert "2/2 files" in stream.getvalue()


def test_no_stream_means_silence():
    with Progress(total_files=1, total_bytes=0, stream=None) as progress:
        progress.add(Tally(parts=1))
    assert progress.tally.parts == 1


def test_what_is_watched_is_read_when_asked():
    now_s = iter([0.0, 0.0, 10.0, 10.0])
    progress = Progress(total_files=4, total_bytes=0, stream=None, clock=lambda: next(now_s))
    assert progress.activity == Activity()
    at_first = progress.committed_at
    assert at_first is None
    progress.watch(lambda: Activity(steps=3))
    with progress:
        progress.set(Tally(parts=1, files=1))
        before = progress.committed_at
        progress.set(Tally(parts=1, files=1))
        assert before is not None
        assert progress.committed_at == before  # nothing new
        assert progress.activity.steps == 3
        assert progress.elapsed_s == 10.0
        assert progress.time_left_s() == 30.0
