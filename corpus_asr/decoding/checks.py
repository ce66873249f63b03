"""Refuses jobs that no model could do before they share a batch with others, and broken output.

In: a job and the model it is for, or what the model gave. Out: nothing, or an error that names what
is wrong with it. What `Search` itself rules out is refused where it is made.
"""

import math
from collections.abc import Sequence

from corpus_asr.decoding.assistants import ReadsWindows, check_assistant
from corpus_asr.decoding.protocols import AlignJob, Job, SlotModel, WindowJob
from corpus_asr.decoding.sizes import TellsFrameStep
from corpus_asr.errors import EngineError
from corpus_asr.units import FRAMES_PER_SECOND


def check_job(job: Job, model: SlotModel) -> None:
    """Make sure that a job's tokens fit the model.

    Raises:
        ValueError: too many tokens, none, or some that the vocabulary lacks; no heads to align by;
            too many beams, an assistant that does not fit, an encoding of another model, or a
            part of the window that cannot be heard alone.
    """
    _check_encoded(job, model)
    _check_heard(job, model)
    if isinstance(job, WindowJob):
        _check_window(job, model)
    else:
        _check_align(job, model)


def check_numbers(logprobs: Sequence[float], model: SlotModel) -> None:
    """Make sure that a model's output are numbers.

    Raises:
        EngineError: one is not.
    """
    if any(math.isnan(logprob) for logprob in logprobs):
        raise EngineError(
            f"decoding in {model.dtype}: the model's output is not a number, expected "
            "log-probabilities; set model.dtype to bfloat16 or float32"
        )


def _check_window(job: WindowJob, model: SlotModel) -> None:
    length, room = len(job.prompt), model.max_target_positions
    if length < 1 or length >= room or job.max_new_tokens < 1:
        raise ValueError(
            f"decoding {job.max_new_tokens} new tokens after a prompt of {length}: the decoder "
            f"holds {room}, expected at least one of each; shorten the prompt"
        )
    if job.score_token is not None and not 0 <= job.score_position < length:
        raise ValueError(
            f"scoring token {job.score_token} after position {job.score_position}: the prompt has "
            f"positions 0 to {length - 1}; correct score_position"
        )
    _check_ids(job.prompt, model, what="prompt")
    if job.search.assistant is not None:
        check_assistant(model, job.search.assistant)
    if job.search.num_beams > model.vocab_size // 2:
        raise ValueError(
            f"searching with {job.search.num_beams} beams: a vocabulary of {model.vocab_size} "
            f"gives at most {model.vocab_size // 2} something to say; correct num_beams"
        )


def _check_align(job: AlignJob, model: SlotModel) -> None:
    if not 1 <= len(job.tokens) <= model.max_target_positions:
        raise ValueError(
            f"aligning {len(job.tokens)} tokens: expected 1 to {model.max_target_positions}, what "
            "the decoder holds; align fewer at once"
        )
    if not job.heads:
        raise ValueError(
            "aligning tokens by no attention heads: expected (layer, head) pairs; name some"
        )
    _check_ids(job.tokens, model, what="text to align")


def _check_encoded(job: Job, model: SlotModel) -> None:
    if job.encoded is None or not isinstance(model, ReadsWindows):
        return
    if tuple(job.encoded.shape) != model.window_shape:
        raise ValueError(
            f"decoding an encoded window: found shape {tuple(job.encoded.shape)}, expected "
            f"{model.window_shape} (positions, width); encode it with this very model"
        )


def _check_heard(job: Job, model: SlotModel) -> None:
    whole = job.features.shape[1]
    step = model.frame_step if isinstance(model, TellsFrameStep) else FRAMES_PER_SECOND
    if job.num_frames is not None and (not 0 < job.num_frames <= whole or job.num_frames % step):
        raise ValueError(
            f"hearing {job.num_frames} frames of a window: expected a multiple of "
            f"{step}, at most {whole}; correct num_frames"
        )


def _check_ids(tokens: Sequence[int], model: SlotModel, *, what: str) -> None:
    low, high = min(tokens), max(tokens)
    if low < 0 or high >= model.vocab_size:
        raise ValueError(
            f"reading a {what}: found token {low if low < 0 else high}, expected 0 to "
            f"{model.vocab_size - 1}; use the tokenizer of this checkpoint"
        )
