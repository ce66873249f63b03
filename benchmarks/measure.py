"""`python -m benchmarks.measure`: time this engine beside faster-whisper and transformers.

Each run of an engine is a process of its own, and runs alternate: A B C, A B C. In: audio files and
a checkpoint. Out: medians for each engine, with error rates where texts are known.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.worker import read_samples
from corpus_asr.errors import ConfigError, install_words
from corpus_asr.scratch import scratch_folder
from corpus_asr.threads import BRIEFLY, SPIN_COUNT, usable_threads
from corpus_asr.units import SAMPLE_RATE_HZ, WINDOW_S

Run = dict[str, Any]
Work = Mapping[str, Sequence[str]]
"""Files, as `work` and as `warm_up`."""
OURS, PEERS = "corpus-asr", ("faster-whisper", "faster-whisper-batched", "transformers")
_ENGINES = "benchmarks.worker"
_PACKAGES = Path(__file__).resolve().parents[1]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A file, and what is said in it."""

    path: Path
    duration_s: float
    text: str | None


@dataclass(slots=True, kw_only=True)
class Row:
    """An engine with its options, and what came of its runs."""

    name: str
    engine: str
    """`module:function`."""
    options: dict[str, Any]
    runs: list[Run] = field(default_factory=list)
    failed: str | None = None
    word_error_rate: float | None = None

    def all(self, key: str) -> list[float]:
        """Return a figure of every run that has it."""
        return [run[key] for run in self.runs if run.get(key) is not None]


def run(arguments: Sequence[str], *, say: Callable[[str], None] = print) -> None:
    """Measure what the arguments ask for, and print a table."""
    asked = _parser().parse_intermixed_args(arguments)
    from corpus_asr.families.loading import device_name, resolve_device

    device = resolve_device(asked.device)
    recordings = find_recordings(asked.audio, asked.manifest)
    audio_s, files = sum(each.duration_s for each in recordings), [str(r.path) for r in recordings]
    # On a GPU with all of it, as kernels are chosen by the size of a batch.
    work = {"work": files, "warm_up": files if device.type == "cuda" else files[:1]}
    say(
        f"{device_name(device)}, {asked.threads} threads; {asked.model}; {len(files)} recordings, "
        f"{audio_s:.0f} s, {asked.mode}; medians of {asked.runs} alternating runs (least..most)"
    )
    with scratch_folder() as scratch:
        rows = rows_of(asked, str(device), str(scratch))
        measure(rows, work, runs=asked.runs)
    for row in (row for row in rows if row.runs):
        texts = row.runs[0]["texts"]
        row.word_error_rate = word_error_rate(texts, recordings, language=asked.language)
    say(table(rows, audio_s))
    if asked.json is not None:
        content = {"audio_s": audio_s, "rows": list(map(asdict, rows))}
        asked.json.write_text(f"{json.dumps(content, indent=1, ensure_ascii=False)}\n")


def rows_of(asked: argparse.Namespace, device: str, scratch: str) -> list[Row]:
    """Return a row for each engine and data type; of the peers those that are installed."""
    wanted = [(OURS, dtype) for dtype in asked.dtype.split(",")]
    for name, _, dtype in (each.partition(":") for each in asked.peers.split(",")):
        if name not in (*PEERS, "none"):
            raise ConfigError(f"choosing peers: found {name!r}, expected {', '.join(PEERS)}, none")
        if name != "none" and find_spec(name.replace("-", "_").removesuffix("_batched")) is None:
            sys.stderr.write(f"{name} is skipped: {install_words('bench')}\n")
        elif name != "none":
            on_cpu = "float32" if name == "transformers" else "int8"
            wanted.append((name, dtype or (on_cpu if device == "cpu" else "float16")))
    return [_row(name, dtype, device, scratch, asked) for name, dtype in wanted]


def _row(name: str, dtype: str, device: str, scratch: str, asked: argparse.Namespace) -> Row:
    options = {"model": asked.model, "device": device, "threads": asked.threads, "dtype": dtype}
    # One try per window, and no earlier text as a prompt: the same work for all engines.
    once: dict[str, Any] = {"temperature": 0.0, "beam_size": asked.beams}
    once |= {"compression_ratio_threshold": None, "no_speech_threshold": None}
    if name == "transformers":
        once = {}  # it has no thresholds by default
        generate = {"language": asked.language, "task": "transcribe", "num_beams": asked.beams}
        options |= {"generate": generate, "return_timestamps": True}
        if asked.mode == "chunked":
            options |= {"chunk_length_s": WINDOW_S, "batch_size": asked.batch}
    elif name == OURS:
        once |= {"logprob_threshold": None}
        options |= {"language": asked.language, "strategy": asked.mode}
        options |= {"slots": asked.batch * asked.beams}
    else:
        once |= {"log_prob_threshold": None, "condition_on_previous_text": False}
        once |= {"vad_filter": True}
        options |= {"language": asked.language, "convert_to": f"{scratch}/ctranslate2"}
        if name.endswith("-batched"):
            options |= {"batched": True, "batch_size": asked.batch}
    engine = f"{_ENGINES}:{name.replace('-', '_').removesuffix('_batched')}"
    options |= {} if asked.defaults else once
    return Row(name=f"{name} {dtype}", engine=engine, options=options)


def measure(rows: Sequence[Row], work: Work, *, runs: int) -> None:
    """Let rows work in turns; one that fails has no further turns."""
    for number in range(1, runs + 1):
        for row in (row for row in rows if row.failed is None):
            sys.stderr.write(f"round {number} of {runs}: {row.name}\n")
            found = measured(row.engine, row.options, work)
            row.failed = found.get("failed")
            row.runs += [] if row.failed else [found]


def measured(engine: str, options: Run, work: Work, python: str = sys.executable) -> Run:
    """Let an engine work once in a process of its own; `failed` says why it did not."""
    cores = options["threads"] * options.get("workers", 1)
    request = {"engine": engine, "options": options, "cores": cores, **work}
    paths = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Our threads wait as those of a run do, the others' as their users have them.
    kept = {k: v for k, v in os.environ.items() if (k, v) != (SPIN_COUNT, BRIEFLY)}
    if engine.endswith(":corpus_asr"):
        kept.setdefault(SPIN_COUNT, BRIEFLY)
    kept |= dict.fromkeys(_THREADS, str(options["threads"])) | {"PYTHONPATH": ":".join(paths)}
    kept |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    # -P: a file in the current folder must not be taken for a library.
    command, given = [python, "-P", "-m", _ENGINES], json.dumps(request)
    done = subprocess.run(
        command, input=given, env=kept, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"failed": f"exit code {done.returncode}: {last}"}
    found: Run = json.loads(done.stdout)
    return found


def word_error_rate(
    texts: Sequence[str], recordings: Sequence[Recording], *, language: str = "en"
) -> float | None:
    """Compare with the references, both normalized; None where there are none, or no jiwer."""
    from corpus_asr.report.scoring import normalized

    said = [(each.text or "", text) for each, text in zip(recordings, texts, strict=True)]
    pairs = [(normalized(text, language), normalized(found, language)) for text, found in said]
    pairs = [pair for pair in pairs if pair[0]]
    if not pairs or find_spec("jiwer") is None:
        return None
    jiwer = importlib.import_module("jiwer")
    return float(jiwer.wer([pair[0] for pair in pairs], [pair[1] for pair in pairs]))


def table(rows: Sequence[Row], audio_s: float, *stages: str) -> str:
    """Draw medians (least..most); rows that failed are listed below with their reasons."""
    from corpus_asr.report.text import aligned

    done = [row for row in rows if row.runs]
    speeds = [[audio_s / wall_s for wall_s in row.all("wall_s")] for row in done]
    columns = [["", *(row.name for row in done)], ["x real time", *map(_spread, speeds)]]
    keys = {stage: stage for stage in stages} | {"wall_s": "total s", "cpu_s": "CPU s"}
    keys |= {"peak_mib": "MiB", "peak_gpu_mib": "GPU MiB"}
    columns += [[title, *(_spread(row.all(key)) for row in done)] for key, title in keys.items()]
    # Within a round, so that a machine that slows down changes both.
    pairs = [zip(rows[0].all("wall_s"), row.all("wall_s"), strict=False) for row in done]
    ratios = [_spread([theirs / ours for ours, theirs in each]) for each in pairs]
    columns.append([f"{rows[0].name} is x as fast", *ratios])
    rates = [row.word_error_rate for row in done]
    columns.append(["WER %", *("" if rate is None else f"{100 * rate:.2f}" for rate in rates)])
    shown = list(zip(*(column for column in columns if any(column[1:])), strict=True))
    lines = ["  ".join(cells).rstrip() for cells in aligned(shown)]
    return "\n".join([*lines, *(f"{row.name} failed: {row.failed}" for row in rows if row.failed)])


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    median, digits = statistics.median(values), 2 if max(values) < 100 else 0
    return f"{median:.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def find_recordings(files: Sequence[Path], manifest: Path | None) -> list[Recording]:
    """Return the files and those of the manifest; texts are from there or a .txt beside."""
    from corpus_asr.storage.manifest import read_manifest

    named: list[tuple[Path, str | None]] = [(path, None) for path in files]
    if manifest is not None:
        named += [(Path(row.uri), row.text() or None) for row in read_manifest(str(manifest))]
    if not named:
        raise ConfigError("looking for audio: found none; name audio files or a --manifest")
    recordings = []
    for path, text in named:
        if not path.is_file():
            raise ConfigError(f"opening {path}: no such file; check the name")
        beside = path.with_suffix(".txt")
        if text is None and beside.is_file():
            try:
                text = beside.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(f"reading {beside}: {error}; write it as UTF-8") from error
        duration_s = len(read_samples(str(path))) / SAMPLE_RATE_HZ
        recordings.append(Recording(path=path, duration_s=duration_s, text=text))
    return recordings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.measure",
        description="Compare speed with other engines: same audio, checkpoint, batch and beams; "
        "alternating runs, each in a process of its own.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "audio", nargs="*", type=Path, metavar="AUDIO", help="audio files, with texts in .txt files"
    )
    add("--model", required=True, metavar="FOLDER", help="a checkpoint in Hugging Face layout")
    add("--manifest", type=Path, help="a .jsonl of audio files with `path` and `text`")
    add("--peers", default=",".join(PEERS), help="other engines, each with :DTYPE, or none")
    add("--dtype", default="auto", help="data types of this engine, separated by commas")
    add("--defaults", action="store_true", help="each engine's own options, not one try per window")
    add("--batch", type=int, default=8, help="windows per batch")
    add("--beams", type=int, default=1, help="number of beams; 1 is greedy")
    add("--runs", type=int, default=3, help="rounds")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--threads", type=int, default=usable_threads(), help="CPU threads of every engine")
    add("--mode", choices=("sequential", "chunked"), default="sequential", help="long form")
    add("--language", default="en", help="code of the language of the audio")
    add("--json", type=Path, metavar="FILE", help="write all results as JSON")
    return parser


if __name__ == "__main__":
    run(sys.argv[1:])
