"""A driver that makes training data and is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from corpus_asr.pipelines.pseudo_label import label
from corpus_asr.storage.stores.local import TEMPORARY_PREFIX
from tests.support.runs import Transcribed, write_tones

pytestmark = pytest.mark.slow


def content(folder: Path) -> dict[str, bytes]:
    """Return the files that name no folder and no driver, and are no leftover of a killed write."""
    others = ("README.md", "labels.json", "tables.json")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in others and not path.name.startswith(TEMPORARY_PREFIX)
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
