"""Speeds of this machine that nobody measured: timed, or refused with the reason."""

from pathlib import Path
from typing import Any

import pytest

from corpus_asr.activity import Estimate
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.config.run import RunConfig
from corpus_asr.runtime import speeds
from corpus_asr.runtime.speeds import outlooks, timed_machines
from corpus_asr.transcription.pace import Pace
from tests.support.tables import run_config

PACE = Pace(window_s=1.0, token_s=0.01, beam_token_s=0.04, words_s=0.5)


def timed(config: RunConfig, recording_s: float = 600.0) -> speeds.Machine:
    [machine], _ = timed_machines(config, 4, recording_s=recording_s)
    return machine


def reason(config: RunConfig) -> str:
    machines, why = timed_machines(config, 4, recording_s=60.0)
    assert machines == []
    return why


def test_this_machine_is_timed_with_the_settings_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[DecodingSettings, dict[str, Any]]] = []

    def time_pace(folder: Path, decoding: DecodingSettings, **options: Any) -> Pace:
        asked.append((decoding, options))
        return PACE

    monkeypatch.setattr(speeds, "time_pace", time_pace)
    config = run_config("/in", str(tmp_path), model="whisper-tiny.en")
    usual = timed(config)
    beams = config.decoding.model_copy(update={"beam_size": 5})
    searched = timed(config.model_copy(update={"decoding": beams}))
    assert [decoding.beam_size for decoding, _ in asked] == ["auto", 5]
    assert asked[0][1]["device"] == "cpu"
    assert searched.rtfx < usual.rtfx
    assert usual.spread > 1.2
    assert usual.words().startswith(
        "this machine, calculated for windows in chunks, 5 beams where uncertain from parts of a "
        "whisper-tiny.en without weights, timed on "
    )
    assert timed(config, recording_s=4.0).rtfx < 0.9 * usual.rtfx
    [outlook] = outlooks(Estimate(3600.0, 3600.0, 3600.0), [usual])
    off = outlook.duration_s.high / outlook.duration_s.value
    assert off == pytest.approx(usual.spread)


def test_why_nothing_was_timed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'")

    config = run_config("/in", str(tmp_path), model="whisper-tiny.en")
    with monkeypatch.context() as patched:
        patched.setenv("RAY_ADDRESS", "head:6379")
        assert "timed here: the cluster of RAY_ADDRESS is not this machine" in reason(config)
    monkeypatch.setattr(speeds, "time_pace", fails)
    assert reason(config) == "no speed was timed here: No module named 'torch'"
    monkeypatch.setattr(speeds, "time_pace", lambda *_, **__: None)
    assert "only the networks of Whisper are timed" in reason(config)
    away = run_config("/in", str(tmp_path), model="some/model")
    assert "fetching the checkpoint some/model from the Hub" in reason(away)
