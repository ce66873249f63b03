"""Data sets in lhotse's, Kaldi's and ESPnet's layouts, as these tools read them."""

import gc
import json
import os
import shlex
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.config.finetune import DataSettings
from corpus_asr.errors import ConfigError
from corpus_asr.export.speakers import name_speaker
from corpus_asr.labelling import dataset
from corpus_asr.labelling.writers import WRITERS, kaldi_token
from corpus_asr.pipelines.pseudo_label import label
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id
from corpus_asr.training.audio_cache import SampleReader, Wanted
from corpus_asr.training.utterances import utterances_of
from tests.support.runs import InThisProcess, Transcribed, says, seconds_heard, write_tones

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
@pytest.mark.parametrize("audio_format", ["flac", "wav"])
def test_lhotse_opens_cuts_and_hears_them(labelled: Callable[..., Path], audio_format: str) -> None:
    lhotse = pytest.importorskip("lhotse")
    folder = labelled("lhotse", audio_format=audio_format)
    cuts = lhotse.CutSet.from_file(folder / "data/train/cuts.jsonl.gz")
    cuts = cuts.with_recording_path_prefix(folder)
    lhotse.validate(cuts.to_eager(), read_data=True)
    found = {cut.supervisions[0].text: cut for cut in cuts}
    assert {text: heard_of(cut.load_audio()) for text, cut in found.items()} == TEXTS
    said = found["The old ship."].supervisions[0]
    assert (said.language, said.speaker) == ("en", "../Anna-Maria Ö")
    assert said.custom["recording_uri"].endswith("a talk.wav")
    assert said.custom["confidence"] == 0.9
    assert found["Go."].supervisions[0].speaker is None
    manifests = [
        lhotse.load_manifest(folder / f"data/train/{kind}.jsonl.gz")
        for kind in ("recordings", "supervisions")
    ]
    again = lhotse.CutSet.from_manifests(*manifests)
    assert sorted(cut.duration for cut in again) == sorted(cut.duration for cut in cuts)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_lhotse_opens_shar_and_hears_it(labelled: Callable[..., Path]) -> None:
    lhotse = pytest.importorskip("lhotse")
    folder = labelled("shar") / "data" / "train"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{kind}.{number:06d}.{suffix}"
        for kind, suffix in (("cuts", "jsonl.gz"), ("recording", "tar"))
        for number in range(3)
    ]
    cuts = list(lhotse.CutSet.from_shar(in_dir=folder))
    assert {cut.supervisions[0].text: heard_of(cut.load_audio()) for cut in cuts} == TEXTS
    gc.collect()  # it leaves its files open, which is no fault of the next test
    with tarfile.open(folder / "recording.000000.tar") as file:
        members = file.getmembers()
    assert {(each.mtime, each.uid, each.mode) for each in members} == {(0, 0, 0o644)}


def kaldi_files(folder: Path) -> dict[str, dict[str, str]]:
    """Return the files of a data folder, of which the order and the keys are Kaldi's."""
    found = {}
    for path in folder.iterdir():
        lines = path.read_bytes().splitlines()
        assert lines == sorted(lines), path.name
        pairs = [line.decode().split(" ", 1) for line in lines]
        found[path.name] = dict(pairs)
        assert len(found[path.name]) == len(pairs)
    speakers = [found["utt2spk"][name] for name in found["utt2spk"]]
    # utils/validate_data_dir.sh: sorted by utterance, speakers are sorted, too.
    assert [each.encode() for each in speakers] == sorted(each.encode() for each in speakers)
    assert list(found["spk2utt"]) == list(dict.fromkeys(speakers))
    of_speakers = {name: who for who, names in found["spk2utt"].items() for name in names.split()}
    assert of_speakers == found["utt2spk"]
    for name in {*found} - {"spk2utt"}:
        assert found[name].keys() == found["utt2spk"].keys(), name
    return found


def test_kaldi_and_espnet_folders_are_in_order_and_read_the_audio(
    labelled: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kaldi = kaldi_files(labelled("kaldi") / "data" / "train")
    assert sorted(kaldi["text"].values()) == sorted(ON_ONE_LINE)
    utterance = next(name for name, text in kaldi["text"].items() if text == "The old ship.")
    speaker = "..=2FAnna=2DMaria=20=C3=96"
    assert kaldi["utt2spk"][utterance] == speaker
    assert utterance.startswith(f"{speaker}-")
    assert kaldi["segments"][utterance] == f"{utterance} 0.0 3.0000000"
    assert {*kaldi["utt2lang"].values()} == {"en"}
    command = shlex.split(kaldi["wav.scp"][utterance])
    assert (command[:4], command[-1]) == (["flac", "-c", "-d", "-s"], "|")
    assert (tmp_path / "kaldi" / command[4]).is_file()
    # Of whom nobody knows anything, the recording is the speaker.
    alone = next(name for name, text in kaldi["text"].items() if text == "Go.")
    assert kaldi["utt2spk"][alone] == recording_id(str(tmp_path / "audio" / "b.wav"))
    espnet = kaldi_files(labelled("espnet") / "data" / "train")
    assert espnet.keys() == kaldi.keys() - {"segments", "reco2dur"}
    assert espnet["text"] == kaldi["text"]
    assert all((tmp_path / "espnet" / path).is_file() for path in espnet["wav.scp"].values())
    lhotse = pytest.importorskip("lhotse")
    reader = pytest.importorskip("lhotse.kaldi")
    monkeypatch.chdir(tmp_path / "espnet")  # paths count from the folder in which recipes run
    recordings, supervisions, _ = reader.load_kaldi_data_dir("data/train", sampling_rate=16_000)
    cuts = lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    found = {cut.supervisions[0].text: heard_of(cut.load_audio()) for cut in cuts}
    assert found == ON_ONE_LINE


def test_lhotse_reads_kaldi_folders_with_segments(
    labelled: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lhotse = pytest.importorskip("lhotse")
    reader = pytest.importorskip("lhotse.kaldi")
    monkeypatch.chdir(labelled("kaldi", audio_format="wav"))
    recordings, supervisions, _ = reader.load_kaldi_data_dir("data/train", sampling_rate=16_000)
    cuts = lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    lhotse.validate(cuts.to_eager(), read_data=True)
    found = {cut.supervisions[0].text: heard_of(cut.load_audio()) for cut in cuts}
    assert found == ON_ONE_LINE
    assert {each.language for each in supervisions} == {"en"}


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)


@given(
    st.lists(st.one_of(NAMES, st.text("a-_=% .", min_size=1, max_size=4)), unique=True, max_size=6)
)
def test_speakers_are_distinct_tokens_in_the_order_of_their_utterances(names: list[str]) -> None:
    tokens = {name: kaldi_token(name) for name in names}
    assert len({*tokens.values()}) == len(names)
    assert all(token.isascii() and not set(token) & set(" /-\n\t") for token in tokens.values())
    utterances = sorted((f"{token}-0f", token) for token in tokens.values())
    for (_, first), (_, second) in pairwise(utterances):
        assert first <= second


def test_rows_without_what_may_be_missing_are_written(tmp_path: Path) -> None:
    row = {
        "example_id": "0f-1-00000", "text": "Hi\ud800 \r\n\x07you", "language": None,
        "speaker": "", "duration_s": 0.25, "uri": "s3://b/a b.wav", "start_s": 0.1,
        "end_s": 0.35, "channel": 1, "confidence": float(np.float32(0.1)),
    }  # fmt: skip
    for name in ("nemo", "lhotse", "shar", "kaldi", "espnet"):
        (tmp_path / name).mkdir()
        writer = WRITERS[name](tmp_path / name, "train-00012", "wav")
        writer.add(row, b"RIFF")
        writer.close()
        assert all(os.path.normpath(each) == each for each in writer.files)
        assert all(path.stat().st_size for path in writer.files.values())
        if name == "espnet":
            texts = {each: path.read_text() for each, path in writer.files.items()}
    assert texts["_run/manifests/train-00012.text"] == "0f-1-00000 Hi? you\n"
    assert texts["_run/manifests/train-00012.utt2spk"] == "0f-1-00000 0f-1\n"
    assert texts["_run/manifests/train-00012.utt2lang"] == "0f-1-00000 und\n"
    line = (tmp_path / "nemo" / "jsonl").read_text(errors="replace")
    assert json.loads(line)["confidence"] == 0.1


@pytest.mark.long
@pytest.mark.parametrize("layout", ["huggingface", "webdataset", "nemo"])
def test_finetune_reads_a_folder_and_hears_what_is_said(
    labelled: Callable[..., Path], layout: str
) -> None:
    folder = labelled(layout)
    data = DataSettings(train=(str(folder),))
    read = list(utterances_of(str(folder), data, split="train"))
    texts = {each.text.strip(): each for each in read}
    assert texts.keys() == TEXTS.keys()
    assert {each.language for each in read} == {"en"}
    reader = SampleReader(endpoint_url=None)
    for text, each in texts.items():
        pieces = list(reader(Wanted(recording=each.recording, regions=((0, None),))))
        samples = np.concatenate([piece for _, piece in pieces]) / 32_768
        assert heard_of(samples) == TEXTS[text]
    with pytest.raises(ConfigError, match=r"found no data/validation-\*.parquet or .tar among"):
        list(utterances_of(str(folder), data, split="validation"))
