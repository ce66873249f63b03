"""Limits of what one recording may cost, and files opened before their turn."""

from pathlib import Path

import pytest

from corpus_asr.errors import DecodeError, FetchError
from corpus_asr.stages.extract_protocol import ExtractedPart, ExtractRequest
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.stages.test_extraction import extract, extractor, write_noise
from tests.support.audio import encode, tone
from tests.support.corpora import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def test_a_recording_that_decodes_for_too_long_is_kept_up_to_the_limit(model: Path, tmp_path: Path):
    """Silence in FLAC: some kilobytes that decode to minutes, as others do to years."""
    seconds = 300
    data = encode(tone(seconds, amplitude=0.0), rate_hz=SAMPLE_RATE_HZ, container="flac",
                  codec="flac", sample_format="s16")  # fmt: skip
    assert len(data) < seconds * SAMPLE_RATE_HZ * 2 / 100
    path = tmp_path / "bomb.flac"
    path.write_bytes(data)
    parts: list[ExtractedPart] = []
    limited = extractor(model, speech_detection="none", max_duration_h=0.025)
    with pytest.raises(DecodeError, match=r"more than 0\.025 h .* raise the limit") as caught:
        parts.extend(limited(ExtractRequest(uri=str(path))))
    assert caught.value.kind == "too_long"
    assert 80 <= sum(part.num_samples for part in parts) / SAMPLE_RATE_HZ <= 90
    assert extract(model, str(path), speech_detection="none", max_duration_h=0.1)


def test_a_file_that_is_too_large_is_refused_by_its_size(model: Path, tmp_path: Path):
    uri = write_noise(tmp_path / "noise.wav", 2)
    with pytest.raises(DecodeError, match=r"6\.4e-05 GB, expected at most 6e-05") as caught:
        extract(model, uri, max_file_gb=6e-5)
    assert caught.value.kind == "too_large"
    assert extract(model, uri, max_file_gb=7e-5)


def test_what_was_opened_ahead_is_what_is_extracted(model: Path, tmp_path: Path):
    uris = [write_noise(tmp_path / f"{number}.wav", 1 + number) for number in range(4)]
    missing = str(tmp_path / "missing.wav")
    ours = extractor(model, speech_detection="none")
    order = [uris[0], missing, *uris[1:]]
    for index, uri in enumerate(order):
        request = ExtractRequest(uri=uri, upcoming=tuple(order[index + 1 : index + 3]))
        if uri == missing:
            with pytest.raises(FetchError, match="missing"):
                list(ours(request))
        else:
            (part,) = ours(request)
            assert part.num_samples == (1 + uris.index(uri)) * SAMPLE_RATE_HZ
