"""The speech pipeline against transformers' own, on tiny checkpoints and the same input."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from corpus_asr.models.whisper import (
    GenerationConfig,
    pipeline,
)
from tests.support.checkpoints import tiny_whisper
from tests.support.tokenizers import tiny_tokenizer

TASK = "automatic-speech-recognition"
RATE = 16_000
THEIRS: Any = transformers.pipeline
# A language that is named is not listened for, which halves the work.
SHORT: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 1, "language": "en"}


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that comes and goes, so that windows differ."""
    times = np.arange(int(seconds * RATE)) / RATE
    noise = 0.1 * np.random.default_rng(seed).standard_normal(times.size)
    return (noise * np.sin(1.3 * times)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_tokenizer(folder / "tokenizer")
    made = tiny_whisper(
        folder / "model",
        tokenizer=folder / "tokenizer",
        d_model=16,
        layers=1,
        heads=2,
        seed=13,  # says something with and without timestamps
        spread=0.3,
    )
    path = made / "generation_config.json"
    heads = {"alignment_heads": [[0, 0], [0, 1]]}
    path.write_text(json.dumps(json.loads(path.read_text()) | heads))
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    return pipeline(TASK, str(folder))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return THEIRS(TASK, str(folder), device=-1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("seconds", "options"),
    [
        (10, {}),
        (10, {"return_timestamps": True}),
        (30, {"return_timestamps": "word"}),
        (10, {"return_timestamps": True, "return_language": True, "language": None}),
        (10, {"generate_kwargs": {"task": "translate"}, "language": "german"}),
        (10, {"no_repeat_ngram_size": 2}),
        (45, {"return_timestamps": True}),
        (45, {"chunk_length_s": 20, "return_timestamps": True, "batch_size": 2}),
        (45, {"chunk_length_s": 25, "stride_length_s": (4, 2)}),
        (45, {"chunk_length_s": 25, "stride_length_s": 1, "return_language": True}),
        # Chunks without padding: past the sound's end, the reference's times of words depend on
        # how many frames are missing.
        (50, {"chunk_length_s": 30, "return_timestamps": "word"}),
    ],
)
def test_texts_times_and_languages_are_transformers(
    ours: Any, theirs: Any, seconds: float, options: dict
) -> None:
    speech = sound(seconds)
    found = ours(speech, **{**SHORT, **copy.deepcopy(options)})
    assert found == theirs(speech, **{**SHORT, **copy.deepcopy(options)})
    assert found["text"]
    asks_chunks = "return_timestamps" in options or "return_language" in options
    assert ("chunks" in found) == asks_chunks


@pytest.mark.slow
def test_beams_are_the_default_as_there(ours: Any, theirs: Any) -> None:
    options = {"max_new_tokens": 4, "language": "en"}
    found = ours(sound(5), **options)
    assert found == theirs(sound(5), **options)
    assert found == ours(sound(5), num_beams=5, **options)
    assert found != ours(sound(5), num_beams=1, **options)


def test_settings_of_a_call_replace_those_of_the_pipeline(folder: Path) -> None:
    made = pipeline(model=str(folder), return_timestamps=True, **SHORT)
    reference = THEIRS(TASK, str(folder), device=-1, return_timestamps=True, **SHORT)
    speech = sound(6)
    assert made(speech, max_new_tokens=3) == reference(speech, max_new_tokens=3)
    config: Any = GenerationConfig.from_pretrained(folder)
    config.num_beams, config.max_new_tokens = 2, 5
    their_config = copy.deepcopy(reference.model.generation_config)
    their_config.num_beams, their_config.max_new_tokens = 2, 5
    expected = reference(speech, generation_config=their_config)
    assert made(speech, generation_config=config) == expected
    assert config.pad_token_id == their_config.pad_token_id


# What it may be called with.


@pytest.fixture(scope="module")
def text(ours: Any) -> str:
    return str(ours(sound(3), **SHORT)["text"])


def test_a_dictionary_is_not_changed_and_its_other_entries_come_back(
    ours: Any, theirs: Any
) -> None:
    given = {"raw": sound(20), "sampling_rate": RATE, "speaker": "ada", "stride": (800, 1600)}
    for options in ({}, {"chunk_length_s": 15}):
        options = {**SHORT, "return_timestamps": True, **options}
        found = ours(given, **options)
        assert set(given) == {"raw", "sampling_rate", "speaker", "stride"}
        assert found == theirs(dict(given), **options)
        assert found["speaker"][0] == "ada"


@pytest.mark.long
def test_many_recordings_are_each_what_they_are_alone(ours: Any) -> None:
    many = [sound(3), sound(31, 1), sound(2, 2)]
    options = {**SHORT, "return_timestamps": True}
    alone = [ours(one, **options) for one in many]
    assert ours(many, batch_size=3, **options) == alone
    assert ours(many, batch_size=2, num_workers=2, **options) == alone
    assert ours([], **options) == []


@pytest.mark.slow
def test_data_sets_are_streams(ours: Any) -> None:
    class Numbered(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return {"raw": sound(1, index), "sampling_rate": RATE}  # never an IndexError

    class Flowing(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter([sound(1), sound(1, 1)])

    expected = ours([sound(1), sound(1, 1)], **SHORT)
    for data in (Numbered(), Flowing(), iter([sound(1), sound(1, 1)])):
        found = ours(data, **SHORT)
        assert not isinstance(found, list)
        assert list(found) == expected


def test_a_draft_changes_no_text_and_a_checkpoint_may_ask_for_timestamps(folder: Path) -> None:
    made = pipeline(model=str(folder), **SHORT)
    speech = sound(4)
    plain, timed = made(speech), made(speech, return_timestamps=True)
    assert pipeline(model=str(folder), assistant_model=str(folder), **SHORT)(speech) == plain
    made.model.generation_config.return_timestamps = True
    assert made(speech)["chunks"] == timed["chunks"]


# Loading.


def test_a_pipeline_is_saved_as_a_checkpoint(ours: Any, text: str, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path / "saved")
    assert pipeline(model=str(tmp_path / "saved"))(sound(3), **SHORT) == {"text": text}
