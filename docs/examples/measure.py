"""Measure each segment of a run by a class of yours, next to this file.

python measure.py dnsmos:Dnsmos OUTPUT_URI dnsmos.parquet
"""

import importlib
import sys
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from typing import Any

import av
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corpus_asr import read_segments

RATE_HZ = 16_000
KEYS = ("recording_id", "part", "channel", "segment")


def samples_of(uri: str) -> np.ndarray:
    """Return the samples of a recording between -1 and 1, channels mixed."""
    resampler = av.AudioResampler("flt", "mono", RATE_HZ)
    with fsspec.open(uri) as file, av.open(file) as container:
        frames = [done for frame in container.decode(audio=0) for done in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def measured(output: str, measure: Callable[[np.ndarray], dict[str, Any]]) -> pa.Table:
    """Return a row per segment: its keys, and what `measure` says of its samples."""
    segments = read_segments(output, corrected=False).select(["uri", "start_s", "end_s", *KEYS])
    rows = []
    for uri, group in groupby(segments.sort_by("uri").to_pylist(), key=itemgetter("uri")):
        samples = samples_of(uri)
        for row in group:
            start, end = (round(row[name] * RATE_HZ) for name in ("start_s", "end_s"))
            rows.append({name: row[name] for name in KEYS} | measure(samples[start:end]))
    return pa.Table.from_pylist(rows)


if __name__ == "__main__":
    named, output, target = sys.argv[1:]
    module, _, name = named.partition(":")
    pq.write_table(measured(output, getattr(importlib.import_module(module), name)()), target)
