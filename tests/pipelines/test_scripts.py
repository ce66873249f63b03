"""The scripts of `pipelines/` run as they are shown, and no foreign folder of that name matters."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from corpus_asr.storage.run_state.lock import Lock
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.logs import logging_put_back

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "pipelines"
CLIPS = REPOSITORY / "tests" / "data" / "spoken"


def python(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_every_script_is_short_and_says_how_it_is_called():
    for script in SCRIPTS.glob("*.py"):
        source = script.read_text()
        assert len(source.splitlines()) <= 40, script.name
        assert f"python pipelines/{script.name} " in source, script.name


def test_every_script_refuses_a_configuration_that_is_not_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    for script in sorted(SCRIPTS.glob("*.py")):
        arguments = ["nowhere.yaml", "nowhere.jsonl"][: 2 if "evaluate" in script.name else 1]
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        with logging_put_back(), pytest.raises(SystemExit) as end:
            runpy.run_path(str(script), run_name="__main__")
        assert end.value.code == 2, script.name
        # Logged, and shown where logging is set up.
        assert "nowhere" in capsys.readouterr().err + caplog.text, script.name
        caplog.clear()


def job_of(tmp_path: Path) -> Path:
    """Write a job over one clip and one file that is none."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    clip = min(CLIPS.iterdir(), key=lambda path: path.stat().st_size)
    shutil.copy(clip, corpus / "clip.wav")
    (corpus / "broken.wav").write_bytes(b"no sound")
    config = tmp_path / "job.yaml"
    config.write_text(f"source: {{uri: {corpus}}}\noutput: {{uri: {tmp_path / 'output'}}}\n")
    return config


@pytest.mark.ray
def test_a_corpus_is_transcribed_and_evaluated_by_the_scripts(tmp_path: Path):
    config = job_of(tmp_path)
    done = python(SCRIPTS / "transcribe_corpus.py", config, "--steal-lock", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "2 recordings, 1 done" in done.stdout
    assert "1 of 2 recordings failed" in done.stderr
    references = tmp_path / "references.jsonl"
    references.write_text(f'{{"uri": "{tmp_path}/corpus/clip.wav", "text": "words"}}\n')
    evaluated = python(SCRIPTS / "evaluate_model.py", tmp_path / "output", references, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "word" in evaluated.stdout


def test_a_run_that_lives_is_left_alone(tmp_path: Path):
    config = job_of(tmp_path)
    with Lock(OutputStore(str(tmp_path / "output")), "other", say=lambda _: None):
        for script, code in (("transcribe_corpus", 2), ("archive_nightly", 75)):
            done = python(SCRIPTS / f"{script}.py", config, cwd=tmp_path)
            assert done.returncode == code, done.stderr
            assert "Traceback" not in done.stderr


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
