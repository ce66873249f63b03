"""Processors of both families against transformers' own, and against their two halves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from corpus_asr.models import speech2text, whisper
from tests.support.tokenizers import (
    TARGETS,
    made_words,
    tiny_speech2text_tokenizer,
    tiny_tokenizer,
)

# Whisper's reference computes features in float32 where it finds torch; that of Speech2Text rounds
# spectra to complex64.
TOLERANCE = 1e-4
AUDIO = (0.1 * np.random.default_rng(0).standard_normal(9_000)).astype(np.float32)
RATE: dict[str, Any] = {"sampling_rate": 16_000}
TEXT = " ".join(made_words(4, seed=2))


@pytest.fixture(scope="module", params=["Whisper", "Speech2Text"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processor") / request.param
    if request.param == "Whisper":
        tiny_tokenizer(folder)
        transformers.WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)
    else:
        tiny_speech2text_tokenizer(folder, languages=TARGETS, lang_codes="mustc", tgt_lang="de")
        transformers.Speech2TextFeatureExtractor().save_pretrained(folder)
    return folder


def test_each_reads_what_the_other_saved_and_gives_the_same(folder: Path, tmp_path: Path) -> None:
    name = f"{folder.name}Processor"
    ours = getattr(whisper if folder.name == "Whisper" else speech2text, name)
    kinds = (ours, getattr(transformers, name))
    for kind in kinds:
        kind.from_pretrained(folder).save_pretrained(tmp_path / kind.__module__)
    asked = {"audio": AUDIO, "text": TEXT, "return_tensors": "np", **RATE}
    expected = kinds[1].from_pretrained(folder)(**asked)
    assert {"input_features", "labels"} <= set(expected)
    for saved in tmp_path.iterdir():
        for kind in (*kinds, transformers.AutoProcessor):
            found = kind.from_pretrained(saved)(**asked)
            assert set(found) == set(expected)
            for key, values in expected.items():
                np.testing.assert_allclose(found[key], values, atol=TOLERANCE)
