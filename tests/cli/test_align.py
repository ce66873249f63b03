"""`transcribe --text`, and jobs with `decoding.align`, with the packaged model on real speech."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
from typer.testing import CliRunner, Result

from corpus_asr.cli import main as cli
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip, wav_bytes
from tests.support.loaded import lend
from tests.support.pages import parsed
from tests.support.spoken import spoken

pytestmark = pytest.mark.long
REPOSITORY = Path(__file__).resolve().parents[2]

INAUGURAL = spoken()["inaugural.flac"]
CLIPS = INAUGURAL.path.parents[1] / "clips"
SPEECH = (INAUGURAL.path, "--text", "speech.txt")
AS_FILES = ("srt", "vtt", "lrc", "json", "whisperx", "ctm", "eaf", "tsv", "nemo")


@pytest.fixture(scope="module")
def loaded() -> Iterator[Transcriber]:
    with Transcriber("whisper-tiny.en", num_threads=1, temperature=0) as transcriber:
        yield transcriber


@pytest.fixture(autouse=True)
def here(loaded: Transcriber, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    lend(loaded, monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "speech.txt").write_text(f"{INAUGURAL.text} Goodbye, geographers.\n")
    return tmp_path


def call(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.app, ["transcribe", *map(str, arguments)], input=stdin)


def test_a_text_is_printed_with_times_and_what_is_missing_is_reported() -> None:
    result = call(INAUGURAL.path, "--text", "-", stdin=Path("speech.txt").read_bytes())
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("[00:00.")
    assert result.stdout.endswith(f"] {INAUGURAL.text}\n")
    assert "2 of 24 words are not in the audio: Goodbye,, geographers." in result.stderr


def test_every_format_is_written_once_and_kept(here: Path) -> None:
    wanted: list[str | Path] = [INAUGURAL.path, "--text", "speech.txt"]
    wanted += ["-o", here / "out", "-f", ",".join(AS_FILES)]
    assert call(*wanted).exit_code == 0
    out = {path.name.partition(".")[2]: path for path in (here / "out").glob("[!.]*")}
    assert len(out) == len(AS_FILES)
    said = json.loads(out["json"].read_text())
    assert said["text"].strip() == INAUGURAL.text
    assert [each["word"] for each in said["missing"]] == [" Goodbye,", " geographers."]
    assert [each["index"] for each in said["missing"]] == [22, 23]
    words = [word for segment in said["segments"] for word in segment["words"]]
    assert "".join(word["word"] for word in words).strip() == INAUGURAL.text
    assert all(0 <= word["probability"] <= 1 for word in words)
    assert len(out["ctm"].read_text().splitlines()) == 22
    assert ">ask<" in out["eaf"].read_text()
    before = out["srt"].stat().st_mtime_ns
    assert "have their outputs" in call(*wanted).stderr
    assert out["srt"].stat().st_mtime_ns == before
    assert call(*wanted, "--overwrite", "-q").exit_code == 0
    assert out["srt"].stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-", "--text", "-"], 2, "found it as audio and as text"),
        ([], 2, "found no FILE, expected files"),
        ([INAUGURAL.path, "--text", "nothing.txt"], 1, "nothing.txt"),
        ([INAUGURAL.path, "--text", "bytes.txt"], 1, "found bytes that are not UTF-8 (at 3)"),
        ([*SPEECH, "-f", "rttm"], 2, "found a text without speakers"),
        ([*SPEECH, "--set", "align=true"], 2, "align: unknown key"),
        ([*SPEECH, "--diarize", "--beam-size", "5"], 2, "--text: found beam_size, diarize, exp"),
        ([*SPEECH, "--set", "condition_on_previous_text=true"], 2, "found condition_on_prev_tok"),
        ([*SPEECH, CLIPS / "english.wav"], 2, "found one text for 2 recordings"),
        ([INAUGURAL.path, "--text", "empty.txt"], 1, "expected words with letters or digits"),
        ([CLIPS / "silence.flac", *SPEECH[1:]], 1, "found 0 of its 24 words (0%)"),
        ([CLIPS / "english.wav", *SPEECH[1:]], 1, "check that the text is of this recording"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str | Path], code: int, message: str) -> None:
    Path("bytes.txt").write_bytes(b"abc\xff")
    Path("empty.txt").write_text(" \n")
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert message in " ".join(result.stderr.split())


def test_a_folder_of_recordings_is_a_loop(here: Path) -> None:
    for name in ("talks", "texts", "subtitles"):
        (here / name).mkdir()
    (here / "talks" / "a.flac").write_bytes(INAUGURAL.path.read_bytes())
    (here / "texts" / "a.txt").write_text(INAUGURAL.text)
    guide = (REPOSITORY / "docs/how-to/alignment.md").read_text(encoding="utf-8")
    code = guide.partition("# a folder\n")[2].partition("```")[0]
    exec(code.replace('Transcriber("small")', "Transcriber()").replace(".mp3", ".flac"), {})
    assert INAUGURAL.text[:20] in (here / "subtitles" / "a.srt").read_text()


def test_a_job_aligns_the_texts_of_its_manifest(here: Path) -> None:
    rows = [
        {"uri": str(INAUGURAL.path), "text": "country, ask what you can do zebra", "start_s": 6},
        {"uri": str(CLIPS / "english.wav"), "book": "without a text"},
    ]
    (here / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (here / "job.yaml").write_text(
        "source: {manifest: manifest.jsonl}\n"
        "decoding: {align: true, temperature: [0], beam_size: 1}\n"
        "output: {uri: out, max_failed_fraction: 0.5}\n"
    )
    result = CliRunner().invoke(cli.app, ["run", "job.yaml", "--local"])
    assert result.exit_code == 0, result.output
    segments = pyarrow.dataset.dataset(here / "out" / "segments").to_table().to_pylist()
    words = [word for segment in segments for word in segment["words"]]
    assert words[0]["start_s"] > 5.5
    assert "".join(word["word"] for word in words).split()[-2:] == ["can", "do"]
    outcomes = pyarrow.dataset.dataset(here / "out" / "outcomes").to_table().to_pylist()
    of = {row["uri"].rpartition("/")[2]: row for row in outcomes}
    said = of["inaugural.flac"]
    assert said["text_words"] == 7
    end_s = words[-1]["end_s"]
    assert said["text_spans"] == [{"first": 0, "stop": 6, "end_s": end_s}]
    assert len(outcomes) == 2
    assert of["english.wav"]["error_kind"] == "no_text"
    assert "found no column text in its manifest row" in of["english.wav"]["error_message"]
    # What is missing is counted, listed, exported and shown.
    recordings = pyarrow.dataset.dataset(here / "out" / "recordings").to_table().to_pylist()
    counts = ("text_words", "missing_words", "extra_words")
    assert {row["uri"][-4:]: [row[name] for name in counts] for row in recordings} == {
        "flac": [7, 1, 7], ".wav": [None, None, None],
    }  # fmt: skip
    exported = CliRunner().invoke(cli.app, ["export", "out", "--to", "files", "--format", "json"])
    assert exported.exit_code == 0, exported.output
    (path,) = (here / "files").rglob("inaugural.json")
    missing = {"word": " zebra", "index": 6, "after": round(end_s, 3)}
    assert json.loads(path.read_text())["missing"] == [missing]
    report = CliRunner().invoke(cli.app, ["report", "out"])
    assert "1 of 7 words are not in the audio (14%); 7 recognized are not" in report.stdout
    page = parsed((here / "out" / "report.html").read_text())
    assert "of 7 in the texts" in page.text


def test_of_speech_that_repeats_itself_each_word_of_the_text_is_placed_once(here: Path) -> None:
    # Both parts claim all words.
    once = read_clip(INAUGURAL.path)
    audio = wav_bytes(np.concatenate([once] * 3)[None], rate_hz=SAMPLE_RATE_HZ)
    (here / "thrice.wav").write_bytes(audio)
    row = {"uri": str(here / "thrice.wav"), "text": INAUGURAL.text}
    (here / "manifest.jsonl").write_text(json.dumps(row))
    (here / "job.yaml").write_text(
        "source: {manifest: manifest.jsonl}\nextract: {part_s: 30}\n"
        "decoding: {align: true, temperature: [0], beam_size: 1}\noutput: {uri: out}\n"
    )
    result = CliRunner().invoke(cli.app, ["run", "job.yaml", "--local"])
    assert result.exit_code == 0, result.output
    table = pyarrow.dataset.dataset(here / "out" / "segments").to_table().to_pylist()
    segments = sorted(table, key=lambda segment: segment["start_s"])
    assert {segment["part"] for segment in segments} == {0}
    assert "".join(segment["text"] for segment in segments).strip() == row["text"]
