"""An archive of scripted recordings, and nights over it in this process, without audio or model.

    archive = Archive(folder, monkeypatch)
    archive.add("a", "b silent", "c fail", "d parts=2")
    archive.down("a")      # its store does not give it
    night = archive.night()

What becomes of a recording is in its name; `engine-error` takes the engine down.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from corpus_asr.config.run import RunConfig
from corpus_asr.errors import EngineError
from corpus_asr.families.registry import FAMILIES
from corpus_asr.pipelines import driver
from corpus_asr.pipelines import nightly as pipeline
from corpus_asr.report.nightly import Night
from corpus_asr.runtime.checkpoints import Checkpoint
from corpus_asr.runtime.commit import Committer, tally_of
from corpus_asr.runtime.progress import Progress
from corpus_asr.storage.run_state.lock import Timing
from tests.support.commits import part, results

QUICK = Timing(heartbeat_s=0.05, looks=3, settle_s=0.0)


class Archive:
    """A folder of recordings and a job over it.

    Args:
        folder: where everything lies.
        patch: lets the pipeline work by script.
        source: more keys of its section.
        nightly: keys of its section.
    """

    def __init__(
        self,
        folder: Path,
        patch: pytest.MonkeyPatch,
        *,
        source: dict[str, Any] | None = None,
        **nightly: Any,
    ) -> None:
        self.source, self.output = folder / "in", folder / "output"
        self.source.mkdir()
        self._down: set[str] = set()
        self.config = RunConfig.model_validate(
            {
                "source": {"uri": str(self.source)} | (source or {}),
                "model": {"checkpoint": str(folder / "model")},
                "output": {"uri": str(self.output)},
                "nightly": nightly,
            }
        )
        model = folder / "model"
        prepared = Checkpoint(
            name=str(model), folder=model, family=FAMILIES["whisper"], revision="weights"
        )
        patch.setitem(pipeline._PREPARE, "transcribe_corpus", lambda config: prepared)
        patch.setattr(driver, "run_local", self._work)

    def add(self, *names: str, content: bytes = b"x") -> None:
        """Write recordings, or replace what they hold."""
        for name in names:
            (self.source / f"{name}.wav").write_bytes(content)

    def remove(self, *names: str) -> None:
        """Remove recordings."""
        for name in names:
            (self.source / f"{name}.wav").unlink()

    def down(self, *names: str) -> None:
        """Let exactly these not be given."""
        self._down = set(names)

    def set(self, **nightly: Any) -> None:
        """Change keys of the section `nightly`."""
        changed = self.config.nightly.model_copy(update=nightly)
        self.config = self.config.model_copy(update={"nightly": changed})

    def night(self, **options: Any) -> Night:
        """Let a night pass."""
        usual: dict[str, Any] = {"local": True, "progress": None, "timing": QUICK}
        return pipeline.run(self.config, **(usual | options))

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
        """Do what `run_local` does."""
        for pack in packs:
            for file in pack["files"].to_pylist()[0]:
                rows = results(*self._rows(file))
                committer(rows)
                progress.add(tally_of(rows))

    def _rows(self, file: dict[str, Any]) -> Iterable[dict[str, Any]]:
        name = Path(file["uri"]).stem
        if "engine-error" in name:
            raise EngineError("the device is lost (scripted)")
        same = {key: file[key] for key in ("uri", "size_bytes", "etag")}
        if name in self._down or "fail" in name:
            kind = "timeout" if name in self._down else "not_audio"
            yield part(
                name, 0, texts=None, status="failed", error_stage="extract", error_kind=kind,
                error_message=f"reading {name}: scripted", retryable=kind == "timeout", **same,
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
