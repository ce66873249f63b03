"""When each token was said, from the attention that follows the sound.

In: decoded windows. Out: seconds for every token of a window's sequence. Equal to transformers,
which counts what a batch was padded with among the tokens: so it is read here too.
"""

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corpus_asr.decoding.protocols import AlignJob, AlignResult, Job, Result, SlotModel
from corpus_asr.models.generation.inputs import Row
from corpus_asr.models.generation.outputs import Batch
from corpus_asr.models.generation.row import Attempt
from corpus_asr.models.generation.settings import Settings
from corpus_asr.models.generation.slots import run
from corpus_asr.transcription.dtw import dynamic_time_warping, median_filter

_SECONDS_PER_POSITION = 0.02


def time_tokens(model: SlotModel, batch: Batch, settings: Settings, attention_mask: Any) -> None:
    """Find the times of the tokens of all windows that were kept, and note them in `batch`.

    Args:
        model: reads the tokens once more.
        batch: the decoded rows.
        settings: of the call.
        attention_mask: tells how long each row is, (batch, frame); None for no bound.
    """
    ends = None if attention_mask is None else torch.as_tensor(attention_mask).sum(-1).tolist()
    windows = [(result.row, attempt) for result in batch.results for attempt in result.kept]
    tasks = [
        align(
            row,
            attempt,
            batch.said(attempt),
            settings,
            None if ends is None else int(ends[row.index]) - attempt.seek,
        )
        for row, attempt in windows
    ]
    for (_, attempt), times in zip(windows, run(model, tasks), strict=True):
        batch.token_times[attempt] = times


def align(
    row: Row, attempt: Attempt, said: Sequence[int], settings: Settings, frames: int | None
) -> Generator[Job, Result, Float[Tensor, " token"]]:
    """Return the seconds of each of `said`, from the window's start.

    Args:
        row: the window's recording.
        attempt: the window.
        said: its tokens after the prompt, padding included.
        settings: name the heads that follow the sound.
        frames: feature frames of sound from the window's first on; None for no bound.
    """
    read = said[:-1]  # the reference has no attention for the last token
    if not read:
        return torch.zeros(len(said))
    heads = settings.config.alignment_heads
    assert heads is not None
    result = yield AlignJob(
        features=row.window(attempt.seek, attempt.frames, settings.window_frames),
        window=(attempt.round, attempt.attempt),
        tokens=(*attempt.prompt, *read),
        heads=tuple((layer, head) for layer, head in heads),
        encoded=row.encoded,
    )
    assert isinstance(result, AlignResult)
    weights = torch.from_numpy(np.asarray(result.weights))[:, len(attempt.prompt) :]
    if frames is not None:
        weights = weights[..., : max(1, frames // settings.clock.input_stride)]
    return token_seconds(weights, width=settings.median_filter_width)


def token_seconds(
    weights: Float[Tensor, "head token pos"], *, width: int
) -> Float[Tensor, " token_1"]:
    """Find the cheapest path through the attention; the last token's time counts twice.

    Args:
        weights: attention to the sound while each token but the last is read.
        width: of the median filter, in positions.
    """
    deviation = weights.std(dim=-2, keepdim=True, unbiased=False)
    weights = (weights - weights.mean(dim=-2, keepdim=True)) / deviation
    smooth = torch.from_numpy(median_filter(weights.numpy(), width)).mean(dim=0)
    text, time = dynamic_time_warping(-smooth.double().numpy())
    jumps = np.pad(np.diff(text), (1, 0), constant_values=1).astype(bool)
    seconds = time[jumps] * _SECONDS_PER_POSITION
    return torch.tensor([*seconds, seconds[-1]], dtype=torch.float32)
