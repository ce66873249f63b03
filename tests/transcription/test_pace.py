"""How fast an engine is: by what is decoded, how full windows are, and times of its parts."""

import json
from pathlib import Path
from typing import Any

import pytest

from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.transcription.pace import Pace, rtfx_range, searched_words, time_pace

PACE = Pace(window_s=1.0, token_s=0.01, beam_token_s=0.04, words_s=0.5)


def speed(pace: Pace = PACE, recording_s: float = 600.0, **options: Any) -> float:
    low, high = rtfx_range(pace, DecodingSettings(**options), recording_s=recording_s)
    assert low < high
    return (low * high) ** 0.5


def test_the_speed_follows_from_what_is_decoded() -> None:
    greedy, usual, beams = (speed(beam_size=beams) for beams in (1, "auto", 5))
    assert greedy > 1.1 * usual > 1.2 * beams
    assert speed(beam_size=1, padding_s=10.0) > greedy
    assert speed(beam_size=1, word_timestamps=True) < 0.9 * greedy
    assert speed(beam_size=1, strategy="sequential") > greedy
    # A clip of five seconds takes a window of its own, of 30 s where it is padded to them.
    whole, padded, auto = (
        speed(beam_size=1, recording_s=5.0, padding_s=padding_s)
        for padding_s in (None, 10.0, "auto")
    )
    assert whole < greedy / 2
    assert whole < padded < auto
    low, high = rtfx_range(PACE, DecodingSettings(), vad=False, recording_s=600.0)
    _, without_silence = rtfx_range(PACE, DecodingSettings(), recording_s=600.0)
    assert 0 < low < high < without_silence, "silence is read too"


def test_settings_are_named() -> None:
    assert searched_words(DecodingSettings()) == "windows in chunks, 5 beams where uncertain"
    options: dict[str, Any] = {"strategy": "sequential", "beam_size": 1, "word_timestamps": True}
    assert searched_words(DecodingSettings(**options)) == "sequential windows, 1 beam, word times"


@pytest.mark.parametrize(("dtype", "positions"), [("auto", 448), ("float32", 32)])
def test_a_checkpoint_without_weights_is_timed(tmp_path: Path, dtype: str, positions: int) -> None:
    config = {
        "model_type": "whisper", "d_model": 64, "encoder_layers": 12, "decoder_layers": 3,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128, "vocab_size": 100, "bos_token_id": 90, "eos_token_id": 91,
        "pad_token_id": 91, "decoder_start_token_id": 92, "max_target_positions": positions,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    decoding = DecodingSettings(word_timestamps=True)
    pace = time_pace(tmp_path, decoding, device="cpu", dtype=dtype, num_threads=1, slots=4)
    assert pace is not None
    assert 0 < pace.token_s < pace.window_s
    assert pace.beam_token_s > 0
    assert pace.words_s > 0
    config = {"model_type": "speech_to_text"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    options: Any = {"device": "cpu", "dtype": "auto", "num_threads": 1, "slots": 4}
    assert time_pace(tmp_path, DecodingSettings(), **options) is None
