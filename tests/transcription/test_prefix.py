"""A prefix is the beginning of the first window's text, on real speech, however it is decoded."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.report.accuracy.scoring import normalized
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.storage.model_files import PACKAGED_FOLDER

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


@pytest.fixture(scope="module", params=["whisper-tiny.en", "whisper-base"])
def transcriber(request: pytest.FixtureRequest) -> Iterator[Transcriber]:
    folders = [PACKAGED_FOLDER, Path(os.environ.get("CORPUS_ASR_TEST_MODELS", "nowhere"))]
    found = [folder / request.param for folder in folders if (folder / request.param).is_dir()]
    if not found:
        pytest.skip(f"no {request.param} in the package nor where CORPUS_ASR_TEST_MODELS points")
    with Transcriber(str(found[0]), num_threads=1) as transcriber:
        yield transcriber


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


def test_a_prefix_that_is_not_said_stands_before_the_speech(transcriber: Transcriber) -> None:
    found = transcriber.transcribe(INAUGURAL, language="en", prefix="Good evening to all of you")
    assert found.text.strip().startswith("Good evening to all of you")


def test_later_windows_are_those_of_no_prefix(transcriber: Transcriber) -> None:
    path = DATA / "clips" / "longer.mp3"
    options: dict[str, Any] = {"strategy": "chunked", "language": "en"}
    plain = transcriber.transcribe(path, **options)
    begun = transcriber.transcribe(path, prefix=" ".join(plain.text.split()[:4]), **options)
    assert begun.text.split()[:4] == plain.text.split()[:4]
    last, same = plain.segments[-1], begun.segments[-1]
    assert (last.start_s, last.tokens) == (same.start_s, same.tokens)
    assert last.start_s > 20
