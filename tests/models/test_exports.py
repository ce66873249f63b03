"""The lazy names of the two families' packages."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from corpus_asr.models import speech2text, whisper

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("package", [whisper, speech2text])
def test_every_name_is_a_class_of_that_name(package: ModuleType) -> None:
    for name in package.__all__:
        assert getattr(package, name).__name__ == name.removesuffix("Fast")
    with pytest.raises(AttributeError, match="has no attribute 'Typo'"):
        _ = package.Typo
    assert whisper.WhisperTokenizerFast is whisper.WhisperTokenizer


@pytest.mark.parametrize("family", ["Whisper", "Speech2Text"])
def test_the_torch_free_half_loads_no_torch_and_the_package_loads_nothing(family: str) -> None:
    code = f"""
import sys
import corpus_asr.models.{family.lower()} as package
assert not {{"sentencepiece", "tokenizers", "numpy"}} & set(sys.modules), "eager import"
assert set(package.__all__) <= set(dir(package))
package.{family}Config, package.{family}Processor, package.{family}Tokenizer
import numpy as np
extractor = package.{family}FeatureExtractor()
extractor(np.zeros(16_000), sampling_rate=16_000, return_tensors="np")
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr
