"""The bar of `transcribe`: what it says, and that whatever is printed stays above it."""

import re
import sys
import threading
import time
from pathlib import Path

import pytest

from corpus_asr.cli import display
from corpus_asr.cli.display import Display, Meter, lengths_of
from tests.support.corpora import CLIPS
from tests.support.terminal import on_terminal


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def started(*names: str) -> tuple[Meter, Clock]:
    clock = Clock()
    meter = Meter(names, clock=clock)
    meter.begin()
    return meter, clock


def test_percentage_and_time_left_follow_seconds_of_audio() -> None:
    meter, clock = started("short.mp3", "long.mp3")
    assert (meter.total_s, meter.eta_s) == (None, None)
    meter.update("short.mp3", length_s=60.0)
    meter.update("long.mp3", length_s=3540.0)
    clock.now_s += 30.0
    meter.update("long.mp3", done_s=300.0)
    assert (meter.total_s, meter.done_s, meter.rtfx, meter.eta_s) == (3600.0, 300.0, 10.0, 330.0)
    assert meter.subject == "0 of 2 files"
    assert meter.figures == "8%, 5:00 of 1:00:00, RTFx 10.0, ETA 5:30"
    meter.finish("short.mp3", 61.0)  # its header said too little
    assert meter.total_s == 3601.0
    meter.update("long.mp3", done_s=3600.0)  # further than its header
    assert meter.eta_s == 0.0
    assert meter.subject == "1 of 2 files"


def test_a_failure_takes_what_was_left_of_its_recording_away() -> None:
    meter, clock = started("bad.mp3", "good.mp3")
    for name in ("bad.mp3", "good.mp3"):
        meter.update(name, length_s=1000.0)
    meter.update("bad.mp3", done_s=100.0)
    meter.finish("bad.mp3", None)
    meter.update("bad.mp3", done_s=900.0)  # a late word of it
    clock.now_s += 10.0
    assert (meter.total_s, meter.done_s, meter.num_finished) == (1100.0, 100.0, 1)


def test_an_unknown_length_gives_seconds_and_no_guess() -> None:
    meter, clock = started("stream")
    clock.now_s += 4.0
    meter.update("stream", done_s=20.0)
    assert meter.figures == "0:20, RTFx 5.0"
    meter.finish("stream", 40.0)
    assert meter.summary(1) == "1 file: 40.0 s of audio in 4.0 s (RTFx 10.0)"
    assert started("a" * 50 + "end.mp3")[0].subject == "..." + "a" * 22 + "end.mp3"


def test_lengths_are_read_from_headers_while_something_else_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "_LINE_EVERY_S", 0.01)
    broken = tmp_path / "broken.mp3"
    broken.write_bytes(b"no sound")
    uris = {"a": str(CLIPS / "longer.mp3"), "b": str(broken), "c": str(CLIPS / "english.wav")}
    meter, _ = started(*uris)
    with lengths_of(meter, uris):
        for _ in range(600):
            if meter.total_s is not None:
                break
            time.sleep(0.05)
    assert meter.total_s == pytest.approx(44.8 + 9.5, abs=0.2)
    nothing, _ = started("a")
    with lengths_of(nothing, {"a": str(tmp_path / "missing.mp3")}):
        pass  # ended before anything was read
    assert nothing.total_s is None


def test_text_and_messages_stay_above_the_bar() -> None:
    meter, _ = started("talk.mp3")
    meter.update("talk.mp3", length_s=100.0)
    with on_terminal() as opened:
        stderr = sys.stderr
        with Display(meter) as shown:
            meter.update("talk.mp3", done_s=42.0)
            with shown.aside():
                sys.stdout.write(f"{'letters-' * 15}\n")  # longer than the terminal is wide
                sys.stdout.flush()
            sys.stderr.write("a message\n")
            lines = opened.seen(lambda lines: len(lines) == 4 and "42%" in lines[-1])
        assert sys.stderr is stderr
        opened.seen(lambda after: after == lines[:-1])  # the bar leaves nothing behind
    assert lines[0] + lines[1] == "letters-" * 15
    assert lines[2] == "a message"
    assert re.fullmatch(r"talk\.mp3 ━*[╸╺]?━* 42%, 0:42 of 1:40, RTFx [\d.]+", lines[3])
    assert len(lines[3]) == 80
    assert opened.output.index("\x1b[?25l") < opened.output.index("\x1b[?25h")  # the cursor


def test_text_from_two_threads_is_never_on_the_line_of_the_bar() -> None:
    meter, _ = started("talk.mp3")
    with on_terminal() as opened, Display(meter) as shown:

        def write(letter: str) -> None:
            for number in range(50):
                with shown.aside():
                    sys.stdout.write(f"{letter}{number}\n")
                    sys.stdout.flush()

        threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = sorted(f"{letter}{number}" for letter in "ab" for number in range(50))
        opened.seen(lambda lines: sorted(lines[:-1]) == expected)


def test_without_a_terminal_there_are_plain_lines_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "_LINE_EVERY_S", 0.01)
    meter, _ = started("talk.mp3")
    written = threading.Event()
    write = sys.stderr.write

    def noted(text: str) -> int:
        written.set()
        return write(text)

    monkeypatch.setattr(sys.stderr, "write", noted)
    with Display(meter):
        assert written.wait(10.0)
    out, err = capsys.readouterr()
    assert out == ""
    assert set(err.splitlines()) == {"talk.mp3: 0:00, RTFx 0.0"}
    with Display(meter, shown=False):
        pass
    monkeypatch.setenv("CORPUS_ASR_LOG_FORMAT", "json")
    with Display(meter):
        pass
    assert capsys.readouterr() == ("", "")
