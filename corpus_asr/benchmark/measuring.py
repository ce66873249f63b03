"""From options to tables: which cases, which checkpoints, one table for each.

In: the command's options. Out: a table for the recordings, or one for each size. Loads no engine
into this process, so that none shares memory or threads with another.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from corpus_asr.benchmark.orders import (
    ENGINES,
    INSTALL,
    Case,
    Order,
    missing_modules,
    our_cases,
    peer_cases,
)
from corpus_asr.benchmark.recordings import Recording, find_recordings
from corpus_asr.benchmark.results import Summary, summarise
from corpus_asr.benchmark.rounds import Row, measure
from corpus_asr.benchmark.shapes import (
    Shape,
    find_shapes,
    network_without_weights,
    write_checkpoint,
)
from corpus_asr.benchmark.table import render
from corpus_asr.errors import CheckpointError
from corpus_asr.families.registry import family_of
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.units import WINDOW_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One comparison."""

    title: str
    audio_s: float
    rows: Sequence[Row]
    summaries: Sequence[Summary]

    @property
    def text(self) -> str:
        """Title and table."""
        return f"{self.title}\n{render(self.summaries)}"

    def as_data(self) -> dict[str, Any]:
        """Return JSON values: summaries with every single run, the texts left out."""
        return {
            "title": self.title,
            "audio_s": self.audio_s,
            "rows": [
                {
                    "engine": row.case.engine,
                    "dtype": row.case.dtype,
                    **summary.as_data(),
                    "runs": [_without_texts(run) for run in row.runs],
                }
                for row, summary in zip(self.rows, self.summaries, strict=True)
            ],
        }


class Bench:
    """The measurements that the options ask for; all that can be refused is refused here.

    Raises:
        ConfigError: a peer, size or file is not known or cannot be read.
        CheckpointError: the checkpoint is missing or not a Whisper checkpoint.
        DecodeError: a file holds no audio.
    """

    def __init__(
        self, options: argparse.Namespace, *, device: torch.device, tell: Callable[[str], None]
    ) -> None:
        self._options = options
        self._device = device
        self._tell = tell
        self._shapes = find_shapes(options.shape or ())
        cuda = device.type == "cuda"
        peers = peer_cases(options.peers, cuda=cuda, shapes=bool(self._shapes))
        self.left_out = _missing(peers)
        """Why a peer that was asked for is not measured, by its label."""
        self._cases = [
            *our_cases(options.dtype, cuda=cuda),
            *(case for case in peers if case.label not in self.left_out),
        ]
        self._recordings: list[Recording] = []
        self._model = Path()
        if not self._shapes:
            self._model = _checkpoint(Path(options.model))
            self._recordings = find_recordings(options.audio, options.manifest)
            known = any(recording.text is not None for recording in self._recordings)
            if known and find_spec("jiwer") is None:
                self.left_out["word error rate"] = f"jiwer not installed; {INSTALL}"
        for name, reason in self.left_out.items():
            tell(f"{name} is left out: {reason}")

    def tables(self) -> Iterator[Table]:
        """Measure, and yield each table as soon as it is known."""
        for shape in self._shapes:
            yield self._shape_table(shape)
        if not self._shapes:
            yield self._audio_table()

    def _audio_table(self) -> Table:
        audio_s = sum(recording.duration_s for recording in self._recordings)
        with tempfile.TemporaryDirectory(prefix="corpus-asr-bench-") as scratch:
            rows = self._measure(self._model, scratch)
        title = (
            f"{self._model.name}, {len(self._recordings)} recordings, {audio_s:.0f} s of audio, "
            f"{self._options.mode}, from files to text"
        )
        summaries = summarise(rows, audio_s, self._recordings, language=self._options.language)
        return Table(title=title, audio_s=audio_s, rows=rows, summaries=summaries)

    def _shape_table(self, shape: Shape) -> Table:
        audio_s = float(self._options.batch * WINDOW_S)
        with tempfile.TemporaryDirectory(prefix="corpus-asr-bench-") as scratch:
            self._tell(f"writing random weights of {shape.name}")
            folder = write_checkpoint(shape, Path(scratch) / shape.name)
            rows = self._measure(folder, scratch)
        millions = network_without_weights(shape).num_parameters() / 1e6
        title = (
            f"{shape.name} ({millions:.1f} M parameters, random), {self._options.batch} windows of "
            f"{WINDOW_S} s, {self._options.tokens_per_window} tokens each, the network alone"
        )
        return Table(title=title, audio_s=audio_s, rows=rows, summaries=summarise(rows, audio_s))

    def _measure(self, model: Path, scratch: str) -> list[Row]:
        options = self._options
        orders = [
            Order(
                engine=case.engine,
                dtype=case.dtype,
                runner=_runner(case, shapes=bool(self._shapes)),
                model=str(model.resolve()),
                scratch=scratch,
                device=str(self._device),
                threads=options.threads,
                batch=options.batch,
                beams=options.beams,
                audio=tuple(str(recording.path.resolve()) for recording in self._recordings),
                language=options.language,
                mode=options.mode,
                tokens_per_window=options.tokens_per_window,
            )
            for case in self._cases
        ]
        pairs = list(zip(self._cases, orders, strict=True))
        return measure(pairs, runs=options.runs, tell=self._tell)


def _checkpoint(folder: Path) -> Path:
    """Check that this is a checkpoint; nothing is downloaded here."""
    if not folder.is_dir():
        raise CheckpointError(
            f"opening the checkpoint {folder}: there is no such folder; give one in Hugging Face "
            "layout with --model"
        )
    model_type = family_of(folder).model_type
    if model_type != WhisperConfig.model_type:
        raise CheckpointError(
            f"opening the checkpoint {folder}: found one of {model_type}, expected one of "
            f"{WhisperConfig.model_type}: the engines beside this one are measured with no other"
        )
    return folder


def _runner(case: Case, *, shapes: bool) -> str:
    entry = ENGINES[case.engine]
    if not shapes:
        return entry.transcribing
    assert entry.decoding is not None, "peer_cases offers no others"
    return entry.decoding


def _missing(cases: Sequence[Case]) -> dict[str, str]:
    return {
        case.label: f"{', '.join(missing)} not installed; {INSTALL}"
        for case in cases
        if (missing := missing_modules(case))
    }


def _without_texts(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name != "texts"}
