"""Data sets are opened by those who read them; selection is repeated, resumed and bounded."""

import gc
import io
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from pydantic import ValidationError
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.config.run import PseudoLabelConfig
from corpus_asr.errors import ConfigError, FetchError
from corpus_asr.labelling import dataset
from corpus_asr.labelling.summary import as_data, render
from corpus_asr.pipelines import driver as pipeline
from corpus_asr.pipelines.driver import RunSummary
from corpus_asr.pipelines.pseudo_label import label, run
from corpus_asr.stages.messages import CutRequest
from corpus_asr.storage.manifest import read_manifest
from corpus_asr.storage.run_state.run_files import CONFIG_NAME, KEPT_RUN_FOLDER, Speed
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import filesystem
from corpus_asr.storage.stores.uri import recording_id
from tests.support.audio import decode, wav_bytes
from tests.support.runs import (
    InThisProcess,
    Said,
    Transcribed,
    correct_segment,
    says,
    seconds_heard,
    write_tones,
)

TALK: list[Said] = [
    (0.0, 3.0, "The old ship."),
    (3.0, 5.0, "Came in.", {"confidence": 0.4}),
    (5.0, 9.0, "Nobody saw her lights."),
    (9.0, 12.0, "Until quite late."),
]
WHOLE_SECONDS = {"pad_s": 0}


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "isolated" not in request.fixturenames:
        monkeypatch.setattr(dataset, "IsolatedGenerator", InThisProcess)


@pytest.fixture
def isolated() -> None:
    """Decode in a child process, as outside of tests."""


@pytest.fixture
def decoded(tmp_path: Path) -> Transcribed:
    """Two recordings; one segment of them is not sure."""
    found = Transcribed(tmp_path)
    write_tones(found.audio / "a talk.wav", seconds=12)
    write_tones(found.audio / "b.wav", seconds=4)
    write_tones(found.audio / "quiet.wav", seconds=2)
    found.run({"a talk.wav": TALK, "b.wav": [(1.0, 3.0, "Go.")], "quiet.wav": []})
    return found


def rows_of(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    files = sorted((folder / "data").glob(f"{split}-*.parquet"))
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def selection_of(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "selection").to_pylist()


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


SURE = {"min_confidence": 0.5}


@pytest.mark.usefixtures("isolated")
def test_datasets_reads_it_and_hears_the_seconds_that_were_kept(
    decoded: Transcribed, tmp_path: Path
) -> None:
    from datasets import Audio, load_dataset

    label(decoded.config(selection=SURE, dataset=WHOLE_SECONDS))
    data = load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert {name: part.num_rows for name, part in data.items()} == {"train": 3}
    assert data["train"].features["audio"] == Audio(sampling_rate=16_000)
    found = data["train"].cast_column("audio", Audio(decode=False))
    clips = {row["text"]: decode(row["audio"]["bytes"])[0] for row in found}
    assert {text: seconds_heard(samples) for text, samples in clips.items()} == {
        "The old ship.": [0, 1, 2],
        "Nobody saw her lights. Until quite late.": [5, 6, 7, 8, 9, 10, 11],
        "Go.": [1, 2],
    }
    row = next(row for row in found if row["text"].startswith("Nobody"))
    assert row["whisper_transcript"] == (
        "<|0.00|> Nobody saw her lights.<|4.00|><|4.00|> Until quite late.<|7.00|>"
    )
    assert (row["duration_s"], row["start_s"], row["language"]) == (7.0, 5.0, "en")
    assert (row["model"], row["model_revision"]) == ("model", "revision")


@pytest.mark.long
def test_what_people_corrected_is_labelled_with_certainty_and_marked(
    decoded: Transcribed, tmp_path: Path
) -> None:
    store = OutputStore(decoded.config().output.uri)
    correct_segment(store, "Came in.", "Came home.")
    correct_segment(store, "Go.", "")
    strict = {"min_confidence": 0.95, "max_no_speech_prob": 0.0}
    found = label(decoded.config(selection=strict, dataset=WHOLE_SECONDS))
    assert "kept        1 segments, 2.0 s; 1 corrected or checked by a person" in render(found)
    card = (tmp_path / "set" / "README.md").read_text()
    assert "people corrected or checked 1 of the 1 segments. Rules chose" in card
    (row,) = rows_of(tmp_path / "set")
    assert (row["text"], row["confidence"], row["corrected"]) == ("Came home.", 1.0, True)
    assert row["avg_logprob"] is None  # that of another text
    rows = selection_of(tmp_path / "set")
    assert [(each["text"].strip(), each["corrected"], each["dropped_by"]) for each in rows] == [
        ("The old ship.", False, "confidence"),
        ("Came home.", True, None),
        ("Nobody saw her lights.", False, "confidence"),
        ("Until quite late.", False, "confidence"),
        ("", True, "no_letters"),
    ]
    # More corrections make another data set; the model's own text is a choice.
    correct_segment(store, "Until quite late.", "Until late.")
    with pytest.raises(ConfigError, match="transcripts: the run has other"):
        label(decoded.config(selection=strict, dataset=WHOLE_SECONDS))
    plain = decoded.config(selection={"corrections": False}, to="plain", dataset=WHOLE_SECONDS)
    label(plain)
    texts = [row["text"] for row in rows_of(tmp_path / "plain")]
    assert not any("home" in text for text in texts)


@pytest.mark.long
def test_examples_have_speakers_and_nobody_is_in_two_splits(
    decoded: Transcribed, tmp_path: Path
) -> None:
    store = OutputStore(decoded.config().output.uri)
    by_speaker = {"split_by": "speaker", "validation_fraction": 0.5}
    with pytest.raises(ConfigError, match="without speakers, expected speaker turns"):
        label(decoded.config(dataset=by_speaker))
    with pytest.raises(ConfigError, match="found speakers: none, expected speakers"):
        run(decoded.config(dataset=by_speaker), local=True, progress=None)
    talk, other = decoded.uri("a talk.wav"), decoded.uri("b.wav")
    says(store, talk, (0.0, 5.0, "S1"), (5.0, 12.0, "S2"))
    says(store, other, (1.0, 3.0, "S1"))
    says(store, decoded.uri("quiet.wav"))
    label(decoded.config(selection=SURE, dataset=WHOLE_SECONDS | by_speaker))
    rows = {
        row["text"]: (row["speaker"], split)
        for split in ("train", "validation")
        for row in rows_of(tmp_path / "set", split)
    }
    names = [f"{recording_id(talk)}-S1", f"{recording_id(talk)}-S2", f"{recording_id(other)}-S1"]
    assert sorted(speaker for speaker, _ in rows.values()) == sorted(names)
    assert {split for _, split in rows.values()} == {"train", "validation"}
    assert rows["The old ship."][1] == rows["Nobody saw her lights. Until quite late."][1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_it(decoded: Transcribed, tmp_path: Path) -> None:
    import webdataset

    options = {"format": "webdataset", "examples": "clips", "audio_format": "wav"}
    label(decoded.config(dataset=WHOLE_SECONDS | options))
    (tar,) = (tmp_path / "set" / "data").iterdir()
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    gc.collect()  # it leaves its file open, which is no fault of the next test
    assert [sample["txt"].decode() for sample in samples] == [
        "The old ship.", "Came in.", "Nobody saw her lights.", "Until quite late.", "Go.",
    ]  # fmt: skip
    printed = [json.loads(sample["json"]) for sample in samples]
    assert [each["confidence"] for each in printed] == [0.9, 0.4, 0.9, 0.9, 0.9]
    assert [each["example_id"] for each in printed] == [sample["__key__"] for sample in samples]
    with wave.open(io.BytesIO(samples[1]["wav"])) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16_000, 1, 32_000)


def test_nemo_finds_audio_duration_and_text(decoded: Transcribed, tmp_path: Path) -> None:
    sections = {"format": "nemo", "shard_mb": 0.1, "validation_fraction": 0.5}
    config = decoded.config(dataset=WHOLE_SECONDS | sections)
    found = label(config)
    manifests = sorted((tmp_path / "set").glob("*_manifest.json"))
    assert [path.name.partition("_")[0] for path in manifests] == sorted(found.written.splits)
    lines = [json.loads(line) for path in manifests for line in path.read_text().splitlines()]
    assert len(lines) == found.examples > 0
    for line in lines:
        assert isinstance(line["text"], str)
        assert line["lang"] == "en"
        assert line["recording_uri"].startswith(str(decoded.audio))
        # Relative to the manifest, as NeMo looks for it.
        samples = decode((tmp_path / "set" / line["audio_filepath"]).read_bytes())[0]
        assert line["duration"] == pytest.approx(len(samples) / 16_000, abs=1e-5)
        first = round(line["recording_start_s"])
        assert seconds_heard(samples) == [*range(first, first + round(line["duration"]))]
    card = (tmp_path / "set" / "README.md").read_text()
    assert f'manifest_filepath="{tmp_path}/set/train_manifest.json"' in card
    # It is a manifest like any other.
    rows = [row for path in manifests for row in read_manifest(str(path))]
    assert [(row.needed_text(), row.uri, row.end_s(), row.language()) for row in rows] == [
        (line["text"], str(tmp_path / "set" / line["audio_filepath"]), line["duration"], "en")
        for line in lines
    ]


def test_the_card_says_what_was_kept_and_dropped_by_which_rule(
    decoded: Transcribed, tmp_path: Path
) -> None:
    drops = {"drop_texts": ["go", "größe"], "min_confidence": 0.5}
    label(decoded.config(selection=drops))
    card = DatasetCard.load(tmp_path / "set" / "README.md")
    assert card.data.to_dict()["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*.parquet"}
    ]
    assert (card.data.language, card.data.size_categories) == (["en"], ["n<1K"])
    assert "| `confidence` | confidence below 0.5 | 1 | 2.0 s | 2.0 s | 2.0 s |" in card.text
    assert "| `listed` | a text of drop\\_texts | 1 | 2.0 s | 2.0 s | 2.0 s |" in card.text
    assert "| **kept** |  | 3 | 10.0 s |  |  |" in card.text
    assert "| `checkpoint` | model |" in card.text
    assert "größe" in card.text
    assert "| `audio` | audio |" in card.text


def test_rules_that_cannot_judge_and_splits_that_stay_empty_are_said(
    decoded: Transcribed, tmp_path: Path
) -> None:
    chosen = {"min_snr_db": 15, "min_confidence": 0.5}
    fractions = {"validation_fraction": 0.001, "test_fraction": 0.0}
    found = label(decoded.config(selection=chosen, dataset=fractions))
    printed = render(found)
    assert "5 segments without snr_db, which noise does not drop" in printed
    assert "confidence, which" not in printed
    assert "validation  none: all of its recordings were dropped, or it has none" in printed
    assert "test " not in printed
    assert as_data(found)["rules"]["noise"]["unmeasured"]["count"] == 5
    card = (tmp_path / "set" / "README.md").read_text()
    assert "5 segments without `snr_db`, which `noise` does not drop" in card
    # A run that is to be made yet is refused before it transcribes anything.
    unmeasured: dict[str, Any] = {"measures": []}
    words = r"min_snr_db: found none, expected sound in extract\.measures"
    with pytest.raises(ConfigError, match=words):
        run(decoded.config(selection=chosen, extract=unmeasured), local=True, progress=None)


def test_selecting_again_needs_another_folder_and_no_transcription(
    decoded: Transcribed, tmp_path: Path
) -> None:
    label(decoded.config())
    with pytest.raises(ConfigError, match=r"min_confidence: was null, now 0\.5.*choose another"):
        label(decoded.config(selection=SURE))
    label(decoded.config(selection=SURE, to="sure"))
    assert len(rows_of(tmp_path / "set")) == 2
    assert len(rows_of(tmp_path / "sure")) == 3
    rows = selection_of(tmp_path / "sure")
    assert [(row["text"], row["dropped_by"]) for row in rows if row["dropped_by"]] == [
        (" Came in.", "confidence")
    ]
    examples = {row["example_id"] for row in rows_of(tmp_path / "sure")}
    assert {row["example_id"] for row in rows} == {*examples, None}


def test_an_interrupted_data_set_is_completed_to_the_byte(
    decoded: Transcribed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"shard_mb": 0.1, "examples": "clips"}
    label(decoded.config(to="whole", dataset=small))
    expected = content(tmp_path / "whole")
    assert sum(name.startswith("data/") for name in expected) == 5
    uploads: list[str] = []

    last = [3]

    class Counted:
        """The store, of which the last upload does not come about."""

        @staticmethod
        def upload(path: str, uri: str, *options: Any) -> None:
            uploads.append(uri)
            if len(uploads) == last[0]:
                raise KeyboardInterrupt
            filesystem.upload(path, uri, *options)

    monkeypatch.setattr(dataset, "filesystem", Counted)
    with pytest.raises(KeyboardInterrupt):
        label(decoded.config(to="half", dataset=small))
    half = content(tmp_path / "half")
    assert "README.md" not in half
    done = sum(name.startswith("data/") for name in half)
    assert 0 < done < 5
    for place in ("data", "selection", "_run/shards"):  # of a process that was killed
        (tmp_path / "half" / place).mkdir(exist_ok=True)
        (tmp_path / "half" / place / f".tmp-{0:032x}").write_bytes(b"PAR1")
    uploads.clear()
    last[0] = 0
    label(decoded.config(to="half", dataset=small))
    assert len(uploads) == 5 - done  # what was there is not written again
    found = content(tmp_path / "half")
    differing = {name for name in {*expected, *found} if found.get(name) != expected.get(name)}
    assert differing <= {"README.md", "labels.json"}, "these name the folder"


def test_recordings_that_are_no_longer_the_same_are_counted_and_not_heard(
    decoded: Transcribed, tmp_path: Path
) -> None:
    write_tones(decoded.audio / "c.wav", seconds=3)
    write_tones(decoded.audio / "d.wav", seconds=3)
    decoded.run({name: [(0.0, 2.0, "Word.")] for name in ("c.wav", "d.wav")})
    (decoded.audio / "a talk.wav").unlink()
    write_tones(decoded.audio / "c.wav", seconds=3)
    found = label(decoded.config())
    assert {reason: lost.count for reason, lost in found.written.lost.items()} == {
        "unreadable": 1, "source_changed": 1,
    }  # fmt: skip
    assert [row["text"] for row in rows_of(tmp_path / "set")] == ["Go.", "Word."]
    assert as_data(found)["lost"]["unreadable"] == {"count": 1, "seconds": 12.0}
    assert any("a talk.wav" in message for message in found.written.messages)
    assert "changed after it was transcribed" in (tmp_path / "set" / "README.md").read_text()


def test_what_a_store_did_not_give_is_tried_again_by_the_same_command(
    decoded: Transcribed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: InThisProcess, item: CutRequest) -> Iterator[Any]:
        if item.uri.endswith("b.wav"):
            raise FetchError("reading b.wav: the store does not answer", uri=item.uri)
        yield from original(self, item)

    original = InThisProcess.run
    with monkeypatch.context() as patched:
        patched.setattr(InThisProcess, "run", failing)
        found = label(decoded.config())
    assert as_data(found)["lost"] == {"unreachable": {"count": 1, "seconds": 2.4}}
    assert len(rows_of(tmp_path / "set")) == 1
    assert label(decoded.config()).written.lost == {}
    assert len(rows_of(tmp_path / "set")) == 2


def test_two_runs_have_to_agree(decoded: Transcribed, tmp_path: Path) -> None:
    other = [
        (0.0, 4.9, "the OLD ship, cameo in"),
        (5.0, 12.0, "nobody saw her lamps until quite late"),
    ]
    decoded.run({"a talk.wav": other, "quiet.wav": []}, output="other")
    label(decoded.config(selection={"against": str(tmp_path / "other")}))
    rows = {row["text"].strip(): row for row in selection_of(tmp_path / "set")}
    assert {text: row["dropped_by"] for text, row in rows.items()} == {
        "The old ship.": None,
        "Came in.": "disagreement",
        "Nobody saw her lights.": "disagreement",
        "Until quite late.": None,
        "Go.": "disagreement",  # which has no result there
    }
    assert rows["Nobody saw her lights."]["disagreement"] == 0.25


def timed(start_s: float, text: str, probability: float = 0.9) -> Said:
    """Return a segment with words of half a second."""
    words = [
        {"word": f" {word}", "start_s": start_s + at / 2, "end_s": start_s + (at + 1) / 2,
         "probability": probability}
        for at, word in enumerate(text.split())
    ]  # fmt: skip
    return start_s, start_s + len(words) / 2, text, {"words": words}


WORD_TIMES = {"word_timestamps": True}


def test_texts_of_two_runs_are_fused(decoded: Transcribed, tmp_path: Path) -> None:
    other = {"a talk.wav": [timed(0, "the bold ship"), timed(4, "came in again", 0.8)],
             "quiet.wav": []}  # fmt: skip
    ours = {"a talk.wav": [timed(0, "The old ship.", 0.6), timed(4, "Come in again.", 0.7)],
            "b.wav": [timed(0, "Go.", 0.1)], "quiet.wav": []}  # fmt: skip
    decoded.run(ours, output="mine", decoding=WORD_TIMES)
    decoded.run(other, output="other", decoding=WORD_TIMES)
    selection = {"against": str(tmp_path / "other"), "select": "fuse", "max_disagreement": None}
    label(decoded.config(output="mine", selection=selection))
    rows = {row["text"].strip(): row for row in selection_of(tmp_path / "set")}
    # What the second run has no result for stays.
    assert [*rows] == ["The bold ship.", "came in again.", "Go."]
    first = rows_of(tmp_path / "set")[0]
    assert first["text"] == "The bold ship. came in again."
    assert first["from_other"] == pytest.approx(1 / 3)
    assert rows["came in again."]["disagreement"] == pytest.approx(1 / 3)
    assert rows["Go."]["from_other"] is None
    card = (tmp_path / "set" / "README.md").read_text()
    assert "against" in card


@pytest.mark.parametrize(
    ("ours", "theirs", "printed"),
    [
        ({"decoding": {}}, {"decoding": WORD_TIMES}, r"word_timestamps: false in \S*/mine,"),
        ({"decoding": WORD_TIMES}, {"decoding": {}}, r"word_timestamps: false in \S*/other,"),
        ({"decoding": WORD_TIMES}, {"decoding": WORD_TIMES, "extract": {"channels": "each"}},
         "equal channels, track and task"),
    ],
)  # fmt: skip
def test_runs_whose_words_cannot_be_aligned_are_not_fused(
    decoded: Transcribed, tmp_path: Path, ours: Any, theirs: Any, printed: str
) -> None:
    for output, sections in (("mine", ours), ("other", theirs)):
        decoded.run({"a talk.wav": [timed(0, "The old ship.")]}, output=output, **sections)
    selection = {"against": str(tmp_path / "other"), "select": "fuse"}
    with pytest.raises(ConfigError, match=printed):
        label(decoded.config(output="mine", selection=selection))


def test_what_cannot_be_fused_is_refused_before_anything_is_transcribed(
    decoded: Transcribed, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match=r"set it to the output folder of the second"):
        decoded.config(selection={"select": "fuse"})
    config = decoded.config(
        output="new", selection={"select": "fuse", "against": str(tmp_path / "output")}
    )
    with pytest.raises(ConfigError, match=r"word_timestamps: false in the settings.*select: own"):
        run(config, local=True, progress=None)
    assert not (tmp_path / "new").exists()


def test_channels_that_were_transcribed_apart_are_cut_apart(tmp_path: Path) -> None:
    decoded = Transcribed(tmp_path)
    samples = np.concatenate([np.full((1, 32_000), value, np.float32) for value in (0.1, 0.5)])
    decoded.audio.mkdir()
    (decoded.audio / "two.wav").write_bytes(wav_bytes(samples, rate_hz=16_000))
    said = [(0.0, 1.0, "left", {"channel": 0}), (0.0, 1.0, "right", {"channel": 1})]
    decoded.run({"two.wav": said}, extract={"channels": "each"})
    label(decoded.config())
    levels = {
        row["text"]: decode(row["audio"]["bytes"])[0].mean() for row in rows_of(tmp_path / "set")
    }
    assert levels == pytest.approx({"left": 0.1, "right": 0.5}, abs=0.01)


@pytest.mark.parametrize(
    ("change", "printed"),
    [
        ({"to": "output"}, "found the output folder of the run"),
        ({"output": "nowhere"}, "expected the output folder of a run.*`corpus-asr run` first"),
        ({"output": "files"}, r"found no _run/fingerprint\.json, expected that of the run"),
        ({"selection": {"against": "OUTPUT"}}, "expected another run over the same recordings"),
        ({"selection": {"against": "strangers"}}, "found none of this run's recordings"),
        ({"to": "audio"}, "expected an empty folder"),
        ({"selection": {"languages": ["englich"]}}, "selection.languages"),
    ],
)
def test_what_cannot_be_selected_from_is_refused(
    decoded: Transcribed, tmp_path: Path, change: dict[str, Any], printed: str
) -> None:
    strangers = Transcribed(tmp_path / "elsewhere")
    write_tones(strangers.audio / "x.wav", seconds=2)
    strangers.run({"x.wav": [(0, 1, "x")]}, output="../strangers")
    (decoded.audio / "data").mkdir()
    (decoded.audio / "data" / "mine.parquet").touch()
    OutputStore(str(tmp_path / "files" / KEPT_RUN_FOLDER)).write_json(CONFIG_NAME, {})
    if "against" in change.get("selection", {}):
        name = change["selection"]["against"].lower()
        change = change | {"selection": {"against": str(tmp_path / name)}}
    with pytest.raises(ConfigError, match=printed):
        label(decoded.config(**change))


def write_yaml(path: Path, config: PseudoLabelConfig) -> str:
    # JSON is YAML.
    path.write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    return str(path)


def test_the_command_selects_and_says_so(decoded: Transcribed, tmp_path: Path) -> None:
    config = write_yaml(tmp_path / "job.yaml", decoded.config())
    done = CliRunner().invoke(cli.app, ["label", config, "--set", "selection.min_confidence=0.5"])
    assert done.exit_code == 0, done.output
    assert "confidence        1  2.0 s" in done.stdout
    assert "train       3 examples, 12.4 s, in 1 shard" in done.stdout
    command = ["label", config, "--set", "selection.min_confidence=0.5", "--json"]
    rules = json.loads(CliRunner().invoke(cli.app, command).stdout)["rules"]
    assert rules["confidence"]["dropped"] == {"count": 1, "seconds": 2.0}
    wrong = CliRunner().invoke(cli.app, ["label", config, "--set", "pipeline=transcribe_corpus"])
    assert wrong.exit_code == 2
    plain = {"source": {"uri": "x"}, "model": {"checkpoint": "m"}, "output": {"uri": "o"}}
    (tmp_path / "plain.yaml").write_text(json.dumps(plain))
    wrong = CliRunner().invoke(cli.app, ["label", str(tmp_path / "plain.yaml")])
    assert wrong.exit_code == 2
    assert "expected pseudo_label" in wrong.stderr


def test_one_command_transcribes_and_then_selects(
    decoded: Transcribed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = RunSummary(
        output_uri=str(tmp_path / "late"), run_id="run", listed=1, ok=1, segments=1, audio_s=4.0,
        planned=1, processed=1, speed=Speed(4.0, 1.0),
    )  # fmt: skip

    def transcribe(config: Any, **options: Any) -> RunSummary:
        assert config.pipeline == "pseudo_label"
        decoded.run({"b.wav": [(1.0, 3.0, "Go.")]}, output="late")
        return expected

    monkeypatch.setattr(pipeline, "run", transcribe)
    said = io.StringIO()
    assert run(decoded.config(output="late"), local=True, progress=said) == expected
    assert [row["text"] for row in rows_of(tmp_path / "set")] == ["Go."]
    assert "1 recording, 4.0 s" in said.getvalue()


@pytest.mark.long
def test_transcripts_from_elsewhere_lead_to_no_file_outside_the_own_source(
    decoded: Transcribed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    own = decoded.folder / "own"
    own.mkdir()
    (decoded.audio / "b.wav").rename(own / "b.wav")
    (decoded.audio / "b.wav").symlink_to(own / "b.wav")
    talk, link = decoded.uri("a talk.wav"), decoded.uri("b.wav")
    for number, (folders, expected) in enumerate(
        (([decoded.audio], {talk}), ([decoded.audio, own], {talk, link}), ([own], {link}))
    ):
        to = f"set-{number}"
        label(decoded.config(to=to, source={"uri": [str(folder) for folder in folders]}))
        assert {row["uri"] for row in rows_of(decoded.folder / to)} == expected
    manifest = tmp_path / "list.csv"
    manifest.write_text("uri\naudio/a talk.wav\n")
    label(decoded.config(to="listed", source={"manifest": str(manifest)}))
    assert {row["uri"] for row in rows_of(decoded.folder / "listed")} == {decoded.uri("a talk.wav")}
