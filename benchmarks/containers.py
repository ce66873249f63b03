"""When sound is presented: this decoder, FFmpeg's own clock and a player, container by container.

Two tones of a second are written by FFmpeg into each container, from 1 and from 6 s, some behind a
picture, some with nothing stored between them. Where each begins is asked of `open_audio`, of
FFmpeg's `aresample=async=1:first_pts=0`, and of mpv, by the times of the frames that it plays.

    python -m benchmarks.containers --out docs/benchmarks/DATE-containers.json

Needs the programs ffmpeg and mpv.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from corpus_asr.audio.decode import open_audio
from corpus_asr.units import SAMPLE_RATE_HZ

_TONES_S = ((1.0, 2.0), (6.0, 7.0))
_LOUD = 0.05
_LOUD_DB = -30.0
_BLOCK = SAMPLE_RATE_HZ // 200
_SOUND = "aevalsrc=exprs='0.3*sin(2*PI*440*t)*(between(t,1,2)+between(t,6,7))':s=48000:d=8"
_PICTURE = "testsrc=s=64x64:r=10:d=12"
_GAP = "aselect='not(between(t,2.3,5.7))'"

LATE, GAP, HOUR = "4 s behind the picture", "a gap", "from an hour on"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A container, and how FFmpeg writes it."""

    name: str
    suffix: str
    audio: str
    """Options of the audio."""
    video: str = ""
    """Codec of a picture; empty: none."""
    kind: str = ""

    @property
    def starts_s(self) -> list[float]:
        """When the tones begin."""
        late_s = 4.0 if self.kind == LATE else 0.0
        return [start_s + late_s for start_s, _ in _TONES_S]

    def write(self, folder: Path) -> Path:
        """Make the file."""
        path = (
            folder
            / f"{re.sub('[^a-z0-9]+', '-', f'{self.name}-{self.kind}'.lower())}.{self.suffix}"
        )
        command = ["ffmpeg", "-y", "-loglevel", "error"]
        if self.video:
            command += ["-f", "lavfi", "-i", _PICTURE]
        if self.kind == LATE:
            command += ["-itsoffset", "4"]
        command += ["-f", "lavfi", "-i", _SOUND]
        if self.video:
            command += ["-map", "0:v", "-map", "1:a", "-c:v", *self.video.split()]
        if self.kind == GAP:
            command += ["-af", _GAP]
        if self.kind == HOUR:
            command += ["-output_ts_offset", "3600"]
        subprocess.run([*command, *self.audio.split(), str(path)], check=True)
        return path


def _cases() -> Iterator[Case]:
    pictured = [
        ("mp4, AAC", "mp4", "-c:a aac", "libx264"),
        ("mov, ALAC", "mov", "-c:a alac", "libx264"),
        ("mkv, Opus", "mkv", "-c:a libopus", "libx264"),
        ("mkv, PCM", "mkv", "-c:a pcm_s16le", "libx264"),
        ("webm, Vorbis", "webm", "-c:a libvorbis", "libvpx"),
        ("ts, AAC", "ts", "-c:a aac", "libx264"),
        ("ts, MP2", "ts", "-c:a mp2", "mpeg2video"),
        ("flv, AAC", "flv", "-c:a aac -ar 44100", "flv"),
        ("mpg, MP2", "mpg", "-c:a mp2", "mpeg2video"),
        ("asf, WMA", "wmv", "-c:a wmav2", "wmv2"),
        ("avi, MP3", "avi", "-c:a libmp3lame", "mpeg4"),
    ]
    for name, suffix, audio, video in pictured:
        yield Case(name=name, suffix=suffix, audio=audio, video=video, kind=LATE)
    for name, suffix, audio, video in pictured[:9]:
        yield Case(name=name, suffix=suffix, audio=audio, video=video, kind=GAP)
    yield Case(name="ts, AAC", suffix="ts", audio="-c:a aac", video="libx264", kind=HOUR)
    for name, suffix, audio in (
        ("wav", "wav", "-c:a pcm_s16le"),
        ("flac", "flac", ""),
        ("mp3", "mp3", "-b:a 64k"),
        ("mp3, VBR without index", "mp3", "-q:a 4 -write_xing 0"),
        ("m4a, AAC", "m4a", "-c:a aac"),
        ("m4b, AAC", "m4b", "-c:a aac -f ipod"),
        ("ADTS", "aac", "-c:a aac"),
        ("ogg, Opus", "opus", "-c:a libopus"),
        ("ogg, Vorbis", "ogg", "-c:a libvorbis"),
        ("ogg, FLAC", "oga", "-c:a flac"),
        ("aiff", "aiff", ""),
        ("caf, ALAC", "caf", "-c:a alac"),
        ("3gp, AAC", "3gp", "-c:a aac"),
        ("wma", "wma", "-c:a wmav2"),
        ("AC-3", "ac3", "-c:a ac3"),
    ):
        yield Case(name=name, suffix=suffix, audio=audio)


@dataclass(frozen=True, kw_only=True)
class Found:
    """When the tones of a container begin, in seconds."""

    container: str
    kind: str
    written_s: list[float]
    ours_s: list[float]
    ffmpeg_s: list[float]
    mpv_s: list[float]


def _starts(samples: np.ndarray) -> list[float]:
    blocks = np.abs(samples[: len(samples) // _BLOCK * _BLOCK]).reshape(-1, _BLOCK).max(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], blocks > _LOUD])) == 1)
    return [round(float(edge) * _BLOCK / SAMPLE_RATE_HZ, 3) for edge in edges]


def _ours(path: Path) -> list[float]:
    with path.open("rb") as file, open_audio(file, uri=path.name) as decoder:
        return _starts(np.concatenate([rows[0] for rows in decoder]))


def _ffmpeg(path: Path) -> list[float]:
    filters = f"aresample={SAMPLE_RATE_HZ}:async=1:first_pts=0"
    done = subprocess.run(
        ["ffmpeg", "-loglevel", "error", "-i", str(path), "-map", "0:a:0", "-af", filters, "-ac",
         "1", "-f", "s16le", "-"], check=True, capture_output=True,
    )  # fmt: skip
    return _starts(np.frombuffer(done.stdout, "<i2") / 32768)


def _mpv(path: Path, folder: Path) -> list[float]:
    listed = folder / "levels.txt"
    listed.unlink(missing_ok=True)
    # Short frames: the level of each is told with the time at which it is played.
    filters = (
        "asetnsamples=n=240,astats=metadata=1:reset=1,"
        f"ametadata=print:key=lavfi.astats.Overall.Peak_level:file={listed}"
    )
    subprocess.run(
        ["mpv", "--no-config", "--vo=null", "--ao=null", "--untimed", "--really-quiet",
         f"--af=lavfi=[{filters}]", str(path)], check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    starts, was_loud, time_s = [], False, 0.0
    for line in listed.read_text().splitlines():
        if found := re.search(r"pts_time:(\S+)", line):
            time_s = float(found.group(1))
        elif found := re.search(r"Peak_level=(\S+)", line):
            is_loud = float(found.group(1)) > _LOUD_DB
            if is_loud and not was_loud:
                starts.append(round(time_s, 3))
            was_loud = is_loud
    return starts


def measure(folder: Path) -> Iterator[Found]:
    """Write and decode every container."""
    for case in _cases():
        path = case.write(folder)
        yield Found(
            container=case.name,
            kind=case.kind,
            written_s=case.starts_s,
            ours_s=_ours(path),
            ffmpeg_s=_ffmpeg(path),
            mpv_s=_mpv(path, folder),
        )


def _words(starts_s: list[float]) -> str:
    return ", ".join(f"{start_s:.2f}" for start_s in starts_s)


def table(rows: list[Found]) -> str:
    """Return a Markdown table of what was found."""
    lines = [
        "| Container | Tones | This decoder | FFmpeg's `aresample` | mpv |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        name = f"{row.container}: {row.kind}" if row.kind else row.container
        columns = (row.written_s, row.ours_s, row.ffmpeg_s, row.mpv_s)
        lines.append(f"| {name} | {' | '.join(map(_words, columns))} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--print", type=Path, dest="printed", help="only print such a file")
    asked = parser.parse_args()
    if asked.printed is not None:
        print(table([Found(**row) for row in json.loads(asked.printed.read_text())["rows"]]))
        return
    for program in ("ffmpeg", "mpv"):
        if shutil.which(program) is None:
            parser.error(f"found no {program}, expected the program; install it")
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Path(folder)))
    print(table(rows))
    if asked.out is not None:
        versions = {
            name: subprocess.run([name, "--version" if name == "mpv" else "-version"], check=True,
                                 capture_output=True, text=True).stdout.splitlines()[0]
            for name in ("ffmpeg", "mpv")
        }  # fmt: skip
        asked.out.write_text(
            json.dumps({"versions": versions, "rows": [asdict(row) for row in rows]}, indent=1)
        )


if __name__ == "__main__":
    main()
