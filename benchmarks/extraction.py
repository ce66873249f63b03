"""How fast one core extracts: decoding, speech detection and features, and ffmpeg's decoding.

    python -m benchmarks.extraction AUDIO... [--runs 3]

CPU seconds are counted, which waiting for a busy machine does not add to, on one thread, as
extraction has. Each column holds what stands before it; ffmpeg's is without its start.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Recording, Row, find_recordings, measure
from benchmarks.worker import Engine
from corpus_asr.audio.decode import open_audio
from corpus_asr.audio.parts import PartCutter
from corpus_asr.audio.vad import SileroDetector
from corpus_asr.config.extraction import ExtractSettings
from corpus_asr.errors import EngineError
from corpus_asr.report.text import aligned
from corpus_asr.stages.extraction import PartExtractor
from corpus_asr.stages.parts import ExtractRequest
from corpus_asr.units import SAMPLE_RATE_HZ

_LARGEST_NUM_MEL_BINS = 128  # of large-v3; the others take less time


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio", nargs="+", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args(arguments)
    recordings = find_recordings(asked.audio, None)
    print(f"times real time of one core, by CPU seconds; medians of {asked.runs} alternating runs")
    if shutil.which("ffmpeg") is None:
        print("ffmpeg is not installed: it is skipped")
    names = [name for name in STEPS if name != "ffmpeg" or shutil.which("ffmpeg")]
    rows = [
        Row(name=name, engine="benchmarks.extraction:step", options={"name": name, "threads": 1})
        for name in names
    ]
    files = [str(recording.path) for recording in recordings]
    measure(rows, {"work": files, "warm_up": files}, runs=asked.runs)  # which fills caches
    if failed := next((row.failed for row in rows if row.failed), None):
        raise SystemExit(failed)
    print("\n".join(drawn(recordings, {row.name: medians(row) for row in rows})))


def medians(row: Row) -> list[float]:
    """Return the median CPU seconds of each recording."""
    each_s = zip(*(run["each_s"] for run in row.runs), strict=True)
    return [statistics.median(values) for values in each_s]


def drawn(recordings: Sequence[Recording], cpu_s: dict[str, list[float]]) -> list[str]:
    """Draw the table, with the sum of all recordings in its last line."""
    durations = [recording.duration_s for recording in recordings]
    totals = [*durations, sum(durations)]
    columns = [
        ["", *(recording.path.name for recording in recordings), "all"],
        ["audio s", *(f"{duration:.1f}" for duration in totals)],
    ]
    for name, values in cpu_s.items():
        speeds = zip(totals, [*values, sum(values)], strict=True)
        columns.append([name, *(f"{audio_s / spent_s:.0f}" for audio_s, spent_s in speeds)])
    return ["  ".join(cells).rstrip() for cells in aligned(list(zip(*columns, strict=True)))]


def step(name: str, threads: int) -> Engine:
    """Load what a step needs; it returns the CPU seconds of each file."""
    assert threads == 1, "as extraction has"
    work = STEPS[name]()
    start_s = cpu_s_of(_start_ffmpeg) if name == "ffmpeg" else 0.0

    def measured(paths: Sequence[str]) -> dict[str, Any]:
        return {"each_s": [cpu_s_of(partial(work, path)) - start_s for path in paths]}

    return measured


def _decoding() -> Callable[[str], None]:
    def work(path: str) -> None:
        with open(path, "rb") as file, open_audio(file, uri=path) as decoder:
            for _ in decoder:
                pass

    return work


def _speech() -> Callable[[str], None]:
    detector = SileroDetector()

    def work(path: str) -> None:
        cutter = PartCutter(part_s=ExtractSettings().part_s, detector=detector)
        with open(path, "rb") as file, open_audio(file, uri=path) as decoder:
            for chunk in decoder:
                for _ in cutter.feed(chunk[0]):
                    pass
        for _ in cutter.finish():
            pass

    return work


def _features() -> Callable[[str], None]:
    with TemporaryDirectory() as folder:
        config = {"model_type": "whisper", "num_mel_bins": _LARGEST_NUM_MEL_BINS}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        extract = PartExtractor(folder=folder, settings=ExtractSettings())

    def work(path: str) -> None:
        for _ in extract(ExtractRequest(uri=path, done_parts=frozenset())):
            pass

    return work


def _ffmpeg() -> Callable[[str], None]:
    return _decode_with_ffmpeg


# Each includes those before it, but for ffmpeg's.
STEPS: dict[str, Callable[[], Callable[[str], None]]] = {
    "ffmpeg": _ffmpeg,
    "decoding": _decoding,
    "+ speech": _speech,
    "+ features": _features,
}


def cpu_s_of(work: Callable[[], None]) -> float:
    """Return the CPU seconds that `work` takes, those of child processes that ended included."""
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
    main()
