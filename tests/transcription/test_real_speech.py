"""Real speech and sounds without words through the packaged model, with the usual settings."""

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.report.scoring import normalized
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.storage.model_files import PACKAGED_FOLDER
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import (
    Samples,
    murmur,
    read_clip,
    read_manifest,
    speech_in_noise,
    wordless_sounds,
)

SECONDS = 60.0
CLIP = "ls_1688-142285-0009"
NAMES = (*wordless_sounds(1.0), "murmur")


@pytest.fixture(scope="module", params=["whisper-tiny.en", "whisper-base"])
def model(request: pytest.FixtureRequest) -> Path:
    """The packaged one as it is, and whisper-base where it is provided."""
    packaged: Path = PACKAGED_FOLDER / request.param
    return packaged if packaged.is_dir() else request.getfixturevalue("whisper_base")


@pytest.fixture(scope="module")
def clips(speech: Path) -> Path:
    return speech / "english_short"


@pytest.fixture(scope="module")
def texts(model: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    speech = {item["id"]: read_clip(clips / item["path"]) for item in read_manifest(clips)}
    sounds = wordless_sounds(SECONDS) | {"murmur": murmur(list(speech.values()), SECONDS)}
    sounds["speech"] = speech_in_noise(speech[CLIP], 5 * SECONDS)
    folder = tmp_path_factory.mktemp("sounds")
    with Transcriber.from_pretrained(str(model)) as transcriber:
        paths = [_written(folder / f"{name}.wav", sound) for name, sound in sounds.items()]
        found = list(transcriber.transcribe_many(paths))
    return {Path(each.uri or "").stem: each.text for each in found}


def _written(path: Path, samples: Samples) -> str:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_where_nobody_speaks(name: str, texts: dict[str, str]) -> None:
    assert texts[name].strip(".") == ""


@pytest.mark.slow
def test_a_sentence_alone_in_five_minutes_of_noise_is_written_whole(
    texts: dict[str, str], clips: Path
) -> None:
    said = next(item["text"] for item in read_manifest(clips) if item["id"] == CLIP)
    heard, spoken = (normalized(text, "en").split() for text in (texts["speech"], said))
    assert "".join(heard) == "".join(spoken)  # a workhouse may be a work house


DATA = Path(__file__).parents[1] / "data"
INAUGURAL = DATA / "spoken" / "inaugural.flac"
TEXT = (
    "And so my fellow Americans ask not what your country can do for you ask what you can do for "
    "your country"
)
SAID = "And so my fellow Americans"
MODES: dict[str, dict[str, Any]] = {
    "ladder": {},
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.2},
    "beams": {"beam_size": 5, "temperature": 0},
    "chunked": {"strategy": "chunked"},
    "words": {"word_timestamps": True},
    "no detection": {"vad_filter": False},
    "after a prompt": {"initial_prompt": "Ladies and gentlemen."},
}


@pytest.fixture(scope="module")
def transcriber(model: Path) -> Iterator[Transcriber]:
    with Transcriber(str(model), num_threads=1) as transcriber:
        yield transcriber


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_the_text_has_a_prefix_that_is_said_once_and_all_that_follows(
    transcriber: Transcriber, mode: str
) -> None:
    found = transcriber.transcribe(INAUGURAL, language="en", prefix=SAID, **MODES[mode])
    assert normalized(found.text, "en") == normalized(TEXT, "en")
    first = found.segments[0]
    assert (first.text.startswith(f" {SAID}"), first.start_s) == (True, 0.0)
    assert found.segments[-1].end_s == pytest.approx(10.6, abs=0.5)
    for segment in found.segments if mode == "words" else ():
        assert segment.text == "".join(word.word for word in segment.words or ())
        assert all(word.end_s > word.start_s for word in segment.words or ())
