"""The speech pipeline against transformers' own, on tiny checkpoints and the same input."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from corpus_asr.errors import DecodeError, FetchError
from corpus_asr.models.speech2text import (
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
)
from corpus_asr.models.speech_pipeline import AutomaticSpeechRecognitionPipeline, samples_of
from corpus_asr.models.whisper import (
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    GenerationConfig,
    pipeline,
)
from tests.support.audio import noise
from tests.support.checkpoints import tiny_speech2text, tiny_whisper
from tests.support.tokenizers import tiny_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
TASK = "automatic-speech-recognition"
RATE = 16_000
SAMPLES = noise(0.5)[0]
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
        (10, {"generate_kwargs": {"task": "translate"}, "language": "german"}),
        (10, {"no_repeat_ngram_size": 2}),
        (45, {"return_timestamps": True}),
    ],
)
def test_texts_and_times_are_transformers(
    ours: Any, theirs: Any, seconds: float, options: dict
) -> None:
    speech = sound(seconds)
    found = ours(speech, **{**SHORT, **copy.deepcopy(options)})
    assert found == theirs(speech, **{**SHORT, **copy.deepcopy(options)})
    assert found["text"]
    assert ("chunks" in found) == ("return_timestamps" in options)


@pytest.mark.long
def test_their_pipeline_cuts_and_names_languages_with_a_model_of_here(
    folder: Path, ours: Any, theirs: Any
) -> None:
    speech = sound(45)
    options = {**SHORT, "language": None, "chunk_length_s": 25, "return_language": True}
    with pytest.raises(TypeError, match=r"found return_language.*transformers\.pipeline"):
        ours(speech, **options)
    processor = AutoProcessor.from_pretrained(folder)
    made = THEIRS(
        TASK,
        model=AutoModelForSpeechSeq2Seq.from_pretrained(folder),
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )
    assert made(speech, **options) == theirs(speech, **options)


@pytest.mark.long
def test_lengths_of_chunks_change_nothing_for_recordings_of_any_length(ours: Any) -> None:
    speech, options = sound(45), {**SHORT, "return_timestamps": True}
    chunked = ours(speech, chunk_length_s=30, stride_length_s=(4, 2), batch_size=4, **options)
    assert chunked == ours(speech, **options)


class Rows:
    """A data set without an iterator, such as `KeyDataset` of transformers."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def test_iterables_are_read_a_batch_at_a_time(ours: Any) -> None:
    recordings = [sound(1, seed) for seed in range(3)]
    expected = ours(recordings, **SHORT)
    read: list[int] = []

    def rows() -> Iterator[np.ndarray]:
        for number, recording in enumerate(recordings):
            read.append(number)
            yield recording

    texts = ours(rows(), batch_size=2, **SHORT)
    assert read == []
    assert next(texts) == expected[0]
    assert read == [0, 1]
    assert [*texts] == expected[1:]
    assert [*ours(Rows(recordings), batch_size=2, **SHORT)] == expected


class Letters:
    """A tokenizer that writes the number of each token."""

    pad_token_id = 1

    def decode(self, tokens: Any, *, skip_special_tokens: bool) -> str:
        return " ".join(str(int(token)) for token in tokens)


def test_speech2text_transcribes_what_its_model_generates(tmp_path: Path) -> None:
    model = Speech2TextForConditionalGeneration.from_pretrained(tiny_speech2text(tmp_path))
    extractor = Speech2TextFeatureExtractor()
    made = AutomaticSpeechRecognitionPipeline(model, extractor, Letters())
    found = made([sound(1), sound(2)], max_new_tokens=4, num_beams=1, batch_size=2)
    features = extractor(sound(1), sampling_rate=RATE, return_tensors="pt")
    tokens = model.generate(**features, max_new_tokens=4, num_beams=1)
    assert found[0] == {"text": Letters().decode(tokens[0], skip_special_tokens=True)}
    assert len(found) == 2
    with pytest.raises(ValueError, match="found return_timestamps, expected none"):
        made(sound(1), return_timestamps=True)


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
    made = pipeline(model=str(folder), return_timestamps=True, language="en")
    expected = made(speech, num_beams=2, max_new_tokens=5)
    assert made(speech, generation_config=config) == expected
    assert config.pad_token_id == reference.model.generation_config.pad_token_id


@pytest.mark.long
def test_many_recordings_are_each_what_they_are_alone(ours: Any) -> None:
    many = [sound(3), sound(31, 1), sound(2, 2)]
    options = {**SHORT, "return_timestamps": True}
    alone = [ours(one, **options) for one in many]
    assert ours(many, batch_size=3, **options) == alone
    assert ours(many, batch_size=2, num_workers=2, **options) == alone
    assert ours([], **options) == []


def test_a_draft_changes_no_text_and_a_checkpoint_may_ask_for_timestamps(folder: Path) -> None:
    made = pipeline(model=str(folder), **SHORT)
    speech = sound(4)
    plain, timed = made(speech), made(speech, return_timestamps=True)
    draft = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
    assert made(speech, assistant_model=draft) == plain
    with pytest.raises(TypeError, match="found a str as assistant_model, expected a model"):
        made(speech, assistant_model=str(folder))
    made.model.generation_config.return_timestamps = True
    assert made(speech)["chunks"] == timed["chunks"]


def test_a_pipeline_is_saved_as_a_checkpoint(ours: Any, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path / "saved")
    assert pipeline(model=str(tmp_path / "saved"))(sound(3), **SHORT) == ours(sound(3), **SHORT)


# What it may be called with.


def test_channels_are_mixed_and_sixteen_bits_scaled() -> None:
    two = np.stack([SAMPLES, -SAMPLES / 2])
    for stereo in (two, torch.from_numpy(two).bfloat16().float(), torch.from_numpy(two)):
        mixed = samples_of(stereo)
        assert mixed.dtype == np.float32
        np.testing.assert_allclose(mixed, SAMPLES / 4, atol=1e-3)
    whole = np.rint(SAMPLES * 32_768).clip(-32_768, 32_767).astype(np.int16)
    for one in (whole, torch.from_numpy(whole), np.stack([whole, whole])):
        np.testing.assert_allclose(samples_of(one), whole.astype(np.float32) / 32_768)


REFUSED: list[tuple[Any, type[Exception], str]] = [
    ({"raw": SAMPLES}, ValueError, "sampling_rate"),
    ({}, ValueError, "nothing"),
    (np.zeros((4, 100)), ValueError, "2 channels"),
    (np.zeros((2, 2, 100)), ValueError, r"\(2, 2, 100\)"),
    (np.zeros(0, dtype=np.float32), ValueError, "no samples"),
    (np.array([0, 300], dtype=np.int32), ValueError, "int32"),
    (iter([SAMPLES]), ValueError, "list_iterator"),
    (b"", DecodeError, "input-0"),
    ("./no such file.wav", FetchError, "no such file"),
]


@pytest.mark.parametrize(("recording", "error", "message"), REFUSED)
def test_anything_else_is_refused(recording: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        samples_of(recording)


@pytest.mark.long
def test_a_machine_without_decoders_and_tables_takes_arrays() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("av", "pyarrow", "ray")))  # importing these fails
import numpy as np
from corpus_asr.models.whisper import pipeline
from corpus_asr.models.speech_pipeline import samples_of
print(pipeline.__name__, samples_of(np.ones(3, dtype=np.float32)).size)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "pipeline 3", done.stderr
