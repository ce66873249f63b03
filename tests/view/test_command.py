"""`corpus-asr view`: where it listens, what it says, and how it ends."""

import base64
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.cli import results
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
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    password.chmod(0o600)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "corpus_asr", "view", str(tmp_path / "output"), "--no-browser",
         "--port", port, "--password-file", str(password), "--audio-folder", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # As another user, who has to name the folder of the recordings.
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1",
                          "XDG_STATE_HOME": str(tmp_path / "state")},
    )  # fmt: skip
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url == f"http://127.0.0.1:{port}/"
    assert b'type="password"' in fetch(url).body
    # A decoder runs by now: it has to end, too.
    basic = "Basic " + base64.b64encode(b":correct horse").decode()
    audio = asked(url, "audio", id=recording_id(str(sound)), decode=1)
    assert fetch(audio, Authorization=basic).status == 200
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=60)
    assert (process.returncode, complained) == (0, "")
    assert said.endswith("stopped\n")
    assert list(temporary.iterdir()) == []


def test_what_cannot_be_shown_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of(tmp_path / "output")
    readable, secret = tmp_path / "readable", tmp_path / "secret"
    for path, mode in ((readable, 0o644), (secret, 0o600)):
        path.write_text("correct horse")
        path.chmod(mode)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        port = str(number)
        monkeypatch.setattr(results, "USUAL_PORT", number)
        for folder, arguments, words in (
            ("output", ["--audio", "nonsense"], "expected BEFORE=NOW"),
            ("output", ["--host", "192.0.2.1"], "expected a free port of this machine"),
            ("output", ["--port", port], f"port {port}"),
            # Another port would be another address than the one that people have kept.
            ("output", ["--password-file", str(secret)], f"port {port}"),
            ("output", ["--password-file", str(readable)], "found mode 0644"),
            ("output", ["--public-url", "example.org"], "expected http:// or https://"),
            ("", [], "expected the output folder of a run"),
        ):
            command = ["view", str(tmp_path / folder), "--no-browser", *arguments]
            done = CliRunner().invoke(cli.app, command)
            assert done.exit_code == 2
            assert words in done.output
