"""Data sets as other tools read them, and as lhotse makes its own and Kaldi's of them."""

import gc
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus_asr.export.speakers import name_speaker
from corpus_asr.labelling import dataset
from corpus_asr.labelling.writers import WRITERS
from corpus_asr.pipelines.pseudo_label import label
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.runs import InThisProcess, Transcribed, says, seconds_heard, write_tones
from tests.support.system import skip_without

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "dataset_formats.md"
TEXTS = {
    "The old ship.": [0, 1, 2],
    "Nobody saw\u00a0her\tlights.": [5, 6, 7, 8],
    "Größe 100 % 你好": [9, 10, 11],
    "Go.": [1, 2],
}
ON_ONE_LINE = {" ".join(text.split()): heard for text, heard in TEXTS.items()}
CLIPS = {"examples": "clips", "pad_s": 0, "shard_mb": 0.2}


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Two recordings with speakers, one of them with a name that is no file's; their data set."""
    monkeypatch.setattr(dataset, "IsolatedGenerator", InThisProcess)
    found = Transcribed(tmp_path)
    write_tones(found.audio / "a talk.wav", seconds=12)
    write_tones(found.audio / "b.wav", seconds=4)
    first, second, third, last = TEXTS
    talk = [(0.0, 3.0, first), (5.0, 9.0, second), (9.0, 12.0, third)]
    found.run({"a talk.wav": talk, "b.wav": [(1.0, 3.0, last)]})
    store = OutputStore(found.config().output.uri)
    says(store, found.uri("a talk.wav"), (0.0, 5.0, "S1"), (5.0, 9.0, "S2"))
    says(store, found.uri("b.wav"))
    name_speaker(store, found.uri("a talk.wav"), "S1", "../Anna-Maria Ö", seen="")

    def make(layout: str, **values: Any) -> Path:
        found_set = found.config(to=layout, dataset=CLIPS | values | {"format": layout})
        assert label(found_set).examples == len(TEXTS)
        return tmp_path / layout

    return make


def heard_of(samples: Any) -> list[int]:
    return seconds_heard(np.asarray(samples, dtype=np.float32).reshape(-1))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_lhotse_makes_its_layouts_and_kaldis_as_the_guide_says(
    labelled: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without("soundfile", "ffmpeg")
    lhotse = pytest.importorskip("lhotse")
    reader = pytest.importorskip("lhotse.kaldi")
    labelled("huggingface").rename(tmp_path / "training")
    monkeypatch.chdir(tmp_path)
    [recipe] = re.findall(r"^```python\n(from pathlib.*?)^```$", GUIDE.read_text(), re.M | re.S)
    exec(recipe, {})
    gc.collect()  # lhotse leaves its files open, which is no fault of the next test
    recordings, supervisions, _ = reader.load_kaldi_data_dir("kaldi", sampling_rate=16_000)
    for cuts in (
        lhotse.CutSet.from_file("lhotse/cuts.jsonl.gz"),
        lhotse.CutSet.from_shar(in_dir="shar"),
        lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions),
    ):
        found = {" ".join(cut.supervisions[0].text.split()): cut for cut in cuts}
        assert {text: heard_of(cut.load_audio()) for text, cut in found.items()} == ON_ONE_LINE


def test_rows_without_what_may_be_missing_are_written(tmp_path: Path) -> None:
    row = {
        "example_id": "0f-1-00000", "text": "Hi\ud800 \r\n\x07you", "language": None,
        "speaker": "", "duration_s": 0.25, "uri": "s3://b/a b.wav", "start_s": 0.1,
        "end_s": 0.35, "channel": 1, "confidence": float(np.float32(0.1)),
    }  # fmt: skip
    writer = WRITERS["nemo"](tmp_path, "train-00012", "wav")
    writer.add(row, b"RIFF")
    writer.close()
    assert [*writer.files] == [
        "audio/train-00012/0f-1-00000.wav", "_run/manifests/train-00012.jsonl",
    ]  # fmt: skip
    assert all(path.stat().st_size for path in writer.files.values())
    line = (tmp_path / "jsonl").read_text(errors="replace")
    assert json.loads(line)["confidence"] == 0.1
