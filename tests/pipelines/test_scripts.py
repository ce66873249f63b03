"""The scripts of `pipelines/` run as they are shown, and no foreign folder of that name matters."""

import functools
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from corpus_asr.pipelines import nightly
from corpus_asr.pipelines.driver import CorpusRun
from corpus_asr.storage.run_state.lock import Lock
from corpus_asr.storage.run_state.run_files import PAGE_NAME
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.logs import logging_put_back
from tests.support.nightly import QUICK

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "pipelines"
CLIPS = REPOSITORY / "tests" / "data" / "clips"


def python(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_every_script_is_short_and_says_how_it_is_called():
    scripts = [*SCRIPTS.glob("*.py")]
    assert SCRIPTS / "transcribe_corpus.py" in scripts
    for script in scripts:
        source = script.read_text()
        assert len(source.splitlines()) <= 40, script.name
        assert f"python pipelines/{script.name} " in source, script.name


class Script:
    """Runs a script of `pipelines/` in this process, which has everything loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, name: str, *arguments: str | Path) -> tuple[int, str, str]:
        """Return its exit code and what it wrote to stdout and stderr."""
        path = str(SCRIPTS / f"{name}.py")
        self._monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        code = 0
        with logging_put_back():
            try:
                runpy.run_path(path, run_name="__main__")
            except SystemExit as end:
                code = int(end.code or 0)
        return (code, *self._capfd.readouterr())


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Script:
    return Script(monkeypatch, capfd)


def test_every_script_refuses_a_configuration_that_is_not_there(
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    for name in sorted(path.stem for path in SCRIPTS.glob("*.py")):
        arguments = ["nowhere.yaml", "nowhere.jsonl"][: 2 if "evaluate" in name else 1]
        code, _, err = script(name, *arguments)
        assert code == 2, name
        # Logged, and shown where logging is set up.
        assert "nowhere" in err + caplog.text, name
        caplog.clear()


def job_of(tmp_path: Path) -> Path:
    """Write a job over one clip and one file that is none."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    shutil.copy(CLIPS / "english.wav", corpus / "clip.wav")
    (corpus / "broken.wav").write_bytes(b"no sound")
    config = tmp_path / "job.yaml"
    config.write_text(f"source: {{uri: {corpus}}}\noutput: {{uri: {tmp_path / 'output'}}}\n")
    return config


def test_a_corpus_is_transcribed_and_evaluated_by_the_scripts(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(CorpusRun, "open", functools.partial(CorpusRun.open, local=True))
    config = job_of(tmp_path)
    code, out, err = script("transcribe_corpus", config, "--steal-lock")
    assert code == 1, err
    assert "2 recordings, 1 done" in out
    assert "1 of 2 recordings of this run failed" in err
    assert (tmp_path / "output" / PAGE_NAME).exists()
    references = tmp_path / "references.jsonl"
    references.write_text(f'{{"uri": "{tmp_path}/corpus/clip.wav", "text": "words"}}\n')
    code, out, err = script("evaluate_model", tmp_path / "output", references)
    assert code == 0, err
    assert "word" in out


def test_a_run_that_lives_is_left_alone(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nightly, "run", functools.partial(nightly.run, timing=QUICK))
    config = job_of(tmp_path)
    with Lock(OutputStore(str(tmp_path / "output")), "other", say=lambda _: None, timing=QUICK):
        for name, expected in (("transcribe_corpus", 2), ("archive_nightly", 75)):
            code, _, err = script(name, config)
            assert code == expected, err
            assert "found it in use by run other" in err


def test_a_foreign_folder_called_pipelines_is_not_taken_for_ours(tmp_path: Path):
    foreign = tmp_path / "pipelines"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("raise SystemExit('the foreign one')\n")
    (tmp_path / "job.yaml").write_text(
        "pipeline: transcribe_corpus\nsource: {uri: nowhere}\noutput: {uri: output}\n"
    )
    done = python("-m", "corpus_asr", "run", "job.yaml", "--local", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "ModuleNotFoundError" not in done.stderr
    assert "nowhere" in done.stderr
