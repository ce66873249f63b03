"""`corpus-asr view`: where it listens, what it says, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.storage.stores.uri import recording_id
from tests.support.audio import tone, wav_bytes
from tests.support.pages import asked, fetch
from tests.support.runs import of_file, passage, run_of, spoken


@pytest.mark.long
def test_it_serves_until_it_is_interrupted_and_leaves_nothing(tmp_path: Path) -> None:
    sound = tmp_path / "a.aiff.wav"
    sound.write_bytes(wav_bytes(tone(2.0), rate_hz=16_000))
    run_of(tmp_path / "output", spoken(str(sound), passage(0, "hello"), **of_file(sound)))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "corpus_asr", "view", str(tmp_path / "output"), "--no-browser",
         "--port", port, "--audio-folder", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # As another user, who has to name the folder of the recordings.
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1",
                          "XDG_STATE_HOME": str(tmp_path / "state")},
    )  # fmt: skip
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith(f"http://127.0.0.1:{port}/")
    # A decoder runs by now: it has to end, too.
    audio = asked(url, "audio", id=recording_id(str(sound)), decode=1)
    assert fetch(audio).status == 200
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=60)
    assert (process.returncode, complained) == (0, "")
    assert said.endswith("stopped\n")
    assert list(temporary.iterdir()) == []


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    run_of(tmp_path / "output")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for folder, arguments, words in (
            ("output", ["--audio", "nonsense"], "expected BEFORE=NOW"),
            ("output", ["--host", "192.0.2.1"], "expected a free port"),
            ("output", ["--port", port], f"port {port}"),
            ("output", ["--public-url", "example.org"], "expected http:// or https://"),
            ("", [], "expected the output folder of a run"),
        ):
            command = ["view", str(tmp_path / folder), "--no-browser", *arguments]
            done = CliRunner().invoke(cli.app, command)
            assert done.exit_code == 2
            assert words in done.output
