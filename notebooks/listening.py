"""Audio for the notebooks: a span of a recording as samples."""

import numpy as np

from corpus_asr.array_types import Float32
from corpus_asr.audio.decode import open_audio
from corpus_asr.storage.stores.filesystem import open_binary
from corpus_asr.units import SAMPLE_RATE_HZ


def cut(uri: str, start_s: float, end_s: float) -> Float32[np.ndarray, " sample"]:
    """Decode a span of a recording, at 16 kHz and mixed to mono.

    Args:
        uri: as in the tables; anything that a run can read.
        start_s: from the start of the recording.
        end_s: from the start of the recording; decoding ends there.

    Raises:
        DecodeError: the recording cannot be decoded.
        FetchError: the recording cannot be read.
    """
    first, last = (round(each * SAMPLE_RATE_HZ) for each in (start_s, end_s))
    kept, passed = [], 0
    with open_binary(uri) as file, open_audio(file, uri=uri) as decoder:
        for chunk in decoder:
            kept.append(chunk[0, max(0, first - passed) : max(0, last - passed)])
            passed += chunk.shape[1]
            if passed >= last:
                break
    return np.concatenate(kept)
