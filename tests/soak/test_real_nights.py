"""Nights in a row over real speech, each a command of its own, as cron would start it."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.store import DEFAULT_POLICY
from tests.support.killing import PAUSE, killable_job
from tests.support.stores import SECRET, Webhook, WebServer, web_server, webhook
from tests.support.tables import rows_of, stored_segments, with_section

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = [str(Path(sys.executable).with_name("corpus-asr")), "nightly"]
VARIABLE = "CORPUS_ASR_TEST_WEBHOOK"


class RealNights:
    """A folder of clips, and one more clip on a web server."""

    def __init__(self, folder: Path, data: Path, web: WebServer, hook: Webhook) -> None:
        self.data, self.web, self.hook = data, web, hook
        self.source, self.output, self._job = folder / "in", folder / "out", folder / "job.yaml"
        self.source.mkdir()
        clips = json.loads(f"[{','.join((data / 'manifest.jsonl').read_text().splitlines())}]")
        self.clips = sorted(clips, key=lambda clip: clip["duration_s"])
        self._config = {
            "source": {"uri": [str(self.source), web.url("late.wav")], "allow_hosts": "127.0.0.1"},
            "model": {"checkpoint": "whisper-tiny.en", "compute_type": "float32"},
            "decoding": {"language": "en", "temperature": 0, "logprob_threshold": None,
                         "no_speech_threshold": None},
            "output": {"uri": str(self.output)},
            "nightly": {"webhook_env": VARIABLE},
        }  # fmt: skip

    def put(self, name: str, number: int) -> None:
        """Put a clip, by the order of lengths, into the folder."""
        shutil.copyfile(self.data / self.clips[number]["path"], self.source / name)

    def night(self, *options: str, code: int = 0) -> Counter[str]:
        """Let a night pass; returns what it had to do, and what became of that."""
        self._job.write_text(json.dumps(self._config))
        # Cron's environment: almost nothing.
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/root", VARIABLE: self.hook.url}
        command = [*COMMAND, str(self._job), "--local", "--json", *options]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == code, done.stderr
        night = json.loads(done.stdout)
        assert self.hook.posted[-1]["night"] == night
        counts = {name: night[name] for name in ("new", "changed", "retried", "remaining")}
        counts |= {name: night["findings"][name] for name in ("done", "failed")}
        kinds = {one["kind"]: one["recordings"] for one in night["findings"]["failures"]}
        return +Counter(counts | kinds)

    def said(self, name: str) -> str:
        rows = rows_of(stored_segments(OutputStore(str(self.output))))
        return "".join(row["text"] for row in rows if row["uri"].endswith(name))


@pytest.fixture
def nights(tmp_path: Path, speech: Path) -> Iterator[RealNights]:
    with web_server() as web, webhook() as hook:
        yield RealNights(tmp_path, speech / "english_short", web, hook)


def test_files_come_change_fail_and_recover(nights: RealNights) -> None:
    for number in range(3):
        nights.put(f"{number}.audio", number)
    shutil.copyfile(nights.data.parent / "awkward" / "bad_html.mp3", nights.source / "bad.mp3")
    late = nights.clips[3]
    nights.web.files["late.wav"] = (nights.data / late["path"]).read_bytes()
    down = ["503"] * DEFAULT_POLICY.attempts
    nights.web.faults += down
    budget = ("--set", "output.max_failed_fraction=0.2")
    first = nights.night(*budget, code=1)
    assert first == {"new": 5, "done": 3, "failed": 2, "not_audio": 1, "fetch": 1}
    assert "more than output.max_failed_fraction allows (20.0%)" in nights.hook.posted[-1]["text"]
    before = nights.said("0.audio")
    assert before
    assert nights.said("late.wav") == ""

    nights.web.faults += down
    nights.put("3.audio", 4)
    nights.put("0.audio", 5)
    second = nights.night()
    assert second == {
        "new": 1, "changed": 1, "retried": 1, "done": 2, "failed": 1, "fetch": 1,
    }  # fmt: skip
    assert nights.said("0.audio") not in ("", before)

    assert nights.night() == {"retried": 1, "done": 1}
    assert nights.said("late.wav")
    assert nights.night() == {}
    assert len(nights.hook.posted) == 4
    kept = "".join(
        path.read_text(errors="replace") for path in nights.output.rglob("*") if path.is_file()
    )
    assert SECRET not in kept


@pytest.mark.parametrize("ray", [False, pytest.param(True, marks=pytest.mark.ray)])
def test_a_night_whose_time_is_over_commits_what_it_began(tmp_path: Path, ray: bool) -> None:
    files = 60
    # All of it would take minutes beyond the night's time, whatever starting takes of that.
    job = killable_job(tmp_path, files=files, ray=ray, environment={PAUSE: "8"})
    job.command = "nightly"
    job.config = with_section(job.config, "nightly", stop_after_h=(120 if ray else 30) / 3600)
    code, said = job.finish("--json")
    assert code == 0, said
    first = night_in(job.config.output.uri, 1)
    found = first["findings"]
    assert first["state"] == "time_limit", said
    assert 0 < found["done"] + found["failed"] < files
    assert found["done"] + found["failed"] + first["remaining"] == files
    job.environment[PAUSE] = "0"
    job.config = with_section(job.config, "nightly", stop_after_h=None)
    code, said = job.finish("--json")
    assert code == 0, said
    second = night_in(job.config.output.uri, 2)
    assert second["state"] == "done"
    # Half-done recordings are gone on with; failures of the first night are for good.
    assert second["new"] + second["continued"] == first["remaining"] == second["planned"]


def test_a_night_that_is_told_to_end_says_so(tmp_path: Path) -> None:
    job = killable_job(tmp_path, files=24, environment={PAUSE: "0.2"})
    job.command = "nightly"
    with job.started() as process:
        job.wait_for_commits(process, 2)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    assert "stopped; the next run continues" in out
    night = night_in(job.config.output.uri, 1)
    assert night["state"] == "stopped"
    assert "stopped by SIGTERM" in night["error"]
    assert night["remaining"] > 0


def night_in(output: str, number: int) -> dict[str, Any]:
    """Return the summary of the night of this number."""
    paths = sorted(Path(output, "nights").glob("*.json"), key=lambda path: (len(path.name), path))
    found: dict[str, Any] = json.loads(paths[number - 1].read_text())
    return found
