"""The two measures of docs/examples, in a run."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.pipelines.driver import run
from corpus_asr.stages.measures import new_measure
from tests.speakers.test_networks import SPOKEN
from tests.support.audio import read_clip
from tests.support.onnx_networks import mean_network
from tests.support.tables import plain_read, run_config

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
CLIP = SPOKEN / "inaugural.flac"

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))  # of the child that extracts


def measured(folder: Path, reference: str) -> list[dict[str, Any]]:
    """Return what segments and, last, the outcome of a clip have of a measure."""
    config = run_config(
        CLIP,
        folder / "output",
        model="whisper-tiny.en",
        extract={"measures": ["sound", reference], "workers": 1},
    )
    run(config, local=True)
    segments = plain_read(folder / "output", "segments")
    [outcome] = plain_read(folder / "output", "outcomes")
    assert all(segment["snr_db"] is not None for segment in segments)
    return [json.loads(row["measures"]) for row in (*segments, outcome)]


@pytest.mark.skipif(find_spec("speechmos") is None, reason="needs speechmos")
def test_dnsmos_rates_a_part_as_speechmos_does(tmp_path: Path) -> None:
    *segments, part = measured(tmp_path, "dnsmos:Dnsmos")
    assert segments
    for row in (*segments, part):
        assert [*row["dnsmos"]] == ["signal", "background", "overall"]
        assert 1.0 < row["dnsmos"]["overall"] < 5.0
    scores = new_measure("dnsmos:Dnsmos", {}).measure(read_clip(CLIP), None)
    assert scores[0] == pytest.approx([3.4028, 3.0341, 2.6856], abs=0.01)


def test_a_network_with_yamnets_interface_names_music(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("Speech", "Music", "Silence", "Inside, small room", "Dog")
    lines = [f'{at},/m/{at},"{name}"' for at, name in enumerate(names)]
    (tmp_path / "yamnet_class_map.csv").write_text("\n".join(["index,mid,display_name", *lines]))
    network = mean_network(1, 15_600, keep=True, times=len(names))  # the mean of a frame, as each
    (tmp_path / "yamnet.onnx").write_bytes(network)
    monkeypatch.setenv("YAMNET", str(tmp_path))
    rows = [row["music"] for row in measured(tmp_path, "music:Music")]
    assert len(rows) > 1
    assert {row["share"] for row in rows} == {0.0}
    assert {row["other_sound"] for row in rows} <= {"Music", "Dog"}
    assert np.abs([row["other_score"] for row in rows]).max() < 0.1
