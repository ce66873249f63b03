"""The run that `transcribe -o` keeps beside its files, as `view` opens it."""

import importlib
import itertools
import json
import re
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from corpus_asr.cli import main as cli
from corpus_asr.cli.inputs import inputs_of
from corpus_asr.cli.output_files import Layout, OutputFiles
from corpus_asr.formats.options import CueRules, WordStyle
from corpus_asr.formats.transcript import Transcript
from corpus_asr.segments import SpeakerTurn
from corpus_asr.storage.model_files import checkpoint_version
from corpus_asr.storage.run_state.run_files import CONFIG_NAME, FINGERPRINT_NAME, open_run
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores import local
from corpus_asr.view.answers import Answers
from corpus_asr.view.catalogue import Library
from corpus_asr.view.request import Request
from corpus_asr.view.sound import Sounds
from tests.support.audio import tone, wav_bytes
from tests.support.stores import life
from tests.support.tables import plain_read, rows_of, segment, stored_segments
from tests.view.conftest import answers_of

NAME = "talk {1}[a].wav"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path(NAME).write_bytes(wav_bytes(tone(4.0), rate_hz=16_000))


def written(transcript: Transcript, *, name: str = NAME, **values: Any) -> OutputStore:
    """Write a transcript's files as `transcribe -o out` does; return the run that is kept."""
    inputs = inputs_of([name]).found
    layout = Layout(formats=("txt",), rules=CueRules(), words=WordStyle.plain)
    usual: dict[str, Any] = {"overwrite": False, "apart": "", "made_by": {"model": "m"}}
    output = OutputFiles("out", inputs, layout, **(usual | values))
    output.write(name, transcript, [transcript])
    output.close()
    return open_run("out/")


def stems(folder: str) -> set[str]:
    return {path.stem for path in Path("out/.corpus-asr/run", folder).iterdir()}


def shown(store: OutputStore) -> tuple[dict[str, Any], Sequence[dict[str, Any]], dict[str, Any]]:
    """Return what pages are given of the only recording, its segments, and its sound."""
    with closing(Library(store)) as library, closing(Sounds(store)) as sounds:
        library.wait()
        answers: Answers = answers_of(library, sounds)
        assert answers.run(Request())["finished"]
        (row,) = answers.recordings(Request())["recordings"]
        asked = Request(id=row["id"])
        recording, sound = answers.recording(asked), answers.sound(replace(asked, decode=True))
        return recording, answers.segments(asked)["segments"], sound


SAID = Transcript(
    segments=(segment(" Hello there.", 0.0, 2.0, words=True), segment(" Bye.", 2.0, 4.0)),
    language="en", duration_s=4.0, speech_s=4.0, model="m",
    turns=(SpeakerTurn(start_s=0.0, end_s=2.0, speaker="S1", confidence=0.9),
           SpeakerTurn(start_s=2.0, end_s=4.0, speaker="S2", confidence=0.9)),
)  # fmt: skip


COMMANDS = {
    "status out": r"\(finished\)",
    "report out": r"\(finished\)\n.*1: 1 with text.*1 have exactly one outcome",
    "show out": "Hello there",
    "export out --to edited --format txt": "1 recording, 2 segments",
    "evaluate out --references said.jsonl": "1 recording",
    "label label.yaml": "kept +2 segments",
    "remove out --uri *talk* --yes": (
        r"erased 1 recording.*not erased: the files that transcribe wrote"
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_opens_the_folder_of_files(command: str) -> None:
    written(SAID, made_by={"model": "m", "model_revision": "r", "word_timestamps": True})
    said = {"path": NAME, "text": "Hello there. Bye."}
    Path("said.jsonl").write_text(json.dumps(said))
    job = {"pipeline": "pseudo_label", "output": {"uri": "out"}, "dataset": {"uri": "set"}}
    Path("label.yaml").write_text(json.dumps(job))
    done = CliRunner().invoke(cli.app, command.split())
    assert done.exit_code == 0, done.output
    assert re.search(COMMANDS[command], done.stdout, re.DOTALL), done.stdout


def test_settings_and_recordings_are_those_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    made_by = {"model": "m", "model_revision": "r", "channels": 0, "log_prob_threshold": -2.0}
    store = written(SAID, made_by=made_by)
    written(SAID, made_by=made_by, overwrite=True)
    config, noted = (store.read_json(name) for name in (CONFIG_NAME, FINGERPRINT_NAME))
    assert (config["extract"]["channels"], config["decoding"]["logprob_threshold"]) == (0, -2.0)
    assert noted["fingerprint"].endswith("-r")
    assert "pipeline" not in config  # it has no later run
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "notebooks"))
    read_run = importlib.import_module("scores").read_run
    (recording,) = read_run("out", "recordings").to_dict("records")
    assert (recording["status"], recording["segments"], recording["duration_s"]) == ("ok", 2, 4.0)


def test_words_speakers_and_sound_are_those_of_the_transcript() -> None:
    store = written(SAID)
    recording, segments, sound = shown(store)
    assert recording["name"] == NAME
    assert [(each["text"], each["speaker"]) for each in segments] == [
        ("Hello there.", "S1"), ("Bye.", "S2")
    ]  # fmt: skip
    assert [word[0] for word in segments[0]["words"]] == [" Hello", " there."]
    assert sound["state"] == "ok"
    assert Path("out", "talk {1}[a].txt").read_text() == "Hello there.\nBye.\n"


def test_the_model_is_a_name_and_its_revision_a_hash(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "own"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    revision = checkpoint_version(str(folder))
    assert re.fullmatch("[0-9a-f]{16}", revision)
    made_by = {"model": str(folder), "model_revision": revision}
    store = written(replace(SAID, model=None), made_by=made_by)
    (segment_row, *_) = rows_of(stored_segments(store))
    assert (segment_row["model"], segment_row["model_revision"]) == (str(folder), revision)
    assert store.read_json(CONFIG_NAME)["model"]["checkpoint"] == str(folder)
    (folder / "config.json").write_text("{ }")
    assert checkpoint_version(str(folder)) != revision


def test_what_is_transcribed_again_replaces_what_was_kept() -> None:
    written(SAID)
    other = replace(SAID, segments=(segment(" Other words.", 0.0, 4.0),), turns=())
    store = written(other, overwrite=True)
    recording, segments, _ = shown(store)
    assert ([each["text"] for each in segments], recording["turns"]) == (["Other words."], [])
    assert len(list(Path("out/.corpus-asr/run/_run/commits").iterdir())) == 1


def test_a_killed_call_leaves_one_commit_and_one_name_to_the_next() -> None:
    written(SAID)
    whole = Path("out").rename("whole")
    for moment in itertools.count():
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree(whole, "out")
        with life(moment) as process:
            written(replace(SAID, segments=(segment(" Killed.", 0.0, 4.0),)),
                    made_by={"beam_size": 3})  # fmt: skip
        last = replace(SAID, segments=(segment(" The last.", 0.0, 4.0),), turns=None)
        store = written(last, made_by={"beam_size": 4})
        texts = [row["text"] for rows in stored_segments(store) for row in rows.to_pylist()]
        files = {path.name: path.read_text() for path in Path("out").glob("*.txt")}
        assert (texts, files) == ([" The last."], {f"{Path(NAME).stem}.txt": "The last.\n"}), moment
        assert stems("recordings") == stems("_run/commits"), moment
        if not process.killed:
            break
    assert moment > 5


def test_the_next_call_writes_the_rows_of_recordings_that_a_killed_one_left_out() -> None:
    names = [f"{number}.wav" for number in range(3)]
    for name in names:
        shutil.copy(NAME, name)
    layout = Layout(formats=("txt",), rules=CueRules(), words=WordStyle.plain)
    output = OutputFiles("out", inputs_of(names).found, layout,
                         overwrite=False, apart="", made_by={"model": "m"})  # fmt: skip
    for name in names:
        output.write(name, SAID, [SAID])
    assert len(stems("recordings")) < len(stems("_run/commits")) == 3
    written(SAID)
    assert stems("recordings") == stems("_run/commits")
    rows = plain_read(Path("out/.corpus-asr/run"), "recordings")
    assert sorted(Path(row["uri"]).name for row in rows) == sorted([*names, NAME])


@pytest.mark.long
def test_what_a_killed_call_was_writing_goes_with_the_next() -> None:
    written(SAID)
    places = [Path("out"), *(path for path in Path("out").rglob("*") if path.is_dir())]
    leftovers = [place / f".tmp-{number:032x}" for number, place in enumerate(places)]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    local._sweep_at.cache_clear()
    written(SAID, overwrite=True)
    assert not [each for each in leftovers if each.exists()]


def test_channels_and_silence_are_kept() -> None:
    parts = tuple(
        replace(SAID, segments=(segment(f" Channel {at}.", float(at), at + 1.0),), channel=at,
                turns=None)
        for at in range(2)
    )  # fmt: skip
    said = tuple(each.segments[0] for each in parts)
    store = written(replace(SAID, segments=said, channels=parts, turns=None))
    recording, segments, _ = shown(store)
    assert recording["apart"] == [0, 1]
    assert [each["text"] for each in segments] == ["Channel 0.", "Channel 1."]
    silent = replace(SAID, segments=(), language=None, turns=None)
    store = written(silent, overwrite=True)
    assert shown(store)[0]["state"] == "no_speech"


def test_a_run_in_the_folder_itself_is_what_is_shown() -> None:
    written(SAID)
    OutputStore("out").write_json(CONFIG_NAME, {})
    assert open_run("out").uri == OutputStore("out").uri
