"""What stands around the engines: files, workers and the protocol."""

import io
import json
import threading
import wave

import numpy as np
import pytest

from benchmarks import engines
from benchmarks.engines import samples, serve, spread


def test_samples_are_those_of_the_file(tmp_path):
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.array([0, 16_384, -32_768], "<i2").tobytes())
    assert samples(str(path)).tolist() == [0.0, 0.5, -1.0]


def test_workers_take_files_at_once_and_texts_keep_their_order(tmp_path):
    paths = []
    for name, size in (("a", 1), ("b", 3), ("c", 2)):
        paths.append(str(tmp_path / name))
        (tmp_path / name).write_bytes(b"." * size)
    both = threading.Barrier(2, timeout=30)
    taken = []

    def transcribe(path):
        taken.append(path)
        if path != paths[0]:
            both.wait()  # passes only if both workers have one of the longer files
        return path.upper()

    assert spread([transcribe, transcribe])(paths) == [path.upper() for path in paths]
    assert taken[-1] == paths[0]


def test_a_request_is_answered_and_a_failure_named(monkeypatch):
    seen: list[list[str]] = []
    replies: list[dict] = []

    def load(model, *, threads, workers, loud):
        def engine(paths):
            seen.append(paths)
            return [f"{model} {path} {loud}" for path in paths]

        return engine

    monkeypatch.setitem(engines.ENGINES, "fake", load)
    monkeypatch.setitem(engines._PACKAGES, "fake", ("pytest",))
    request = {
        "engine": "fake", "model": "m", "threads": 1, "workers": 2, "options": {"loud": True},
        "audio": ["a", "b"], "warm_up": "w",
    }  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request) + "\nrun\n"))
    serve(replies.append)
    assert seen == [["w", "w"], ["a", "b"]]
    assert replies[0] == {"ready": True, "versions": {"pytest": pytest.__version__}}
    assert replies[1]["texts"] == ["m a True", "m b True"]
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request | {"options": {}})))
    with pytest.raises(TypeError):
        serve(replies.append)
    assert replies[2]["failed"].startswith("TypeError: ")
