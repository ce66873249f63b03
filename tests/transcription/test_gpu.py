"""A recording on a pretended GPU: the words and times of the CPU."""

from pathlib import Path
from typing import Any

import pytest

from corpus_asr.decoding.device import CudaRecorder
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.segments import Segment
from tests.support.device import pretended_gpu

CLIP = Path(__file__).resolve().parents[1] / "data" / "clips" / "english.wav"
SETTINGS: dict[str, dict[str, Any]] = {
    "words": {"word_timestamps": True},
    "beams and a penalty": {"beam_size": 2, "temperature": 0.0, "repetition_penalty": 1.1},
}


def segments_of(device: str, decoding: dict[str, Any]) -> tuple[Segment, ...]:
    with Transcriber(device=device, compute_type="float32", slots=2) as transcriber:
        return transcriber.transcribe(str(CLIP), **decoding).segments


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["words", pytest.param("beams and a penalty", marks=pytest.mark.slow)]
)
def test_a_recording_has_the_cpu_s_words_at_the_cpu_s_times(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CudaRecorder, "warm_ups", 2)
    expected = segments_of("cpu", SETTINGS[name])
    with pretended_gpu() as gpu:
        found = segments_of("cuda", SETTINGS[name])
        assert len(found) == len(expected) > 0
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours.text, ours.start_s, ours.end_s) == (
                theirs.text, theirs.start_s, theirs.end_s
            )  # fmt: skip
            times = [(word.word, word.start_s, word.end_s) for word in ours.words or ()]
            assert times == [(w.word, w.start_s, w.end_s) for w in theirs.words or ()]
        assert any(segment.words for segment in expected) == (name == "words")
        assert gpu.replays > 10 or name != "words"
