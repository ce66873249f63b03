"""Recordings of hours, and what a run over one takes: seconds, and the peak of both processes.

    write_hours(folder / "day.mp3", hours=24.0, sound=spoken(paths))
    found = measured(folder / "day.mp3", folder)

Run as a module it is that run, in a process whose memory is its own:
`python -m tests.support.long_recordings RECORDING FOLDER`, where FOLDER holds a model. Extraction
is the real one, behind the local runtime; the engine answers at once.
"""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av

from corpus_asr.runtime.local import run_local
from corpus_asr.runtime.progress import Progress
from corpus_asr.runtime.resources import resolve_resources, this_machine
from corpus_asr.stages.parts import ExtractedPart, ExtractRequest
from corpus_asr.stages.transcribe import EngineSpec
from tests.support.engines import ScriptedEngine, committer_of, outcomes_by_part, scripted_job
from tests.support.killing import REPOSITORY, peak_bytes
from tests.support.tables import packs_of

EXTRACTOR = "tests.support.long_recordings:make"
BYTES_PER_S = 4_000  # of the MP3 that is written
_CHILD_PEAK = "CORPUS_ASR_TEST_CHILD_PEAK"  # the file that the child notes its peak in


@dataclass(frozen=True, slots=True)
class Found:
    """What a run over one recording was and took."""

    audio_s: float
    parts: int
    seconds: float
    child_cpu_s: float
    driver_peak_bytes: int
    child_peak_bytes: int


class ForgetfulEngine(ScriptedEngine):
    """Keeps nothing of what it is given, as the real one does."""

    def submit(self, request: Any) -> "Future[Any]":
        future = super().submit(request)
        self.requests.clear()
        return future


def engine(spec: EngineSpec) -> ForgetfulEngine:
    """Meet `EngineFactory`."""
    return ForgetfulEngine()


def make(**options: Any) -> Callable[[ExtractRequest], Iterator[ExtractedPart]]:
    """Return the real extractor, which notes this process's peak after each part."""
    from corpus_asr.stages.extraction import PartExtractor  # not in the parent

    extract = PartExtractor(**options)

    def noting(request: ExtractRequest) -> Iterator[ExtractedPart]:
        for part in extract(request):
            yield part
            note = {"peak_bytes": peak_bytes(), "cpu_s": time.process_time()}
            Path(os.environ[_CHILD_PEAK]).write_text(json.dumps(note))

    return noting


def spoken(paths: Sequence[Path]) -> bytes:
    """Return what is heard in some files as frames of MP3, which can be put one after the other."""
    sound = io.BytesIO()
    with av.open(
        sound, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}
    ) as out:
        stream = out.add_stream("mp3", rate=16_000)
        stream.bit_rate, stream.layout = 8 * BYTES_PER_S, "mono"
        for path in paths:
            to_mono = av.AudioResampler(format="s16p", layout="mono", rate=16_000)
            with av.open(str(path)) as recording:
                for frame in recording.decode(audio=0):
                    for samples in to_mono.resample(frame):
                        samples.pts = None
                        out.mux(stream.encode(samples))
        out.mux(stream.encode(None))
    return sound.getvalue()


def write_hours(path: Path, *, hours: float, sound: bytes) -> None:
    """Write `sound` again and again."""
    with path.open("wb") as file:
        for _ in range(round(hours * 3600 * BYTES_PER_S / len(sound))):
            file.write(sound)


def measured(recording: Path, folder: Path) -> Found:
    """Run over a recording in a process of its own."""
    command = [sys.executable, "-m", "tests.support.long_recordings", str(recording), str(folder)]
    ran = subprocess.run(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | {_CHILD_PEAK: str(folder / "child.json")},
    )  # fmt: skip
    return Found(**json.loads(ran.stdout))


def _main() -> None:
    recording, folder = map(Path, sys.argv[1:])
    config = scripted_job(folder)
    progress = Progress(total_files=1, stream=None)
    began_s = time.monotonic()
    run_local(
        config,
        [packs_of(str(recording))],
        committer_of(config),
        resources=resolve_resources(config, (this_machine(),), num_packs=1),
        progress=progress,
        engine_factory=engine,
        extractor=EXTRACTOR,
    )
    child = json.loads(Path(os.environ[_CHILD_PEAK]).read_text())
    outcomes = outcomes_by_part(config).values()
    assert {row["status"] for row in outcomes} <= {"ok", "no_speech"}
    found = Found(
        audio_s=progress.tally.audio_s, parts=len(outcomes),
        seconds=time.monotonic() - began_s, child_cpu_s=child["cpu_s"],
        driver_peak_bytes=peak_bytes(), child_peak_bytes=child["peak_bytes"],
    )  # fmt: skip
    sys.stdout.write(json.dumps(asdict(found)))


if __name__ == "__main__":
    _main()
