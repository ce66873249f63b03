"""The advice of each kind of failure, held to what the command then does."""

import re
from collections import Counter
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
from corpus_asr.storage.run_state.plan import make_plan
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.runs import REVISION, complete_run, planned_files
from tests.support.tables import part

# What the advice says to set, in another way than it was when the recording failed.
CHANGED = {
    "extract.channels": "mix",
    "extract.item_timeout_s": "999",
    "extract.max_duration_h": "99",
    "extract.max_file_gb": "99",
    "extract.track": "auto",
    "extract.workers": "1",
    "model.compute_type": "float32",
    "source.allow_hosts": "[example.com]",
}
# These are named in advice, and are none of the change that is tried here.
OTHERS = {"source.exclude", "source.uri", "decoding.language", "model.recognizer"}


class Job:
    """A folder whose recordings failed, two of each kind.

    One was stored as retryable, one as final: by this program or by an earlier one.
    """

    def __init__(self, folder: Path) -> None:
        self.source = folder / "in"
        self.source.mkdir()
        for kind in FAILURE_KINDS:
            self.write(kind, b"sound")
        self.yaml = folder / "job.yaml"
        self.yaml.write_text(
            f"source: {{uri: '{self.source}'}}\nmodel: {{checkpoint: some/model}}\n"
            f"extract: {{channels: each, track: 2}}\noutput: {{uri: '{folder / 'out'}'}}\n"
        )
        self.config = load_config(str(self.yaml))
        self.store = OutputStore(self.config.output.uri)
        complete_run(self.store, self.config, lambda file: [
            part("", 0, texts=None, status="failed", error_kind=kind_of(file["uri"]),
                 error_stage="extract", error_message="scripted",
                 retryable=file["uri"].endswith("retryable.wav"),
                 **{name: file[name] for name in ("uri", "size_bytes", "etag")})
        ], files_per_commit=1000)  # fmt: skip

    def write(self, kind: str, sound: bytes) -> None:
        for stored in ("retryable", "final"):
            (self.source / f"{kind}.{stored}.wav").write_bytes(sound)

    def planned(
        self, config: RunConfig | None = None, options: RunOptions = DEFAULT_OPTIONS
    ) -> Counter[str]:
        """Return how many recordings of each kind a run would do."""
        plan = make_plan(
            config or self.config, self.store, model_revision=REVISION, options=options
        )
        return Counter(kind_of(file["uri"]) for file in planned_files(self.store, plan))


def kind_of(uri: str) -> str:
    return Path(uri).name.partition(".")[0]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("failed"))


def arguments(kind: FailureKind) -> tuple[str, ...]:
    """Return what the advice says to give the command."""
    flags = [word for flag in ("--retry-failed", "--retry-all-failed", "--redo all")
             if re.search(rf"{flag}\b(?!-)", kind.advice) for word in flag.split()]  # fmt: skip
    named = set(re.findall(r"\b(?:extract|model|source|decoding)\.\w+", kind.advice)) - OTHERS
    sets = [argument for name in sorted(named) for argument in ("--set", f"{name}={CHANGED[name]}")]
    return *sets, *flags


@pytest.mark.parametrize("given", sorted({arguments(kind) for kind in FAILURE_KINDS.values()}),
                         ids=lambda given: " ".join(given) or "nothing")  # fmt: skip
def test_the_command_of_an_advice_plans_the_recording(
    job: Job, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]
) -> None:
    kinds = [kind for kind in FAILURE_KINDS.values() if arguments(kind) == given]
    calls: list[tuple[RunConfig, RunOptions]] = []

    def called(config: RunConfig, *, options: RunOptions, **_: Any) -> None:
        calls.append((config, options))
        raise ConfigError("this is as far as it goes")

    monkeypatch.setattr(driver, "run", called)
    CliRunner().invoke(app, ["run", str(job.yaml), *given])
    [(config, options)] = calls
    files = [kind.name for kind in kinds if kind.origin is Origin.file]
    if files:
        assert not any(argument.startswith(("--retry", "--redo")) for argument in given)
        before = job.planned(config, options)
        assert all(before[name] == 0 for name in files), "final until the file changes"
        for name in files:
            job.write(name, b"another sound")
    elif "--redo" in given:
        with pytest.raises(ConfigError, match="--redo all"):
            job.planned(config)
    planned = job.planned(config, options)
    assert {kind.name: planned[kind.name] for kind in kinds} == {kind.name: 2 for kind in kinds}


def test_who_can_change_a_failure_says_which_runs_try_again(tmp_path: Path) -> None:
    job = Job(tmp_path)
    planned = {retry: job.planned(options=RunOptions(retry=retry)) for retry in Retry}
    expected = {
        Origin.environment: set(Retry),
        Origin.program: set(Retry) - {Retry.environment},
        Origin.settings: {Retry.failed, Retry.all},
        Origin.file: {Retry.all},
    }
    counted = Counter(kind_of(uri) for uri in count_tries(job.store)["uri"].to_pylist())
    for name, kind in FAILURE_KINDS.items():
        tries = {retry: kinds[name] for retry, kinds in planned.items() if kinds[name]}
        assert tries == dict.fromkeys(expected[kind.origin], 2), name
        assert ("each run retries these" in kind.advice) == (kind.origin is Origin.environment)
        assert counted[name] == (2 if kind.origin is Origin.program else 0), "nights count these"
