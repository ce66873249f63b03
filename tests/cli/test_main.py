"""Commands say one readable thing, exit with the documented code, and start fast."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from corpus_asr.config.load import load_config
from corpus_asr.config.run import DEFAULT_OPTIONS, Retry, RunConfig, RunOptions
from corpus_asr.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    FetchError,
)
from corpus_asr.pipelines.driver import RunSummary
from corpus_asr.storage.run_state.run_files import Speed
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.tables import commit, part, results

DEMO = str(Path(__file__).parents[2] / "configs" / "demo.yaml")
REPOSITORY = Path(__file__).parents[2]
# So that no line says which model is the default one.
NAMED = ("--set", "model.checkpoint=lab/model")

SUMMARY = RunSummary(
    output_uri="out", run_id="1", listed=100, ok=95, no_speech=4, failed=1, segments=1234,
    audio_s=7200.0, planned=50, processed=50, speed=Speed(3600.0, 60.0),
)  # fmt: skip


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


@dataclass
class FakePipeline:
    """Stands in for corpus_asr.pipelines.driver: remembers its call, then does as told."""

    outcome: RunSummary | BaseException = SUMMARY
    calls: list[tuple[RunConfig, bool]] = field(default_factory=list)
    options: list[RunOptions] = field(default_factory=list)
    progress: list[object] = field(default_factory=list)

    def run(
        self,
        config: RunConfig,
        *,
        local: bool,
        progress: object,
        options: RunOptions,
        after_finish: object,
    ) -> RunSummary:
        self.calls.append((config, local))
        self.options.append(options)
        self.progress.append(progress)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline()
    monkeypatch.setattr("corpus_asr.pipelines.driver.run", fake.run)
    return fake


def test_run_passes_on_what_is_chosen(pipeline: FakePipeline) -> None:
    for arguments, expected in (
        ((), DEFAULT_OPTIONS),
        (("--retry-failed",), RunOptions(retry=Retry.failed)),
        (("--retry-all-failed",), RunOptions(retry=Retry.all)),
        (("--retry-failed", "--retry-all-failed"), RunOptions(retry=Retry.all)),
        (("--steal-lock",), RunOptions(steal_lock=True)),
    ):
        assert call("run", DEMO, *arguments).exit_code == 0
        assert pipeline.options[-1] == expected


def test_run_hands_the_job_over_and_tells_what_came_of_it(pipeline: FakePipeline) -> None:
    result = call("run", DEMO, "--set", "decoding.language=de", "--local")
    assert result.exit_code == 0
    ((config, local),) = pipeline.calls
    assert (config.decoding.language, local) == ("de", True)
    assert "100 recordings, 99 done (4 without speech), 1 failed" in result.stdout
    assert "RTFx 60.0" in result.stdout
    assert "this run: 50 recordings, 1.0 h of audio" in result.stdout
    pipeline.outcome = replace(SUMMARY, processed_failed=1)
    above = call("run", DEMO, "--set", "output.max_failed_fraction=0.01")
    assert above.exit_code == 1
    assert "1 of 50 recordings of this run failed (2.0%), more than output.max" in above.stderr


def test_a_run_with_nothing_to_do_succeeds_whatever_failed_before(pipeline: FakePipeline) -> None:
    pipeline.outcome = replace(SUMMARY, failed=90, planned=0, processed=0)
    idle = call("run", DEMO, "--set", "output.max_failed_fraction=0")
    assert (idle.exit_code, idle.stderr.count("failed")) == (0, 0)
    assert "90 failed" in idle.stdout
    assert idle.stdout.endswith("this run: nothing to do\n")


def test_an_error_is_one_message_and_its_exit_code(
    pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    debug = "CORPUS_ASR_DEBUG"
    for error, code, messages in (
        (ConfigError("reading the job: wrong"), 2, "reading the job: wrong"),
        (CheckpointError("opening the model: wrong"), 2, "opening the model"),
        (EngineError("transcribing: the device is lost"), 3, "the device is lost"),
        (FetchError("listing s3://a:secret@b/: wrong"), 3, "@b/: wrong"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("what?"), 3, f"unexpected RuntimeError: what?; {debug}=1 shows where"),
    ):
        pipeline.outcome = error
        result = call("run", DEMO, *NAMED)
        assert result.exit_code == code
        (line,) = result.stderr.splitlines()
        assert line.startswith("corpus-asr: ")
        assert messages in line
        assert "secret" not in line
        assert result.stdout == ""
    monkeypatch.setenv(debug, "1")
    assert "Traceback (most recent call last)" in call("run", DEMO).stderr


def test_a_wrong_configuration_is_told_before_anything_starts(pipeline: FakePipeline) -> None:
    for command in ("run", "plan"):
        result = call(command, DEMO, "--set", "decoding.languge=de")
        assert result.exit_code == 2
        assert "did you mean decoding.language?" in result.stderr
    assert not pipeline.calls


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    """A source of two files, a checkpoint without weights, and the options that name them."""
    source, model = tmp_path / "source", tmp_path / "model"
    source.mkdir()
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "whisper"}', encoding="utf-8")
    for name in ("a.wav", "b.wav"):
        (source / name).write_bytes(b"x" * 1500)
    return [
        "--set", f"source.uri={source}",
        "--set", f"model.checkpoint={model}",
        "--set", f"output.uri={tmp_path / 'output'}",
    ]  # fmt: skip


def test_plan_prints_settings_that_could_be_saved_and_run(job: list[str], tmp_path: Path) -> None:
    result = call("plan", DEMO, *job, "--set", "decoding.language=no")
    assert result.exit_code == 0, result.stderr
    (tmp_path / "again.yaml").write_text(result.stdout, encoding="utf-8")
    again = load_config(tmp_path / "again.yaml")
    assert again == load_config(DEMO, [*job[1::2], "decoding.language=no"])
    assert "  task: transcribe  # default" in result.stdout.splitlines()
    # What matters comes first.
    assert [line[2:8].strip() for line in result.stdout.splitlines()[:6]] == [
        "listed", "skippe", "done", "to do", "audio", "takes",
    ]  # fmt: skip
    assert "  language: no" in result.stdout.splitlines()


def test_plan_counts_what_is_to_do_and_leaves_nothing_behind(
    job: list[str], tmp_path: Path
) -> None:
    result = call("plan", DEMO, *job)
    assert "# listed     2 files, 3.0 kB" in result.stdout
    assert "# to do      2 files, 3.0 kB, in 1 task batch" in result.stdout
    assert "# audio      unknown: no header of 2 recordings has a duration; 2 not_audio" in (
        result.stdout
    )
    assert "# takes      unknown: the length of the audio is; --check" in result.stdout
    assert not [path for path in (tmp_path / "output").rglob("*") if path.is_file()]


def test_plan_estimates_hours_and_duration(job: list[str], tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "tests" / "data" / "spoken" / "readers.opus", tmp_path / "source")
    options = [*job, "--speed", "180"]
    result = call("plan", DEMO, *options)
    assert result.exit_code == 0, result.stderr
    [audio] = [line for line in result.stdout.splitlines() if line.startswith("# audio")]
    assert re.fullmatch(r"# audio      [\d.]+ min, by 1 header of 3 recordings; 2 not_audio", audio)
    [takes] = re.findall(r"^#.*? at RTFx .*$", result.stdout, re.MULTILINE)
    assert re.fullmatch(r"# takes      0:00:\d\d \(.*\) at RTFx 180\.0: as given", takes)
    # With several workers the speed is that of one.
    workers = ["--set", "transcribe.workers=4", "--set", "extract.workers=1"]
    data = json.loads(call("plan", DEMO, *options, *workers, "--json").stdout)
    assert data["plan"]["num_remaining"] == data["headers"]["asked"] == 3
    assert data["headers"]["failures"] == {"not_audio": 2}
    assert data["audio_s"]["value"] == data["audio_s"]["high"] > 60
    [given] = data["outlooks"]
    assert given["machine"] == {"name": "as given", "rtfx": 180.0, "count": 4}
    assert given["duration_s"]["value"] == pytest.approx(data["audio_s"]["value"] / 720, rel=1e-3)
    assert data["settings"]["pipeline"] == "transcribe_corpus"
    for speed in ("0", "-1", "inf", "nan", "l4=180"):
        assert call("plan", DEMO, *job, "--speed", speed).exit_code == 2, speed


def test_plan_knows_no_speed_that_was_not_measured(job: list[str], tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "tests" / "data" / "spoken" / "readers.opus", tmp_path / "source")
    result = call("plan", DEMO, *job)
    assert result.exit_code == 0, result.stderr
    assert (
        "# takes      unknown: no run here measured the speed; --check measures it here, "
        "--speed RTFX states it"
    ) in result.stdout
    assert json.loads(call("plan", DEMO, *job, "--json").stdout)["outlooks"] == []


def test_no_output_is_refused(tmp_path: Path) -> None:
    for command in ("report", "status", "show"):
        refused = call(command, str(tmp_path / "nothing"))
        assert refused.exit_code == 2, command
        assert "expected the output folder of a run" in refused.stderr, command


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--gone --uri /a.wav",
        "--uri /a.wav --speaker Bo",
        "--uri /a.wav --older-than 1d",
        "--speaker Bo --more-than-half",
        "--uri /a.wav --with-corrections",
        "--gone --allow-again",
    ],
)
def test_one_kind_is_removed_with_its_options_alone(words: str) -> None:
    refused = call("remove", "nothing", *words.split(), "--yes")
    assert refused.exit_code == 2
    assert "Invalid value" in refused.stderr


def test_stderr_holds_nothing_but_objects_when_asked(
    pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.outcome = EngineError("reading https://me:secret@host/a: gone")
    result = call("--log-format", "json", "run", DEMO)
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    messages = json.loads(line)
    assert (messages["event"], messages["level"]) == ("failed", "error")
    assert messages["message"] == "reading https://host/a: gone"
    assert pipeline.progress == [None]
    monkeypatch.setenv("CORPUS_ASR_LOG_FORMAT", "text")
    assert call("run", DEMO, *NAMED).stderr.startswith("corpus-asr: reading")
    assert pipeline.progress[1] is not None
    assert call("--log-level", "loud", "run", DEMO).exit_code == 2


BUSY = """
import atexit, sys, threading, time
from types import ModuleType
from corpus_asr.__main__ import main

def run(*_, **__):
    threading.Thread(target=time.sleep, args=(60,)).start()
    atexit.register(print, "tidied up")
    raise RAISED

import corpus_asr.pipelines.driver
corpus_asr.pipelines.driver.run = run
main()
"""


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("KeyboardInterrupt", 130, "run the same command again to continue"),
        ("ValueError('broken')", 3, "unexpected ValueError: broken"),
    ],
)
def test_a_run_that_is_stopped_ends_although_a_thread_is_busy(raised: str, code: int, said: str):
    done = python("-c", BUSY.replace("RAISED", raised), "run", DEMO)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stdout == "tidied up\n"


INTERRUPTED_WHILE_READING = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from corpus_asr.__main__ import main

main()
"""


def test_an_interrupt_while_packages_are_read_is_no_traceback() -> None:
    done = python("-c", INTERRUPTED_WHILE_READING)
    assert done.stderr == "corpus-asr: interrupted\n"
    assert done.stdout == ""
    assert done.returncode == 130


@pytest.fixture
def output(tmp_path: Path) -> str:
    """A run that is not done: two recordings that speak, one in two parts, one silent, one bad."""
    store = OutputStore(str(tmp_path / "output"))
    german = {"segment": 0, "text": " Guten Tag.", "start_s": 0.5, "end_s": 1.25,
              "tokens": [1], "language": "de", "task": "transcribe", "confidence": 0.9}  # fmt: skip
    commit(
        store,
        results(
            part("talk.mp3", 1, texts=["the end"], last=False),
            part("talk.mp3", 0, texts=["one\n\x1b[2Jtwo"], last=False),
            part("gruss.wav", 0, texts=None, segments=[german]),
            part("still.wav", 0, texts=None, status="no_speech"),
            part("bad.mp3", 0, texts=None, status="failed", error_kind="not_audio"),
        ),
    )
    return store.uri


def test_transcripts_stand_below_their_names_by_time(output: str) -> None:
    assert call("show", output).stdout.splitlines() == [
        "/gruss.wav:",
        "[00:00.500 --> 00:01.250] Guten Tag.",
        "/still.wav:",
        "/talk.mp3:",
        "[00:00.000 --> 00:01.000] one [2Jtwo",
        "[00:00.000 --> 00:01.000] the end",
    ]


def test_a_signal_ends_every_command_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before: `plan`, `convert`, `export` and others left their temporary folders."""
    cleaned: list[str] = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            cleaned.append("up")

    monkeypatch.setattr(cli, "app", work)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 128 + signal.SIGTERM
    assert cleaned == ["up"]


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(cli.app)
    return dict(group.commands)


@pytest.mark.parametrize("name", commands())
def test_the_help_of_every_command_has_a_panel_and_an_example_that_can_be_typed(name: str) -> None:
    command = commands()[name]
    assert command.rich_help_panel
    program_name, called, *arguments = shlex.split(command.epilog.removeprefix("Example: "))
    assert (program_name, called) == ("corpus-asr", name)
    command.make_context(name, arguments, token_normalize_func=lambda name: name)
    help_text = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "120"}).stdout
    assert "<bool>" not in help_text
    assert not re.search(r"{[A-Z_]+}", re.sub(r"Usage:.*", "", help_text)), "a placeholder"
