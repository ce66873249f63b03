"""Attention to what is near: equal to attention to all with a mask, in bounded memory."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from corpus_asr.families.parakeet import encoder as encoders
from corpus_asr.families.parakeet.config import ParakeetEncoderConfig
from corpus_asr.families.parakeet.encoder import Context, ParakeetEncoder
from tests.support.parakeet import ENCODER, Pair, features, parakeet_pair

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
LENGTHS = (500, 90, 8, 1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return parakeet_pair("TDT", tmp_path_factory.mktemp("tdt"))


def encoded(pair: Pair, context: Context | None, *lengths: int) -> list[torch.Tensor]:
    """Return the valid states of each row."""
    values, mask = features(*lengths)
    frames = mask.sum(dim=1).tolist()
    with torch.no_grad():
        states, counts = pair.ours.encoder.encode(values, num_frames=frames, context=context)
    return [row[:count] for row, count in zip(states, counts.tolist(), strict=True)]


def limited_by_a_mask(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    by_place: Tensor,
    distances: Tensor,
    valid: Tensor | None,
    context: Context,
) -> Tensor:
    """Attend to all, with the scores outside of the band masked."""
    places = torch.arange(query.shape[2])
    apart = places[:, None] - places
    inside = (apart <= context[0]) & (apart >= -context[1])
    numbers = (context[0] - apart).clamp(0, sum(context))  # of distances, the largest one first
    placed = by_place @ distances.transpose(-1, -2)
    scores = placed.gather(3, numbers.expand(*placed.shape[:2], -1, -1))
    seen = inside if valid is None else inside & valid[:, None, None]
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    scores = scores + query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.softmax(dim=-1) @ value


@pytest.mark.parametrize("queries", [1, 7, 16, 256])
@pytest.mark.parametrize("context", [(0, 0), (3, 3), (5, 2), (0, 9), (62, 62), (100, 300)])
def test_a_band_is_what_a_mask_leaves_of_all(
    pair: Pair, context: Context, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "_QUERIES", queries)
    states = encoded(pair, context, *LENGTHS)
    monkeypatch.setattr(encoders, "_limited", limited_by_a_mask)
    references = [encoded(pair, context, *LENGTHS)]
    if min(context) >= 62:  # as far as the longest row reaches
        references.append(encoded(pair, None, *LENGTHS))
    for reference in references:
        for found, expected in zip(states, reference, strict=True):
            torch.testing.assert_close(found, expected, **CLOSE)


def test_attention_is_limited_to_the_band_of_the_configuration(tmp_path: Path) -> None:
    pair = parakeet_pair("CTC", tmp_path)
    expected = encoded(pair, (2, 1), 200, 90)
    pair.ours.config.encoder_config.att_context_size = (2, 1)
    # What saves and loads it keeps the band.
    pair.ours.save_pretrained(tmp_path / "saved")
    again = type(pair.ours).from_pretrained(tmp_path / "saved")
    assert again.config.encoder_config.att_context_size == (2, 1)
    for network in (pair.ours, again):
        found = encoded(replace(pair, ours=network), None, 200, 90)
        assert all(map(torch.equal, found, expected))


def test_a_row_gives_what_it_gives_alone(pair: Pair) -> None:
    together = encoded(pair, (4, 6), *LENGTHS)
    values, _ = features(*LENGTHS)
    for row, length in enumerate(LENGTHS):
        with torch.no_grad():
            states, _ = pair.ours.encoder.encode(
                values[row : row + 1, :length], num_frames=[length], context=(4, 6)
            )
        torch.testing.assert_close(together[row], states[0], **CLOSE)


def test_half_precision_has_no_state_that_is_no_number(pair: Pair) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        network = pair.ours.encoder.to(dtype)
        values, mask = features(900, 8)
        with torch.no_grad():
            states, _ = network.encode(
                values.to(dtype), num_frames=mask.sum(dim=1).tolist(), context=(3, 3)
            )
        assert states.isfinite().all()
    pair.ours.encoder.float()


@pytest.mark.parametrize("positions", [1, 5, 16])
def test_features_shortened_in_pieces_are_those_shortened_at_once(
    pair: Pair, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten = pair.ours.encoder.subsampling
    for lengths in ((517, 512, 130, 9, 1), (8,), (129,)):
        values, mask = features(*lengths)
        for frames in (None, mask.sum(dim=1)):
            monkeypatch.undo()
            with torch.no_grad():
                expected = shorten(values, frames)
                monkeypatch.setattr(encoders, "_SHORTENED", positions)
                torch.testing.assert_close(shorten(values, frames), expected, **CLOSE)


def test_wrong_contexts_are_refused() -> None:
    for wrong in ((1,), (1, 2, 3), (-1, 5)):
        with pytest.raises(ValueError, match="att_context_size"):
            ParakeetEncoderConfig(**ENCODER, att_context_size=wrong)


def test_audio_longer_than_positions_needs_a_context() -> None:
    network = ParakeetEncoder(ParakeetEncoderConfig(**ENCODER, max_position_embeddings=10)).eval()
    values, _ = features(100)
    with pytest.raises(ValueError, match=r"13 positions, expected at most 10.*att_context_size"):
        network.encode(values, num_frames=[100])
    states, _ = network.encode(values, num_frames=[100], context=(4, 4))
    assert states.shape[1] == 13


AN_HOUR = """
import torch
from corpus_asr.families.parakeet.config import ParakeetCTCConfig, ParakeetEncoderConfig
from corpus_asr.families.parakeet.model import ParakeetCTC
torch.set_num_threads(2)
encoder = ParakeetEncoderConfig(
    hidden_size=512, num_hidden_layers=17, num_attention_heads=8, intermediate_size=2048
)
torch.set_default_dtype(torch.bfloat16)
network = ParakeetCTC(ParakeetCTCConfig(encoder_config=encoder)).eval()
features = torch.randn(1, SECONDS * 100, 80)
network.transcribe(features, num_frames=[SECONDS * 100], context=(256, 256))
import resource
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_hour_in_one_window_takes_little_memory() -> None:
    """As large as parakeet-tdt_ctc-110m: scores of full attention would take 32 GB in a layer."""
    said = subprocess.run(
        [sys.executable, "-c", AN_HOUR.replace("SECONDS", "3600")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(said.stdout) < 3 * 1024
