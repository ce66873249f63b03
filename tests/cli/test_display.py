"""The bar of `transcribe`: what it says, and that whatever is printed stays above it."""

import datetime
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from corpus_asr.activity import Activity
from corpus_asr.cli.display import Meter, display_of
from corpus_asr.runtime import terminal
from corpus_asr.storage.run_state.lock import LOCK_NAME, Holder, ProcessName
from corpus_asr.storage.run_state.run_files import STOPPED, write_snapshot
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.tables import snapshot
from tests.support.terminal import REPOSITORY, on_terminal, run_on_terminal, seen_lines


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


BUSY = Activity(
    extract_alive_s=100.0, extract_s=10.0, parts_extracted=5, transcribe_alive_s=100.0, steps=9,
    step_s=90.0, slots=8, slot_steps=2, slot_room=10, commits=2, commit_s=1.0, load_s=3.0,
)  # fmt: skip


@pytest.fixture
def running(tmp_path: Path) -> OutputStore:
    """The output folder of a run of this process, in the middle."""
    store = OutputStore(str(tmp_path / "out"))
    now = datetime.datetime.now(datetime.UTC).isoformat()
    holder = Holder(
        token="t", run_id="run-1", process=ProcessName.mine(), started_at=now, heartbeat_at=now
    )
    store.write_bytes(LOCK_NAME, holder.encoded())
    write_snapshot(
        store,
        snapshot(
            activity=BUSY, audio_done_s=18_000.0, audio_expected_s=36_000.0,
            audio_expected_range_s=(30_000.0, 40_000.0), eta_range_s=(3000.0, 4200.0),
            extract="blocked, as the engines are behind", transcribe="busy, 4 parts ready",
        ),
    )  # fmt: skip
    return store


def ended_after(store: OutputStore, frames: int) -> Callable[[str], None]:
    """Return what ends the run once it was shown so often."""

    def look(printed: str) -> None:
        if printed.count("50%, 5.00 of 10.00 h") >= frames:
            write_snapshot(store, snapshot(state=STOPPED, files=80, activity=BUSY))
            store.remove(LOCK_NAME)

    return look


@pytest.mark.long
@pytest.mark.parametrize(("columns", "options"), [(80, ["--watch"]), (40, [])])
def test_a_run_is_drawn_in_place_and_no_word_is_broken(
    running: OutputStore, columns: int, options: list[str]
) -> None:
    meanwhile = ended_after(running, 1) if options else lambda _: None
    written = run_on_terminal(
        ["status", running.uri, *options], columns=columns, meanwhile=meanwhile
    )
    on_screen = seen_lines(written, columns=columns)
    text = "\n".join(on_screen)
    assert text.count("this run") == text.count("bottleneck") == 1, "it scrolled"
    if options:
        assert len(re.findall(r"\x1b\[\d*A", written)) > 3  # up
        assert "80 planned: 78 done, 2 failed, 0 remaining" in text
        assert "(not running: stopped before the end; " in " ".join(on_screen)
    plain = subprocess.run(
        [sys.executable, "-m", "corpus_asr", "status", running.uri],
        capture_output=True, text=True, check=True, cwd=REPOSITORY,
    ).stdout  # fmt: skip
    assert "\x1b" not in plain
    lines = plain.splitlines()
    assert 80 < max(map(len, lines)) <= 100
    # All words are there: none was broken at the edge but the address. Times differ.
    seen, said = (
        [word for word in " ".join(text).split() if "/" not in word and word[0] > "9"]
        for text in (on_screen, lines)
    )
    if not options:
        assert seen == said
    assert max(len(line) for line in on_screen) <= columns
