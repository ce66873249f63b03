"""What people see: lines as wide as the terminal, redrawn in place, in color there alone."""

import datetime
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.text import Text

from corpus_asr.activity import Activity
from corpus_asr.cli.terminal import show_text
from corpus_asr.report.status import load_status, render
from corpus_asr.report.text import line_width
from corpus_asr.storage.run_state.lock import LOCK_NAME, Holder, ProcessName
from corpus_asr.storage.run_state.run_files import STOPPED, write_snapshot
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.tables import snapshot
from tests.support.terminal import REPOSITORY, run_on_terminal

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


@pytest.mark.parametrize(("columns", "options"), [(80, ["--watch"]), (40, [])])
def test_a_run_is_drawn_in_place_and_no_word_is_broken(
    running: OutputStore, columns: int, options: list[str]
) -> None:
    meanwhile = ended_after(running, 1) if options else lambda _: None
    screen = run_on_terminal(
        ["status", running.uri, *options], columns=columns, meanwhile=meanwhile
    )
    text = "\n".join(screen.text)
    assert screen.colors > 3
    bar = [line for line in screen.text if set(line) & set("━╺╸")]
    assert [len(line) for line in bar] == [40]
    assert text.count("this run") == text.count("bottleneck") == 1, "it scrolled"
    if options:
        assert screen.moves_up > 3
        assert "80 planned: 78 done, 2 failed, 0 remaining" in text
        assert "(not running: stopped before the end; " in " ".join(screen.text)
    plain = subprocess.run(
        [sys.executable, "-m", "corpus_asr", "status", running.uri],
        capture_output=True, text=True, check=True, cwd=REPOSITORY,
    ).stdout  # fmt: skip
    assert "\x1b" not in plain
    assert "━" not in plain
    lines = plain.splitlines()
    assert 80 < max(map(len, lines)) <= 100
    # All words are there: none was broken at the edge but the address. Times differ.
    seen, said = (
        [word for word in " ".join(text).split() if not set(word) & set("━╺╸/") and word[0] > "9"]
        for text in (screen.text, lines)
    )
    if not options:
        assert seen == said
    assert max(len(line) for line in screen.text) <= columns


def test_columns_are_followed_on_a_terminal_alone(
    running: OutputStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert line_width() == 100
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for columns, width in (("60", 60), ("10", 30), ("500", 120)):
        monkeypatch.setenv("COLUMNS", columns)
        assert line_width() == width
    monkeypatch.setenv("COLUMNS", "60")
    show_text(render(load_status(running)), share=0.5)
    lines = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    assert "5.00 of 10.00 h" in "".join(lines)
    assert max(len(line) for line in lines if "/" not in line) <= 60
