"""Parts transcribed by Parakeet say what transformers says of the same windows."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from corpus_asr.confidence import DEFAULT_MODEL, segment_evidence
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.errors import CheckpointError, ConfigError
from corpus_asr.families.parakeet.features import ParakeetPartFeatures
from corpus_asr.families.parakeet.recognizer import ParakeetRecognizer
from corpus_asr.segments import Segment
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip
from tests.support.parakeet import KINDS, Pair, parakeet_checkpoint

CLIPS = Path(__file__).parents[1] / "data" / "clips"
SPEECH = read_clip(CLIPS / "english.wav")


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return parakeet_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


def part_of(folder: Path, samples: np.ndarray, **fields: Any) -> PartRequest:
    found = ParakeetPartFeatures.from_folder(folder)(samples)
    usual: dict[str, Any] = {
        "recording_id": "r", "part": 0, "features": found.values, "start_s": 0.0,
        "num_samples": len(samples), "pad_value": found.pad_value, "speech": None,
    }  # fmt: skip
    return PartRequest(**usual | fields)


def said(folder: Path, *parts: PartRequest, **settings: Any) -> list[tuple[Segment, ...]]:
    decoding = DecodingSettings(word_timestamps=True, **settings)
    with Engine.from_folder(folder, decoding=decoding, device="cpu", dtype="float32") as engine:
        futures = [engine.submit(part) for part in parts]
        return [future.result(60).segments for future in futures]


def text_of(segments: tuple[Segment, ...]) -> str:
    return "".join(segment.text for segment in segments).strip()


def text_of_transformers(pair: Pair, inputs: Any) -> str:
    processor = transformers.ParakeetProcessor.from_pretrained(pair.folder)
    generated = pair.theirs.generate(**inputs)
    if pair.kind == "CTC":
        texts = processor.batch_decode(generated, skip_special_tokens=True)
    else:
        texts = processor.decode(generated.sequences, skip_special_tokens=True)
    text: str = texts[0]
    return text


def inputs_of(pair: Pair, samples: np.ndarray) -> Any:
    processor = transformers.ParakeetProcessor.from_pretrained(pair.folder)
    return processor([samples], sampling_rate=SAMPLE_RATE_HZ)


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_a_part_says_what_transformers_says(pair: Pair) -> None:
    samples = SPEECH[: 3 * SAMPLE_RATE_HZ]
    expected = text_of_transformers(pair, inputs_of(pair, samples)).strip()
    (found,) = said(pair.folder, part_of(pair.folder, samples))
    # The first and last frame hold what lies around a window, and values are rounded to float16.
    same = sum(a == b for a, b in zip(text_of(found), expected, strict=False))
    assert text_of(found)
    assert same >= 0.9 * max(len(expected), len(text_of(found))), (text_of(found), expected)


def test_words_have_times_within_the_part_and_make_up_its_text(pair: Pair) -> None:
    part = part_of(pair.folder, SPEECH[: 6 * SAMPLE_RATE_HZ], start_s=100.0)
    (segments,) = said(pair.folder, part)
    words = [word for segment in segments for word in segment.words or ()]
    assert words
    times = [each for word in words for each in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert times[0] >= 100.0
    assert times[-1] <= 106.0
    assert all(0 < word.probability <= 1 for word in words)
    for segment in segments:
        assert "".join(word.word for word in segment.words or ()) == segment.text
        assert segment.tokens
        assert segment.avg_logprob < 0
        evidence = segment_evidence(segment)
        assert evidence is not None
        assert evidence.text_logprob < 0
        assert evidence.no_speech_prob is None
        assert segment.confidence == DEFAULT_MODEL.confidence(evidence)


def copied(folder: Path, target: Path, **encoder: Any) -> Path:
    """Copy a checkpoint, with other settings of its encoder."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    config["encoder_config"] |= encoder
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_windows_are_no_longer_than_positions_that_attention_sees_at_once(
    pair: Pair, tmp_path: Path
) -> None:
    assert ParakeetRecognizer.window_limit_s(str(pair.folder)) == 120.0
    folder = copied(pair.folder, tmp_path / "short", max_position_embeddings=50)
    assert ParakeetRecognizer.window_limit_s(str(folder)) == 4.0
    (found,) = said(folder, part_of(folder, SPEECH))
    assert found[-1].end_s > 8
    assert max(segment.end_s - segment.start_s for segment in found) <= 4.0
    for wrong in ("many", 0, None):
        folder = copied(pair.folder, tmp_path / f"{wrong}", max_position_embeddings=wrong)
        message = f"reading .*config.json: .*max_position_embeddings is {wrong!r}.*expected"
        with pytest.raises(CheckpointError, match=message):
            Engine.from_folder(folder, decoding=DecodingSettings())


def test_a_vocabulary_that_does_not_fit_is_refused(pair: Pair, tmp_path: Path) -> None:
    fewer, more = (copied(pair.folder, tmp_path / name) for name in ("fewer", "more"))
    content = json.loads((fewer / "tokenizer.json").read_text())
    pieces = content["model"]["vocab"]
    kept = {piece: token for piece, token in pieces.items() if token < len(pieces) - 20}
    content["model"]["vocab"] = kept
    content["model"]["merges"] = [
        merge for merge in content["model"]["merges"] if "".join(merge) in kept
    ]
    (fewer / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"none of them for token \d+, expected one for"):
        Engine.from_folder(fewer, decoding=DecodingSettings())
    config = json.loads((more / "config.json").read_text())
    small = {"vocab_size": 4, "pad_token_id": 3, "blank_token_id": 3}
    (more / "config.json").write_text(json.dumps(config | small))
    with pytest.raises(CheckpointError, match=r"expected one for each of 4 tokens"):
        Engine.from_folder(more, decoding=DecodingSettings())


def test_what_it_cannot_do_is_refused(pair: Pair) -> None:
    with pytest.raises(ConfigError, match=r"model.compute_type: found int8"):
        Engine.from_folder(pair.folder, decoding=DecodingSettings(), dtype="int8")


def test_a_part_without_a_whole_frame_says_nothing(pair: Pair) -> None:
    part = part_of(pair.folder, SPEECH[:100])
    assert said(pair.folder, part, replace(part, recording_id="other")) == [(), ()]
