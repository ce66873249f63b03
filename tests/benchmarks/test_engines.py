"""What stands around the engines of peers: files, workers and versions."""

import threading
import wave

import numpy as np
import pytest

from benchmarks.engines import samples, spread


def test_samples_are_those_of_the_file(tmp_path):
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.array([0, 16_384, -32_768], "<i2").tobytes())
    assert samples(str(path)).tolist() == [0.0, 0.5, -1.0]


def test_workers_take_files_at_once_and_texts_keep_their_order():
    both = threading.Barrier(2, timeout=30)

    def transcribe(path):
        if path != "c":
            both.wait()  # passes only if both workers have one of the first files
        return path.upper()

    found = spread([transcribe, transcribe], "pytest")(["a", "b", "c"])
    assert found == {"texts": ["A", "B", "C"], "versions": {"pytest": pytest.__version__}}
