"""Parakeet's feature extractor and processor against transformers', and texts from audio."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from corpus_asr.errors import CheckpointError
from corpus_asr.models import parakeet
from corpus_asr.models.parakeet import ParakeetFeatureExtractor, ParakeetProcessor
from tests.support.audio import read_clip
from tests.support.parakeet import KINDS, Pair, parakeet_checkpoint
from tests.support.tokenizers import made_words

CLIPS = Path(__file__).parents[2] / "data" / "clips"
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-3}
RATE = 16_000


def clips() -> list[np.ndarray]:
    samples = read_clip(CLIPS / "english.wav")
    return [samples[:20_000], samples[5_000:5_999], samples[:333], samples[10_000:42_000]]


def alike(ours: Any, theirs: Any) -> None:
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        found = ours[name]
        assert found.dtype == expected.dtype, name
        torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), **CLOSE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "max_length", "max_length": 40_000},
        {"padding": "longest", "pad_to_multiple_of": 1_000},
    ],
)
def test_features_are_those_of_transformers(options: dict[str, Any]) -> None:
    both: list[dict[str, Any]] = [{}, {"feature_size": 128, "preemphasis": None}]
    for settings in both:
        ours = ParakeetFeatureExtractor(**settings)
        theirs = transformers.ParakeetFeatureExtractor(**settings)
        given = {"sampling_rate": RATE, **options}
        alike(ours(clips(), return_tensors="pt", **given), theirs(clips(), **given))
    if not options:
        given = {"sampling_rate": RATE, "return_tensors": "np"}
        alike(ours(clips()[0], **given), theirs(clips()[0], **given))


def test_truncated_recordings_are_normalized_over_what_is_left() -> None:
    given: dict[str, Any] = {"sampling_rate": RATE, "return_tensors": "pt"}
    found = ParakeetFeatureExtractor()(clips(), truncation=True, max_length=3_000, **given)
    # transformers counts the frames that it cut off, too.
    cut = [clip[:3_000] for clip in clips()]
    alike(found, transformers.ParakeetFeatureExtractor()(cut, **given))


def test_an_extractor_of_what_cannot_be_is_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"sampling_rate": 8_000}, "found sampling_rate 8000, expected 16000"),
        ({"win_length": 600}, "found a window of 600 samples in transforms of 512"),
        ({"feature_size": 0}, "found 0 bins"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            ParakeetFeatureExtractor(**settings)
    with pytest.raises(ValueError, match="found sampling_rate 8000"):
        ParakeetFeatureExtractor()(clips(), sampling_rate=8_000)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return parakeet_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


def test_audio_and_texts_become_what_they_become_in_transformers(pair: Pair) -> None:
    ours = ParakeetProcessor.from_pretrained(pair.folder)
    theirs = transformers.ParakeetProcessor.from_pretrained(pair.folder)
    texts = [" ".join(made_words(n)) for n in (3, 1, 5, 2)]
    assert ours.decoder_type == theirs.decoder_type
    assert ours.blank_token_id == theirs.blank_token_id
    assert ours.model_input_names == theirs.model_input_names
    alike(ours(clips(), sampling_rate=RATE), theirs(clips(), sampling_rate=RATE))
    given = {"text": texts, "sampling_rate": RATE}
    alike(ours(clips(), **given), theirs(clips(), **given))
    given = {"text": texts[0], "sampling_rate": RATE}
    alike(ours(audio=clips()[0], **given), theirs(audio=clips()[0], **given))


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_texts_and_times_of_audio_are_those_of_transformers(pair: Pair) -> None:
    ours = ParakeetProcessor.from_pretrained(pair.folder)
    theirs = transformers.ParakeetProcessor.from_pretrained(pair.folder)
    if pair.kind == "CTC":
        inputs = ours([clips()[0], clips()[3]], sampling_rate=RATE)
        found, expected = pair.ours.generate(**inputs), pair.theirs.generate(**inputs)
        assert torch.equal(found, expected)
        for options in ({}, {"skip_special_tokens": True}):
            texts = ours.batch_decode(found, **options)
            assert texts == theirs.batch_decode(expected, **options)
            assert ours.decode(found, **options) == texts
        return
    # One alone: rows that ended go on with other tokens in transformers.
    inputs = ours(clips()[3], sampling_rate=RATE)
    found, expected = pair.ours.generate(**inputs), pair.theirs.generate(**inputs)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.durations, expected.durations)
    texts, times = ours.decode(found.sequences, durations=found.durations, skip_special_tokens=True)
    assert texts[0]
    assert (texts, times) == theirs.decode(
        expected.sequences, durations=expected.durations, skip_special_tokens=True
    )


def test_punctuation_ends_with_the_token_before_it(pair: Pair) -> None:
    ours = ParakeetProcessor.from_pretrained(pair.folder)
    theirs = transformers.ParakeetProcessor.from_pretrained(pair.folder)
    ids = torch.tensor([ours.tokenizer.encode("bader, ü fi . x")])
    durations = torch.arange(ids.numel())[None] % 4
    given = {"durations": durations, "group_tokens": False}
    assert ours.decode(ids, **given) == theirs.decode(ids, **given)


def test_what_is_saved_is_loaded_by_both(pair: Pair, tmp_path: Path) -> None:
    ours = ParakeetProcessor.from_pretrained(pair.folder)
    ours.save_pretrained(tmp_path)
    for again in (ParakeetProcessor, transformers.ParakeetProcessor):
        loaded = again.from_pretrained(tmp_path)
        assert (loaded.decoder_type, loaded.blank_token) == (pair.kind.lower(), "<blank>")
        assert loaded.feature_extractor.preemphasis == 0.97
        assert loaded.tokenizer.get_vocab() == ours.tokenizer.get_vocab()
    path = tmp_path / "processor_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"decoder_type": 3}))
    with pytest.raises(CheckpointError, match="decoder_type is 3, expected a text"):
        ParakeetProcessor.from_pretrained(tmp_path)
    path.write_text(json.dumps(content | {"decoder_type": "beam"}))
    with pytest.raises(ValueError, match="decoder_type 'beam', expected one of ctc, rnnt, tdt"):
        ParakeetProcessor.from_pretrained(tmp_path)


def test_every_class_of_the_package_has_the_name_it_has_in_transformers() -> None:
    for name in parakeet.__all__:
        assert getattr(parakeet, name).__name__ == name == getattr(transformers, name).__name__
