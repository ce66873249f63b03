"""What one core extracts: the table's structure, a missing ffmpeg, files it cannot measure."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.extraction import cpu_s_of, drawn, main
from corpus_asr.benchmark.command import Recording
from corpus_asr.errors import DecodeError
from corpus_asr.units import SAMPLE_RATE_HZ
from tests.support.audio import tone, wav_bytes

FAILING = '#!/bin/sh\n[ "$1" = -version ] && exit 0\necho "no such codec" >&2\nexit 7\n'


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(wav_bytes(tone(4.0), rate_hz=SAMPLE_RATE_HZ))
    return path


@pytest.fixture
def no_ffmpeg(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return programs


@pytest.mark.slow
def test_without_ffmpeg_its_column_is_left_out_and_a_line_says_so(clip, no_ffmpeg, capsys):
    main([str(clip), "--runs", "1"])
    title, missing, header, row, total = capsys.readouterr().out.splitlines()
    assert "CPU seconds" in title
    assert missing == "ffmpeg is not installed: it is skipped"
    assert header.split() == ["audio", "s", "decoding", "+", "speech", "+", "features"]
    assert row.split()[:2] == ["clip.wav", "4.0"]
    assert total.split()[0] == "all"
    assert all(int(speed) > 0 for speed in row.split()[2:] + total.split()[2:])


def test_speeds_are_of_seconds_by_seconds_and_the_sum_weighs_by_length(tmp_path):
    recordings = [
        Recording(path=tmp_path / name, duration_s=duration_s, text=None)
        for name, duration_s in (("a.mp3", 10.0), ("b.mp3", 30.0))
    ]
    lines = drawn(recordings, {"ffmpeg": [0.1, 0.1], "decoding": [0.2, 0.6]})
    assert [line.split() for line in lines] == [
        ["audio", "s", "ffmpeg", "decoding"],
        ["a.mp3", "10.0", "100", "50"],
        ["b.mp3", "30.0", "300", "50"],
        ["all", "40.0", "200", "50"],
    ]


def test_what_a_child_process_spends_is_counted():
    def spend():
        subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)

    assert cpu_s_of(spend) > 0.02


def test_an_ffmpeg_that_fails_says_on_which_file_and_why(clip, no_ffmpeg):
    program = no_ffmpeg / "ffmpeg"
    program.write_text(FAILING)
    program.chmod(0o755)
    with pytest.raises(SystemExit, match=r"clip\.wav with ffmpeg: exit code 7 \(no such codec\)"):
        main([str(clip), "--runs", "1"])


def test_a_broken_file_is_named_before_anything_is_measured(tmp_path):
    path = tmp_path / "broken.mp3"
    path.write_bytes(np.random.default_rng(0).bytes(2000))
    with pytest.raises(DecodeError, match=r"broken\.mp3"):
        main([str(path)])
