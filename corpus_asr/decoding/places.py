"""Places of windows on the device: what batches of slots and of beams have in common.

A place is one window with `num_beams` adjacent slots of the model. The occupied places are always
the first ones, so a step computes nothing for empty ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Int
from corpus_asr.decoding.device import CudaRecorder, FinishedFlags, StepGraphs, reach_of
from corpus_asr.decoding.jobs import Outcome, WindowJob
from corpus_asr.decoding.options import Layout, SlotOptions
from corpus_asr.decoding.phrases import PhraseLayout, SlotPhrases
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.decoding.rules import RepetitionDetector, SlotRules


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLayout:
    """What a step depends on besides tensors; a recorded step has a fixed one."""

    sampled: bool
    watched: bool | tuple[int, ...]
    """Whether texts are checked for loops, or the rows of those that are."""
    options: Layout
    phrases: PhraseLayout | None
    reach: int
    """How far the caches are read."""


class PlaceBatch(ABC):
    """State of places as tensors; methods that change it run under inference mode.

    A step uses tensors at fixed addresses, never synchronizes with the device, and depends only on
    these and on its key in `step`, so it can be recorded and replayed.
    """

    def __init__(
        self,
        model: SlotModel,
        places: int,
        num_beams: int = 1,
        *,
        recorder: CudaRecorder | None = None,
        whole: bool = False,
    ) -> None:
        """Allocate the places; with `whole` every step computes all of them."""
        self.model = model
        self.places = places
        self.num_beams = num_beams
        self._whole = whole
        slots, device = places * num_beams, model.device
        self._state: Any = model.new_state(slots, beams=num_beams)
        self._by_row = device.type == "cpu" and recorder is None
        self._rules = SlotRules(slots, model.vocab_size, device, by_row=self._by_row)
        self._repetition = RepetitionDetector(places, model.vocab_size, device)
        self._phrases = SlotPhrases(slots, model.vocab_size, device)
        self._graphs = StepGraphs(places, recorder) if recorder else None
        self._queues_steps = recorder is not None or device.type == "cuda"
        self._has_short = False  # whether steps must handle windows of several lengths
        self._jobs: list[WindowJob | None] = [None] * places
        # Upper bound of each text's length, known to the host without a device read.
        self._longest = [1] * places
        self._requested: tuple[tuple[int, ...], Callable[[], list[Outcome]]] | None = None
        self._allocate()

    @abstractmethod
    def _allocate(self) -> None:
        """Allocate the tensors of texts, and `_share` them."""

    def _share(
        self,
        tokens: Int[Tensor, "slot token"],
        lengths: Int[Tensor, " slot"],
        ended: Bool[Tensor, "*slot"],
    ) -> None:
        """Let options and flags read the texts."""
        self._ended = ended
        self._options = SlotOptions(tokens, lengths, ended.flatten())
        first_beams = ended.view(self.places, -1)[:, 0]
        self._flags = FinishedFlags(first_beams, behind=self._queues_steps)

    @torch.inference_mode()
    def step(self, active: int, *, sampled: bool) -> None:
        """Advance the first `active` places by one token.

        Places that ended since the last `collect` repeat their last position; their tokens are
        dropped.
        """
        active = self.places if self._whole else active
        reach = self._next_attended_length(active)
        layout = self._layout(range(active), sampled=sampled, reach=reach)
        if self._graphs is None or self._options.exact:
            self._advance(active, layout)
            return
        count = self._graphs.graph_size(active)
        key = (count, layout, self._has_short, *self._rules.layout)
        self._graphs.run(key, partial(self._advance, count, layout))

    @abstractmethod
    def _advance(self, count: int, layout: StepLayout) -> None:
        """Compute a step of the first `count` places."""

    def _layout(self, places: Sequence[int], *, sampled: bool, reach: int = 0) -> StepLayout:
        slots = self._slots(places)
        return StepLayout(
            sampled=sampled,
            watched=self._watched(places),
            options=self._options.layout(slots),
            phrases=self._phrases.layout(slots),
            reach=reach,
        )

    def _slots(self, places: Sequence[int]) -> Sequence[int]:
        beams = self.num_beams
        if isinstance(places, range):
            return range(places.start * beams, places.stop * beams)
        return [place * beams + beam for place in places for beam in range(beams)]

    @abstractmethod
    def _watched(self, places: Sequence[int]) -> bool | tuple[int, ...]:
        """Return `StepLayout.watched` of these places."""

    def _next_attended_length(self, active: int) -> int:
        room = self.model.max_target_positions
        reach = room if self._whole else reach_of(max(self._longest[:active]), room)
        for place in range(active):
            self._longest[place] += 1
        return reach

    def look(self) -> None:
        """Request the finished flags of the places without waiting."""
        self._flags.ask()

    def ended(self, active: int) -> list[int]:
        """Return the places among the first `active` that are known to have finished."""
        return [place for place, flag in enumerate(self._flags.read(active)) if flag]

    @property
    def is_asynchronous(self) -> bool:
        """Whether the device runs asynchronously and can have steps queued while the host reads."""
        return self._flags.behind

    def request(self, places: Sequence[int]) -> None:
        """Request the current results of finished places; `collect` waits for them."""
        self._requested = tuple(places), self._download(places)

    def collect(self, places: Sequence[int]) -> list[Outcome]:
        """Return the results of finished places, requested before or not."""
        if self._requested is None or self._requested[0] != tuple(places):
            self.request(places)
        assert self._requested is not None, "just requested"
        (_, results), self._requested = self._requested, None
        return results()

    @abstractmethod
    def _download(self, places: Sequence[int]) -> Callable[[], list[Outcome]]:
        """Copy the results of places to the host; return a function that waits for them."""

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Copy place `source` to place `target` and free `source`."""
        beams = self.num_beams
        for beam in range(beams):
            slots = source * beams + beam, target * beams + beam
            self.model.move(self._state, *slots)
            for part in (self._rules, self._options, self._phrases):
                part.move(*slots)
        self._repetition.move(source, target)
        for tensor in self._tensors():
            tensor[target] = tensor[source]
        # Not assigned: assignment of a number would synchronize with the device.
        self._ended[source].fill_(True)
        self._jobs[target] = self._jobs[source]
        self._longest[target] = self._longest[source]

    @abstractmethod
    def _tensors(self) -> Sequence[Tensor]:
        """Return the tensors that have a row for each place."""
