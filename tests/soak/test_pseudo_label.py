"""Making training data: killed drivers, far stores, long audio."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from corpus_asr.pipelines.pseudo_label import label
from corpus_asr.stages.cutting import ClipCutter
from corpus_asr.stages.messages import ClipRange, CutRequest
from corpus_asr.storage.stores.filesystem import DEFAULT_STORE
from corpus_asr.units import MEBIBYTE, SAMPLE_RATE_HZ
from tests.support.audio import wav_bytes
from tests.support.runs import Transcribed, write_tones

pytestmark = pytest.mark.slow


def content(folder: Path) -> dict[str, bytes]:
    """Return the files that do not name their folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("README.md", "labels.json")
    }


def many(folder: Path, count: int) -> Transcribed:
    transcribed = Transcribed(folder)
    for at in range(count):
        write_tones(transcribed.audio / f"{at:03d}.wav", seconds=6)
    transcribed.run({f"{at:03d}.wav": [(0.0, 2.0, f"Word {at}."), (2.0, 5.0, "More.")]
               for at in range(count)})  # fmt: skip
    return transcribed


def test_a_killed_driver_leaves_what_the_next_completes_to_the_byte(tmp_path: Path) -> None:
    transcribed = many(tmp_path, 40)
    small = {"shard_mb": 0.2, "examples": "clips", "workers": 2}
    label(transcribed.config(to="whole", dataset=small))
    config = transcribed.config(to="half", dataset=small)
    (tmp_path / "job.yaml").write_text(
        json.dumps(config.model_dump(mode="json", exclude_unset=True))
    )
    command = [
        str(Path(sys.executable).with_name("corpus-asr")),
        "label",
        str(tmp_path / "job.yaml"),
    ]
    for least in (3, 8, 15):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            if len(list((tmp_path / "half/_run/shards").glob("*.json"))) >= least:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.01)
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "half/README.md").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "half") == content(tmp_path / "whole")


def test_memory_does_not_grow_with_the_length_of_a_recording(tmp_path: Path) -> None:
    lasts_s = 1800
    (tmp_path / "long.wav").write_bytes(
        wav_bytes(np.zeros((1, lasts_s * SAMPLE_RATE_HZ), np.float32), rate_hz=SAMPLE_RATE_HZ)
    )
    ranges = tuple(
        ClipRange(channel=None, start_sample=at * SAMPLE_RATE_HZ,
                end_sample=(at + 30) * SAMPLE_RATE_HZ)
        for at in range(0, lasts_s, 60)
    )  # fmt: skip
    cutter = ClipCutter(store=DEFAULT_STORE, channels="mix", audio_format="flac")
    request = CutRequest(uri=str(tmp_path / "long.wav"), size_bytes=None, etag=None, ranges=ranges)
    tracemalloc.start()
    try:
        assert sum(clip.num_samples > 0 for clip in cutter(request)) == len(ranges)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * MEBIBYTE  # all of it would be 110 MiB
