"""Inference engine: one model, its slots and a thread that fills them; one future per part."""

import atexit
import logging
import os
import queue
import threading
import time
from collections.abc import Collection
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from corpus_asr.activity import Activity
from corpus_asr.config.decoding import DecodingSettings
from corpus_asr.decoding.batch import MOST_RECORDED
from corpus_asr.decoding.device import free_cached_memory, return_freed_memory, set_threads
from corpus_asr.decoding.one_pass import LoadedRecognizer, OnePassScheduler
from corpus_asr.decoding.protocols import ModelSize, SlotModel
from corpus_asr.decoding.rules import LONGEST_PHRASE
from corpus_asr.decoding.slots import SlotScheduler, check_every_on, encode_batch_on
from corpus_asr.errors import ClosedError, EngineError, check_same_process
from corpus_asr.families.loading import device_name, load_model, load_recognizer
from corpus_asr.families.registry import users_family
from corpus_asr.segments import PartTranscript
from corpus_asr.threads import run_apart
from corpus_asr.transcription.transcribers import (
    PartTranscriber,
    check_decoding,
    one_pass_transcriber,
    part_transcriber,
    word_placer,
)
from corpus_asr.transcription.windows import PartRequest, speech_without_text_s

if TYPE_CHECKING:  # imports the networks of Parakeet
    from corpus_asr.transcription.word_placer import WordPlacer

logger = logging.getLogger(__name__)

# Timeout at process exit: one decoding step of a large model on a CPU.
LEAVE_S = 5.0

_Order = tuple[PartRequest, Future[PartTranscript]]


class Engine:
    """Transcribes parts; thread-safe. Use as a context manager, or call `close`."""

    def __init__(
        self,
        model: SlotModel | LoadedRecognizer,
        transcriber: PartTranscriber,
        *,
        decoding: DecodingSettings,
        slots: int | Literal["auto"] = "auto",
        sharers: int = 1,
        gpu_fraction: float = 1.0,
        reproducible: bool = False,
        placer: "WordPlacer | None" = None,
    ) -> None:
        """Allocate the slots and start the thread.

        With `auto`, the number of slots is as large as memory allows: `sharers` counts the engines
        on this device without slots, this one included, which split the free memory equally. This
        process may take `gpu_fraction` of the device's memory. `placer` times words in place of the
        model.

        Raises:
            ConfigError: the checkpoint does not support `decoding`.
            EngineError: not even one slot fits into the device's memory.
        """
        check_decoding(transcriber, placer, decoding)
        self._placer = placer
        self._device = model.device
        self.device_name = device_name(model.device)
        self._transcriber = transcriber
        self._decoding = decoding
        self._scheduler: SlotScheduler | OnePassScheduler
        if isinstance(model, LoadedRecognizer):
            self._scheduler = OnePassScheduler(model)
        else:
            self._scheduler = self._slot_scheduler(
                model,
                slots=slots,
                share=1 / sharers,
                gpu_fraction=gpu_fraction,
                reproducible=reproducible,
            )
        self._activity = self._scheduler.statistics  # readable also after close
        # Parts, futures of cancelled parts, and None at the end.
        self._inbox: queue.SimpleQueue[_Order | Future[PartTranscript] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stopped: EngineError | None = None
        self._made_in = os.getpid()
        # Daemon, so that an unclosed engine does not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        atexit.register(self._leave)

    def _slot_scheduler(
        self,
        model: SlotModel,
        *,
        slots: int | Literal["auto"],
        share: float,
        gpu_fraction: float,
        reproducible: bool,
    ) -> SlotScheduler:
        kind = model.device.type
        encode_batch = encode_batch_on(kind)
        if slots == "auto":
            slots = auto_slots(
                model,
                encode_batch=encode_batch,
                share=share,
                gpu_fraction=gpu_fraction,
                num_beams=self._decoding.most_beams,
            )
        try:
            return run_apart(
                lambda: SlotScheduler(
                    model,
                    slots,
                    encode_batch=encode_batch,
                    check_every=check_every_on(kind),
                    reproducible=reproducible,
                    encode_beside=kind == "cpu",
                )
            )
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"allocating a slot on {self.device_name}: {error}; use a smaller checkpoint or a "
                "GPU with more memory"
            ) from error

    @classmethod
    def from_recognizer(
        cls,
        recognizer: str,
        checkpoint: str | None,
        *,
        decoding: DecodingSettings,
        device: str = "auto",
        dtype: str = "auto",
        num_threads: int | None = None,
        aligner: Path | None = None,
    ) -> "Engine":
        """Load a custom model by its class or the name of its entry point.

        `aligner` is as in `from_folder`.

        Raises:
            ConfigError: its class cannot be imported, or it does not support `decoding`.
            EngineError: it cannot be loaded.
        """
        set_threads(num_threads)
        family = users_family(recognizer)
        transcriber = one_pass_transcriber(family, checkpoint)
        placer = word_placer(aligner, device=device, dtype=dtype)
        check_decoding(transcriber, placer, decoding)
        model = run_apart(lambda: load_recognizer(family, checkpoint, device=device, dtype=dtype))
        return cls(model, transcriber, decoding=decoding, placer=placer)

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
        gpu_fraction: float = 1.0,
        reproducible: bool = False,
        aligner: Path | None = None,
    ) -> "Engine":
        """Load a checkpoint folder in Hugging Face layout.

        `device` is `auto`, `cpu`, `cuda` or `cuda:N`; `dtype` is `auto`, `float32`, `float16`,
        `bfloat16` or `int8`; `num_threads` of None is torch's default, limited to the CPUs of this
        process (`threads.usable_threads`); `gpu_fraction` is the fraction of the device's memory
        for this process; `reproducible` is as in `SlotScheduler`; `aligner` is the folder of a
        checkpoint that times words in place of the model.

        Raises:
            CheckpointError: the folder cannot be loaded.
            ConfigError: the device does not exist, or the checkpoint does not support `decoding`.
        """
        set_threads(num_threads)
        transcriber = part_transcriber(folder)
        placer = word_placer(aligner, device=device, dtype=dtype)
        check_decoding(transcriber, placer, decoding)
        model = run_apart(lambda: load_model(folder, device=device, dtype=dtype))
        return cls(
            model,
            transcriber,
            decoding=decoding,
            slots=slots,
            gpu_fraction=gpu_fraction,
            reproducible=reproducible,
            placer=placer,
        )

    def check(self, decoding: DecodingSettings) -> None:
        """Raise `ConfigError` for settings that the checkpoint does not support."""
        check_decoding(self._transcriber, self._placer, decoding)

    @property
    def languages(self) -> Collection[str]:
        """Codes of the languages that the checkpoint can detect; empty without detection."""
        return self._transcriber.languages

    def submit(self, part: PartRequest) -> Future[PartTranscript]:
        """Queue a part; the future returns its transcript or raises its exception.

        Raises:
            ConfigError: the checkpoint does not support the part's `decoding`.
            EngineError: the engine is closed or has failed.
            ForkedError: the process is a fork of the one that created the engine.
        """
        check_same_process(f"transcribing {part.recording_id}", "engine", made_in=self._made_in)
        if part.decoding is not None:
            self.check(part.decoding)
        future: Future[PartTranscript] = Future()
        with self._lock:
            # Under the lock: nothing may be queued after a failed engine has emptied its inbox.
            if self._stopped is not None:
                raise type(self._stopped)(str(self._stopped)) from self._stopped
            self._inbox.put((part, future))
        return future

    def cancel(self, future: Future[PartTranscript]) -> None:
        """Cancel a part: immediately before it has a slot, else after its current window.

        Thread-safe; its future is cancelled, or raises `CancelledError`.
        """
        if not future.cancel() and not future.done():
            self._inbox.put(future)

    @property
    def slots(self) -> int:
        """Number of windows decoded in parallel; reduced if memory was insufficient."""
        return self._activity.slots

    def statistics(self) -> Activity:
        """Snapshot of the activity since the engine started; thread-safe."""
        # A copy, as the thread continues to count.
        return replace(self._activity)

    def close(self) -> None:
        """Stop within a decoding step and release the model; unfinished parts fail.

        Their futures raise `ClosedError`. Does nothing in a fork, which has no thread.
        """
        atexit.unregister(self._leave)
        self._end(None)
        if os.getpid() != self._made_in:
            return
        with self._lock:
            is_open = hasattr(self, "_scheduler")
            if is_open:
                del self._scheduler  # releases the network, which has no other reference
                self._placer = None
        if is_open:
            free_cached_memory(self._device)
            return_freed_memory()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _leave(self) -> None:
        # At exit Python unwinds daemon threads anywhere; inside torch that aborts the process.
        self._end(LEAVE_S)

    def _end(self, timeout_s: float | None) -> None:
        if os.getpid() != self._made_in:
            return
        with self._lock:
            if self._stopped is None:
                self._stopped = ClosedError("the engine is closed; make a new one")
                self._inbox.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while self._take_in():
                self._scheduler.advance()
        except Exception as error:
            self._break_down(error)

    def _take_in(self) -> bool:
        while True:
            try:
                order = self._inbox.get(block=self._scheduler.pending == 0)
            except queue.Empty:
                return True
            if order is None:
                self._scheduler.fail(
                    ClosedError("the engine was closed during this call; make a new one")
                )
                return False
            if isinstance(order, Future):
                self._scheduler.cancel(order, CancelledError("this part was canceled"))
            else:
                self._start(*order)

    def _start(self, part: PartRequest, future: Future[PartTranscript]) -> None:
        # From here on the future is running: `cancel` goes to the scheduler.
        if not future.set_running_or_notify_cancel():
            return
        decoding = part.decoding or self._decoding
        started_s = time.monotonic()

        def done(transcript: Any, error: Exception | None) -> None:
            if error is None and self._placer is not None:
                try:
                    with self._activity.timing("encode_s"):
                        transcript = self._placer.place(part, transcript, decoding)
                except Exception as failure:  # of this part, unless the device failed
                    error = self._of_device(failure)
            if error is not None:
                future.set_exception(error)
                return
            without_s = speech_without_text_s(part, transcript, decoding)
            taken_s = time.monotonic() - started_s
            future.set_result(
                replace(transcript, transcribe_s=taken_s, speech_without_text_s=without_s)
            )

        arguments = (part, decoding) if self._placer is None else self._placer.given(part, decoding)
        self._scheduler.add(self._transcriber.transcribe(*arguments), done, owner=future)

    def _of_device(self, failure: Exception) -> Exception:
        """Return an alignment failure, as `EngineError` if the device or its memory failed."""
        if not isinstance(failure, torch.OutOfMemoryError | torch.AcceleratorError):
            return failure
        broken = EngineError(
            f"timing words on {self.device_name}: {type(failure).__name__}: {failure}; use a "
            "smaller align.model, fewer transcribe.slots, or a GPU with more memory"
        )
        broken.__cause__ = failure
        return broken

    def _break_down(self, error: Exception) -> None:
        # After an error of the model, results in flight are unreliable.
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
            if isinstance(order, tuple) and order[1].set_running_or_notify_cancel():
                order[1].set_exception(broken)


_CPU_SLOTS = 8
# On an H200 large-v3-turbo decodes 152.5 windows/s in 64 slots, 162.5 in 128.
_MAX_CUDA_SLOTS = 128
# Fraction of free memory reserved for cuBLAS and cuDNN workspaces and fragmentation.
_RESERVED_SHARE = 0.2

_FLOAT, _LONG = 4, 8
# At the peak of a sampling step, in addition to the logits: three or four integers per token, from
# which the noise is mixed.
_STEP_BYTES_PER_TOKEN = _FLOAT + 4 * _LONG
# At the peak of a beam search step: logits, log-probabilities, masked ones, and totals.
_BEAM_BYTES_PER_TOKEN = 5 * _FLOAT
# Per position of a text in `Beams`: token, log-probability and parent.
_TEXT_BYTES = 3 * _LONG
# One running and one finished text, and their replacements.
_TEXTS_OF_A_BEAM = 2 + 2
# Recorded steps have a memory pool separate from that of admissions.
_STEP_POOLS = 2
# Memory of each window in a recorded start, in multiples of its encoding: the lookup buffer, keys
# and values of a layer, and, for an 8-bit cache, their wider copies.
_STARTING_ENCODINGS, _STARTING_8_BITS = 3, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryParts:
    """Memory in bytes, by purpose."""

    weights: int
    fused_copies: int
    """Fused copies of the decoder's linear maps, stacked and scaled by `CachedDecoderBlock`.

    Both versions exist while loading; afterwards only the copies."""
    self_cache: int
    cross_cache: int
    slot_rows: int
    """Rules, texts and counters of `SlotBatch`."""
    step_buffers: int
    """Temporary buffers at the peak of a step."""
    kept_encodings: int
    """Encodings of the windows in the slots, and of a batch encoded ahead."""
    encoder_activations: int
    starting: int
    """Temporary buffers of recorded slot filling and prompt reading; 0 on a CPU."""
    beam_lane: int = 0
    """Caches, texts and step buffers of the beam search lane."""

    @property
    def total(self) -> int:
        """Sum of all purposes."""
        return sum(getattr(self, field.name) for field in fields(self))


def predicted_bytes(
    size: ModelSize, *, slots: int, encode_batch: int, num_beams: int = 1
) -> MemoryParts:
    """Predict the bytes for decoding in `slots` on a GPU, with `encode_batch` windows per encoding.

    Beam search has a lane of its own, with about as many slots, whose recorded steps share the
    memory pool of greedy search.

    Caches and rows are actual allocations; encoder and step values are peaks, calculated from the
    lifetimes of their tensors (tests/transcription/test_engine.py).
    """
    token_row = size.token_values * size.element_bytes
    window_row = size.position_values * size.window_element_bytes
    encoding = size.positions * size.width * size.element_bytes
    scalars = 9 * _LONG + 2 * _FLOAT + 6  # per slot; flags take one byte
    row = 2 * size.vocab_size * _FLOAT + (size.tokens + 1) * (_LONG + _FLOAT)
    in_8_bits = size.window_element_bytes < size.element_bytes
    started = _STARTING_ENCODINGS + in_8_bits * _STARTING_8_BITS
    return MemoryParts(
        weights=size.weight_bytes,
        fused_copies=size.fused_values * size.element_bytes,
        self_cache=slots * token_row * size.tokens,
        cross_cache=slots * window_row * size.positions,
        slot_rows=slots * (row + LONGEST_PHRASE * _LONG + scalars),
        step_buffers=slots * _STEP_POOLS * size.vocab_size * _STEP_BYTES_PER_TOKEN,
        kept_encodings=(slots + encode_batch) * encoding,
        encoder_activations=encode_batch * size.encoder_values * size.element_bytes,
        starting=min(slots, MOST_RECORDED) * started * encoding,
        beam_lane=_beam_lane(size, slots, num_beams) if num_beams > 1 and slots else 0,
    )


def _beam_lane(size: ModelSize, slots: int, num_beams: int) -> int:
    places = max(1, slots // num_beams)
    token_row = size.token_values * size.element_bytes
    text = (size.tokens + 2) * _TEXT_BYTES * _TEXTS_OF_A_BEAM
    row = size.vocab_size * (_FLOAT + _BEAM_BYTES_PER_TOKEN) + text + size.tokens * _LONG
    window = size.positions * size.position_values * size.element_bytes
    return places * (window + num_beams * (token_row * size.tokens + row))


def fitting_slots(
    size: ModelSize, *, free_bytes: int, encode_batch: int, num_beams: int = 1
) -> int:
    """Return how many slots fit `free_bytes`, after the weights were loaded; at least 1.

    If not even one fits, the engine detects it and halves the encoding batch.
    """
    there_already = size.weight_bytes + predicted_bytes(size, slots=0, encode_batch=0).fused_copies
    usable = int(free_bytes * (1 - _RESERVED_SHARE)) + there_already

    def fits(slots: int) -> bool:
        parts = predicted_bytes(size, slots=slots, encode_batch=encode_batch, num_beams=num_beams)
        return parts.total <= usable

    return max((slots for slots in range(1, _MAX_CUDA_SLOTS + 1) if fits(slots)), default=1)


def auto_slots(
    model: SlotModel,
    *,
    encode_batch: int,
    share: float = 1.0,
    gpu_fraction: float = 1.0,
    num_beams: int = 1,
) -> int:
    """Return the useful number of slots that fit a share of the device's free memory.

    This process may take `gpu_fraction` of all memory, to leave room for other processes.
    """
    size: ModelSize | None = getattr(model, "size", None)
    if model.device.type != "cuda" or size is None:
        return _CPU_SLOTS
    # Loading leaves unused memory in torch's allocator, which would count as used.
    free_cached_memory(model.device)
    free_bytes, all_bytes = torch.cuda.mem_get_info(model.device)
    ours = int(all_bytes * gpu_fraction) - torch.cuda.memory_reserved(model.device)
    return fitting_slots(
        size,
        free_bytes=int(min(free_bytes, ours) * share),
        encode_batch=encode_batch,
        num_beams=num_beams,
    )
