"""`WhisperForConditionalGeneration`, with the interface of `generate` in transformers 5.23.

Every row is a task of the package's own scheduler: rows are independent in time and result.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Int
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.families.whisper.model import WhisperForCausalLM as WhisperDecoderLM
from corpus_asr.families.whisper.model import WhisperSeq2SeqLM
from corpus_asr.models.generation.call import WhisperCall, refuse_if
from corpus_asr.models.generation.inputs import Audio, Row, features_of
from corpus_asr.models.generation.long_form import TransformersLongForm, detect, starts
from corpus_asr.models.generation.outputs import Batch, time_tokens
from corpus_asr.models.generation.rare_settings import (
    compute_transition_scores,
    rare_setting,
    transformers_generate,
    transformers_view,
)
from corpus_asr.models.generation.slots import changed_module, run, slot_model

logger = logging.getLogger(__name__)


def generate(
    model: Any,
    input_features: Any = None,
    generation_config: Any = None,
    logits_processor: Sequence[Any] | None = None,
    stopping_criteria: Sequence[Any] | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None,
    synced_gpus: bool = False,
    return_timestamps: bool | None = None,
    task: str | None = None,
    language: str | Sequence[str] | None = None,
    is_multilingual: bool | None = None,
    prompt_ids: Any = None,
    prompt_condition_type: str | None = None,
    condition_on_prev_tokens: bool | None = None,
    temperature: float | Sequence[float] | None = None,
    compression_ratio_threshold: float | None = None,
    logprob_threshold: float | None = None,
    no_speech_threshold: float | None = None,
    num_segment_frames: int | None = None,
    attention_mask: Any = None,
    time_precision: float = 0.02,
    time_precision_features: float = 0.01,
    return_token_timestamps: bool | None = None,
    return_segments: bool = False,
    return_dict_in_generate: bool | None = None,
    force_unique_generate_call: bool | None = None,
    monitor_progress: Callable[[Tensor], None] | None = None,
    **kwargs: Any,
) -> Any:
    """Transcribe or translate a batch of recordings.

    Args:
        input_features: log-mel features; more than 3,000 frames are decoded window by window.
        logits_processor, stopping_criteria: called with the tokens so far and the scores of the
            next; change the scores, or end a window.
        prefix_allowed_tokens_fn: returns the allowed next tokens for a row and its tokens so far.
        synced_gpus, num_segment_frames: without effect here.
        return_timestamps: always true for long recordings.
        language: of all rows, or one per row; None to detect it if prompts include it.
        prompt_ids: text before the first window (`prompt_condition_type` of `first-segment`) or
            before every window (`all-segments`).
        temperature: 0 or None selects the most likely token; several are tried in order until a
            window passes the thresholds.
        compression_ratio_threshold: a window with a higher ratio of token IDs is repeated.
        logprob_threshold: a window with a lower mean log-probability is repeated.
        no_speech_threshold: such a window with a higher no-speech probability is skipped.
        attention_mask: 1 for the frames of each row, (batch, frame).
        time_precision, time_precision_features: seconds per timestamp step, per feature frame.
        force_unique_generate_call: whether to decode one window per row, and return it with
            prompt and end token.
        monitor_progress: called with (batch, 2): the current frame of each row, and its total.
        kwargs: further settings of a `GenerationConfig`, and `encoder_outputs`,
            `assistant_model`, `decoder_input_ids`. Those of `rare_settings` need transformers.

    Returns:
        Token IDs without prompt and end token, padded; or a dictionary of `sequences`, `segments`,
        `token_timestamps`; or with `return_dict_in_generate` and no timestamps, or a forced unique
        call, all results of the last window.
    """
    call = WhisperCall(locals())
    reason = rare_setting(model, call.setting) or changed_module(model)
    if reason is not None:
        return transformers_generate(model, reason, **call.options)
    call.refuse_unknown()
    features = call["inputs"] if input_features is None else input_features
    audio = Audio.of(model, features, call["encoder_outputs"])
    call.prepare(
        is_short=audio.is_short, input_stride=audio.input_stride, window_frames=audio.window_frames
    )
    call.assistant = _assistant(call, audio)
    begins = starts(call.config, model.config, audio.batch_size, timestamps=call.has_timestamps)
    rows = audio.rows(attention_mask)
    report = _reporter(rows, monitor_progress)
    tasks = [
        TransformersLongForm(row, begins[row.index], call, report).transcribe() for row in rows
    ]
    batch = Batch(run(model, tasks), call)
    if return_token_timestamps:
        time_tokens(batch, call)
    if call.returns_names and (call.is_single or not return_timestamps):
        return batch.unique()
    names = ("sequences", "token_timestamps") if return_token_timestamps else ("sequences",)
    output: dict[str, Any] = {
        name: batch.first(name) if call.is_single else getattr(batch, name)() for name in names
    }
    if return_segments or call.returns_names:
        output["segments"] = batch.segments()
    return output if len(output) > 1 else output["sequences"]


def detect_language(
    model: Any,
    input_features: Any = None,
    encoder_outputs: Any = None,
    generation_config: Any = None,
    num_segment_frames: int = 3000,
) -> Int[Tensor, " batch"]:
    """Return the most likely language token of each recording, from its first window."""
    if (input_features is None) == (encoder_outputs is None):
        raise ValueError(
            "detecting the language: expected either `input_features` or `encoder_outputs`; pass "
            "one of them"
        )
    if input_features is not None:
        bins = model.config.num_mel_bins
        input_features = features_of(input_features, bins, "frames")[:, :, :num_segment_frames]
    if (changed := changed_module(model)) is not None:
        view = transformers_view(model, changed)
        ids: Tensor = view.detect_language(input_features, encoder_outputs, generation_config)
        return ids
    call = WhisperCall({"model": model, "kwargs": {}, "generation_config": generation_config})
    config = call.config
    if not config.lang_to_id or config.decoder_start_token_id is None:
        raise ValueError(
            "detecting the language: found no lang_to_id or decoder_start_token_id in the "
            "generation settings, expected both; use a multilingual checkpoint"
        )
    audio = Audio.of(model, input_features, encoder_outputs)
    # The language is detected in a complete first window, ignoring any mask.
    rows = audio.rows(torch.ones(audio.batch_size, 1))
    tasks = [detect(row, config, window_frames=audio.window_frames) for row in rows]
    return torch.tensor(run(model, tasks), device=model.device)


class WhisperForConditionalGeneration(WhisperSeq2SeqLM):
    """Whisper with the arguments of `transformers`' `generate`."""

    generate = generate
    detect_language = detect_language
    compute_transition_scores = compute_transition_scores


class WhisperForCausalLM(WhisperDecoderLM):
    """Whisper's decoder, generating by transformers' search; as an assistant it needs none."""

    def generate(self, inputs: Any = None, **kwargs: Any) -> Any:
        """Continue token IDs as `transformers.GenerationMixin.generate` does.

        Raises ImportError if transformers is not installed.
        """
        return transformers_generate(self, "WhisperForCausalLM.generate", inputs=inputs, **kwargs)

    compute_transition_scores = compute_transition_scores


def _assistant(call: WhisperCall, audio: Audio) -> SlotModel | None:
    assistant = call["assistant_model"]
    if assistant is None:
        return None
    if (call.config.num_beams or 1) > 1:
        # The reference drops the assistant too: it drafts for one hypothesis only.
        logger.warning("assistant_model drafts nothing for beams: num_beams is not 1")
        return None
    refuse_if(
        not hasattr(assistant, "slot_model"),
        f"found a {type(assistant).__name__} as assistant_model, expected a model; load it with "
        "WhisperForCausalLM.from_pretrained",
        error=TypeError,
    )
    if changed_module(assistant) is not None:
        return None
    draft = slot_model(assistant)
    refuse_if(
        audio.features is None and draft.has_encoder,
        "found encoder_outputs without input_features for an assistant_model with an encoder, "
        "expected both; pass both, or a WhisperForCausalLM",
    )
    return draft


def _reporter(
    rows: Sequence[Row], monitor: Callable[[Tensor], None] | None
) -> Callable[[Row, int], None]:
    at = torch.tensor([[0, row.frames] for row in rows])

    def report(row: Row, seek: int) -> None:
        at[row.index, 0] = seek
        # All rows start at 0, which is reported once.
        if monitor is not None and (seek > 0 or row.index == 0):
            monitor(at.clone())

    return report
