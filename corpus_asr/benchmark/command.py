"""`corpus-asr bench`: its options, and what it prints and writes.

The options are read by argparse, so that `python -m corpus_asr.benchmark` works where the packages
of the command line are not installed, as on a GPU image.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from corpus_asr.benchmark.orders import INSTALL, PEERS, SETTINGS
from corpus_asr.errors import ConfigError, CorpusAsrError
from corpus_asr.languages import resolve_language
from corpus_asr.threads import usable_cpus, usable_threads

PROGRAM = "corpus-asr bench"
EXIT_UNUSABLE = 2

# Half of the decoder's 448 positions, as all engines leave for the text of one window.
MAX_TOKENS_PER_WINDOW = 224

# What fast kernels are chosen by.
_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
    "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16",
)  # fmt: skip
_PACKAGES = (
    "corpus-asr", "torch", "transformers", "faster-whisper", "ctranslate2", "openai-whisper",
    "numpy", "jiwer",
)  # fmt: skip


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but for options that have none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, []):
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are those of this package."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"reading the command line: {message}; see {self.prog} --help")


def say(line: str) -> None:
    """Print a result."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def tell(line: str) -> None:
    """Print what is being done, apart from results."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark as a program; returns the exit code."""
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except CorpusAsrError as error:
        tell(f"{PROGRAM}: {error}")
        return EXIT_UNUSABLE
    return 0


def run(
    arguments: Sequence[str],
    *,
    say: Callable[[str], None] = say,
    tell: Callable[[str], None] = tell,
) -> None:
    """Measure what the arguments ask for."""
    options = _parser().parse_intermixed_args(arguments)
    _check(options)
    if options.extract:
        from corpus_asr.benchmark.extraction import run as run_extraction

        run_extraction(options.audio, runs=options.runs, say=say)
        return

    # Only from here on, so that --help does not wait for torch.
    from corpus_asr.benchmark.measuring import Bench
    from corpus_asr.families.loading import device_name, resolve_device

    device = resolve_device(options.device)
    bench = Bench(options, device=device, tell=tell)
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(gpu=device_name(device).partition(":")[2] or None),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "settings": vars(options),
    }
    for line in _headline(about, options, on_gpu=device.type != "cpu"):
        say(line)
    tables = []
    for drawn, data in bench.tables():
        tables.append(data)
        say(f"\n{drawn}")
        if options.json is not None:
            content = about | {"skipped": bench.left_out, "tables": tables}
            text = json.dumps(content, indent=1, ensure_ascii=False, default=str)  # paths
            options.json.write_text(f"{text}\n")


def _headline(about: dict[str, Any], options: argparse.Namespace, *, on_gpu: bool) -> list[str]:
    machine = about["hardware"]
    where = machine["gpu"] if on_gpu else f"{machine['cpu']}, {options.threads} threads"
    flags = " ".join(machine["cpu_flags"])
    packages = about["versions"].items()
    return [
        f"{where} ({machine['cores']} cores, {machine['memory_gib']} GiB, {flags})",
        ", ".join(f"{name} {number}" for name, number in packages if number),
        f"batch {options.batch}, beams {options.beams}, medians of {options.runs} alternating runs "
        f"(least..most), {about['date']}",
    ]


def hardware(*, gpu: str | None) -> dict[str, Any]:
    """Describe this machine: processor, memory, GPU, system."""
    cpu = _first_processor()
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "cores": usable_cpus(),
        "cores_of_machine": os.cpu_count() or 1,
        "memory_gib": round(memory_bytes / (1 << 30), 1),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.release()}",
    }


def _first_processor() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().partition("\n\n")[0].splitlines() if path.is_file() else []
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _check(options: argparse.Namespace) -> None:
    try:
        options.language = resolve_language(options.language)
    except ValueError as error:
        raise ConfigError(f"--language: {error}") from error
    if options.extract and (options.model or options.shape or options.manifest):
        raise ConfigError(
            "choosing what to measure: found --extract together with a model, a shape or a "
            "manifest; --extract takes audio files, and neither --model nor --shape"
        )
    if options.shape and (options.audio or options.manifest or options.model):
        raise ConfigError(
            "choosing what to measure: found --shape together with a model or audio; a shape has "
            "random weights and takes noise: give one or the other"
        )
    if not options.extract and not options.shape and options.model is None:
        raise ConfigError(
            "choosing what to measure: found neither --model nor --shape; give a checkpoint folder "
            "with --model and audio files, or a size with --shape"
        )
    for name in ("batch", "beams", "runs", "threads", "tokens_per_window"):
        if getattr(options, name) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')}: found {getattr(options, name)}, expected 1 or more"
            )
    if options.tokens_per_window > MAX_TOKENS_PER_WINDOW:
        raise ConfigError(
            f"--tokens-per-window: found {options.tokens_per_window}, expected at most "
            f"{MAX_TOKENS_PER_WINDOW}, half of Whisper's positions"
        )
    if options.json is not None and not options.json.parent.is_dir():
        raise ConfigError(f"--json {options.json}: there is no folder {options.json.parent}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Compare speed with other engines: same audio, checkpoint, batch and beams; "
        "alternating runs, each engine in a process of its own.",
        formatter_class=_HelpFormatter,
    )
    add = parser.add_argument
    add("audio", nargs="*", type=Path, metavar="AUDIO", help="audio files")
    add("--model", metavar="FOLDER", help="a checkpoint in Hugging Face layout")
    add(
        "--manifest",
        type=Path,
        help="a .jsonl of audio files, with `path` or `uri` and, for the word error rate, `text`; "
        "a .txt file next to an audio file works as well",
    )
    add(
        "--shape",
        nargs="+",
        action="extend",
        metavar="SIZE",
        help="time encoder and decoder alone with random weights of these sizes: tiny, base, "
        "small, medium, large-v3, large-v3-turbo",
    )
    add("--extract", action="store_true", help="time extraction of the files alone, on one core")
    add("--tokens-per-window", type=int, default=100, help="tokens decoded, with --shape")
    add(
        "--peers",
        type=_names,
        help=f"with commas between: {', '.join(PEERS)}, each with :DTYPE if need be; or none. "
        f"Without this all that are installed ({INSTALL})",
    )
    add("--dtype", type=_names, default=[], help="data types of this engine, separated by commas")
    add(
        "--settings",
        type=_names,
        default=",".join(SETTINGS),
        help="with commas between: thresholds-off, one try per window for all engines; default, "
        "what each engine does by itself, its beams included",
    )
    add("--batch", type=int, default=8, help="windows per batch")
    add("--beams", type=int, default=1, help="number of beams, thresholds off; 1 is greedy")
    add("--runs", type=int, default=3, help="measured rounds, after one warm-up")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--threads", type=int, default=usable_threads(), help="CPU threads of every engine")
    add(
        "--mode", choices=("sequential", "chunked"), default="sequential", help="long-form strategy"
    )
    add("--language", default="en", help="language of the audio")
    add("--json", type=Path, metavar="FILE", help="write all results as JSON, each round included")
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    return [] if names == ["none"] else names
