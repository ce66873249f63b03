"""Folders of many listed files whose work is done, and what it costs to find that out.

    python -m tests.support.many_files FOLDER SOURCE    SOURCE: listing or manifest

prints `Cost` as JSON: a process of its own, so that its memory is its own.
"""

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from corpus_asr.config.run import RunConfig
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.model_files import model_revision
from corpus_asr.storage.run_state.run_files import begin_run, fingerprint
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.units import MEBIBYTE
from tests.support.engines import scripted_job
from tests.support.killing import peak_bytes
from tests.support.tables import commit, part, results
from tests.support.tokenizers import tiny_tokenizer

FILE_BYTES = 32_000  # one second of 16-bit audio; sparse, so that it takes no disk
FILES_PER_FOLDER = 1_000
# What a worker on a GPU collects before it commits: 64 KiB, 100-200 one-second files.
ROWS_PER_COMMIT = 100
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "in", "town")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a process took that had nothing left to do."""

    listed: int
    objects: int
    """Outcomes objects it found."""
    wall_s: float
    cpu_s: float
    peak_mib: float
    """Most memory it held, Python and libraries included."""
    started_mib: float
    """What it held before it began."""


def cost_of_resuming(folder: Path, source: str) -> Cost:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.many_files", str(folder), source],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Cost(**json.loads(done.stdout))


def job(folder: Path, source: str) -> RunConfig:
    """Return the job of a folder that `build` made."""
    sources = {
        "listing": {"uri": str(folder / "in")},
        "manifest": {"manifest": str(folder / "manifest.jsonl")},
    }
    config = scripted_job(folder, source=sources[source])
    (folder / "model" / "model.safetensors").write_bytes(b"never loaded")
    if not (folder / "model" / "tokenizer.json").is_file():
        tiny_tokenizer(folder / "model")
    return config


def build(folder: Path, files: int, source: str) -> None:
    """Make the files, the manifest that names them, and the commits of a run that did them all."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.jsonl", "w") as manifest:
        for index in range(files):
            path = folder / "in" / f"{index // FILES_PER_FOLDER:06d}" / f"episode-{index:09d}.wav"
            if index % FILES_PER_FOLDER == 0:
                path.parent.mkdir(parents=True)
            path.touch()
            os.truncate(path, FILE_BYTES)
            manifest.write(json.dumps({"uri": str(path), "speaker": index % 997}) + "\n")
    config = job(folder, source)
    store = OutputStore(config.output.uri)
    revision = model_revision(Path(config.model.checkpoint))
    run = begin_run(store, config, fingerprint(config, revision))
    chance = random.Random(0)
    for batch in FileListing(config.source):
        rows = batch.to_pylist()
        chance.shuffle(rows)  # recordings are done in any order
        for start in range(0, len(rows), ROWS_PER_COMMIT):
            some = [_result(row, chance) for row in rows[start : start + ROWS_PER_COMMIT]]
            commit(store, results(*some), run_id=run.run_id, model="m", model_revision=revision)


def _result(file: dict, chance: random.Random) -> dict:
    segment = {
        "segment": 0, "start_s": 0.0, "end_s": 1.0, "text": " ".join(chance.choices(WORDS, k=6)),
        "tokens": chance.choices(range(50_000), k=8), "language": "en", "task": "transcribe",
        "confidence": chance.random(), "avg_logprob": -chance.random(),
        "no_speech_prob": chance.random(), "compression_ratio": 1.0, "temperature": 0.0,
    }  # fmt: skip
    usual = part("", 0, texts=None, uri=file["uri"], segments=[segment])
    return usual | file | {
        "part_end_s": 1.0, "duration_s": 1.0, "speech_s": 1.0, "codec": "pcm_s16le",
        "sample_rate_hz": 16_000, "channels": 1, "language": "en", "decode_s": chance.random(),
        "transcribe_s": chance.random(), "device": "cuda:0",
    }  # fmt: skip


def resume(folder: Path, source: str) -> Cost:
    """Do what `corpus-asr run` does where nothing is left."""
    started, started_cpu = time.monotonic(), time.process_time()
    from corpus_asr.pipelines.driver import run

    config = job(folder, source)
    objects = len(OutputStore(config.output.uri).names("outcomes"))
    started_mib = peak_bytes() / MEBIBYTE
    summary = run(config, local=True, progress=None)
    assert summary.processed_files == 0, "there was work left"
    assert summary.done == summary.files
    return Cost(
        listed=summary.files,
        objects=objects,
        wall_s=time.monotonic() - started,
        cpu_s=time.process_time() - started_cpu,
        peak_mib=peak_bytes() / MEBIBYTE,
        started_mib=started_mib,
    )


if __name__ == "__main__":
    json.dump(asdict(resume(Path(sys.argv[1]), sys.argv[2])), sys.stdout)
