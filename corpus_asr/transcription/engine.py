"""The engine: one model, its slots, and a thread that keeps them full; a future for each part."""

import logging
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from corpus_asr.activity import Activity
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.decoding.slots import SlotScheduler, check_every_on, encode_batch_on
from corpus_asr.errors import EngineError
from corpus_asr.families.loading import device_name, load_slot_model
from corpus_asr.threads import run_apart
from corpus_asr.transcription.part_transcriber import (
    PartTranscriber,
    PartTranscript,
    part_transcriber,
)
from corpus_asr.transcription.slot_budget import auto_slots
from corpus_asr.transcription.windows import PartRequest

__all__ = ["Engine", "PartRequest", "PartTranscript"]

logger = logging.getLogger(__name__)


_Order = tuple[PartRequest, DecodingSettings, Future[PartTranscript]]


class Engine:
    """Transcribes parts; thread-safe. Use as a context manager, or call `close`."""

    def __init__(
        self,
        model: SlotModel,
        transcriber: PartTranscriber,
        *,
        decoding: DecodingSettings,
        slots: int | Literal["auto"] = "auto",
        sharers: int = 1,
    ) -> None:
        """Allocate the slots and start the thread.

        Args:
            model: loaded.
            transcriber: what parts become.
            decoding: how.
            slots: windows decoded side by side; `auto` for as many as there is memory for.
            sharers: engines on this device that have no slots yet, this one included: with `auto`
                each gets its share of the memory that is free.

        Raises:
            ConfigError: the checkpoint cannot do what `decoding` asks.
            EngineError: not even one slot fits into the device's memory.
        """
        transcriber.check(decoding)
        self.device_name = device_name(model.device)
        self._transcriber = transcriber
        self._decoding = decoding
        kind = model.device.type
        encode_batch = encode_batch_on(kind)
        wanted = slots
        if wanted == "auto":
            wanted = auto_slots(model, encode_batch=encode_batch, sharers=sharers)
        check_every = check_every_on(kind)
        try:
            self._scheduler = run_apart(
                lambda: SlotScheduler(
                    model, wanted, encode_batch=encode_batch, check_every=check_every
                )
            )
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"allocating a slot on {self.device_name}: {error}; use a smaller checkpoint or a "
                "GPU with more memory"
            ) from error
        self._inbox: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stopped: EngineError | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        decoding: DecodingSettings,
        device: str = "auto",
        dtype: str = "auto",
        slots: int | Literal["auto"] = "auto",
        num_threads: int | None = None,
    ) -> "Engine":
        """Load a checkpoint folder.

        Args:
            folder: a checkpoint in Hugging Face layout.
            decoding: what to do with it.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            dtype: `auto`, `float32`, `float16`, `bfloat16` or `int8`.
            slots: windows decoded side by side.
            num_threads: CPU threads torch may use; None leaves torch's own choice.

        Raises:
            CheckpointError: the folder cannot be loaded.
            ConfigError: no such device, or the checkpoint cannot do what `decoding` asks.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        transcriber = part_transcriber(folder)
        transcriber.check(decoding)
        model = run_apart(lambda: load_slot_model(folder, device=device, dtype=dtype))
        return cls(model, transcriber, decoding=decoding, slots=slots)

    def check(self, decoding: DecodingSettings) -> None:
        """Refuse what the checkpoint cannot do.

        Raises:
            ConfigError: names the key.
        """
        self._transcriber.check(decoding)

    def submit(
        self, part: PartRequest, *, decoding: DecodingSettings | None = None
    ) -> Future[PartTranscript]:
        """Queue a part; the future gives its transcript or the exception that ended it.

        Args:
            part: what to transcribe.
            decoding: how, where it differs from the engine's own settings.

        Raises:
            ConfigError: the checkpoint cannot do what `decoding` asks.
            EngineError: the engine is closed, or broke down earlier.
        """
        if decoding is not None:
            self.check(decoding)
        future: Future[PartTranscript] = Future()
        with self._lock:
            if self._stopped is not None:
                raise EngineError(str(self._stopped)) from self._stopped
            self._inbox.put((part, decoding or self._decoding, future))
        return future

    @property
    def slots(self) -> int:
        """Windows decoded side by side; fewer than at first where memory did not suffice."""
        return self._scheduler.slots

    def statistics(self) -> Activity:
        """What has been done since the engine began, as of now; at any time, from any thread."""
        return replace(self._scheduler.statistics)

    def close(self) -> None:
        """Stop within a decoding step; what is not done yet fails with `EngineError`."""
        with self._lock:
            if self._stopped is None:
                self._stopped = EngineError("the engine is closed; make a new one")
                self._inbox.put(None)
        self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while self._take_in():
                self._scheduler.advance()
        except Exception as error:
            self._break_down(error)

    def _take_in(self) -> bool:
        """Start what has been submitted; waits if there is nothing else to do; False to stop."""
        while True:
            try:
                order = self._inbox.get(block=self._scheduler.pending == 0)
            except queue.Empty:
                return True
            if order is None:
                self._scheduler.fail(EngineError("the engine was closed before this was done"))
                return False
            self._start(*order)

    def _start(
        self, part: PartRequest, decoding: DecodingSettings, future: Future[PartTranscript]
    ) -> None:
        if not future.set_running_or_notify_cancel():
            return
        started_s = time.monotonic()

        def done(transcript: Any, error: Exception | None) -> None:
            if error is not None:
                future.set_exception(error)
            else:
                taken_s = time.monotonic() - started_s
                future.set_result(replace(transcript, transcribe_s=taken_s))

        self._scheduler.add(self._transcriber.transcribe(part, decoding), done)

    def _break_down(self, error: Exception) -> None:
        """Fail everything in flight: after an error of the model nothing can be trusted."""
        broken = EngineError(
            f"decoding on {self.device_name}: {type(error).__name__}: {error}; the worker must be "
            "replaced"
        )
        broken.__cause__ = error
        logger.error("engine failed", exc_info=error)
        with self._lock:
            self._stopped = broken
        self._scheduler.fail(broken)
        while not self._inbox.empty():
            order = self._inbox.get()
            if order is not None and order[2].set_running_or_notify_cancel():
                order[2].set_exception(broken)
