"""How fast one core extracts: decoding, speech detection and features, and ffmpeg's decoding."""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from corpus_asr.audio.decode import open_audio
from corpus_asr.audio.parts import PartCutter
from corpus_asr.audio.vad import SileroDetector
from corpus_asr.benchmark import command
from corpus_asr.benchmark.orders import Recording, find_recordings
from corpus_asr.config.run import ExtractSettings
from corpus_asr.errors import EngineError
from corpus_asr.report.text import aligned
from corpus_asr.stages.extraction import PartExtractor
from corpus_asr.stages.isolation import IsolatedGenerator
from corpus_asr.stages.parts import ExtractRequest
from corpus_asr.units import SAMPLE_RATE_HZ

FFMPEG = "ffmpeg"
# What is timed of ours; each step includes those before it.
STEPS = ("decoding", "+ speech", "+ features")
_LARGEST_NUM_MEL_BINS = 128  # of large-v3; the others take less time
_TIMER = "corpus_asr.benchmark.extraction:StepTimer"
# For one file: even days of audio take minutes at a hundred times real time.
_TIMEOUT_S = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program, as `corpus-asr bench --extract` does; returns the exit code."""
    return command.main(["--extract", *(sys.argv[1:] if arguments is None else arguments)])


def run(paths: Sequence[Path], *, runs: int, say: Callable[[str], None]) -> None:
    """Measure and print."""
    recordings = find_recordings(paths, None)
    has_ffmpeg = shutil.which("ffmpeg") is not None
    steps = (FFMPEG, *STEPS) if has_ffmpeg else STEPS
    say(f"times real time of one core, by CPU seconds; medians of {runs} alternating runs")
    if not has_ffmpeg:
        say("ffmpeg is not installed: it is skipped")
    for line in render(recordings, measure(recordings, steps, runs=runs)):
        say(line)


def measure(
    recordings: Sequence[Recording], steps: Sequence[str], *, runs: int
) -> dict[str, list[float]]:
    """Return median CPU seconds of every step, by recording."""
    # In a child that works on one thread, as those of extraction do.
    child = IsolatedGenerator(_TIMER, init_kwargs={}, timeout_s=_TIMEOUT_S)
    medians_s: dict[str, list[float]] = {step: [] for step in steps}
    try:
        for recording in recordings:
            rounds = [
                [next(iter(child.run((step, str(recording.path))))) for step in steps]
                for _ in range(runs + 1)
            ]
            # The first round fills caches.
            for step, values in zip(steps, zip(*rounds[1:], strict=True), strict=True):
                medians_s[step].append(statistics.median(values))
    finally:
        child.close()
    return medians_s


def render(recordings: Sequence[Recording], cpu_s: dict[str, list[float]]) -> list[str]:
    """Draw the table, with the sum of all recordings in its last line."""
    durations = [recording.duration_s for recording in recordings]
    totals = [*durations, sum(durations)]
    columns = [
        ["", *(recording.path.name for recording in recordings), "all"],
        ["audio s", *(f"{duration:.1f}" for duration in totals)],
    ]
    for step, values in cpu_s.items():
        speeds = zip(totals, [*values, sum(values)], strict=True)
        columns.append([step, *(f"{audio_s / spent_s:.0f}" for audio_s, spent_s in speeds)])
    return ["  ".join(cells).rstrip() for cells in aligned(list(zip(*columns, strict=True)))]


class StepTimer:
    """Times one step on one file; made in the child, where it keeps what workers keep."""

    def __init__(self) -> None:
        self._settings = settings = ExtractSettings()
        self._detector = SileroDetector()
        with TemporaryDirectory() as folder:
            config = {"model_type": "whisper", "num_mel_bins": _LARGEST_NUM_MEL_BINS}
            (Path(folder) / "config.json").write_text(json.dumps(config))
            self._extract = PartExtractor(folder=folder, settings=settings)
        works = (self._decode, self._find_speech, self._extract_all)
        self._works = dict(zip(STEPS, works, strict=True))
        self._start_s = _cpu_s_of(_start_ffmpeg) if shutil.which("ffmpeg") else 0.0

    def __call__(self, item: tuple[str, str]) -> Iterator[float]:
        """Yield the CPU seconds that a step takes on a file."""
        step, path = item
        if step == FFMPEG:
            yield _cpu_s_of(lambda: _decode_with_ffmpeg(path)) - self._start_s
        else:
            yield _cpu_s_of(lambda: self._works[step](path))

    def _decode(self, path: str) -> None:
        with open(path, "rb") as file, open_audio(file, uri=path) as decoder:
            for _ in decoder:
                pass

    def _find_speech(self, path: str) -> None:
        cutter = PartCutter(part_s=self._settings.part_s, detector=self._detector)
        with open(path, "rb") as file, open_audio(file, uri=path) as decoder:
            for chunk in decoder:
                for _ in cutter.feed(chunk[0]):
                    pass
        for _ in cutter.finish():
            pass

    def _extract_all(self, path: str) -> None:
        for _ in self._extract(ExtractRequest(uri=path, done_parts=frozenset())):
            pass


def _cpu_s_of(work: Callable[[], None]) -> float:
    # The processor's time, which a busy machine does not distort; ffmpeg's is that of a child.
    started_s = _cpu_s()
    work()
    return _cpu_s() - started_s


def _cpu_s() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _start_ffmpeg() -> None:
    subprocess.run(["ffmpeg", "-version"], stdout=subprocess.DEVNULL, check=True)


def _decode_with_ffmpeg(path: str) -> None:
    rate = ["-ar", str(SAMPLE_RATE_HZ), "-ac", "1"]
    command = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", "-i", path, *rate]
    done = subprocess.run(
        [*command, "-f", "null", "-"], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        reason = " ".join(done.stderr.split())[-300:]
        raise EngineError(
            f"decoding {path} with ffmpeg: exit code {done.returncode} ({reason}), expected 0; "
            "leave the file out, or install an ffmpeg that reads it"
        )


if __name__ == "__main__":
    sys.exit(main())
