"""What may be given as data: manifests, datasets of `label`, Parquet with audio, runs."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus_asr.config.finetune import DataSettings
from corpus_asr.errors import ConfigError
from corpus_asr.pipelines.pseudo_label import label
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.training.audio_cache import AudioCache, prepare
from corpus_asr.training.utterances import Utterance, utterances_in, utterances_of
from tests.support.audio import share_of_tone
from tests.support.runs import (
    Said,
    Transcribed,
    correct_segment,
    seconds_heard,
    tone_hz,
    write_tones,
)

AUDIO_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def manifest(folder: Path, *rows: dict) -> str:
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def transcribed(tmp_path: Path) -> Transcribed:
    found = Transcribed(tmp_path)
    write_tones(found.audio / "a.wav", seconds=8)
    write_tones(found.audio / "b.wav", seconds=4)
    said: list[Said] = [
        (1.0, 3.0, "The ship."),
        (3.0, 5.0, "Came in.", {"confidence": 0.4}),
        (5.0, 7.0, "Thanks for watching!", {"known_hallucination": True}),
    ]
    found.run({"a.wav": said, "b.wav": [(1.0, 3.0, "Go.")]})
    return found


def test_held_out_speakers_are_asked_for_and_not_learnt_from(tmp_path: Path) -> None:
    uri = manifest(
        tmp_path,
        {"uri": "a.wav", "text": "I said so", "speaker": "reader_1"},
        {"uri": "b.wav", "text": "Ja.", "speaker_id": 7},
        {"uri": "c.wav", "text": "No"},
    )
    data = DataSettings(train=(uri,), validation=(uri,), held_out_speakers=("reader_*", "8"))
    assert [each.text for each in utterances_in(data, "train")] == ["Ja.", "No"]
    assert [each.text for each in utterances_in(data, "validation")] == ["I said so", "Ja.", "No"]
    misspelt = data.model_copy(update={"held_out_speakers": ("raeder_*",)})
    with pytest.raises(ConfigError, match=r"no speaker of data\.held_out_speakers \(raeder_\*\)"):
        list(utterances_in(misspelt, "train"))
    assert len(list(utterances_in(misspelt, "validation"))) == 3


@pytest.mark.parametrize("layout", ["huggingface", "webdataset"])
def test_held_out_speakers_of_a_data_set_are_not_learnt_from(
    tmp_path: Path, transcribed: Transcribed, layout: str
) -> None:
    store = OutputStore(transcribed.config().output.uri)
    correct_segment(store, "The ship.", "The ship.", speaker="Anna")
    label(transcribed.config(dataset={"format": layout, "examples": "clips"}), progress=None)
    data = DataSettings(train=(str(transcribed.folder / "set"),), held_out_speakers=("Anna",))
    assert sorted(each.text.strip() for each in utterances_in(data, "train")) == ["Came in.", "Go."]


def given(uri: Path | str, *, split: str = "train", min_confidence: float = 0.0) -> list[Utterance]:
    data = DataSettings(train=(str(uri),), language="de", min_confidence=min_confidence)
    return list(utterances_of(str(uri), data, split=split))


def cache(utterances: list[Utterance], folder: Path) -> AudioCache:
    return prepare(
        utterances,
        folder,
        DataSettings(train=("manifest.jsonl",)),
        count_tokens=lambda text: len(text.split()),
        max_tokens=50,
    )


def test_segments_of_a_run_are_utterances_but_for_known_hallucinations(
    transcribed: Transcribed,
) -> None:
    found = given(transcribed.folder / "output")
    assert [(p.text.strip(), p.start_s, p.end_s, p.language) for p in found] == [
        ("The ship.", 1.0, 3.0, "en"),
        ("Came in.", 3.0, 5.0, "en"),
        ("Go.", 1.0, 3.0, "en"),
    ]
    sure = given(transcribed.folder / "output", min_confidence=0.5)
    assert [p.text.strip() for p in sure] == ["The ship.", "Go."]


@pytest.mark.slow
def test_channels_of_a_run_stay_apart(tmp_path: Path) -> None:
    transcribed = Transcribed(tmp_path)
    write_tones(transcribed.audio / "call.wav", seconds=4, num_channels=2)
    said = [(1.0, 3.0, "Hello.", {"channel": 0}), (1.0, 3.0, "Yes?", {"channel": 1})]
    transcribed.run({"call.wav": said}, extract={"channels": "each"})
    found = cache(given(tmp_path / "output"), tmp_path / "cache")
    for at, hz in enumerate((tone_hz(1), tone_hz(1) + 50)):
        samples = found.audio[found.start[at] : found.start[at] + 16_000] / np.float32(32768)
        assert share_of_tone(samples.astype(np.float32), hz) > 0.9


@pytest.mark.long
def test_a_data_set_of_label_is_learnt_from_without_its_recordings(
    transcribed: Transcribed,
) -> None:
    label(transcribed.config(dataset={"pad_s": 0, "examples": "windows"}), progress=None)
    for path in transcribed.audio.iterdir():
        path.unlink()
    utterances = given(transcribed.folder / "set")
    assert {p.text.strip() for p in utterances} == {"The ship.", "Came in.", "Go."}
    found = cache(utterances, transcribed.folder / "cache")
    said = {found.text(at): at for at in range(len(found))}
    for text, second in (("The ship.", 1), ("Came in.", 3), ("Go.", 1)):
        at = said[text]
        samples = found.audio[found.start[at] : found.end[at]].astype(np.float32) / 32768
        assert seconds_heard(samples) == [second, second + 1]
        assert found.language(at) == "en"
    # The split of a data set is that of the data.
    with pytest.raises(ConfigError, match=r"no data/validation-.*huggingface"):
        given(transcribed.folder / "set", split="validation")


@pytest.mark.slow
def test_parquet_with_audio_from_elsewhere_will_do(
    transcribed: Transcribed, tmp_path: Path
) -> None:
    data = (transcribed.audio / "b.wav").read_bytes()
    rows = [{"bytes": data, "path": None}] * 20 + [{"bytes": None, "path": "gone.wav"}]
    texts = [f"clip {n}" for n in range(21)]
    pq.write_table(
        pa.table({"audio": pa.array(rows, AUDIO_TYPE), "text": texts}),
        tmp_path / "clips.parquet",
        row_group_size=6,
    )
    utterances = given(tmp_path / "clips.parquet")
    assert [(p.row, p.text, p.language) for p in utterances[:2]] == [
        (0, "clip 0", "de"),
        (1, "clip 1", "de"),
    ]
    found = cache(utterances, tmp_path / "cache")
    assert [found.text(at) for at in range(len(found))] == texts[:20]
    assert "row 20" in found.summary["failures"][0]


def test_a_data_set_without_text_or_with_an_unknown_language_is_refused(tmp_path: Path) -> None:
    audio = pa.array([{"bytes": b"RIFF", "path": None}], AUDIO_TYPE)
    for columns, reason in (({}, "'text'"), ({"text": ["x"], "language": ["klingon"]}, "klingon")):
        pq.write_table(pa.table({"audio": audio, **columns}), tmp_path / "x.parquet")
        with pytest.raises(ConfigError, match=rf"reading the data set .*{reason}.*row 0.*correct"):
            given(tmp_path / "x.parquet")
