"""Steps recorded once and replayed: on a GPU as CUDA graphs, which start in one call.

In: a step as a function without arguments, and a key that names everything it depends on but the
contents of tensors. Out: the step's effects. Knows nothing of what a step does; it must read and
write tensors that stay where they are, and have no shape that depends on their values.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Protocol

import torch

logger = logging.getLogger(__name__)

Step = Callable[[], None]


class Recorder(Protocol):
    """Turns steps into recordings."""

    warm_ups: int
    """How often a step is run before it is worth recording; at least once."""

    def warm_up(self, step: Step) -> None:
        """Run the step, so that whatever is set up once is set up before it is recorded."""

    def record(self, step: Step) -> Step:
        """Record the step without any effect; returns what replays it.

        What is returned must not hold on to `step`, which holds on to the slots' memory.
        """


class CudaRecorder:
    """Records CUDA graphs that share one memory pool, as none needs what another left there."""

    # Capturing waits for the device and gives back cached memory: too much for counts of slots that
    # are passed through at the end of a run. A guess, not measured.
    warm_ups = 8

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, step: Step) -> None:
        """Run the step on the stream it will be recorded on."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                step()
        finally:
            current.wait_stream(self._stream)

    def record(self, step: Step) -> Step:
        """Capture the step; other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            # A capture that fails leaves its own stream the current one.
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                capture_error_mode="thread_local",
            ),
        ):
            step()
        return graph.replay


class StepGraphs:
    """The recordings of one batch, for a few counts of slots.

    The first steps of each key are run as they are, which warms up; the next is recorded, and it
    and later ones are replayed. Where recording fails, every step from then on is run as it is.
    """

    def __init__(self, places: int, recorder: Recorder) -> None:
        self._places = places
        self._recorder = recorder
        self._uses: Counter[Hashable] = Counter()
        self._replays: dict[Hashable, Step] = {}
        self._works = True

    def rung(self, active: int) -> int:
        """The count of slots to step with for `active`: a power of two, or all places."""
        return min(self._places, 1 << (active - 1).bit_length())

    def run(self, key: Hashable, step: Step) -> None:
        """Run a step, by a recording where there is one."""
        if key in self._replays:
            self._replays[key]()
        elif not self._works:
            step()
        elif self._uses[key] < self._recorder.warm_ups:
            self._uses[key] += 1
            self._recorder.warm_up(step)
        else:
            self._record(key, step)

    def _record(self, key: Hashable, step: Step) -> None:
        try:
            self._replays[key] = self._recorder.record(step)
        except torch.OutOfMemoryError:
            raise  # fewer slots may fit
        except RuntimeError as error:
            self._works = False
            logger.warning("recording a decoding step as a CUDA graph: %s; going on without", error)
            step()
        else:
            self._replays[key]()


def default_recorder(device: torch.device) -> Recorder | None:
    """CUDA graphs where there are such."""
    return CudaRecorder(device) if device.type == "cuda" else None
