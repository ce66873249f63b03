"""With default settings no word is written where nobody speaks, and none of those spoken is lost.

The guide's table (docs/hallucinations.md) has ten minutes of each sound; here it is one.
"""

import os
import wave
from pathlib import Path

import numpy as np
import pytest

from corpus_asr.report.accuracy.scoring import normalized
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

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 60.0
MODELS = ("whisper-tiny.en", "whisper-base")
CLIP = "ls_1688-142285-0009"
NAMES = (*wordless_sounds(1.0), "murmur")


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    elsewhere = os.environ.get("CORPUS_ASR_TEST_MODELS")
    folders = [PACKAGED_FOLDER] + ([Path(elsewhere)] if elsewhere else [])
    for folder in folders:
        if (folder / request.param / "config.json").is_file():
            return folder / request.param
    pytest.skip(
        f"no {request.param} in the package nor in the folder that CORPUS_ASR_TEST_MODELS names"
    )


@pytest.fixture(scope="module")
def clips() -> Path:
    folder = Path(
        os.environ.get("CORPUS_ASR_TEST_DATA") or REPOSITORY / "tests" / "data" / "speech"
    )
    if not (folder / "english_short" / "manifest.jsonl").is_file():
        pytest.skip("no english_short in tests/data/speech nor where CORPUS_ASR_TEST_DATA points")
    return folder / "english_short"


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
    assert texts[name] == ""


@pytest.mark.slow
def test_a_sentence_alone_in_five_minutes_of_noise_is_written_whole(
    texts: dict[str, str], clips: Path
) -> None:
    said = next(item["text"] for item in read_manifest(clips) if item["id"] == CLIP)
    assert normalized(texts["speech"], "en") == normalized(said, "en")
