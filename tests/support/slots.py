"""Networks in slots, scripted or tiny, windows to feed them, and the bytes they hold."""

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from corpus_asr.decoding.jobs import AlignResult, Job, Result, Task, WindowResult
from corpus_asr.decoding.protocols import Slots
from corpus_asr.decoding.slots import SlotScheduler
from corpus_asr.families.layers.kv_cache import SlotCache
from corpus_asr.families.layers.projection import can_use_int8
from corpus_asr.families.whisper.config import WhisperConfig
from corpus_asr.families.whisper.model import WhisperSlotModel
from corpus_asr.models.whisper import WhisperForConditionalGeneration
from corpus_asr.segments import Segment
from corpus_asr.transcription.windows import PartRequest
from corpus_asr.units import FRAMES_PER_POSITION
from tests.support.checkpoints import tiny_whisper

# A step's products are sums in another order than the whole sequence's.
STEP_TOLERANCE = 1e-4

needs_int8 = pytest.mark.skipif(
    not can_use_int8(), reason="this processor or this torch has no fast 8-bit products"
)

POSITIONS = 60
SOURCE_POSITIONS = 100


def load(folder: Path, dtype: torch.dtype = torch.float32) -> WhisperForConditionalGeneration:
    tiny_whisper(
        folder,
        vocab_size=500,
        max_target_positions=POSITIONS,
        max_source_positions=SOURCE_POSITIONS,
        spread=0.15,
    )
    return WhisperForConditionalGeneration.from_pretrained(folder, dtype=dtype)


def windows(count: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 80, 2 * SOURCE_POSITIONS, generator=generator)


def sequences(count: int, length: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 100)
    return torch.randint(0, 500, (count, length), generator=generator)


def whole(network: WhisperForConditionalGeneration, features: Tensor, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(features, decoder_input_ids=tokens).logits.float()


def begin(
    model: WhisperSlotModel,
    state: SlotCache,
    slots: list[int],
    features: Tensor,
    tokens: Tensor,
    lengths: list[int],
) -> Tensor:
    """Fill slots and run their prompts; returns logits (batch, token, vocab)."""
    model.fill(state, slots, model.encode(features))
    return model.logits(model.prefill(state, slots, tokens, lengths))


VOCAB = 50
END = 0
LENGTH = 24


class ScriptedModel:
    """Says the script its window names, token by token, whatever the slot.

    A window's first value is the number of its script. Hidden states carry (script, position), so
    that the token to say is found from them alone, as in a real decoder.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    vocab_size = VOCAB
    window_shape = (1, 1)
    frame_step = 100
    has_encoder = True
    max_target_positions = LENGTH

    def __init__(self, scripts: Sequence[Sequence[int]]) -> None:
        self.scripts = [list(script) for script in scripts]
        self.encoded: list[int] = []
        self.aligned: list[tuple[int, tuple[tuple[int, int], ...]]] = []
        self.steps: list[int] = []

    def new_state(self, slots: int, *, beams: int = 1) -> dict[str, Tensor]:
        return {"script": torch.full((slots,), -1), "prompt": torch.zeros(slots, dtype=torch.long)}

    def encode(self, features: Tensor, *, num_frames: Sequence[int] | None = None) -> Tensor:
        numbers = features[:, 0, 0]
        self.encoded.extend(int(number) for number in numbers)
        return numbers.reshape(-1, 1, 1)

    def fill(
        self,
        state: dict[str, Tensor],
        slots: Slots,
        encoded: Tensor,
        *,
        num_frames: Sequence[int] | None = None,
    ) -> None:
        state["script"][list(slots)] = encoded[:, 0, 0].long()

    def prefill(
        self, state: dict[str, Tensor], slots: Slots, tokens: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        state["prompt"][list(slots)] = torch.tensor(lengths)
        script = state["script"][list(slots)]
        position = torch.arange(tokens.shape[1]).expand(len(lengths), -1)
        said = position - torch.tensor(lengths).unsqueeze(1) + 1
        return torch.stack([script.unsqueeze(1).expand_as(said), said], dim=2).float()

    def step(
        self, state: dict[str, Tensor], tokens: Tensor, positions: Tensor, **options: Any
    ) -> Tensor:
        count = len(tokens)
        assert int(positions.max()) < LENGTH, "a step past the cache"
        self.steps.append(count)
        said = positions - state["prompt"][:count] + 1
        return self.logits(torch.stack([state["script"][:count], said], dim=1).float())

    def extend(
        self, state: dict[str, Tensor], slots: Sequence[int], tokens: Tensor, positions: Tensor
    ) -> Tensor:
        rows = list(slots)
        at = positions.unsqueeze(1) + torch.arange(tokens.shape[1])
        assert int(at.max()) < LENGTH, "an extension past the cache"
        said = at - state["prompt"][rows].unsqueeze(1) + 1
        script = state["script"][rows].unsqueeze(1).expand_as(said)
        return self.logits(torch.stack([script, said], dim=2).float())

    def align(
        self,
        state: dict[str, Tensor],
        slots: Sequence[int],
        tokens: Tensor,
        lengths: Sequence[int],
        heads: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        """Token number n listens at position n alone; the script starts after the first token."""
        scripts = state["script"][list(slots)]
        self.aligned += [(script, tuple(heads)) for script in scripts.tolist()]
        weights = torch.eye(tokens.shape[1], LENGTH).expand(len(slots), len(heads), -1, -1).clone()
        said = torch.arange(tokens.shape[1]).expand(tokens.shape)
        return weights, torch.stack([scripts.unsqueeze(1).expand_as(said), said], dim=2).float()

    def reorder(self, state: dict[str, Tensor], slots: Sequence[int], sources: Tensor) -> None:
        for tensor in state.values():
            tensor[list(slots)] = tensor[sources]

    def logits(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(*hidden.shape[:-1], VOCAB)
        for row, (script, said) in zip(
            logits.reshape(-1, VOCAB), hidden.reshape(-1, 2).long().tolist(), strict=True
        ):
            words = self.scripts[script]
            row[words[said] if 0 <= said < len(words) else END] = 10.0
        return logits

    def move(self, state: dict[str, Tensor], source: int, target: int) -> None:
        for tensor in state.values():
            tensor[target] = tensor[source]


def window(script: int) -> np.ndarray:
    """Features that make `ScriptedModel` say script number `script`."""
    return np.full((2, 4), script, dtype=np.float32)


_MOST_ROUNDS = 10_000  # far more than any test needs; a scheduler that never ends must fail


def outcomes(scheduler: SlotScheduler, tasks: Sequence[Task]) -> list[Any]:
    """Run tasks side by side; returns of each its result, or the exception that ended it."""
    found: dict[int, Any] = {}
    for index, task in enumerate(tasks):

        def done(value: Any, error: Exception | None, index: int = index) -> None:
            assert index not in found, "a task was told twice"
            found[index] = value if error is None else error

        scheduler.add(task, done)
    rounds = 0
    while scheduler.pending:
        scheduler.advance()
        rounds += 1
        assert rounds < _MOST_ROUNDS
    return [found[index] for index in range(len(tasks))]


def run_jobs(scheduler: SlotScheduler, tasks: Sequence[Sequence[Job]]) -> list[list[Result]]:
    """Run each list of jobs as a task of its own; returns their results."""

    def task(jobs: Sequence[Job]) -> Generator[Job, Result, list[Result]]:
        results: list[Result] = []
        for job in jobs:
            result = yield job
            results.append(result)
        return results

    found = outcomes(scheduler, [task(jobs) for jobs in tasks])
    for outcome in found:
        if isinstance(outcome, Exception):
            raise outcome
    return found


def held_bytes(*roots: object) -> int:
    """Bytes of all tensors reachable from `roots`; shared storage counts once.

    Neither models nor the module-level state of libraries are looked into.
    """
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(roots)}
    return sum(sizes.values())


def peak_bytes(function: Callable[[], Any]) -> int:
    """Most bytes that are allocated at once while `function` runs, what it is given left out."""
    with torch.inference_mode():
        function()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            kept = function()
    del kept
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    present = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        present += event.nbytes()
        peak = max(peak, present)
    return peak


def _tensors(values: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    seen = set() if seen is None else seen
    if id(values) in seen or isinstance(values, torch.nn.Module):
        return
    seen.add(id(values))
    if isinstance(values, Tensor):
        if not values.is_mkldnn:
            yield values
        return
    for inner in _parts(values):
        yield from _tensors(inner, seen)


def _parts(values: object) -> list[Any]:
    if isinstance(values, str):  # a type of numbers by its name, too
        return []
    if isinstance(values, dict):
        return list(values.values())
    if isinstance(values, list | tuple | set):
        return list(values)
    if dataclasses.is_dataclass(values):
        return [getattr(values, field.name) for field in dataclasses.fields(values)]
    if type(values).__module__.startswith("corpus_asr."):
        return list(vars(values).values())
    return []


_POSITIONS = "model.encoder.embed_positions.weight"


def cut_network(
    network: WhisperForConditionalGeneration, *, frames: int
) -> WhisperForConditionalGeneration:
    """A network that takes windows of so many frames, and knows of no longer ones."""
    positions = frames // FRAMES_PER_POSITION
    config = WhisperConfig(**(network.config.to_dict() | {"max_source_positions": positions}))
    weights = dict(network.state_dict())
    weights[_POSITIONS] = weights[_POSITIONS][:positions]
    with torch.device(network.device):
        cut = WhisperForConditionalGeneration(config).to(network.dtype)
    cut.load_state_dict(weights)
    return cut.eval()


def assert_same(found: Result, expected: Result) -> None:
    """Check a result against another, but for rounding; weights as far as both reach."""
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    if isinstance(expected, AlignResult):
        assert isinstance(found, AlignResult)
        assert found.begins == expected.begins
        if expected.weights is None:
            assert found.weights is None
            return
        assert found.weights is not None
        transcribed = expected.weights.shape[2]
        np.testing.assert_allclose(found.weights[:, :, :transcribed], expected.weights, atol=1e-5)
        assert not found.weights[:, :, transcribed:].any()
        return
    assert isinstance(found, WindowResult)
    assert (found.tokens, found.looped) == (expected.tokens, expected.looped)
    assert found.end_logprob == pytest.approx(expected.end_logprob, abs=1e-4)
    assert found.score == pytest.approx(expected.score, abs=1e-5)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)


def assert_all_same(
    found: Sequence[Sequence[Result]], expected: Sequence[Sequence[Result]]
) -> None:
    """Check the results of every task against others."""
    for ours, theirs in zip(found, expected, strict=True):
        for result, wanted in zip(ours, theirs, strict=True):
            assert_same(result, wanted)


class Listening:
    """A part's listener, and what it was told."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.said: list[Segment] = []

    def __call__(self, transcribed_s: float, said: Sequence[Segment]) -> None:
        self.seconds.append(transcribed_s)
        self.said.extend(said)

    def check(self, part: PartRequest, segments: Sequence[Segment]) -> None:
        """Check that it was told of all segments in their order, and of no more than the part."""
        assert self.said == list(segments)
        assert self.seconds == sorted(self.seconds)
        assert all(0 <= seconds <= part.end_s - part.start_s for seconds in self.seconds)
