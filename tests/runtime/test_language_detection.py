"""The language of a recording by itself: that of transcription, with all probabilities."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.errors import ConfigError, DecodeError
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.storage.model_files import PACKAGED_FOLDER
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import noise, wav_bytes
from tests.support.checkpoints import tiny_families, tiny_whisper
from tests.support.corpora import CLIPS, tiny_model
from tests.support.tokenizers import tiny_tokenizer

pytestmark = pytest.mark.long

USUAL: dict[str, Any] = {"slots": 2, "temperature": 0.0}


@pytest.fixture(scope="module")
def transcriber(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcriber]:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    with Transcriber(str(model), language="en", **USUAL) as loaded:
        yield loaded


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vad_filter": False},
        {"vad_filter": False, "part_s": 30.0},
        {"language": ["de", "fr", "en"]},
        {"padding_s": 5.0},
    ],
    ids=["speech", "all audio", "parts", "a choice", "padding"],
)
def test_it_is_the_language_of_the_transcript(
    transcriber: Transcriber, options: dict[str, Any]
) -> None:
    clip = str(CLIPS / "longer.mp3")
    expected = transcriber.transcribe(clip, **{"language": "auto", **options})
    found = transcriber.detect_language(clip, **options)
    language, probability, every = found
    assert (language, probability) == (expected.language, expected.language_probability)
    assert every[0] == (language, probability)
    assert [one for _, one in every] == sorted((one for _, one in every), reverse=True)
    assert sum(one for _, one in every) == pytest.approx(1.0)
    known = options.get("language", transcriber._engine.languages)
    assert sorted(code for code, _ in every) == sorted(known)


def test_where_nobody_speaks_it_is_what_silence_is_taken_for(transcriber: Transcriber) -> None:
    silent = (np.zeros(0, np.float32), np.zeros(5 * SAMPLE_RATE_HZ, np.float32))
    none, some = (transcriber.detect_language(one, sampling_rate=SAMPLE_RATE_HZ) for one in silent)
    assert none == some
    plain = transcriber.detect_language(silent[1], sampling_rate=SAMPLE_RATE_HZ, vad_filter=False)
    assert plain == none
    hiss = noise(5.0)
    assert transcriber.detect_language(hiss, sampling_rate=SAMPLE_RATE_HZ) == none
    heard = transcriber.detect_language(hiss, sampling_rate=SAMPLE_RATE_HZ, vad_filter=False)
    assert heard.all_language_probs != none.all_language_probs


def test_what_cannot_be_detected_is_refused(transcriber: Transcriber, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found channels: each, .* all channels mixed"):
        transcriber.detect_language("nowhere.wav", channels="each")
    with pytest.raises(ConfigError, match="does not know xx"):
        transcriber.detect_language("nowhere.wav", language="xx")
    with pytest.raises(DecodeError):
        transcriber.detect_language(b"no sound")
    models = (PACKAGED_FOLDER / "whisper-tiny.en", tiny_families(tmp_path)["Speech2Text"])
    for model in models:
        with (
            Transcriber(str(model), **USUAL) as loaded,
            pytest.raises(ConfigError, match="expected a multilingual Whisper checkpoint"),
        ):
            loaded.detect_language("nowhere.wav")


def test_a_recording_is_left_after_its_first_speech(transcriber: Transcriber) -> None:
    begins = wav_bytes(noise(40.0), rate_hz=SAMPLE_RATE_HZ)
    options: dict[str, Any] = {"vad_filter": False, "part_s": 30.0}
    first = transcriber.detect_language(begins, **options)
    longer = wav_bytes(np.tile(noise(40.0), 20), rate_hz=SAMPLE_RATE_HZ)
    assert transcriber.detect_language(longer, **options).language in dict(first[2])
    # The next call has its child, whatever the last one left unread.
    assert transcriber.detect_language(begins, **options) == first


def test_the_main_model_detects(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path / "tokenizer")
    main, other = (
        str(tiny_whisper(tmp_path / str(seed), seed=seed, tokenizer=tmp_path / "tokenizer"))
        for seed in range(2)
    )
    clip = str(CLIPS / "longer.mp3")
    with Transcriber(main, **USUAL) as alone:
        expected = alone.detect_language(clip)
    with Transcriber(main, by_language={expected.language: other}, **USUAL) as both:
        assert both.detect_language(clip) == expected
