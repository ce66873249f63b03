"""What each file, part and object costs a run outside extraction and the model.

    python -m benchmarks.scaling --files 1000000 --rows-per-commit 5000

A manifest names that many files which do not exist; each is committed as one part of one segment.
Times are processor seconds of this process, so that other work on the machine matters little;
memory is its peak so far. Nothing is downloaded, and nothing is left behind.
"""

import argparse
import datetime
import functools
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus_asr.schemas import RESULTS
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.run_state.finish import compact, write_recordings
from corpus_asr.storage.run_state.plan import Plan, make_plan, read_listing
from corpus_asr.storage.run_state.run_files import begin_run, fingerprint
from corpus_asr.storage.run_state.run_tables import RunTables
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.units import MEBIBYTE
from tests.support.tables import run_config

SEGMENT: dict[str, Any] = {
    "segment": 0, "start_s": 0.0, "end_s": 5.0, "text": "", "tokens": [], "language": "en",
    "task": "transcribe", "confidence": 0.9, "avg_logprob": -0.2, "no_speech_prob": 0.01,
    "compression_ratio": 1.2, "temperature": 0.0,
}  # fmt: skip
CONSTANT: dict[str, Any] = {
    "part": 0, "last_part": True, "part_start_s": 0.0, "part_end_s": 5.0, "duration_s": 5.0,
    "speech_s": 5.0, "status": "ok", "attempts": 1, "codec": "mp3", "sample_rate_hz": 44_100,
    "channels": 2, "language": "en", "device": "cuda:0", "decode_s": 0.01, "transcribe_s": 0.1,
}  # fmt: skip
TEXTS = [f"{a} {b} {c} and that is all there is to say" for a in ("the cat", "a dog", "no one")
         for b in ("ran", "slept", "sang") for c in ("home", "away", "on and on")]  # fmt: skip


class Bench:
    """Phases one after another over one output folder."""

    def __init__(self, folder: Path, files: int, rows_per_commit: int) -> None:
        self.files, self.rows_per_commit = files, rows_per_commit
        source = {"manifest": str(folder / "manifest.jsonl")}
        self.config = run_config("", folder / "output", model="none", source=source)
        self.store = OutputStore(self.config.output.uri)
        with open(folder / "manifest.jsonl", "w") as manifest:
            manifest.writelines(
                f'{{"uri": "s3://podcasts/2026/{i // 1000:06d}/episode-{i:09d}.mp3"}}\n'
                for i in range(files)
            )

    def timed(self, name: str, work: Callable[[], Any], units: int, unit: str) -> Any:
        started = time.process_time()
        result = work()
        cpu_s = time.process_time() - started
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        per = f"{1e6 * cpu_s / max(1, units):.1f} us/{unit}"
        print(f"{name:28} {cpu_s:8.2f} s  {per:>18}  peak {peak_mib:,.0f} MiB", flush=True)
        return result

    def run(self) -> None:
        """Measure everything, in the order of a run."""
        count, store = self.files, self.store
        objects = -(-count // self.rows_per_commit)
        plan_of = functools.partial(make_plan, self.config, store)
        self.timed("list (manifest)", lambda: list(FileListing(self.config.source)), count, "file")
        begin_run(store, self.config, fingerprint(self.config, "revision"))
        plan = self.timed("plan, nothing done", plan_of, count, "file")
        self.timed("commit", lambda: self._commit(plan), objects, "commit")
        self._read(plan, objects).close()
        self.timed("merge small commits", lambda: compact(store, 128 * MEBIBYTE), count, "part")
        with self._read(plan, len(store.names("outcomes"))) as tables:
            self.timed(
                "recordings",
                lambda: write_recordings(store, tables, datetime.datetime.now(datetime.UTC)),
                count,
                "recording",
            )
        again = self.timed("plan, all done", plan_of, count, "file")
        assert again.num_remaining == 0
        for name in ("outcomes", "segments", "recordings"):
            sizes = store.sizes(name)
            print(f"{name}: {len(sizes)} objects, {sum(sizes.values()) / count:.1f} bytes/file")

    def _read(self, plan: Plan, objects: int) -> RunTables:
        listing = read_listing(self.store, plan)
        tables: RunTables = self.timed(
            f"tables of {objects} objects", lambda: RunTables(self.store, listing=listing),
            self.files, "part",
        )  # fmt: skip
        return tables

    def _commit(self, plan: Plan) -> None:
        chance = np.random.default_rng(0)
        for batch in read_listing(self.store, plan):
            table = pa.Table.from_batches([batch])
            for start in range(0, table.num_rows, self.rows_per_commit):
                files = table.slice(start, self.rows_per_commit)
                results = stubbed_results(files, chance)  # cheap beside the commit
                self.store.commit(results, run_id="run", model="m", model_revision="revision")


def stubbed_results(files: pa.Table, chance: np.random.Generator, *, segments: int = 1) -> pa.Table:
    """Return RESULTS of files, one part of as many segments each."""
    count, total = files.num_rows, files.num_rows * segments
    kinds = RESULTS.field("segments").type
    texts = pa.array(TEXTS).take(pa.array(chance.integers(len(TEXTS), size=total)))
    tokens = pa.ListArray.from_arrays(
        pa.array(np.arange(total + 1, dtype=np.int32) * 12),
        pa.array(chance.integers(50_000, size=12 * total).astype(np.int32)),
    )
    places = np.tile(np.arange(segments, dtype=np.int32), count)
    values = SEGMENT | {
        "segment": pa.array(places), "start_s": pa.array(places * 5.0),
        "end_s": pa.array(places * 5.0 + 5.0), "text": texts, "tokens": tokens,
    }  # fmt: skip
    columns = []
    for field in kinds.value_type:
        value = values.get(field.name)
        constant = not isinstance(value, pa.Array)
        columns.append(pa.repeat(pa.scalar(value, field.type), total) if constant else value)
    structs = pa.StructArray.from_arrays(columns, fields=list(kinds.value_type))
    bounds = pa.array(np.arange(count + 1, dtype=np.int32) * segments)
    lists = pa.ListArray.from_arrays(bounds, structs)
    arrays = []
    for field in RESULTS:
        if field.name == "segments":
            arrays.append(lists.cast(field.type))
        elif field.name in files.schema.names:
            arrays.append(pc.cast(files[field.name].combine_chunks(), field.type))
        else:
            value = CONSTANT.get(field.name)
            arrays.append(pa.repeat(pa.scalar(value, field.type), count))
    return pa.table(arrays, schema=RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rows-per-commit", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="corpus-asr-scaling-") as folder:
        print(json.dumps(vars(arguments)))
        Bench(Path(folder), arguments.files, arguments.rows_per_commit).run()


if __name__ == "__main__":
    main()
