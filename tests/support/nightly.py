"""Nightly runs without audio or model: an archive that changes, and its summaries."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from corpus_asr.config.run import RunConfig, RunOptions
from corpus_asr.errors import EngineError
from corpus_asr.families.registry import FAMILIES
from corpus_asr.pipelines import driver
from corpus_asr.pipelines import nightly as pipeline
from corpus_asr.report import page
from corpus_asr.report.nightly import Archive as ArchiveCounts
from corpus_asr.report.nightly import Night, NightState
from corpus_asr.report.numbers import RunNumbers
from corpus_asr.report.run import NightNumbers
from corpus_asr.runtime.checkpoints import Checkpoint
from corpus_asr.runtime.commit import Committer, tally_of
from corpus_asr.runtime.progress import Progress
from corpus_asr.storage.run_state.lock import Timing
from tests.support.tables import digest_of, part, plain_read, results, run_config, with_section

QUICK = Timing(heartbeat_s=0.05, looks=3)


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
        return plain_read(self.output, table)

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
        same = {key: file[key] for key in ("uri", "size_bytes", "etag", "metadata", "begun_by")}
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


def past(**values: Any) -> NightNumbers:
    """Return such a night as a later one knows it."""
    usual: dict[str, Any] = {
        "date": "2026-11-20", "state": "done", "listed": 990, "new": 10, "done": 10, "failed": 0,
        "remaining": 0, "audio_s": 36_000.0, "wall_s": 3600.0, "rtfx": 10.0, "low_confidence": 0,
    }  # fmt: skip
    return NightNumbers(**(usual | values))
