"""The engine: one model, its slots, and a thread that keeps them full; a future for each part."""

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

if TYPE_CHECKING:  # loads the networks of Parakeet
    from corpus_asr.transcription.word_placer import WordPlacer

logger = logging.getLogger(__name__)

# At the end of the process, for a decoding step of a large model on a CPU.
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

        `auto` slots are as many as there is memory for: with several `sharers`, engines on this
        device that have no slots yet, this one included, each gets its share of what is free. This
        process may take `gpu_fraction` of the device's memory. `placer` times words in place of the
        model.

        Raises:
            ConfigError: the checkpoint cannot do what `decoding` asks.
            EngineError: not even one slot fits into the device's memory.
        """
        check_decoding(transcriber, placer, decoding)
        self._placer = placer
        self._device = model.device
        self.device_name = device_name(model.device)
        self._model_size: ModelSize | None = getattr(model, "size", None)  # a classifier has none
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
        self._activity = self._scheduler.statistics  # there also when it is closed
        # Parts, futures of parts that nobody waits for any more, and None at the end.
        self._inbox: queue.SimpleQueue[_Order | Future[PartTranscript] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stopped: EngineError | None = None
        self._made_in = os.getpid()
        # Daemon, so that an engine that was not closed does not keep the process alive.
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
        """Load a user's own model, by its class or the name of an entry point.

        `aligner` is that of `from_folder`.

        Raises:
            ConfigError: its class cannot be had, or it cannot do what `decoding` asks.
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
        `bfloat16` or `int8`; `num_threads` of None leaves the number to torch, within what this
        process may use (`threads.usable_threads`); it may take `gpu_fraction` of the device's
        memory; `reproducible` is that of `SlotScheduler`; `aligner` is the folder of a checkpoint
        that times words in place of the model.

        Raises:
            CheckpointError: the folder cannot be loaded.
            ConfigError: no such device, or the checkpoint cannot do what `decoding` asks.
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
        """Refuse by `ConfigError` what the checkpoint cannot do."""
        check_decoding(self._transcriber, self._placer, decoding)

    @property
    def languages(self) -> Collection[str]:
        """Codes of the languages that the checkpoint can detect; empty where it detects none."""
        return self._transcriber.languages

    def submit(self, part: PartRequest) -> Future[PartTranscript]:
        """Queue a part; the future gives its transcript or the exception that ended it.

        Raises:
            ConfigError: the checkpoint cannot do what the part's `decoding` asks.
            EngineError: the engine is closed, or broke down earlier.
            ForkedError: this is a fork of the process that made it.
        """
        check_same_process(f"transcribing {part.recording_id}", "engine", made_in=self._made_in)
        if part.decoding is not None:
            self.check(part.decoding)
        future: Future[PartTranscript] = Future()
        with self._lock:
            # Under the lock: nothing may be queued once a broken engine has emptied its inbox.
            if self._stopped is not None:
                raise type(self._stopped)(str(self._stopped)) from self._stopped
            self._inbox.put((part, future))
        return future

    def cancel(self, future: Future[PartTranscript]) -> None:
        """End a part that nobody waits for: at once before it has a slot, else with its window.

        From any thread; its future is cancelled, or ends with `CancelledError`.
        """
        if not future.cancel() and not future.done():
            self._inbox.put(future)

    @property
    def slots(self) -> int:
        """Windows decoded side by side; fewer than at first where memory did not suffice."""
        return self._activity.slots

    @property
    def predicted_bytes(self) -> int | None:
        """What this process is predicted to take at its peak; None but for decoders on CPUs."""
        if self._model_size is None or self.device_name != "cpu":
            return None
        alone = predicted_cpu_bytes(
            self._model_size,
            slots=self.slots,
            encode_batch=encode_batch_on("cpu"),
            num_beams=self._decoding.most_beams,
        )
        return alone - PROCESS_BYTES + self.shared_bytes

    @property
    def shared_bytes(self) -> int:
        """What of it engines of one process share: the libraries, and what times words."""
        return PROCESS_BYTES + (0 if self._placer is None else self._placer.num_bytes)

    def statistics(self) -> Activity:
        """What has been done since the engine began, as of now; at any time, from any thread."""
        # A copy, as the thread goes on counting.
        return replace(self._activity)

    def close(self) -> None:
        """Stop within a decoding step and release the model; what is not done yet fails.

        Its futures raise `ClosedError`. Does nothing in a fork, where nothing runs.
        """
        atexit.unregister(self._leave)
        self._end(None)
        if os.getpid() != self._made_in:
            return
        with self._lock:
            is_open = hasattr(self, "_scheduler")
            if is_open:
                del self._scheduler  # with the network, of which nothing else knows
                self._placer = None
        if is_open:
            free_cached_memory(self._device)
            return_freed_memory()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _leave(self) -> None:
        # At its end Python unwinds daemon threads where they stand; inside torch that is an abort.
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
                self._scheduler.fail(ClosedError("the engine was closed before this was done"))
                return False
            if isinstance(order, Future):
                self._scheduler.cancel(order, CancelledError("nobody waits for this part"))
            else:
                self._start(*order)

    def _start(self, part: PartRequest, future: Future[PartTranscript]) -> None:
        # From here on the future is running: `cancel` asks the scheduler.
        if not future.set_running_or_notify_cancel():
            return
        decoding = part.decoding or self._decoding
        started_s = time.monotonic()

        def done(transcript: Any, error: Exception | None) -> None:
            if error is None and self._placer is not None:
                try:
                    with self._activity.timing("encode_s"):
                        transcript = self._placer.place(part, transcript, decoding)
                except Exception as failure:  # of this part, unless it is the device's
                    error = self._of_device(failure)
            if error is not None:
                future.set_exception(error)
                return
            without_s = None
            if transcript.labels is None:
                clips = decoding.clip_timestamps
                without_s = speech_without_text_s(part, transcript.segments, clips)
            taken_s = time.monotonic() - started_s
            future.set_result(
                replace(
                    transcript,
                    transcribe_s=taken_s,
                    speech_without_text_s=without_s,
                )
            )

        arguments = (part, decoding) if self._placer is None else self._placer.given(part, decoding)
        self._scheduler.add(self._transcriber.transcribe(*arguments), done, owner=future)

    def _of_device(self, failure: Exception) -> Exception:
        """Return a failure to time words, as one of the engine if its device or memory failed."""
        if not isinstance(failure, torch.OutOfMemoryError | torch.AcceleratorError):
            return failure
        broken = EngineError(
            f"timing words on {self.device_name}: {type(failure).__name__}: {failure}; use a "
            "smaller checkpoint as align.model, set transcribe.slots to less, or use a GPU with "
            "more memory"
        )
        broken.__cause__ = failure
        return broken

    def _break_down(self, error: Exception) -> None:
        # After an error of the model no result in flight can be trusted.
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
_MAX_CUDA_SLOTS = 64
# Of free memory: workspaces of cuBLAS and cuDNN, fragments.
_RESERVED_SHARE = 0.2

# The interpreter, torch and the other libraries. Measured with Python 3.11 and torch 2.13.
PROCESS_BYTES = 370_000_000

_FLOAT, _LONG = 4, 8
# At the peak of a sampled step, beside the logits: integers that the noise is mixed of, three or
# four at a time.
_STEP_BYTES_PER_TOKEN = _FLOAT + 4 * _LONG
# At the peak of a step of beams: logits, log-probabilities, these under the rules, and totals.
_BEAM_BYTES_PER_TOKEN = 5 * _FLOAT
# Of a text of `Beams`, each place of it: token, log-probability and parent.
_TEXT_BYTES = 3 * _LONG
# A running and a finished one, and those that are picked in their place.
_TEXTS_OF_A_BEAM = 2 + 2
# Recorded steps keep a pool of their own beside that of admissions.
_STEP_POOLS = 2
# Of each window that recordings start together, as many times its encoding: where they look for it,
# keys and values of a layer, and, where these are kept in 8 bits, wider copies of them.
_STARTING_ENCODINGS, _STARTING_8_BITS = 3, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryParts:
    """Bytes by what they are for."""

    weights: int
    fused_copies: int
    """The decoder's linear maps once more, as `CachedDecoderBlock` stacks and scales them.

    Both are there while loading; later only the copies are.
    """
    self_cache: int
    cross_cache: int
    slot_rows: int
    """Rules, texts and counts of `SlotBatch`."""
    step_buffers: int
    """What a step works with at its peak."""
    kept_encodings: int
    """Of the windows in the slots, and of a batch encoded ahead."""
    encoder_activations: int
    starting: int
    """What recordings that fill slots and read prompts work with; nothing on a CPU."""
    beam_lane: int = 0
    """Caches, texts and a step of the beams that are followed beside the slots."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))


def predicted_bytes(
    size: ModelSize, *, slots: int, encode_batch: int, num_beams: int = 1
) -> MemoryParts:
    """Bytes that decoding in `slots` takes on a GPU, with `encode_batch` windows encoded at once.

    Several beams take a lane of their own, of about as many slots, whose recorded steps share the
    pool of the others.

    The caches and rows are what is allocated; the encoder's and the step's are peaks, reckoned
    from the order in which their tensors come and go (tests/transcription/test_engine.py).
    """
    layer_row = 2 * size.layers * size.width * size.element_bytes  # a key and a value
    window_row = 2 * size.layers * size.width * size.window_element_bytes
    encoding = size.positions * size.width * size.element_bytes
    # Queries, keys and values; the window's queries; the window's keys and values. With biases.
    fused = size.layers * 6 * size.width * (size.width + 1) * size.element_bytes
    scalars = 9 * _LONG + 2 * _FLOAT + 6  # of a slot; flags are bytes
    row = 2 * size.vocab_size * _FLOAT + (size.tokens + 1) * (_LONG + _FLOAT)
    in_8_bits = size.window_element_bytes < size.element_bytes
    started = _STARTING_ENCODINGS + in_8_bits * _STARTING_8_BITS
    # In a block: hidden states before and after attention, the same normed, and the wide ones
    # before and after activation.
    block = size.positions * (3 * size.width + 2 * size.inner_width) * size.element_bytes
    return MemoryParts(
        weights=size.weight_bytes,
        fused_copies=fused,
        self_cache=slots * layer_row * size.tokens,
        cross_cache=slots * window_row * size.positions,
        slot_rows=slots * (row + LONGEST_PHRASE * _LONG + scalars),
        step_buffers=slots * _STEP_POOLS * size.vocab_size * _STEP_BYTES_PER_TOKEN,
        kept_encodings=(slots + encode_batch) * encoding,
        encoder_activations=encode_batch * (block + size.window_values * size.element_bytes),
        starting=min(slots, MOST_RECORDED) * started * encoding,
        beam_lane=_beam_lane(size, slots, num_beams) if num_beams > 1 and slots else 0,
    )


def _beam_lane(size: ModelSize, slots: int, num_beams: int) -> int:
    places = max(1, slots // num_beams)
    layer_row = 2 * size.layers * size.width * size.element_bytes
    text = (size.tokens + 2) * _TEXT_BYTES * _TEXTS_OF_A_BEAM
    row = size.vocab_size * (_FLOAT + _BEAM_BYTES_PER_TOKEN) + text + size.tokens * _LONG
    return places * layer_row * size.positions + places * num_beams * (
        layer_row * size.tokens + row
    )


def predicted_cpu_bytes(
    size: ModelSize, *, slots: int, encode_batch: int, num_beams: int = 1
) -> int:
    """Bytes that a process takes at its peak that decodes in `slots` on a CPU.

    That is while it loads, or later: of the weights that it reads it then has packed copies alone.
    """
    parts = predicted_bytes(size, slots=slots, encode_batch=encode_batch, num_beams=num_beams)
    working = parts.total - parts.weights - parts.fused_copies - parts.starting
    return PROCESS_BYTES + max(size.weight_bytes, _packed_bytes(size) + working)


def _packed_bytes(size: ModelSize) -> int:
    # The tokens' table is read by row, and is the projection to the vocabulary as well. The maps
    # that make keys and values of windows are never in 8 bits.
    table = size.vocab_size * size.width
    window_maps = 2 * size.layers * size.width * size.width
    linear = size.weight_bytes // size.element_bytes - table - window_maps
    return (table + window_maps) * size.element_bytes + (table + linear) * size.linear_element_bytes


def fitting_slots(
    size: ModelSize, *, free_bytes: int, encode_batch: int, num_beams: int = 1
) -> int:
    """As many slots as `free_bytes` hold beside weights that are there already; 1 at least.

    Where not even one fits, the engine finds out, and halves what it encodes at once.
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
    """As many slots as are useful on the model's device and fit into a share of what is free.

    Other processes may come: of all memory this one takes `gpu_fraction`.
    """
    size: ModelSize | None = getattr(model, "size", None)  # a classifier has no decoder to size
    if model.device.type != "cuda" or size is None:
        return _CPU_SLOTS
    # Loading leaves unused memory with torch, which would count as taken.
    free_cached_memory(model.device)
    free_bytes, all_bytes = torch.cuda.mem_get_info(model.device)
    ours = int(all_bytes * gpu_fraction) - torch.cuda.memory_reserved(model.device)
    return fitting_slots(
        size,
        free_bytes=int(min(free_bytes, ours) * share),
        encode_batch=encode_batch,
        num_beams=num_beams,
    )
