"""A run without a model: its results are written by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from corpus_asr.config.run import RunConfig
from corpus_asr.schemas import RESULTS
from corpus_asr.storage.listing import list_files
from corpus_asr.storage.run_state.finish import finish as finish_run
from corpus_asr.storage.run_state.plan import Plan, make_plan, read_listing
from corpus_asr.storage.run_state.start import Run, begin_run, fingerprint
from corpus_asr.storage.run_state.tables import OutputStore
from corpus_asr.storage.stores.uri import recording_id

REVISION = "0123456789abcdef"
NAMES = ("a.wav", "b.wav", "c.wav")


class Job:
    """A job over some files, done step by step.

    Args:
        folder: where its source and its output lie.
        names: of the files.
        sections: of its configuration.
    """

    def __init__(self, folder: Path, names: Sequence[str] = NAMES, **sections: Any) -> None:
        self.source = folder / "source"
        self.source.mkdir()
        for name in names:
            (self.source / name).write_bytes(name.encode())
        usual = {
            "source": {"uri": str(self.source)},
            "model": {"checkpoint": "some/model"},
            "output": {"uri": str(folder / "output")},
        }
        self.config = RunConfig.model_validate(usual | sections)
        self.store = OutputStore(self.config.output.uri)
        self.run: Run
        self.plan: Plan

    def begin(self) -> None:
        """Plan the run and begin it."""
        name = fingerprint(self.config, REVISION)
        self.plan = make_plan(self.config, self.store, model_revision=REVISION)
        self.run = begin_run(self.store, self.config, name)

    def commit(self, name: str, part: int = 0, **values: Any) -> None:
        """Commit a part of a file; what is not given is that of a minute in English."""
        (batch,) = list_files(self.config.source)
        identity = recording_id(str(self.source / name))
        (file,) = [row for row in batch.to_pylist() if row["recording_id"] == identity]
        segment = {"segment": 0, "start_s": 0.0, "end_s": 1.0, "text": " Hi.", "confidence": 0.95}
        row = {
            **file,
            "part": part,
            "last_part": True,
            "part_start_s": 0.0,
            "part_end_s": 60.0,
            "duration_s": 60.0,
            "speech_s": 30.0,
            "status": "ok",
            "language": "en",
            "device": "cpu",
            "decode_errors": 0,
            "decode_s": 0.1,
            "transcribe_s": 1.0,
            "segments": [segment],
        }
        row |= values
        self.store.commit(
            pa.Table.from_pylist([row], schema=RESULTS),
            run_id=self.run.run_id,
            model="some/model",
            model_revision=REVISION,
        )

    def fail(self, name: str, **values: Any) -> None:
        """Commit a failure."""
        usual: dict[str, Any] = dict(
            status="failed",
            duration_s=0.0,
            segments=None,
            error_stage="extract",
            error_kind="not_audio",
            error_message=f"decoding {name}: not audio",
            retryable=False,
        )
        self.commit(name, **(usual | values))

    def finish(self) -> None:
        """Finish the run."""
        finish_run(
            self.store,
            self.run,
            self.config,
            model_revision=REVISION,
            listing=read_listing(self.store, self.plan),
            num_listed=self.plan.num_files,
            plan_name=self.plan.name,
        )
