"""`corpus-asr transcribe` around a scripted transcriber: options, outputs, messages, exit codes."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from corpus_asr.cli.inputs import inputs_of
from corpus_asr.cli.output_files import Layout, OutputFiles
from corpus_asr.errors import CheckpointError, DecodeError, EngineError, ItemError
from corpus_asr.formats.options import CueRules, WordStyle
from corpus_asr.formats.transcript import Transcript
from corpus_asr.segments import Segment
from corpus_asr.storage.listing import RECORDS_FOLDER
from corpus_asr.storage.stores.filesystem import read_bytes
from tests.support.stores import default_s3
from tests.support.tables import segment
from tests.support.terminal import on_terminal

NAMED = ("--model", "tiny")


class ScriptedTranscriber:
    """Finds the same two segments in every recording; its name says if something else happens."""

    loaded: SimpleNamespace | None = None
    read: list[str] = []  # noqa: RUF012 - of the one that a test uses

    @classmethod
    def from_pretrained(cls, checkpoint: str, **options: Any) -> "ScriptedTranscriber":
        if checkpoint == "missing":
            raise CheckpointError("opening missing: no such folder")
        cls.loaded = SimpleNamespace(checkpoint=checkpoint, options=options)
        return cls()

    def __enter__(self) -> "ScriptedTranscriber":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def transcribe_many(
        self,
        audios: Iterable[Any],
        *,
        on_error: Callable[[str, ItemError], None],
        on_progress: Callable[[Any], None],
        on_segment: Callable[[str, Segment], None] | None,
    ) -> Iterator[Transcript]:
        # A recording with "late" in its name ends after the one behind it.
        late: list[Transcript] = []
        for audio in audios:
            name = audio if isinstance(audio, str) else audio.name
            self.read.append(name)
            if "bad" in name:
                on_error(name, DecodeError(f"decoding {name}: no audio stream", uri=name))
                continue
            if "stop" in name:
                raise KeyboardInterrupt
            if "lost" in name:
                raise EngineError("the device is lost")
            said = [] if "silent" in name else SAID
            if "silent" not in name and not isinstance(audio, str):
                said = [segment(f" {len(audio.read())} bytes.", 0.0, 1.0)]
            for number, each in enumerate(said, 1):
                on_progress(progress(name, 2000.0 * number))
                if on_segment is not None:
                    on_segment(name, each)
            late.append(transcript(name, said))
            if "late" not in name:
                yield from reversed(late)
                late.clear()
        yield from reversed(late)


SURE: dict[str, Any] = {"language": "en", "language_probability": 0.98}
SAID = [segment(" Hällo.", 0.0, 2.0, **SURE), segment(" Unsure.", 3661.5, 3663.5, confidence=0.2)]
LINES = ["[00:00.000 --> 00:02.000] Hällo.", "[01:01:01.500 --> 01:01:03.500] Unsure."]


def progress(name: str, transcribed_s: float) -> SimpleNamespace:
    return SimpleNamespace(
        uri=name, decoded_s=4000.0, transcribed_s=transcribed_s, duration_s=4000.0
    )


def transcript(name: str, said: list[Segment]) -> Transcript:
    return Transcript(
        segments=tuple(said), language="en" if said else None,
        language_probability=0.98 if said else None, duration_s=4000.0, uri=name,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.wav", "b.wav", "c.wav", "bad.wav", "silent.wav", "stop.wav", "a_late.wav",
                 "lost.wav", "one/a.mp3", "two/a.mp3", "two/a.wav", "two/deep/d.mp4"):  # fmt: skip
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    module = ModuleType("corpus_asr.runtime.transcriber")
    module.__dict__["Transcriber"] = ScriptedTranscriber
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(ScriptedTranscriber, "loaded", None)
    monkeypatch.setattr(ScriptedTranscriber, "read", [])
    return tmp_path


def call(*arguments: str, stdin: bytes | None = None, model: bool = True) -> Result:
    return CliRunner().invoke(
        cli.app, ["transcribe", *arguments, *(NAMED if model else ())], input=stdin
    )


def written(folder: str = "out") -> list[str]:
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    paths = [path for path in paths if RECORDS_FOLDER not in path.parts]
    return [path.relative_to(folder).as_posix() for path in paths]


def given() -> dict[str, Any]:
    assert ScriptedTranscriber.loaded is not None
    machine = ("device", "compute_type", "num_threads")
    return {
        name: value
        for name, value in ScriptedTranscriber.loaded.options.items()
        if name not in machine
    }


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("--language German", "language", "German"),
        ("--language en,de", "language", "en,de"),
        ("--task translate", "task", "translate"),
        ("--word_timestamps", "word_timestamps", True),
        ("--no-word-timestamps", "word_timestamps", False),
        ("--highlight_words", "word_timestamps", True),
        ("--initial_prompt Names:", "initial_prompt", "Names:"),
        ("--hotwords Kubernetes", "hotwords", "Kubernetes"),
        ("--hotwords @names.txt", "hotwords", {"Kubernetes": 1.0, "Ray": 2.0}),
        ("--beam_size 5", "beam_size", 5),
        ("--beam-size auto", "beam_size", "auto"),
        ("--quality fast", "quality", "fast"),
        ("--temperature 0", "temperature", [0.0]),
        ("--temperature 0,0.2,0.4", "temperature", [0.0, 0.2, 0.4]),
        ("--strategy chunked", "strategy", "chunked"),
        ("--no-vad-filter", "vad_filter", False),
        ("--no-vad", "vad_filter", False),
        ("--set vad_threshold=0.3", "vad_threshold", 0.3),
        ("--clip_timestamps 10,20", "clip_timestamps", "10,20"),
        ("--condition_on_prev_tokens", "condition_on_prev_tokens", True),
        ("--channels 1", "channels", 1),
        ("--channels mix", "channels", "mix"),
        ("--set no_repeat_ngram_size=3", "no_repeat_ngram_size", 3),
        ("--set decoding.temperature=0", "temperature", 0),
        ("--set extract.part_s=60", "part_s", 60),
        ("--set slots=2", "slots", 2),
        ("--set source.allow_hosts=[a.org,10.0.0.0/8]", "allow_hosts", ["a.org", "10.0.0.0/8"]),
    ],
)
def test_options_arrive_by_the_names_of_the_settings(typed: str, key: str, value: Any) -> None:
    Path("names.txt").write_text("Kubernetes\nRay\t2\n")
    result = call("a.wav", *typed.split())
    assert result.exit_code == 0, result.output
    assert given() == {key: value}


@pytest.mark.parametrize(
    ("typed", "also"),
    [
        ("", {}),
        ("--no-word-timestamps", {"word_timestamps": False}),
        ("--num-speakers 2", {"num_speakers": 2}),
        ("--set min_speakers=2 --set max_speakers=4", {"min_speakers": 2, "max_speakers": 4}),
    ],
)
def test_speakers_are_asked_for_with_word_times(typed: str, also: dict[str, Any]) -> None:
    result = call("a.wav", "--diarize", *typed.split())
    assert result.exit_code == 0, result.output
    assert given() == {"diarize": True, "word_timestamps": True} | also


def test_the_model_and_the_machine_are_chosen() -> None:
    call("a.wav", "--device", "cpu", "--compute_type", "int8", "--threads", "2")
    assert ScriptedTranscriber.loaded == SimpleNamespace(
        checkpoint="tiny",
        options={"device": "cpu", "compute_type": "int8", "num_threads": 2},
    )
    quiet = call("a.wav", "--quiet", model=False)
    assert (quiet.stderr, ScriptedTranscriber.loaded.checkpoint) == ("", "whisper-tiny.en")
    assert call("a.wav", model=False).stderr.startswith("model: whisper-tiny.en, the English model")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("a.wav --beam_sise 5", "No such option: --beam_sise. Did you mean --beam-size?"),
        ("a.wav --output_format srt", "Did you mean --format?"),
        ("a.wav --vad_min_speech 4", "Did you mean --set vad_min_speech_s=...?"),
        ("a.wav --fp16 False", "Did you mean --compute-type?"),
        ("a.wav --set temprature=0", "did you mean temperature?"),
        ("a.wav --beam-size 0", "beam_size: found 0, expected a whole number at least 1"),
        ("a.wav --temperature hot", 'reading --temperature: found "hot", expected numbers'),
        ("a.wav --channels both", "channels: "),
        ("a.wav -f sub", "reading --format: found sub, expected txt, srt"),
        ("a.wav -f srr", "did you mean srt?"),
        ("a.wav -f srt,vtt", "found 2 formats, expected one on standard output; name a folder"),
        ("a.wav b.wav -f srt", "found 2 recordings, expected one on standard output; name a"),
        (
            "a.wav --subtitle-preset none --set max_line_count=2",
            "max_line_count without max_line_width",
        ),
        (
            "a.wav -f srt --set min_gap=1",
            "reading --set min_gap: unknown key; did you mean min_gap_s",
        ),
        ("a.wav --set vad_threshold=2", "vad_threshold: found 2"),
        ("a.wav -o a.wav", "making the folder a.wav: File exists; choose another --output-dir"),
        ("a.wav -o http://h.org/x", "found an http URL, expected a writable folder"),
    ],
)
def test_a_wrong_option_is_told_before_a_model_is_loaded(typed: str, message: str) -> None:
    result = call(*typed.split(), "--model", "missing", model=False)
    assert result.exit_code == 2
    assert message in " ".join(re.sub("[│╭╮╰╯─]", "", result.stderr).split())
    assert result.stdout == ""
    unknown = call("a.wav", "--model", "missing", model=False)
    assert "opening missing: no such folder" in unknown.stderr


def test_text_has_names_above_it_where_there_are_several() -> None:
    assert call("a.wav").stdout.splitlines() == LINES
    assert call("a.wav", "b.wav").stdout.splitlines() == ["a.wav:", *LINES, "b.wav:", *LINES]
    plain = call("a.wav", "silent.wav", "--no-timestamps")
    assert plain.stdout.splitlines() == ["a.wav:", "Hällo.", "Unsure.", "silent.wav:"]
    assert plain.stderr == "note: silent.wav: no speech found in 1.1 h\n"


def test_one_recording_is_printed_in_any_format() -> None:
    srt = call("a.wav", "-f", "srt")
    assert srt.stdout.startswith("1\n00:00:00,000 --> 00:00:02,000\nHällo.\n\n2\n")
    assert call("a.wav", "-f", "VTT").stdout.startswith("WEBVTT\n")
    assert json.loads(call("a.wav", "-f", "json").stdout)["language"] == "en"


def test_a_bad_recording_and_a_missing_one_do_not_stop_the_others() -> None:
    result = call("a.wav", "bad.wav", "none.wav", "c.wav", "-o", "out", "-f", "txt,srt")
    assert result.exit_code == 1
    assert written() == ["a.srt", "a.txt", "c.srt", "c.txt"]
    first, *told, last = result.stderr.splitlines()
    assert first.startswith("corpus-asr: reading none.wav: found no such file; correct its name")
    assert last == "corpus-asr: 2 of 4 files failed"
    assert told[:3] == [
        "a.wav: out/a.* (2 files)",
        "corpus-asr: decoding bad.wav: no audio stream",
        "c.wav: out/c.* (2 files)",
    ]
    assert told[3].startswith("2 files: 2.2 h of audio in ")
    assert result.stdout == ""


def test_existing_files_are_kept_and_only_missing_ones_are_written() -> None:
    assert call("a.wav", "-o", "out", "-f", "txt").exit_code == 0
    Path("out/a.txt").write_text("corrected by hand")
    again = call("a.wav", "b.wav", "-o", "out", "-f", "txt")
    assert again.exit_code == 0
    assert ScriptedTranscriber.read == ["a.wav", "b.wav"]
    assert "note: 1 of 2 files have their outputs in out; --overwrite transcribes" in again.stderr
    ScriptedTranscriber.loaded = None
    nothing = call("a.wav", "b.wav", "-o", "out", "-f", "txt")
    assert (nothing.exit_code, ScriptedTranscriber.loaded) == (0, None)
    assert nothing.stderr == (
        "note: all files have their outputs in out; --overwrite transcribes again\n"
    )
    more = call("a.wav", "-o", "out", "-f", "txt", "-f", "srt")
    assert "a.wav: out/a.srt\n" in more.stderr
    assert Path("out/a.txt").read_text() == "corrected by hand"
    assert call("a.wav", "-o", "out", "-f", "txt", "--overwrite").exit_code == 0
    assert Path("out/a.txt").read_text() == "Hällo.\nUnsure.\n"


def outputs(*arguments: str, **options: Any) -> dict[str, str]:
    """Write texts, and return all that are there."""
    result = call(*arguments, "-o", "out", "-f", "txt", **options)
    assert result.exit_code == 0, result.stderr
    return {name: Path("out", name).read_text() for name in written()}


TEXT = "Hällo.\nUnsure.\n"


def test_another_recording_of_the_same_name_gets_a_name_of_its_own_and_finds_it_again() -> None:
    assert outputs("one/a.mp3") == {"a.txt": TEXT}
    Path("out/a.txt").write_text("of one")
    assert outputs("two/a.mp3") == {"a.txt": "of one", "a-2.txt": TEXT}
    assert outputs("two/a.wav") == {"a.txt": "of one", "a-2.txt": TEXT, "a-3.txt": TEXT}
    for again in (("two/a.mp3",), ("one/a.mp3", "two/a.wav"), (os.path.abspath("two/a.mp3"),)):
        assert len(outputs(*again)) == 3
    assert ScriptedTranscriber.read == ["one/a.mp3", "two/a.mp3", "two/a.wav"]
    assert outputs("two/a.mp3", "--overwrite")["a.txt"] == "of one"


@pytest.mark.parametrize(
    "change",
    [
        lambda: Path("a.wav").write_bytes(b"longer"),
        lambda: os.utime("a.wav", (1, 1)),
        lambda: ["--language", "de"],
        lambda: ["--set", "beam_size=5"],
        lambda: ["--compute-type", "int8"],
        lambda: ["--set", "max_line_width=3"],
        lambda: ["--model", "base"],
    ],
    ids=["content", "time", "language", "set", "compute-type", "layout", "model"],
)
def test_a_changed_recording_or_other_options_are_transcribed_again(
    change: Callable[[], Any],
) -> None:
    outputs("a.wav")
    options = change()
    options = options if isinstance(options, list) else []
    for times in (2, 2):  # once
        assert outputs("a.wav", *options, model="--model" not in options) == {"a.txt": TEXT}
        assert ScriptedTranscriber.read == ["a.wav"] * times
    # What changes nothing in a text is no reason.
    outputs("a.wav", *options, "--threads", "1", model="--model" not in options)
    assert len(ScriptedTranscriber.read) == 2


def test_files_that_no_record_knows_are_never_replaced() -> None:
    Path("out").mkdir()
    Path("out/a.txt").write_text("my notes")
    assert outputs("a.wav") == {"a.txt": "my notes", "a-2.txt": TEXT}
    # Nor is a text that a person changed, where it would be made of other options.
    Path("out/a-2.txt").write_text("Hello.")
    found = outputs("a.wav", "--language", "de")
    assert found == {"a.txt": "my notes", "a-2.txt": "Hello.", "a-3.txt": TEXT}
    # Without their records, outputs are files as any others.
    for record in Path("out", RECORDS_FOLDER).glob("*.json"):
        record.write_text("{")
    found = outputs("a.wav")
    assert {found.pop("a-4.txt"), *found.values()} == {"my notes", "Hello.", TEXT}
    assert outputs("a.wav", "--overwrite") == {**found, "a-4.txt": TEXT}


def test_a_checkpoint_that_is_saved_again_is_another_one() -> None:
    folder = Path("mine")
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (folder / name).write_text("x")
    for name, times in (("README.md", 1), ("model.safetensors", 2), ("config.json", 3)):
        outputs("a.wav", "--model", "mine", model=False)
        (folder / name).write_text("another")
        assert outputs("a.wav", "--model", os.path.abspath("mine"), model=False) == {"a.txt": TEXT}
        assert len(ScriptedTranscriber.read) == times, name


def test_of_calls_at_once_each_recording_gets_a_name_of_its_own() -> None:
    folders = [f"at{number}" for number in range(8)]
    for folder in folders:
        Path(folder).mkdir()
        Path(folder, "talk.wav").touch()
    files = []
    for folder in folders:  # all have looked before the first one writes
        (found,) = inputs_of([f"{folder}/talk.wav"]).found
        layout = Layout(formats=("txt",), rules=CueRules(), words=WordStyle.plain)
        output = OutputFiles("out", [found], layout, overwrite=False,
                             apart="", made_by={})  # fmt: skip
        files.append((output, found.name))

    def write(one: tuple[OutputFiles, str]) -> None:
        output, name = one
        made = transcript(name, [segment(f" {name}", 0.0, 1.0)])
        output.write(name, made, [made])

    with ThreadPoolExecutor(len(files)) as pool:
        list(pool.map(write, files))
    texts = {name: Path("out", name).read_text() for name in written()}
    assert sorted(texts.values()) == [f"{folder}/talk.wav\n" for folder in folders]


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["a.wav", "two/deep/d.mp4"], ["a.txt", "d.txt"]),  # side by side, as with whisper
        (["two"], ["a.mp3.txt", "a.wav.txt", "deep/d.txt"]),
        (["one/a.mp3", "two/a.mp3"], ["one/a.txt", "two/a.txt"]),
        (["one", "two/deep"], ["a.txt", "d.txt"]),
        (["one", "two/a.mp3", "b.wav"], ["b.txt", "one/a.txt", "two/a.txt"]),
        (["*/a.mp3"], ["one/a.txt", "two/a.txt"]),
        (["**/*.mp4"], ["two/deep/d.txt"]),
        (["../{here}/a.wav"], ["a.txt"]),
        (["http://h.org/x/..%2f..%2fy.mp3?z=../../w"], ["..%252f..%252fy.txt"]),
    ],
)
def test_names_of_files_stay_in_the_folder_and_never_collide(
    arguments: list[str], files: list[str], here: Path
) -> None:
    named = [argument.format(here=here.name) for argument in arguments]
    result = call(*named, "-o", "out", "-f", "txt", "-q")
    assert (result.exit_code, result.output) == (0, "")
    assert written() == files


def test_a_folder_gives_all_formats_and_tells_what_was_skipped() -> None:
    Path("two/notes.txt").touch()
    Path("two/cover.jpg").touch()
    result = call("two/deep", "two", "-o", "out")
    assert result.exit_code == 0
    assert result.stderr.startswith("note: skipped 2 files that are not audio\n")
    suffixes = ("json", "jsonl", "lrc", "srt", "tsv", "txt", "vtt")
    assert [name for name in written() if "d." in name] == [f"d.{each}" for each in suffixes]


@pytest.mark.long
def test_files_go_to_object_stores_and_are_kept_there() -> None:
    with default_s3() as server:
        server.make_bucket("texts")
        first = call("two", "-o", "s3://texts/talks/", "-f", "txt")
        assert first.exit_code == 0
        assert "two/deep/d.mp4: s3://texts/talks/deep/d.txt\n" in first.stderr
        assert read_bytes("s3://texts/talks/deep/d.txt") == b"H\xc3\xa4llo.\nUnsure.\n"
        again = call("two", "-o", "s3://texts/talks", "-f", "txt")
    assert again.stderr.startswith("note: all files have their outputs in s3://texts/talks;")


def test_a_folder_may_hold_its_own_outputs() -> None:
    assert call("two/deep", "-o", "two/deep").exit_code == 0
    again = call("two/deep", "-o", "two/deep")
    assert (again.exit_code, ScriptedTranscriber.read) == (0, ["two/deep/d.mp4"])
    assert again.stderr.splitlines() == [
        "note: skipped 7 files that are not audio",
        "note: all files have their outputs in two/deep; --overwrite transcribes again",
    ]


def test_standard_input_is_transcribed_and_named() -> None:
    assert call("-", stdin=b"12345").stdout == "[00:00.000 --> 00:01.000] 5 bytes.\n"
    assert call("-", "-o", "out", "-f", "txt", stdin=b"1234").exit_code == 0
    assert Path("out/stdin.txt").read_text() == "4 bytes.\n"
    # Another recording each time, whatever its name.
    assert call("-", "-o", "out", "-f", "txt", stdin=b"123").exit_code == 0
    assert Path("out/stdin.txt").read_text() == "4 bytes.\n"
    assert Path("out/stdin-2.txt").read_text() == "3 bytes.\n"


def test_an_interrupt_keeps_what_is_finished() -> None:
    result = call("a.wav", "b.wav", "stop.wav", "c.wav", "-o", "out", "-f", "txt")
    assert result.exit_code == 130
    assert written() == ["a.txt", "b.txt"]
    assert result.stderr.splitlines()[-1] == (
        "corpus-asr: interrupted; the files of 2 of 4 recordings are written: run the same command "
        "again for the others"
    )
    again = call("a.wav", "b.wav", "-o", "out", "-f", "txt")
    assert "all files have their outputs" in again.stderr
    printed = call("a.wav", "a_late.wav", "stop.wav")
    assert (printed.exit_code, printed.stderr) == (130, "corpus-asr: interrupted\n")
    assert printed.stdout.splitlines() == ["a.wav:", *LINES, "a_late.wav:", *LINES]


def test_a_lost_device_ends_the_work_and_keeps_what_is_finished() -> None:
    result = call("a.wav", "lost.wav", "-o", "out", "-f", "txt")
    assert result.exit_code == 3
    assert written() == ["a.txt"]
    assert "the device is lost" in result.stderr


def test_a_terminal_shows_language_text_and_no_trace_of_the_bar() -> None:
    with on_terminal() as opened:
        with pytest.raises(SystemExit) as end:
            cli.app(["transcribe", "a.wav", "bad.wav", "silent.wav", *NAMED])
        lines = opened.seen(lambda lines: bool(lines) and "files failed" in lines[-1])
    assert end.value.code == 1
    assert lines == [
        "a.wav  en 98%",
        *LINES,
        "corpus-asr: decoding bad.wav: no audio stream",
        "silent.wav  no speech",
        "note: silent.wav: no speech found in 1.1 h",
        lines[-2],
        "corpus-asr: 1 of 3 files failed",
    ]
    assert lines[-2].startswith("2 files: 2.2 h of audio in ")
    assert "2 of 3 files" in opened.output, "the bar was there"
