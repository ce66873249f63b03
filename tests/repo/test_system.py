"""The tests on a machine without libraries and programs that no wheel of pip brings along."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.sources import REPOSITORY
from tests.support.system import skip_without

_LOADS_THE_ORACLE = """
import tests.conftest
from transformers import WhisperForConditionalGeneration, pipeline
from tests.support.system import skip_without
print(tests.conftest.pytest_report_header())
skip_without("soundfile")
"""


@pytest.mark.long
def test_without_libsndfile_transformers_loads_and_what_needs_it_skips(tmp_path: Path) -> None:
    (tmp_path / "soundfile.py").write_text('raise OSError("sndfile library not found")')
    done = subprocess.run(
        [sys.executable, "-c", _LOADS_THE_ORACLE],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "not installed: libsndfile" in done.stdout, done.stderr
    assert "Skipped: needs soundfile, which is not installed here" in done.stderr


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without("python3", "numpy")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.skip.Exception, match="needs ffmpeg"):
        skip_without("numpy", "ffmpeg")
