"""`corpus-asr transcribe` with the packaged model on real speech, in one process."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pysubs2
import pytest
from typer.testing import CliRunner, Result

from corpus_asr.audio.decode import open_audio
from corpus_asr.cli import main as cli
from corpus_asr.runtime.transcriber import Transcriber
from corpus_asr.storage.listing import RECORDS_FOLDER
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import read_clip, wav_bytes
from tests.support.loaded import lend

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY / "tests" / "data"
AWKWARD = DATA / "speech" / "awkward"
SHORT = DATA / "speech" / "english_short"
QUILTER = re.compile(r"Mr\.? Quilter is the apostle of the middle classes", re.IGNORECASE)


@pytest.fixture(scope="module")
def loaded() -> Iterator[Transcriber]:
    with Transcriber("whisper-tiny.en", num_threads=1) as transcriber:
        yield transcriber


@pytest.fixture(autouse=True)
def here(loaded: Transcriber, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder to work in; every command is given the same loaded model."""
    lend(loaded, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.app, ["transcribe", *map(str, arguments)], input=stdin)


def test_a_folder_with_a_broken_file_a_silent_one_and_video() -> None:
    Path("talks/old").mkdir(parents=True)
    shutil.copy(AWKWARD / "video_h264_aac.mp4", "talks/film.mp4")
    shutil.copy(AWKWARD / "fmt_mp3_vbr_tags.mp3", "talks/old/film.mp3")
    shutil.copy(AWKWARD / "bad_html.mp3", "talks/broken.mp3")
    shutil.copy(AWKWARD / "sil_1s.wav", "talks/silent.wav")
    Path("talks/notes.txt").write_text("no recording")
    result = call("talks", "-o", "out", "--model", "whisper-tiny.en")
    assert result.exit_code == 1
    assert result.stdout == ""
    messages = result.stderr
    assert "note: skipped 1 file that are not audio\n" in messages
    assert "corpus-asr: decoding talks/broken.mp3: not recognized as audio or video" in messages
    assert "note: talks/silent.wav: no speech found in 1.0 s\n" in messages
    assert messages.endswith("corpus-asr: 1 of 4 files failed\n")
    assert "\x1b" not in messages
    suffixes = ["json", "jsonl", "lrc", "srt", "tsv", "txt", "vtt"]
    paths = [path.as_posix() for path in Path("out").rglob("*.*") if path.suffix]
    assert sorted(path for path in paths if RECORDS_FOLDER not in path) == [
        f"out/{name}.{suffix}" for name in ("film", "old/film", "silent") for suffix in suffixes
    ]
    for name in ("film", "old/film"):
        assert QUILTER.search(Path(f"out/{name}.txt").read_text())
        data = json.loads(Path(f"out/{name}.json").read_text())
        assert QUILTER.search(data["text"])
        assert data["segments"][0]["end"] > data["segments"][0]["start"]
    assert Path("out/silent.txt").read_text() == ""
    again = call("talks", "-o", "out", "--model", "whisper-tiny.en")
    assert again.exit_code == 1, "the broken one is tried again"
    assert "note: 3 of 4 files have their outputs in out" in again.stderr
    assert "film" not in again.stderr


def test_words_can_be_timed_and_highlighted() -> None:
    clip = SHORT / "cv6_common_voice_en_46854.mp3"
    result = call(clip, "-f", "vtt", "--highlight_words", "--set", "max_line_width=20")
    assert result.exit_code == 0
    assert re.search(r"<u>\w+[.,]?</u>", result.stdout)
    data = json.loads(call(clip, "-f", "json", "--word_timestamps").stdout)
    words = data["segments"][0]["words"]
    assert "".join(word["word"] for word in words) == data["segments"][0]["text"]


def test_each_channel_is_a_transcript_of_its_own() -> None:
    paths = (AWKWARD / "fmt_pcm16_16k.wav", SHORT / "so762_091070175.wav")
    Path("call.wav").write_bytes(joined(*map(samples_of, paths)))
    result = call("call.wav", "-o", "out", "-f", "txt", "--channels", "each", "-v")
    assert result.exit_code == 0, result.stderr
    texts = {path.name: path.read_text() for path in Path("out").glob("[!.]*")}
    assert sorted(texts) == ["call.channel0.txt", "call.channel1.txt", "call.txt"]
    assert {line[:11] for line in texts["call.txt"].splitlines()} == {"[channel 0]", "[channel 1]"}
    assert QUILTER.search(texts["call.channel0.txt"])
    assert not QUILTER.search(texts["call.channel1.txt"])
    assert texts["call.channel1.txt"].strip()
    assert result.stdout.startswith("call.wav, channel 0:\n[00:0")
    assert "call.wav, channel 1:\n[00:0" in result.stdout
    kept = call("call.wav", "-o", "out", "-f", "txt", "--channels", "each")
    assert "note: all files have their outputs in out" in kept.stderr
    printed = call("call.wav", "-f", "srt", "--channels", "each").stdout
    events = pysubs2.SSAFile.from_string(printed, format_="srt")
    assert len(events) >= 2
    assert [event.start for event in events] == sorted(event.start for event in events)
    numbers = re.findall(r"^(\d+)$", printed, re.MULTILINE)
    assert numbers == [str(number) for number in range(1, len(events) + 1)]
    data = json.loads(call("call.wav", "-f", "json", "--channels", "each").stdout)
    assert {each["channel"] for each in data["segments"]} == {0, 1}
    alone = call("call.wav", "--channels", "1", "--no-timestamps")
    assert alone.stdout == texts["call.channel1.txt"]


def samples_of(path: Path) -> np.ndarray:
    with path.open("rb") as file, open_audio(file, uri=str(path), channels="mix") as decoder:
        return np.concatenate(list(decoder), axis=1)[0]


def joined(left: np.ndarray, right: np.ndarray) -> bytes:
    """Return a stereo recording of two."""
    stereo = np.zeros((2, max(len(left), len(right))), np.float32)
    stereo[0, : len(left)], stereo[1, : len(right)] = left, right
    return wav_bytes(stereo, rate_hz=SAMPLE_RATE_HZ)


@pytest.mark.slow
def test_an_interrupt_ends_at_once_and_leaves_what_is_finished(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "corpus_asr", "transcribe"]
    with subprocess.Popen(
        [*command, AWKWARD / "fmt_opus.opus", "-", "-o", "out", "-f", "txt"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path / "temporary")},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "out/fmt_opus.txt" in line:
                break
        # Nobody writes to the pipe that is read now.
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert "interrupted; the files of 1 of 2 recordings are written" in process.stderr.read()
    assert QUILTER.search(Path("out/fmt_opus.txt").read_text())
    assert not list((tmp_path / "temporary").glob("corpus-asr-*"))


def test_speakers_are_named_in_every_file_and_the_text() -> None:
    """Two readers with 2 s between them, then 2 s of one alone, and silence."""
    samples = read_clip(DATA / "spoken" / "readers.opus")
    span = slice(40 * SAMPLE_RATE_HZ, 60 * SAMPLE_RATE_HZ)
    for name, sound in (
        ("talk", samples[span]),
        ("brief", samples[span][: 2 * SAMPLE_RATE_HZ]),
        ("silence", np.zeros(5 * SAMPLE_RATE_HZ, dtype=np.float32)),
    ):
        data = wav_bytes(sound[None], rate_hz=SAMPLE_RATE_HZ)
        Path(f"{name}.wav").write_bytes(data)
    formats = "txt,vtt,json,whisperx,rttm,ctm"
    result = call("talk.wav", "brief.wav", "silence.wav", "--diarize", "-o", "out", "-f", formats)
    assert result.exit_code == 0, result.output
    assert "talk.wav: 2 speakers; if that is wrong: --num-speakers" in result.stderr
    assert "brief.wav: 1 speaker; if" in result.stderr
    assert "silence.wav: 0" not in result.stderr
    said = Path("out/talk.txt").read_text()
    assert re.match(r"(\[S1\] .*\n)+(\[S2\] .*\n)+$", said), said
    assert "[S2] On the last Saturday in April" in said
    assert "<v S2>" in Path("out/talk.vtt").read_text()
    for name in ("talk.json", "talk.whisperx.json"):
        segments = json.loads(Path("out", name).read_text())["segments"]
        assert [*dict.fromkeys(each["speaker"] for each in segments)] == ["S1", "S2"]
        assert all(
            word["speaker"] == each["speaker"] for each in segments for word in each["words"]
        )
    turns = [line.split() for line in Path("out/talk.rttm").read_text().splitlines()]
    assert {turn[7] for turn in turns} == {"S1", "S2"}
    # 46.9 to 49.6 s of the recording is silence.
    assert max(float(turn[3]) + float(turn[4]) for turn in turns if turn[7] == "S1") < 8.0
    assert min(float(turn[3]) for turn in turns if turn[7] == "S2") > 8.0
    assert not Path("out/brief.txt").read_text().startswith("[S1]")  # one speaker
    assert Path("out/silence.txt").read_text() == Path("out/silence.rttm").read_text() == ""


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("-f rttm", "writing rttm: found no --diarize, expected it"),
        ("--num-speakers 2", "num_speakers: found no diarize, expected true; set it"),
        ("--diarize --no-vad", "speakers need detected speech, but extract.vad_filter is false"),
        ("--diarize --set speaker_model=none.onnx", "network none.onnx: found no such file"),
    ],
)
def test_speakers_that_cannot_be_found_are_refused(typed: str, message: str) -> None:
    result = call(AWKWARD / "fmt_mp3_vbr_tags.mp3", *typed.split())
    assert result.exit_code != 0
    assert message in " ".join(result.stderr.split())
