"""Sound made worse by known amounts, and what is measured of it.

    python -m benchmarks.sound_quality MANIFEST

The clips of a manifest are scaled to a peak of 0.5 and get white noise of several levels, the band
of a telephone, or are cut off at an eighth of their peak. With `--dnsmos` they are scored
too, which needs `.[dnsmos]`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.audio.dnsmos import MosNetwork
from corpus_asr.audio.sound_quality import MEASURES, MOS_MEASURES, SoundBlocks
from corpus_asr.benchmark.engines import read_samples
from corpus_asr.report.text import aligned
from corpus_asr.storage.manifest import read_manifest
from corpus_asr.units import SAMPLE_RATE_HZ

Samples = Float32[np.ndarray, " sample"]
_NOISES_DB = (30, 20, 10, 5, 0)
_TELEPHONE_HZ = 3400
_CUT_OFF = 8.0


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


def ways() -> Iterator[tuple[str, Callable[[Samples], Samples]]]:
    """Yield the ways to make sound worse, by their names."""
    yield "as it is", np.copy
    for snr_db in _NOISES_DB:
        yield f"noise, {snr_db} dB", partial(noisy, snr_db=snr_db)
    yield "telephone", narrow
    yield "cut off", clipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--dnsmos", action="store_true")
    asked = parser.parse_args()
    clips = [read_samples(row.uri) for row in read_manifest(str(asked.manifest))]
    clips = [clip / (2 * np.abs(clip).max()) for clip in clips if clip.any()]
    scored = MosNetwork() if asked.dnsmos else None
    names = MEASURES if scored is None else (*MEASURES, *MOS_MEASURES)
    table: list[tuple[str, ...]] = [("", *names)]
    scoring_s = 0.0
    for name, worse in ways():
        found = []
        for clip in clips:
            made = worse(clip).astype(np.float32)
            whole = [(0.0, len(made) / SAMPLE_RATE_HZ)]
            measured = SoundBlocks.of(made).over(whole)
            if scored is not None:
                began_s = time.process_time()
                measured |= scored(made, None).over(whole)
                scoring_s += time.process_time() - began_s
            found.append(measured)
        medians = [statistics.median(each[name] or 0.0 for each in found) for name in names]
        table.append((name, *(f"{value:.4g}" for value in medians)))
    print("\n".join("  ".join(cells).rstrip() for cells in aligned(table)))
    if scored is not None:
        audio_s = sum(map(len, clips)) / SAMPLE_RATE_HZ * len(list(ways()))
        print(f"dnsmos: {scoring_s:.1f} s of CPU time for {audio_s:.0f} s of audio")


if __name__ == "__main__":
    main()
