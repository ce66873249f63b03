"""Windows as the model reads them."""

from pathlib import Path

import pytest

from corpus_asr.config.finetune import AugmentationSettings, DataSettings, WindowSettings
from corpus_asr.models.whisper.tokenizer import WhisperTokenizer
from corpus_asr.training.audio_cache import AudioCache, prepare
from corpus_asr.training.examples import Examples, LabelWriter
from corpus_asr.training.utterances import Utterance
from corpus_asr.units import TIMESTAMP_STEP_S
from tests.support.audio import noise, wav_bytes
from tests.support.training_jobs import tiny_student


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WhisperTokenizer:
    return WhisperTokenizer.from_pretrained(tiny_student(tmp_path_factory.mktemp("place")))


@pytest.fixture(scope="module")
def labels(tokenizer: WhisperTokenizer) -> LabelWriter:
    return LabelWriter(tokenizer, max_tokens=448)


def prepared(utterances: list[Utterance], labels: LabelWriter, folder: Path) -> AudioCache:
    return prepare(
        utterances,
        folder / "cache",
        DataSettings(train=("manifest.jsonl",)),
        count_tokens=labels.count,
        max_tokens=400,
    )


@pytest.mark.parametrize("timestamps", [0.0, 1.0])
def test_what_is_cut_off_is_heard_to_the_end_of_the_window(
    tokenizer: WhisperTokenizer, labels: LabelWriter, tmp_path: Path, timestamps: float
) -> None:
    utterances = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.wav"
        path.write_bytes(wav_bytes(noise(20.0), rate_hz=16_000))
        utterances.append(Utterance(uri=str(path), text=name, language="en"))
    windows = WindowSettings(
        max_pause_s=0.0,
        no_speech_fraction=0.0,
        truncation_probability=1.0,
        timestamp_probability=timestamps,
    )
    example = Examples(
        prepared(utterances, labels, tmp_path),
        labels,
        windows=windows,
        augmentation=AugmentationSettings(),
        num_mel_bins=80,
        seed=0,
    )[0]
    times = [i for i in example.tokens.ids if i >= tokenizer.timestamp_begin]
    level = example.features.mean(axis=0)
    if timestamps:
        assert len(times) == 3
        assert times[-1] - times[0] == round(20 / TIMESTAMP_STEP_S)
        assert level[2100:].mean() == pytest.approx(level[100:1900].mean(), abs=0.1)
    else:
        assert times == []
        assert level[2100:].mean() < level[100:1900].mean() - 0.3
