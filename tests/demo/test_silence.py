"""Where nobody speaks, demo-en hears next to nothing, without speech detection to help it."""

import re
import wave
from pathlib import Path

import numpy as np
import pytest

from corpus_asr.config.stages import ExtractSettings
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.signals import made_sounds

SECONDS = 12
SOME = ("tone", "two tones", "chords", "brown noise")
SOUNDS = made_sounds(SECONDS * SAMPLE_RATE_HZ)


def chords() -> np.ndarray:
    """Three notes at a time, another three each second."""
    draw = np.random.default_rng(1)
    seconds = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    fading = np.exp(-2 * seconds)
    played = [
        fading * sum(np.sin(2 * np.pi * 220 * 2 ** (note / 12) * seconds) for note in notes)
        for notes in draw.integers(0, 24, size=(SECONDS, 3))
    ]
    return (0.2 * np.concatenate(played)).astype(np.float32)


SOUNDS["chords"] = chords()


@pytest.fixture(scope="module")
def texts(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sounds")
    for name, samples in SOUNDS.items():
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
            file.writeframes((samples * 32767).clip(-32768, 32767).astype("<i2").tobytes())
    paths = [str(path) for path in sorted(folder.iterdir())]
    unaided = ExtractSettings(speech_detection="none")
    with Transcriber.from_pretrained(str(demo_model), extract=unaided) as transcriber:
        found = list(transcriber.transcribe_many(paths))
    return {Path(each.uri or "").stem: each.text for each in found}


@pytest.mark.parametrize("name", SOUNDS)
def test_no_word_is_heard(name: str, texts: dict[str, str]) -> None:
    # Of some it makes a word: of brown noise `A`, of a tone `The`.
    assert len(re.findall(r"\w+", texts[name])) <= (1 if name in SOME else 0)
