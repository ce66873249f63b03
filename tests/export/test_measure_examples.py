"""The two measures of docs/examples on the segments of a run."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.speakers.test_embeddings import SPOKEN, mean_network
from tests.support.runs import passage, run_of, spoken

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
CLIP = str(SPOKEN / "inaugural.flac")
KEYS = ["recording_id", "part", "channel", "segment"]


@pytest.fixture
def output(tmp_path: Path) -> str:
    said = [passage(0, "And so my fellow Americans"), passage(1, "ask not")]
    return run_of(tmp_path / "output", spoken(CLIP, *said)).uri


def measured(folder: Path, name: str, output: str, **variables: str) -> list[dict[str, Any]]:
    for file in (EXAMPLES / "measure.py", EXAMPLES / f"{name.partition(':')[0]}.py"):
        shutil.copy(file, folder)
    command = [sys.executable, "measure.py", name, output, "measured.parquet"]
    subprocess.run(command, cwd=folder, env=variables, check=True)
    rows: list[dict[str, Any]] = pq.read_table(folder / "measured.parquet").to_pylist()
    return rows


@pytest.mark.long
@pytest.mark.skipif(find_spec("speechmos") is None, reason="needs speechmos")
def test_dnsmos_rates_each_segment_as_speechmos_does(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = measured(tmp_path, "dnsmos:Dnsmos", output)
    assert [*rows[0]] == [*KEYS, "dnsmos_signal", "dnsmos_background", "dnsmos_overall"]
    assert [row["segment"] for row in rows] == [0, 1]
    assert all(1.0 < row["dnsmos_overall"] < 5.0 for row in rows)
    monkeypatch.syspath_prepend(tmp_path)
    import dnsmos  # type: ignore[import-not-found]
    import measure  # type: ignore[import-not-found]

    scores = dnsmos.Dnsmos()(measure.samples_of(CLIP)[: dnsmos.WINDOW])
    assert [*scores.values()] == pytest.approx([3.4028, 3.0341, 2.6856], abs=0.01)


@pytest.mark.long
def test_a_network_with_yamnets_interface_names_music(output: str, tmp_path: Path) -> None:
    names = ("Speech", "Music", "Silence", "Inside, small room", "Dog")
    lines = [f'{at},/m/{at},"{name}"' for at, name in enumerate(names)]
    (tmp_path / "yamnet_class_map.csv").write_text("\n".join(["index,mid,display_name", *lines]))
    network = mean_network(1, 15_600, keep=True, times=len(names))  # the mean of a frame, as each
    (tmp_path / "yamnet.onnx").write_bytes(network)
    rows = measured(tmp_path, "music:Music", output, YAMNET=str(tmp_path))
    assert [*rows[0]] == [*KEYS, "music_share", "other_sound", "other_sound_score"]
    assert {row["music_share"] for row in rows} == {0.0}
    assert {row["other_sound"] for row in rows} <= {"Music", "Dog"}
    assert np.abs([row["other_sound_score"] for row in rows]).max() < 0.1
