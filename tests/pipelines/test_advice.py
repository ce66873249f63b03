"""The advice of each kind of failure, held to what the command then does."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from corpus_asr.cli.main import app
from corpus_asr.config.load import load_config
from corpus_asr.config.run import DEFAULT_OPTIONS, Retry, RunConfig, RunOptions
from corpus_asr.errors import ConfigError
from corpus_asr.failure_kinds import FAILURE_KINDS, FailureKind, Origin
from corpus_asr.pipelines import driver
from corpus_asr.pipelines.nightly import count_tries
from corpus_asr.storage.run_state.finish import finish
from corpus_asr.storage.run_state.plan import Plan, make_plan, read_listing
from corpus_asr.storage.run_state.run_files import begin_run, fingerprint
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.tables import commit, part, results

REVISION = "weights"
# What the advice says to set, in another way than it was when the recording failed.
CHANGED = {
    "extract.channels": "mix",
    "extract.item_timeout_s": "999",
    "extract.max_duration_h": "99",
    "extract.max_file_gb": "99",
    "extract.workers": "1",
    "model.compute_type": "float32",
    "source.allow_hosts": "[example.com]",
}
# These are named in advice, and are none of the change that is tried here.
OTHERS = {"source.exclude", "source.uri", "decoding.language"}
every = pytest.mark.parametrize("kind", FAILURE_KINDS.values(), ids=FAILURE_KINDS)


class Job:
    """A folder with one recording that failed, in a run of this program or an earlier one."""

    def __init__(self, folder: Path, kind: FailureKind, *, stored: bool) -> None:
        self.recording = folder / "in" / "a.wav"
        self.recording.parent.mkdir()
        self.recording.write_bytes(b"sound")
        self.yaml = folder / "job.yaml"
        self.yaml.write_text(
            f"source: {{uri: '{self.recording.parent}'}}\nmodel: {{checkpoint: some/model}}\n"
            f"extract: {{channels: each}}\noutput: {{uri: '{folder / 'out'}'}}\n"
        )
        self.config = load_config(str(self.yaml))
        self.store = OutputStore(self.config.output.uri)
        plan = self.plan()
        run = begin_run(self.store, self.config, fingerprint(self.config, REVISION))
        [file] = [row for batch in read_listing(self.store, plan) for row in batch.to_pylist()]
        version = {name: file[name] for name in ("uri", "size_bytes", "etag")}
        row = part("", 0, texts=None, status="failed", error_kind=kind.name, error_stage="extract",
                   error_message="scripted", retryable=stored, **version)  # fmt: skip
        commit(self.store, results(row), run_id=run.run_id)
        listing = read_listing(self.store, plan)
        finish(self.store, run, self.config, model_revision=REVISION, listing=listing,
               num_listed=1, plan_name=plan.name)  # fmt: skip

    def plan(self, config: RunConfig | None = None, options: RunOptions = DEFAULT_OPTIONS) -> Plan:
        return make_plan(
            config or self.config, self.store, model_revision=REVISION, options=options
        )


@pytest.fixture(params=[True, False], ids=["stored as retryable", "stored as final"])
def stored(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@every
def test_the_command_of_an_advice_plans_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: FailureKind, stored: bool
) -> None:
    job = Job(tmp_path, kind, stored=stored)
    flags = [flag for flag in ("--retry-failed", "--retry-all-failed", "--new-run")
             if re.search(rf"{flag}\b(?!-)", kind.advice)]  # fmt: skip
    named = set(re.findall(r"\b(?:extract|model|source|decoding)\.\w+", kind.advice)) - OTHERS
    sets = [argument for name in sorted(named) for argument in ("--set", f"{name}={CHANGED[name]}")]
    calls: list[tuple[RunConfig, RunOptions]] = []

    def called(config: RunConfig, *, options: RunOptions, **_: Any) -> None:
        calls.append((config, options))
        raise ConfigError("this is as far as it goes")

    monkeypatch.setattr(driver, "run", called)
    CliRunner().invoke(app, ["run", str(job.yaml), *sets, *flags])
    [(config, options)] = calls
    if kind.origin is Origin.file:
        assert not flags
        assert job.plan(config, options).num_remaining == 0, "final until the file changes"
        job.recording.write_bytes(b"another sound")
    elif "--new-run" in flags:
        with pytest.raises(ConfigError, match="--new-run"):
            job.plan(config)
    assert job.plan(config, options).num_remaining == 1


@every
def test_who_can_change_a_failure_says_which_runs_try_again(
    tmp_path: Path, kind: FailureKind, stored: bool
) -> None:
    job = Job(tmp_path, kind, stored=stored)
    tries = {
        retry for retry in Retry if job.plan(options=RunOptions(retry=retry)).num_remaining == 1
    }
    expected = {
        Origin.environment: set(Retry),
        Origin.program: set(Retry) - {Retry.environment},
        Origin.settings: {Retry.failed, Retry.all},
        Origin.file: {Retry.all},
    }
    assert tries == expected[kind.origin]
    assert ("each run tries these again" in kind.advice) == (kind.origin is Origin.environment)
    assert len(count_tries(job.store)) == (kind.origin is Origin.program), "nights count these"
