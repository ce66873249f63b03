"""The lazy names of `corpus_asr.models.speech2text`."""

import subprocess
import sys
from pathlib import Path

import pytest

import corpus_asr.models.speech2text as package

REPOSITORY = Path(__file__).resolve().parents[3]


def test_every_name_is_a_class_of_that_name() -> None:
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="has no attribute 'Speech2TextTypo'"):
        _ = package.Speech2TextTypo


def test_the_torch_free_half_loads_no_torch_and_the_package_loads_nothing() -> None:
    code = """
import sys
import corpus_asr.models.speech2text as package
assert not {"sentencepiece", "numpy"} & set(sys.modules), "eager import"
package.Speech2TextConfig, package.Speech2TextProcessor
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr
