"""Jobs with hooks: added later, killed, and followed by what becomes of recordings."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import corpus_asr
from corpus_asr.cli.failures import EXIT_SOME_FAILED
from corpus_asr.cli.jobs import print_summary, summary_words
from corpus_asr.config.run import RunConfig, RunOptions
from corpus_asr.errors import ConfigError
from corpus_asr.pipelines.driver import RunSummary, run
from corpus_asr.pipelines.nightly import run as run_night
from corpus_asr.runtime.hooks import HookCounts
from corpus_asr.storage.run_state.forget import find_recordings, forget
from corpus_asr.storage.run_state.hook_rows import hooks_of
from corpus_asr.storage.run_state.table_names import RUN_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.audio import noise, write_wavs
from tests.support.tables import run_config, with_section

pytestmark = pytest.mark.long

HERE = "tests.support.hooks"
REDACT = {"name": "redact", "function": f"{HERE}:redact",
          "columns": {"redacted": "string", "digits": "int64"}}  # fmt: skip


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    write_wavs(tmp_path / "in", **{f"{seconds}": noise(seconds) for seconds in (2, 3, 4)})
    return tmp_path / "in"


def job(recordings: Path, *hooks: dict[str, Any], **sections: Any) -> RunConfig:
    config = run_config(
        recordings,
        recordings.parent / "out",
        extract={"vad_filter": False},
        hooks=hooks,
        **sections,
    )
    return with_section(
        config, "model", recognizer="tests.support.recognizers:Untimed", checkpoint="w"
    )


def do(config: RunConfig, **options: Any) -> RunSummary:
    return run(config, local=True, progress=None, options=RunOptions(**options))


def redacted(config: RunConfig) -> dict[str, str]:
    rows = corpus_asr.read_hook(config.output.uri, "redact").to_pylist()
    return {Path(row["uri"]).name: row["redacted"].strip() for row in rows}


def test_a_hook_that_is_added_later_is_given_all_that_is_there(recordings: Path):
    do(job(recordings))
    config = job(recordings, REDACT)
    summary = do(config)
    assert summary.processed == 0
    assert summary.hooks == {"redact": HookCounts(recordings=3)}
    assert redacted(config) == {"2.wav": "# s", "3.wav": "# s", "4.wav": "# s"}
    store = OutputStore(config.output.uri)
    assert store.read_json(RUN_NAME)["hooks"]["redact"] == {"recordings": 3, "failed": 0, "left": 0}
    assert summary_words(summary).endswith("this run: nothing to do\nhook redact: 3 recordings")
    assert do(config).hooks == {"redact": HookCounts()}
    do(job(recordings))
    assert hooks_of(store) == ["redact"]  # stays without its hook


def test_rows_stay_with_a_moved_recording_and_go_with_a_forgotten_one(recordings: Path):
    config = job(recordings, REDACT)
    do(config)
    (recordings / "2.wav").rename(recordings / "two.wav")
    assert do(config).moved == 1
    # By ID: a row says where its recording was transcribed.
    assert sorted(redacted(config)) == ["2.wav", "3.wav", "4.wav"]
    store = OutputStore(config.output.uri)
    forget(store, find_recordings(store, ["*/two.wav"]).recordings)
    assert sorted(redacted(config)) == ["3.wav", "4.wav"]
    files = [path for path in Path(config.output.uri).rglob("*") if path.is_file()]
    names = (b"/2.wav", b"two.wav")
    assert not any(name in path.read_bytes() for path in files for name in names)


def test_a_run_that_is_killed_in_a_hook_continues_with_it(recordings: Path, tmp_path: Path):
    notes = tmp_path / "notes"
    notes.mkdir()
    hook = {"name": "killed", "function": f"{HERE}:killed", "columns": {"length": "int64"},
            "options": {"folder": str(notes), "calls": 1}, "batch_segments": 1}  # fmt: skip
    config = job(recordings, hook)
    file = tmp_path / "job.json"
    file.write_text(config.model_dump_json())
    script = (
        "import sys; from corpus_asr.config.run import RunConfig; "
        "from corpus_asr.pipelines.driver import run; from pathlib import Path; "
        "run(RunConfig.model_validate_json(Path(sys.argv[1]).read_text()), local=True)"
    )
    command = [sys.executable, "-c", script, str(file)]
    assert subprocess.run(command, check=False).returncode == -9
    do(config, steal_lock=True)
    rows = corpus_asr.read_hook(config.output.uri, "killed").to_pylist()
    assert sorted((Path(row["uri"]).name, row["length"]) for row in rows) == [
        ("2.wav", 4), ("3.wav", 4), ("4.wav", 4)
    ]  # fmt: skip


def test_a_hook_that_cannot_be_imported_ends_the_run_before_it_begins(recordings: Path):
    config = job(recordings, REDACT | {"function": f"{HERE}:absent"})
    with pytest.raises(
        ConfigError, match=r"importing tests.support.hooks:absent for the hook redact"
    ):
        do(config)
    assert not Path(config.output.uri).exists()


def test_a_hook_that_fails_counts_in_the_limits(
    recordings: Path, capsys: pytest.CaptureFixture[str]
):
    config = job(recordings, REDACT | {"columns": {"nothing": "string"}, "attempts": 1})
    for _ in range(2):  # also where nothing else is left to do
        summary = do(config)
        assert summary_words(summary).splitlines()[-1] == (
            "hook redact: 0 recordings, 3 failed: see the log, and error_message"
        )
        with pytest.raises(SystemExit) as ended:
            print_summary(config, summary)
        assert ended.value.code == EXIT_SOME_FAILED
        words = "more failed in hooks/redact than output.max_failed_fraction allows (1.0%)"
        assert words in capsys.readouterr().err
    night = run_night(config, local=True, progress=None)
    assert night.over_limit == (
        "3 of 3 recordings failed in the hook redact (100.0%), more than "
        "output.max_failed_fraction allows (1.0%)"
    )
    print_summary(with_section(config, "output", max_failed_fraction=1.0), do(config))
