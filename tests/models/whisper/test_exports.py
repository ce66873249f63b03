"""The lazy names of `corpus_asr.models.whisper`."""

import subprocess
import sys
from pathlib import Path

import pytest

import corpus_asr.models.whisper as package

REPOSITORY = Path(__file__).resolve().parents[3]


def run(code: str) -> str:
    """Run `code` in a fresh interpreter and return what it prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_name_is_a_class_of_that_name():
    for name in package.__all__:
        assert getattr(package, name).__name__ == name.removesuffix("Fast")
    assert package.WhisperTokenizerFast is package.WhisperTokenizer


def test_names_are_listed_before_they_are_imported():
    code = "import corpus_asr.models.whisper as w; print(set(w.__all__) <= set(dir(w)))"
    assert run(code) == "True"


def test_the_torch_free_half_loads_no_torch_and_the_package_loads_nothing():
    code = """
import sys
import corpus_asr.models.whisper as package
assert "tokenizers" not in sys.modules, "eager import"
package.WhisperConfig, package.WhisperTokenizer
print("torch" in sys.modules)
"""
    assert run(code) == "False"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'WhisperTypo'"):
        _ = package.WhisperTypo
