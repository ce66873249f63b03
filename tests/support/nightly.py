"""Nightly runs without audio or model: an archive that changes, killed nights, summaries."""

import itertools
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus_asr.config.run import RunConfig, RunOptions
from corpus_asr.errors import EngineError
from corpus_asr.families.registry import FAMILIES
from corpus_asr.pipelines import driver
from corpus_asr.pipelines import nightly as pipeline
from corpus_asr.report.html import page
from corpus_asr.report.nightly import Archive as ArchiveCounts
from corpus_asr.report.nightly import Night, NightState, PastNight
from corpus_asr.report.numbers import RunNumbers
from corpus_asr.runtime.checkpoints import Checkpoint
from corpus_asr.runtime.commit import Committer, tally_of
from corpus_asr.runtime.progress import Progress
from corpus_asr.storage.run_state.finish import OutcomeCounts, finish
from corpus_asr.storage.run_state.lock import Lock, Timing
from corpus_asr.storage.run_state.plan import make_plan, read_listing, read_packs
from corpus_asr.storage.run_state.run_files import begin_run, fingerprint, new_run_id
from corpus_asr.storage.run_state.tables import OutputStore
from tests.support.stores import life
from tests.support.tables import commit, digest_of, part, results, run_config, with_section

REVISION = "weights"
QUICK = Timing(heartbeat_s=0.05, looks=3, settle_s=0.0)


class Nights:
    """A folder of recordings, and the tables of it."""

    def __init__(self, folder: Path, *, seed: int, files: int) -> None:
        self.source, self.output = folder / "in", folder / "out"
        self.source.mkdir(parents=True)
        self._chance = random.Random(seed)
        self._names = (f"{number:04d}.mp3" for number in itertools.count())
        self._versions = itertools.count(100)
        target = {"uri": str(self.output), "target_file_mb": 1}
        self.config = run_config(self.source, self.output, model="tiny", output=target)
        self.store = OutputStore(self.config.output.uri)
        self._daily = max(1, files // 6)
        for _ in range(files):
            self._write(next(self._names))
        self.down: set[str] = set()
        """Files the store did not give in their last attempt."""

    def _write(self, name: str) -> None:
        # A size of its own for each content: clocks of file systems are coarse.
        (self.source / name).write_bytes(b"x" * next(self._versions))

    def listed(self) -> dict[str, int]:
        """Return the files there are, and their content."""
        return {str(path): path.stat().st_size for path in self.source.iterdir()}

    def day(self) -> None:
        for _ in range(self._chance.randint(0, self._daily)):
            self._write(next(self._names))
        for change in (self._write, lambda name: (self.source / name).unlink()):
            present = sorted(path.name for path in self.source.iterdir())
            count = min(len(present) - 1, self._chance.randint(0, self._daily))
            for name in self._chance.sample(present, count):
                change(name)

    def night(
        self,
        *,
        options: RunOptions | None = None,
        down: float = 0.0,
        killed_after: int | None = None,
    ) -> OutcomeCounts | None:
        """Run; None if it was killed, after so many changes to the output."""
        counts = None
        with life(float("inf") if killed_after is None else killed_after):
            counts = self._run(options or RunOptions(), down)
        return counts

    def _run(self, options: RunOptions, down: float) -> OutcomeCounts:
        # A killed run leaves its lock; its process, the test's, lives on.
        with Lock(self.store, new_run_id(), steal=True, timing=QUICK) as lock:
            store = lock.store
            plan = make_plan(self.config, store, model_revision=REVISION, options=options)
            name = fingerprint(self.config, REVISION)
            run = begin_run(store, self.config, name, run_id=lock.run_id, new_run=options.new_run)
            for pack in read_packs(store, plan):
                for file in pack["files"].to_pylist()[0]:
                    rows = self._transcribed(file, down)
                    for start in range(0, len(rows), 3):  # commits that cut recordings apart
                        commit(store, results(*rows[start : start + 3]), run_id=run.run_id)
            return finish(
                store, run, self.config, model_revision=REVISION,
                listing=read_listing(store, plan), num_listed=plan.num_files,
                plan_name=plan.name,
            )  # fmt: skip

    def _transcribed(self, file: dict[str, Any], down: float) -> list[dict[str, Any]]:
        uri, done = file["uri"], set(file["done_parts"])
        self.down.discard(uri)
        rows = expected_rows(uri, file["size_bytes"], str(self.config.decoding.language))
        if self._chance.random() < down:
            self.down.add(uri)
            rows = [_failure(min({*range(len(rows) + 1)} - done), kind="timeout", retryable=True)]
        identity = {name: file[name] for name in ("recording_id", "etag", "size_bytes")}
        return [
            part("", row["part"], uri=uri, texts=row["texts"], status=row["status"],
                 **row["values"], **identity)
            for row in rows
            if row["part"] not in done
        ]  # fmt: skip

    def check(self) -> None:
        """Compare the tables, read as any Parquet reader would, with the files there are.

        Only after a night that ended.
        """
        outcomes = self.read("outcomes")
        keys = [(row["uri"], row["part"], row["size_bytes"]) for row in outcomes]
        assert len(keys) == len(set(keys))
        recordings = {row["uri"]: row for row in self.read("recordings")}
        assert len(recordings) == len(self.read("recordings"))
        texts: dict[str, list[str]] = {}
        for row in self.read("segments"):
            texts.setdefault(row["uri"], []).append(row["text"])
        for uri, content in self.listed().items():
            row = recordings[uri]
            if uri in self.down:
                failures = [each for each in outcomes if each["uri"] == uri]
                assert ("timeout", content) in {
                    (each["error_kind"], each["size_bytes"]) for each in failures
                }, "what failed is known"
            if row["size_bytes"] != content:
                # Text that was complete counts until this content is done.
                assert uri in self.down or content % 7 == 0
                assert row["parts"] == len(expected_rows(uri, row["size_bytes"], ""))
                assert row["segments"] == len(texts.get(uri, []))
                assert all(f" {row['size_bytes']} " in text for text in texts.get(uri, []))
                continue
            if uri in self.down:
                assert (row["status"], row["error_kind"]) == ("failed", "timeout")
                continue
            rows = expected_rows(uri, content, str(self.config.decoding.language))
            said = [text for expected in rows for text in expected["texts"] or ()]
            assert sorted(texts.get(uri, [])) == sorted(said)
            failed = any(expected["status"] == "failed" for expected in rows)
            assert row["status"] == ("failed" if failed else "ok" if said else "no_speech")
            assert row["parts"] == len(rows)

    def read(self, table: str) -> list[dict[str, Any]]:
        """Return a table's rows as any Parquet reader finds them."""
        paths = sorted((self.output / table).glob("*"))
        return [row for path in paths for row in pq.read_table(path).to_pylist()]


def expected_rows(uri: str, content: int, language: str) -> list[dict[str, Any]]:
    """Return what becomes of each part of a file with this content, the last one last."""
    count = 1 + content % 3
    rows = []
    for index in range(count):
        silent = (content + index) % 5 == 0
        texts = [] if silent else [f"{Path(uri).stem} {content} {index} {language}"]
        values = {"last_part": index == count - 1}
        status = "no_speech" if silent else "ok"
        rows.append({"part": index, "texts": texts, "status": status, "values": values})
    if content % 7 == 0:
        rows[-1] = _failure(count - 1, kind="corrupt", retryable=False)
    return rows


def _failure(index: int, *, kind: str, retryable: bool) -> dict[str, Any]:
    values = {"last_part": True, "retryable": retryable, "error_kind": kind,
              "error_stage": "extract"}  # fmt: skip
    return {"part": index, "texts": None, "status": "failed", "values": values}


class Archive:
    def __init__(
        self,
        folder: Path,
        patch: pytest.MonkeyPatch,
        *,
        source: dict[str, Any] | None = None,
        pages: bool = False,
        **nightly: Any,
    ) -> None:
        """Begin without a file; without `pages` no run ends with its page, half of its time."""
        self.source, self.output = folder / "in", folder / "output"
        self.source.mkdir()
        self._down: set[str] = set()
        self._kind = "timeout"
        self.worked: list[str] = []
        """Names of what the last run worked on."""
        model = folder / "model"
        files = {"uri": str(self.source)} | (source or {})
        self.config = run_config("", self.output, model=model, source=files, nightly=nightly)
        self.prepared = Checkpoint(
            name=str(model), folder=model, family=FAMILIES["whisper"], revision="weights"
        )
        for module in (pipeline, driver):
            patch.setattr(module, "prepare", lambda config: self.prepared)
        patch.setattr(driver, "run_local", self._work)
        if not pages:
            for where in (pipeline, page):
                patch.setattr(where, "write_page_at_the_end", lambda *_, **__: None)

    def add(self, *names: str, content: bytes = b"x") -> None:
        for name in names:
            (self.source / f"{name}.wav").write_bytes(content)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.source / f"{name}.wav").unlink()

    def down(self, *names: str, kind: str = "timeout") -> None:
        """Let exactly these fail, in this way."""
        self._down, self._kind = set(names), kind

    def set(self, **nightly: Any) -> None:
        self.config = with_section(self.config, "nightly", **nightly)

    def night(self, **options: Any) -> Night:
        self.worked = []
        usual: dict[str, Any] = {"local": True, "progress": None, "timing": QUICK}
        return pipeline.run(self.config, **(usual | options))

    def run(self, **options: Any) -> driver.RunSummary:
        """Run as `corpus-asr run` does."""
        self.worked = []
        return driver.run(self.config, local=True, options=RunOptions(**options))

    def read(self, table: str) -> list[dict[str, Any]]:
        """Return a table's rows as any Parquet reader finds them."""
        rows: list[dict[str, Any]] = pq.read_table(self.output / table).to_pylist()
        return rows

    def summaries(self) -> list[dict[str, Any]]:
        """Return what is written of each night, in the order of their names."""
        folder = Path(self.config.nightly.summaries or self.output / "nights")
        paths = sorted(folder.glob("*.json"), key=lambda path: (len(path.name), path.name))
        assert [path.with_suffix(".md").exists() for path in paths] == [True] * len(paths)
        return [json.loads(path.read_text()) for path in paths]

    def _work(
        self,
        config: RunConfig,
        packs: Iterable[pa.Table],
        committer: Committer,
        *,
        progress: Progress,
        **_: Any,
    ) -> None:
        for pack in packs:
            for file in pack["files"].to_pylist()[0]:
                self.worked.append(Path(file["uri"]).stem)
                rows = results(*self._rows(file))
                committer(rows)
                progress.set(progress.tally + tally_of(rows))

    def _rows(self, file: dict[str, Any]) -> Iterable[dict[str, Any]]:
        name = Path(file["uri"]).stem
        if "engine-error" in name:
            raise EngineError("the device is lost (scripted)")
        same = {key: file[key] for key in ("uri", "size_bytes", "etag", "metadata")}
        same["content_digest"] = digest_of(file["uri"])
        if name in self._down or "fail" in name:
            kind = self._kind if name in self._down else "not_audio"
            yield part(
                name, 0, texts=None, status="failed", error_stage="extract", error_kind=kind,
                error_message=f"reading {name}: scripted", retryable=name in self._down, **same,
            )  # fmt: skip
            return
        count = int((re.findall(r"parts=(\d+)", name) or ["1"])[0])
        silent = "silent" in name
        for index in range(count):
            row = part(
                name, index, texts=[] if silent else ["red", "green"], last=index == count - 1,
                status="no_speech" if silent else "ok", language=None if silent else "en", **same,
            )  # fmt: skip
            for segment in row["segments"] or ():
                segment["confidence"] = 0.5
            yield row


def night(**values: Any) -> Night:
    """Return a night of ten new recordings; what they came to may be among the values."""
    values["ok"] = values.pop("done", 10)
    numbers = set(RunNumbers.__slots__) - set(Night.__slots__)
    found = {name: values.pop(name) for name in list(values) if name in numbers}
    usual: dict[str, Any] = {
        "date": "2026-11-21", "output": "s3://transcripts/podcasts", "run_id": "run-1",
        "state": NightState.done, "error": None, "started_at": "2026-11-21T01:00:00+01:00",
        "ended_at": "2026-11-21T02:00:00+01:00", "wall_s": 3600.0, "listed": 1000, "new": 10,
        "changed": 0, "retried": 0, "continued": 0, "remaining": 0, "audio_s": 36_000.0,
        "rtfx": 10.0, "archive": ArchiveCounts(done=998, failed=2, audio_s=3_600_000.0),
        "skipped": 0, "no_longer_retried": (),
    }  # fmt: skip
    return Night(findings=RunNumbers(**found), **(usual | values))


def past(**values: Any) -> PastNight:
    """Return such a night as a later one knows it."""
    usual: dict[str, Any] = {
        "date": "2026-11-20", "state": "done", "listed": 990, "new": 10, "done": 10, "failed": 0,
        "remaining": 0, "audio_s": 36_000.0, "wall_s": 3600.0, "rtfx": 10.0, "low_confidence": 0,
    }  # fmt: skip
    return PastNight(**(usual | values))
