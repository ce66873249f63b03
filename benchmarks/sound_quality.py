"""Sound made worse by known amounts, and what is measured of it.

    python -m benchmarks.sound_quality MANIFEST

The clips of a manifest are scaled to a peak of 0.5 and get white noise of several levels, the band
of a telephone, or are cut off at an eighth of their peak. With `--dnsmos` they are scored
too, which needs `.[dnsmos]`. With `--tagger`, a network as `extract.audio_tagger` names it, they
also get plucked chords, and their sounds are named.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.worker import read_samples
from corpus_asr.array_types import Float32
from corpus_asr.audio.dnsmos import MosNetwork
from corpus_asr.audio.sound_quality import MEASURES, MOS_MEASURES, TAG_MEASURES, SoundBlocks
from corpus_asr.report.text import aligned
from corpus_asr.stages.extraction import audio_tagger
from corpus_asr.storage.manifest import read_manifest
from corpus_asr.units import SAMPLE_RATE_HZ

Samples = Float32[np.ndarray, " sample"]
_NOISES_DB = (30, 20, 10, 5, 0)
_TELEPHONE_HZ = 3400
_CUT_OFF = 8.0
_MUSIC_DB = (20, 10, 0, -60)
# Roots of chords of half a second each: A minor, G, F, E.
_ROOTS_HZ = (220.0, 196.0, 174.6, 164.8)


def noisy(samples: Samples, *, snr_db: float) -> Samples:
    """Add white noise."""
    scale = float(np.mean(samples**2) / 10 ** (snr_db / 10)) ** 0.5
    drawn = np.random.default_rng(len(samples)).standard_normal(len(samples))
    made: Samples = samples + (scale * drawn).astype(np.float32)
    return made


def narrow(samples: Samples) -> Samples:
    """Take away what a telephone does not carry."""
    spectrum = np.fft.rfft(samples)
    spectrum[int(_TELEPHONE_HZ * len(samples) / SAMPLE_RATE_HZ) :] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def clipped(samples: Samples) -> Samples:
    """Cut waves off."""
    cut: Samples = np.clip(2 * _CUT_OFF * samples, -1, 1) / 2
    return cut


def with_chords(samples: Samples, *, ratio_db: float) -> Samples:
    """Add plucked chords, so much below the speech."""
    times = np.arange(SAMPLE_RATE_HZ // 2) / SAMPLE_RATE_HZ
    chords = [
        np.exp(-3 * times) * np.sin(2 * np.pi * root_hz * third * partial_of * times)
        / partial_of**1.5
        for root_hz in _ROOTS_HZ for third in (1.0, 1.26, 1.5) for partial_of in range(1, 8)
    ]  # fmt: skip
    bars = np.reshape(chords, (len(_ROOTS_HZ), -1, len(times))).sum(axis=1).ravel()
    music = np.resize(bars, len(samples))
    scale = float(np.mean(samples**2) / np.mean(music**2) / 10 ** (ratio_db / 10)) ** 0.5
    mixed = samples + scale * music
    made: Samples = (mixed / max(1.0, 2 * float(np.abs(mixed).max()))).astype(np.float32)
    return made


def ways(*, music: bool) -> Iterator[tuple[str, Callable[[Samples], Samples]]]:
    """Yield the ways to make sound worse, by their names."""
    yield "as it is", np.copy
    for ratio_db in _MUSIC_DB if music else ():
        yield f"chords, {ratio_db} dB", partial(with_chords, ratio_db=ratio_db)
    for snr_db in _NOISES_DB:
        yield f"noise, {snr_db} dB", partial(noisy, snr_db=snr_db)
    yield "telephone", narrow
    yield "cut off", clipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--dnsmos", action="store_true")
    parser.add_argument("--tagger")
    asked = parser.parse_args()
    clips = [read_samples(row.uri) for row in read_manifest(str(asked.manifest))]
    clips = [clip / (2 * np.abs(clip).max()) for clip in clips if clip.any()]
    scored = MosNetwork() if asked.dnsmos else None
    tagger = asked.tagger and audio_tagger(asked.tagger)
    names = (*MEASURES, *(MOS_MEASURES if scored else ()), *(TAG_MEASURES if tagger else ()))
    table: list[tuple[str, ...]] = [("", *names)]
    scoring_s = tagging_s = 0.0
    for name, worse in ways(music=bool(tagger)):
        found = []
        for clip in clips:
            made = worse(clip).astype(np.float32)
            whole = [(0.0, len(made) / SAMPLE_RATE_HZ)]
            measured: dict[str, Any] = {**SoundBlocks.of(made).over(whole)}
            if scored is not None:
                began_s = time.process_time()
                measured |= scored(made, None).over(whole)
                scoring_s += time.process_time() - began_s
            if tagger:
                began_s = time.process_time()
                measured |= tagger(made).over(whole)
                tagging_s += time.process_time() - began_s
            found.append(measured)
        table.append((name, *(_middle([each[name] for each in found]) for name in names)))
    print("\n".join("  ".join(cells).rstrip() for cells in aligned(table)))
    audio_s = sum(map(len, clips)) / SAMPLE_RATE_HZ * (len(table) - 1)
    for what, spent_s in (("dnsmos", scoring_s), ("tagger", tagging_s)):
        if spent_s:
            print(f"{what}: {spent_s:.1f} s of CPU time for {audio_s:.0f} s of audio")


def _middle(values: Sequence[Any]) -> str:
    if any(isinstance(value, str) for value in values):
        return str(statistics.mode(values))
    return f"{statistics.median(value or 0.0 for value in values):.4g}"


if __name__ == "__main__":
    main()
