"""Level, noise, bandwidth and clipping of sounds whose measures are known."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.worker import read_samples
from corpus_asr.audio.sound_quality import SoundQuality
from corpus_asr.schemas import OUTCOMES, SEGMENT_FIELDS
from corpus_asr.units import SAMPLE_RATE_HZ

SPOKEN = Path(__file__).resolve().parents[1] / "data" / "spoken"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return read_samples(str(SPOKEN / "inaugural.flac"))


def over(samples: np.ndarray, *spans: tuple[float, float]) -> dict[str, float | None]:
    return SoundQuality.over(SoundQuality().measure(samples.astype(np.float32)), spans)


def measured(samples: np.ndarray) -> dict[str, float]:
    found = over(samples, (0.0, len(samples) / SAMPLE_RATE_HZ))
    return {name: value for name, value in found.items() if value is not None}


def white(samples: np.ndarray, snr_db: float) -> np.ndarray:
    power = np.mean(samples**2) / 10 ** (snr_db / 10)
    return np.random.default_rng(0).normal(scale=power**0.5, size=len(samples))


def below(samples: np.ndarray, hz: float) -> np.ndarray:
    spectrum = np.fft.rfft(samples)
    spectrum[int(hz * len(samples) / SAMPLE_RATE_HZ) :] = 0
    return np.fft.irfft(spectrum, len(samples))


@pytest.mark.parametrize("snr_db", [0, 5, 10, 15])
def test_added_noise_is_measured(speech: np.ndarray, snr_db: float) -> None:
    assert measured(speech + white(speech, snr_db))["snr_db"] == pytest.approx(snr_db, abs=1.5)


def test_level_is_that_of_the_samples(speech: np.ndarray) -> None:
    level = measured(speech)["level_dbfs"]
    assert level == pytest.approx(10 * np.log10(np.mean(speech**2)), abs=0.1)
    assert measured(speech / 10)["level_dbfs"] == pytest.approx(level - 20, abs=0.1)


@pytest.mark.parametrize("hz", [3400, 4500])
def test_bandwidth_is_where_the_spectrum_ends(speech: np.ndarray, hz: float) -> None:
    assert measured(speech)["bandwidth_hz"] > hz + 500
    # In bands of 250 Hz, and one more that the edge leaks into.
    assert hz <= measured(below(speech, hz))["bandwidth_hz"] <= hz + 500


def test_what_is_cut_off_is_counted(speech: np.ndarray) -> None:
    assert measured(speech)["clipped_share"] < 1e-4
    loud = 4 * speech / np.abs(speech).max()
    share = measured(np.clip(loud, -1, 1))["clipped_share"]
    assert share == pytest.approx(np.mean(np.abs(loud) >= 1), rel=0.2)
    # It stays so when it is made quieter.
    assert measured(np.clip(loud, -1, 1) / 3)["clipped_share"] == pytest.approx(share, rel=0.1)


def test_an_offset_is_no_sound(speech: np.ndarray) -> None:
    plain, shifted = measured(speech / 2), measured(speech / 2 + 0.3)
    for name in ("level_dbfs", "snr_db", "bandwidth_hz"):
        assert shifted[name] == pytest.approx(plain[name], abs=0.6), name
    assert measured(np.full(20_000, 0.2))["level_dbfs"] == pytest.approx(-96)


def test_each_span_has_its_own_measures(speech: np.ndarray) -> None:
    part = np.tile(speech, 3)
    part_s = len(part) / SAMPLE_RATE_HZ
    kinds = [part, part + white(part, 5), below(part, 3400)]
    blocks = SoundQuality().measure(np.concatenate(kinds).astype(np.float32))
    # Away from the seams: noise is that of ten seconds on either side.
    clear, noisy, narrow = (
        SoundQuality.over(blocks, [(number * part_s + 11, (number + 1) * part_s - 11)])
        for number in range(3)
    )
    assert noisy["snr_db"] == pytest.approx(5, abs=1.5)
    assert clear["snr_db"] == pytest.approx(measured(speech)["snr_db"], abs=2)
    assert narrow["bandwidth_hz"] == pytest.approx(3400, abs=500)
    assert clear["bandwidth_hz"] == pytest.approx(6500, abs=1000)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(1),
        np.zeros(50_000),
        np.full(9_000, np.nan),
        np.ones(1),
        np.full(511, -1.0),
        np.linspace(-1e20, 1e20, 9_000),
    ],
    ids=["sample", "silence", "nan", "one", "short", "huge"],
)
def test_every_value_is_a_number(samples: np.ndarray) -> None:
    found = over(samples, (0.0, 1.0))
    assert {*found} == {*SoundQuality.columns}
    assert all(value is not None and np.isfinite(value) for value in found.values())
    nothing = dict.fromkeys(SoundQuality.columns)
    assert over(samples) == over(np.empty(0), (0.0, 1.0)) == nothing


def test_tables_have_a_column_for_each() -> None:
    assert {*SoundQuality.columns} <= {field.name for field in SEGMENT_FIELDS}
    assert {*SoundQuality.columns} <= set(OUTCOMES.names)
