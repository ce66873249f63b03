"""The bar of `transcribe`: what it says, and that whatever is printed stays above it."""

import re
import sys
import threading

import pytest

from corpus_asr.cli.display import Meter, display_of
from corpus_asr.runtime import terminal
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


def test_of_several_files_the_bar_shows_how_many_are_done() -> None:
    meter, _ = started("a.mp3", "b.mp3", "c.mp3", "d.mp3")
    meter.update("a.mp3", length_s=100.0)
    meter.finish("a.mp3", 100.0)
    with on_terminal() as opened, display_of(meter):
        [line] = opened.seen(lambda lines: "1 of 4 files" in "".join(lines))
    shown = re.fullmatch(r"1 of 4 files (━+)[╸╺]?(━*) 1:40, RTFx [\d.]+", line)
    assert shown is not None, line


def test_text_and_messages_stay_above_the_bar() -> None:
    meter, _ = started("talk.mp3")
    meter.update("talk.mp3", length_s=100.0)
    with on_terminal() as opened:
        stderr = sys.stderr
        with display_of(meter) as shown:
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
    with on_terminal() as opened, display_of(meter) as shown:

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
    monkeypatch.setattr(terminal, "LINE_EVERY_S", 0.01)
    meter, _ = started("talk.mp3")
    written = threading.Event()
    write = sys.stderr.write

    def noted(text: str) -> int:
        written.set()
        return write(text)

    monkeypatch.setattr(sys.stderr, "write", noted)
    with display_of(meter):
        assert written.wait(10.0)
    out, err = capsys.readouterr()
    assert out == ""
    assert set(err.splitlines()) == {"talk.mp3: 0:00, RTFx 0.0"}
    with display_of(meter, shown=False):
        pass
    monkeypatch.setenv("CORPUS_ASR_LOG_FORMAT", "json")
    with display_of(meter):
        pass
    assert capsys.readouterr() == ("", "")
