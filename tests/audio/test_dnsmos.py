"""Where windows lie and what spans get of them, by a tiny network; and what the real one says."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.worker import read_samples
from corpus_asr.audio import dnsmos
from corpus_asr.audio.dnsmos import STEP_SAMPLES, WINDOW_SAMPLES, MosNetwork, window_starts
from corpus_asr.audio.sound_quality import MOS_MEASURES, MosWindows
from corpus_asr.errors import CheckpointError
from corpus_asr.schemas import OUTCOMES, SEGMENT_FIELDS, SELECTION
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.speakers.test_embeddings import SPOKEN, mean_network

FILE = Path("dnsmos_models") / "sig_bak_ovr.onnx"
# Overall, signal and background by speechmos 0.0.1.1, with white noise at so many dB.
OF_SPEECHMOS = {None: (2.6856, 3.4028, 3.0341), 5: (1.6106, 3.1960, 1.3084)}
needs_speechmos = pytest.mark.skipif(find_spec("speechmos") is None, reason="needs speechmos")


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes) -> None:
    """Put a network where that of speechmos is looked for."""
    (folder / FILE).parent.mkdir()
    (folder / FILE).write_bytes(content)
    place(monkeypatch, folder)


def place(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    found = folder and SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(dnsmos, "find_spec", lambda name: found)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MosNetwork:
    """Give the mean of a window's samples as each of its scores, before they are calibrated."""
    install(monkeypatch, tmp_path, mean_network("batch", WINDOW_SAMPLES, keep=True, times=3))
    return MosNetwork()


SPANS = st.lists(st.tuples(st.integers(0, 600_000), st.integers(1, 300_000)), max_size=4)


@given(start=st.integers(0, 10**7), num_samples=st.integers(1, 900_000), speech=SPANS)
def test_windows_cover_all_speech_and_lie_in_their_part(start, num_samples, speech) -> None:
    spans = [
        (first, min(first + length, num_samples)) for first, length in speech if first < num_samples
    ]
    starts = window_starts(num_samples, spans, start_sample=start)
    covered = np.zeros(num_samples, dtype=bool)
    for first in starts:
        assert 0 <= first <= max(0, num_samples - WINDOW_SAMPLES)
        covered[first : first + WINDOW_SAMPLES] = True
    assert all(covered[first:last].all() for first, last in spans)
    # No step without speech has a window.
    assert len(starts) <= sum(2 + (last - first) // STEP_SAMPLES for first, last in spans)


def test_windows_do_not_depend_on_where_a_recording_is_cut() -> None:
    whole = window_starts(20 * STEP_SAMPLES, None)
    cut = 7 * STEP_SAMPLES + 50_000
    pieces = (
        window_starts(cut, None),
        window_starts(13 * STEP_SAMPLES - 50_000, None, start_sample=cut),
    )
    found = [*pieces[0], *(cut + first for first in pieces[1])]
    # But for those at the cut, which would reach beyond it.
    assert set(whole) - set(found) == {7 * STEP_SAMPLES}
    assert set(found) - set(whole) == {cut - WINDOW_SAMPLES, cut}


def test_a_span_gets_the_mean_of_its_windows_by_how_much_of_it_lies_in_each() -> None:
    values = np.array([[0.0, 1, 2, 3], [9.0, 2, 3, 4]], dtype=np.float32)
    windows = MosWindows.flattened(values.ravel().tolist())
    assert windows.over([(1.0, 5.0)]) == dict(zip(MOS_MEASURES, (3, 1, 2), strict=True))
    found = windows.over([(8.0, 9.0), (9.01, 12.01)])
    assert found["dnsmos_overall"] == pytest.approx(3.75, abs=0.01)
    for spans in ([], [(2.0, 2.0)], [(30.0, 31.0)]):
        assert windows.over(spans) == dict.fromkeys(MOS_MEASURES)
    assert MosWindows.flattened([]).over([(0.0, 1.0)]) == dict.fromkeys(MOS_MEASURES)


def test_each_window_is_scored_on_its_own(tiny: MosNetwork) -> None:
    samples = np.repeat(np.array([0.1, 0.5, 0.9], np.float32), STEP_SAMPLES)
    found = tiny(samples, [(0, 1000), (2 * STEP_SAMPLES, 2 * STEP_SAMPLES + 1000)]).values
    assert found[:, 0] == pytest.approx([0.0, 18.0 - 0.01])
    for at, powers in enumerate(dnsmos._CALIBRATION, start=1):
        assert found[:, at] == pytest.approx(np.polyval(powers, [0.1, 0.9]), abs=2e-3)
    assert tiny(samples, []).values.shape == (0, 4)


def test_less_than_a_window_is_repeated_and_what_is_no_sound_counts_as_none(
    tiny: MosNetwork,
) -> None:
    half = np.linspace(0.0, 1.0, 16_000, dtype=np.float32)
    assert tiny(half, None).values[0, 3] == pytest.approx(
        np.polyval(dnsmos._CALIBRATION[2], 0.5), abs=2e-3
    )
    broken = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30] * 100, dtype=np.float32)
    silent = tiny(np.zeros(1, dtype=np.float32), None)
    assert tiny(broken, None).values == pytest.approx(silent.values, abs=1e-4)


def test_a_missing_package_and_another_network_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place(monkeypatch, None)
    with pytest.raises(CheckpointError, match=r"no package speechmos.*pip install speechmos"):
        MosNetwork()
    place(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError, match=r"no file .*sig_bak_ovr\.onnx, expected"):
        MosNetwork()
    install(monkeypatch, tmp_path, b"nothing")
    with pytest.raises(CheckpointError, match="expected a network in ONNX"):
        MosNetwork()
    (tmp_path / FILE).write_bytes(mean_network("batch", 16_000, keep=True))
    with pytest.raises(CheckpointError, match=r"found inputs \[\[16000\]\] and outputs \[\[1\]\]"):
        MosNetwork()


@needs_speechmos
@pytest.mark.parametrize("noise_db", OF_SPEECHMOS)
def test_the_scores_are_those_of_speechmos(noise_db: int | None) -> None:
    samples = read_samples(str(SPOKEN / "inaugural.flac"))[:WINDOW_SAMPLES]
    if noise_db is not None:
        power = np.mean(samples**2) / 10 ** (noise_db / 10)
        drawn = np.random.default_rng(0).normal(scale=power**0.5, size=len(samples))
        samples = (samples + drawn).astype(np.float32)
    found = MosNetwork()(samples, None).over([(0.0, len(samples) / SAMPLE_RATE_HZ)])
    assert tuple(found.values()) == pytest.approx(OF_SPEECHMOS[noise_db], abs=0.01)


def test_tables_have_a_column_for_each() -> None:
    for names in ({field.name for field in SEGMENT_FIELDS}, set(OUTCOMES.names)):
        assert set(MOS_MEASURES) <= names
    assert set(MOS_MEASURES) <= set(SELECTION.names)
