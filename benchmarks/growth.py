"""How the cost of each command grows with an archive, from folders with results of no model.

    python -m benchmarks.growth --sizes 20000 100000 --to docs/benchmarks/DATE-growth.json
    python -m benchmarks.growth --print docs/benchmarks/DATE-growth.json

A manifest names so many recordings that do not exist; their results are committed as a run commits
them, 350 at a time, but for a backlog that ten nights then work off. Each step is a process of its
own: its processor time, its peak of memory, its requests to the store, the objects it leaves. Exits
with 1 where a figure grows faster than its order. `--steps` measures some of them alone, of those
that need no other. Nothing is left behind.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.tables import fill, markdown
from corpus_asr.config.run import RunConfig, RunOptions
from corpus_asr.schemas import RESULTS
from corpus_asr.speakers.voices import find_voices
from corpus_asr.storage.listing import FileListing
from corpus_asr.storage.run_state.part_rows import commit_rows
from corpus_asr.storage.run_state.plan import make_plan, read_listing
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.filesystem import list_pages
from corpus_asr.storage.stores.local import LocalStore
from tests.support.clouds import ListedGoogle, listed
from tests.support.tables import run_config
from tests.support.tokenizers import tiny_tokenizer

ROOT: Final = Path(__file__).resolve().parents[1]
ROWS_PER_COMMIT = 350  # of six minutes: 4 MB in memory, `output.commit_mb`
SEGMENTS = 5
NIGHTS = 10
ROWS_PER_NIGHT = 1_000
ROWS_PER_NIGHTLY_COMMIT = 100
LIMIT_MIB = 8_000  # of a driver for `FITTED` recordings
FITTED = 10_000_000
# Below, tables have not yet reached what they may take in memory: no line leads further.
FITTED_FROM = 100_000
NEW_SPEAKERS = 600
# A figure may grow by this factor more than its order before that is a fault: page sizes, caches
# and what else runs on the machine.
BOUND = 1.5
LEAST = {"cpu_s": 1.0, "requests": 30, "objects": 5}  # below, differences mean nothing
LINEAR, CONSTANT = "linear", "constant"
REQUESTS = ("info", "read_range", "write", "create", "swap", "remove")

# Orders of processor time and of requests. A night reads the whole listing, and one row of each
# recording that is done, with as many requests as if the archive were small.
STEPS: Final = {
    "list_manifest": (LINEAR, CONSTANT),
    "plan": (LINEAR, LINEAR),
    "commit": (LINEAR, LINEAR),
    "status running": (LINEAR, LINEAR),
    "report unmerged": (LINEAR, LINEAR),
    "view unmerged": (LINEAR, LINEAR),
    "finish": (LINEAR, LINEAR),
    "nights": (LINEAR, CONSTANT),
    "resume": (LINEAR, LINEAR),
    "status": (CONSTANT, CONSTANT),
    "report": (LINEAR, LINEAR),
    "page": (LINEAR, LINEAR),
    "view": (LINEAR, LINEAR),
    "show": (LINEAR, LINEAR),
    "export": (LINEAR, LINEAR),
    "list_cloud": (LINEAR, CONSTANT),
    "voices": (LINEAR, CONSTANT),
}
COMMANDS: Final = {
    "status": "status OUTPUT",
    "report": "report OUTPUT",
    "page": "report OUTPUT --html FOLDER/page.html",
    "show": "show OUTPUT --uri *000000001.mp3",
    "export": "export OUTPUT --to FOLDER/export --format json --single",
}
SEGMENT_COLUMNS: dict[str, Any] = {
    "segment": 0, "start_s": 0.0, "end_s": 5.0, "text": "", "tokens": [], "language": "en",
    "task": "transcribe", "confidence": 0.9, "avg_logprob": -0.2, "no_speech_prob": 0.01,
    "compression_ratio": 1.2, "temperature": 0.0,
}  # fmt: skip
CONSTANT_COLUMNS: dict[str, Any] = {
    "part": 0, "last_part": True, "part_start_s": 0.0, "part_end_s": 5.0, "duration_s": 5.0,
    "speech_s": 5.0, "status": "ok", "attempts": 1, "codec": "mp3", "sample_rate_hz": 44_100,
    "channels": 2, "language": "en", "device": "cuda:0", "decode_s": 0.01, "transcribe_s": 0.1,
}  # fmt: skip
TEXTS = [f"{a} {b} {c} and that is all there is to say" for a in ("the cat", "a dog", "no one")
         for b in ("ran", "slept", "sang") for c in ("home", "away", "on and on")]  # fmt: skip
COUNTED: Counter[str] = Counter()

Figures = dict[str, Any]


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
    values = SEGMENT_COLUMNS | {
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
            value = CONSTANT_COLUMNS.get(field.name)
            arrays.append(pa.repeat(pa.scalar(value, field.type), count))
    return pa.table(arrays, schema=RESULTS)


class Archive:
    """A folder with a manifest, a model that is never loaded, and the output of a run."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.night = min(ROWS_PER_NIGHT, count // 40)
        model = folder / "model"
        self.config: RunConfig = run_config(
            "", folder / "output", model=model,
            source={"manifest": str(folder / "manifest.parquet")},
        )  # fmt: skip
        self.store = OutputStore(self.config.output.uri)

    def make(self) -> None:
        """Write what a run reads."""
        model = self.folder / "model"
        model.mkdir(parents=True)
        tiny_tokenizer(model)
        (model / "config.json").write_text('{"model_type": "whisper"}')
        (model / "model.safetensors").write_bytes(b"never loaded")
        schema = pa.schema([("uri", pa.string())])
        with pq.ParquetWriter(self.folder / "manifest.parquet", schema) as manifest:
            for start in range(0, self.count, 100_000):
                uris = [
                    f"s3://podcasts/20{20 + i % 7}/{1 + i % 12:02d}/{i // 1000:06d}/{i:09d}.mp3"
                    for i in range(start, min(self.count, start + 100_000))
                ]
                manifest.write_table(pa.table({"uri": uris}, schema=schema))

    @contextlib.contextmanager
    def _night(self) -> Iterator[Any]:
        from corpus_asr.pipelines.driver import CorpusRun, prepare

        options = RunOptions(stop_at=time.monotonic())
        checkpoint = prepare(self.config)
        with CorpusRun.open(
            self.config, checkpoint, local=True, progress=None, options=options
        ) as run:
            yield run

    def _commit(self, run: Any, first: int, stop: int, rows: int) -> None:
        """Commit the recordings at these places of the listing."""
        chance, at = np.random.default_rng(first), 0
        for batch in read_listing(run.store, run.plan.name):
            start = max(0, first - at)
            some = pa.Table.from_batches([batch]).slice(start, max(0, stop - at - start))
            at += batch.num_rows
            some = some.take(chance.permutation(len(some)))
            for row in range(0, len(some), rows):
                results = stubbed_results(some.slice(row, rows), chance, segments=SEGMENTS)
                model = ("m", "revision")
                run.store.put_commit(commit_rows(results, run_id=run.lock.run_id, model=model))

    # The steps, in their order.

    def list_manifest(self) -> None:
        assert sum(batch.num_rows for batch in FileListing(self.config.source)) == self.count

    def plan(self) -> None:
        """List, and plan while nothing is done."""
        make_plan(self.config, self.store)

    def commit(self) -> None:
        """Begin a run, and commit all but the backlog."""
        with self._night() as run:
            run.start()
            self._commit(run, 0, self.count - NIGHTS * self.night, ROWS_PER_COMMIT)

    def finish(self) -> None:
        """Finish a run, for the first time."""
        with self._night() as run:
            run.start()
            run.finish()

    def nights(self) -> Figures:
        """Work off the backlog; return the last night's figures, and each night's."""
        found = []
        for night in range(NIGHTS):
            COUNTED.clear()
            began_s = time.process_time()
            with self._night() as run:
                run.start()
                first = self.count - (NIGHTS - night) * self.night
                self._commit(run, first, first + self.night, ROWS_PER_NIGHTLY_COMMIT)
                run.finish()
            found.append({"cpu_s": time.process_time() - began_s, "requests": COUNTED.total()})
        return {**found[-1], "nights": found}

    def resume(self) -> None:
        """Run again where nothing is left."""
        from corpus_asr.pipelines.driver import run

        summary = run(self.config, local=True, progress=None)
        assert (summary.done, summary.processed) == (self.count, 0)

    def view(self) -> None:
        """Read an output folder as the viewer does, search it, and look for a recording."""
        from corpus_asr.view.catalogue import Library
        from corpus_asr.view.search import Filters, find, parse_query, recordings_page

        library = Library(self.store)
        tables = library.wait().catalogue.tables
        assert find(tables, parse_query("slept away"), Filters()).total
        assert recordings_page(tables, Filters(name="000000001")).total == 1
        library.close()

    def list_cloud(self) -> None:
        """List a folder of gs://, scripted after gcsfs."""
        with listed(ListedGoogle, self.count) as uri:
            assert sum(len(page.uris) for page in list_pages(uri)) == self.count

    def voices(self) -> None:
        """Compare new speakers with as many known ones as there are recordings."""
        chance = np.random.default_rng(0)
        people = chance.standard_normal((self.count // 4, 256), np.float32)
        known = chance.integers(len(people), size=self.count)
        voices = people[known]
        for rows in np.array_split(voices, max(1, self.count // 10_000)):  # in place
            rows += np.float32(0.3) * chance.standard_normal(rows.shape, np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        known[-NEW_SPEAKERS:] = -1
        recordings = np.arange(self.count) // 2
        found = find_voices(voices, recordings, same_above=0.87, known=known)
        assert len(np.unique(found)) <= len(people)

    def command(self, name: str) -> None:
        """Run a command as a user does, in this process."""
        from corpus_asr.cli.main import main

        words = COMMANDS[name].replace("OUTPUT", self.store.uri)
        sys.argv = ["corpus-asr", *words.replace("FOLDER", str(self.folder)).split()]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise


def count_requests() -> None:
    """Count each request to a store of this process, and each page of a listing."""

    def counting(name: str, request: Any) -> Any:
        def counted(*given: Any, **named: Any) -> Any:
            COUNTED[name] += 1
            return request(*given, **named)

        return counted

    for name in REQUESTS:
        setattr(LocalStore, name, counting(name, getattr(LocalStore, name)))
    pages = LocalStore.pages

    def counted_pages(*given: Any, **named: Any) -> Iterator[Any]:
        COUNTED["list"] += 1  # a folder that is empty takes one, too
        for number, page in enumerate(pages(*given, **named)):
            COUNTED["list"] += number > 0
            yield page

    LocalStore.pages = counted_pages  # type: ignore[method-assign]


def work(step: str, folder: Path, count: int) -> Figures:
    """Do one step in this process, and return what it took."""
    archive = Archive(folder, count)
    count_requests()
    began_s = time.process_time()
    name = step.partition(" ")[0]
    own: Figures | None = None
    if name in COMMANDS:
        archive.command(name)
    else:
        own = getattr(archive, name)()
    cpu_s = time.process_time() - began_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    objects = sum(len(files) for _, _, files in os.walk(archive.store.uri))
    figures = {"cpu_s": cpu_s, "peak_mib": peak_mib, "requests": COUNTED.total(),
               "by_kind": dict(COUNTED), "objects": objects}  # fmt: skip
    return figures | (own or {})


def measure(count: int, steps: Sequence[str]) -> dict[str, Figures]:
    """Measure the steps on an archive of so many recordings, each in a process of its own."""
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="corpus-asr-growth-") as folder:
        Archive(Path(folder), count).make()
        for step in steps:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.growth", "--step", step, "--folder", folder,
                 "--sizes", str(count)],
                cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            found[step] = json.loads(done.stdout.splitlines()[-1])
            shown = ", ".join(f"{name} {found[step][name]:,.1f}" for name in
                              ("cpu_s", "peak_mib", "requests", "objects"))  # fmt: skip
            print(f"{count:>9,} {step:16} {shown}", file=sys.stderr, flush=True)
    return found


def faults(sizes: dict[int, dict[str, Figures]]) -> list[str]:
    """Say which figures grow faster than their order, and what would not fit a driver."""
    found = []
    counts = sorted(sizes)
    for small, large in pairwise(counts):
        both = sizes[small].keys() & sizes[large].keys()
        for step in (step for step in STEPS if step in both):
            cpu_order, request_order = STEPS[step]
            for name, order in (("cpu_s", cpu_order), ("requests", request_order)):
                one, other = (sizes[count][step][name] for count in (small, large))
                most = BOUND * max(one, LEAST[name]) * (large / small if order == LINEAR else 1)
                if other > most:
                    found.append(
                        f"{step}: {name} {one:.1f} at {small:,}, {other:.1f} at {large:,}: more "
                        f"than {order}, at most {most:.1f}"
                    )
    found += [
        f"{step}: {mib:,.0f} MiB at {FITTED:,}, at most {LIMIT_MIB:,}"
        for step in STEPS
        if (mib := fitted_mib(sizes, step) or 0) > LIMIT_MIB
    ]
    for count in counts:
        nights = sizes[count].get("nights", {}).get("nights", ())
        if not nights:
            continue
        for name in ("cpu_s", "requests"):
            second, last = nights[1][name], nights[-1][name]
            if last > BOUND * max(second, LEAST[name]):
                found.append(f"nights of {count:,}: {name} {second:.1f}, at last {last:.1f}")
    return found


def fitted_mib(sizes: dict[int, dict[str, Figures]], step: str) -> float | None:
    """Return the memory of a step for `FITTED` recordings, on a line through the largest two."""
    counts = [count for count in sorted(sizes) if step in sizes[count] and count >= FITTED_FROM]
    if len(counts) < 2:
        return None
    small, large = counts[-2:]
    one, other = (sizes[count][step]["peak_mib"] for count in (small, large))
    return float(other + (FITTED - large) * max(0.0, other - one) / (large - small))


def drawn(results: Figures) -> str:
    """Draw the table of docs/background/scaling.md."""
    sizes = {int(count): steps for count, steps in results["sizes"].items()}
    counts = sorted(sizes)
    rows = []
    for step, orders in STEPS.items():
        cells = [_cell(sizes[count].get(step)) for count in counts]
        known = [count for count in counts if step in sizes[count]]
        fit = {}
        for name, order in zip(("cpu_s", "requests"), orders, strict=True):
            factor = FITTED / known[-1] if known and order == LINEAR else 1
            fit[name] = factor * sizes[known[-1]][step][name] if known else None
        fit["peak_mib"] = fitted_mib(sizes, step)
        if len(known) < 2:  # one size shows no growth
            fit["cpu_s"] = None
        rows.append([step.replace("_", " "), *cells, _cell(fit)])
    titles = ["step", *(f"{count:,}" for count in counts), f"fit for {FITTED:,}"]
    return "\n".join([f"{results['date']}, {results['machine']}:", "", *markdown(titles, rows)])


def _cell(found: Figures | None) -> str:
    if found is None or found["cpu_s"] is None:
        return "-"
    memory = "" if found["peak_mib"] is None else f"{found['peak_mib']:,.0f} MiB, "
    return f"{found['cpu_s']:,.1f} s, {memory}{found['requests']:,.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 100_000, 1_000_000])
    parser.add_argument("--to", type=Path, help="JSON file; sizes that it has are kept")
    parser.add_argument("--print", type=Path, dest="printed", help="write the docs' table from it")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.step is not None:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            figures = work(given.step, given.folder, given.sizes[0])
        print(json.dumps(figures))
        return 0
    if given.printed is not None:
        table = drawn(json.loads(given.printed.read_text()))
        fill(ROOT / "docs" / "background" / "scaling.md", "growth", table)
        return 0
    results: Figures = {"sizes": {}}
    if given.to is not None and given.to.is_file():
        results = json.loads(given.to.read_text())
    results |= {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
    }
    for count in given.sizes:
        kept = results["sizes"].setdefault(str(count), {})
        kept |= measure(count, given.steps)
        if given.to is not None:
            given.to.write_text(f"{json.dumps(results, indent=1)}\n")
    print(json.dumps(results))
    found = faults({int(count): steps for count, steps in results["sizes"].items()})
    for fault in found:
        print(fault, file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
