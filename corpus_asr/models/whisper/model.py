"""`WhisperForConditionalGeneration`: the network with `generate` and `detect_language`."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from corpus_asr.families.whisper.model import WhisperSeq2SeqLM
from corpus_asr.models.generation.generate import detect_language, generate


class WhisperForConditionalGeneration(WhisperSeq2SeqLM):
    """Whisper with the arguments of `transformers`' `generate`."""

    def generate(
        self,
        input_features: Tensor | None = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
        synced_gpus: bool = False,
        return_timestamps: bool | None = None,
        task: str | None = None,
        language: str | list[str] | None = None,
        is_multilingual: bool | None = None,
        prompt_ids: Tensor | None = None,
        prompt_condition_type: str | None = None,
        condition_on_prev_tokens: bool | None = None,
        temperature: float | Sequence[float] | None = None,
        compression_ratio_threshold: float | None = None,
        logprob_threshold: float | None = None,
        no_speech_threshold: float | None = None,
        num_segment_frames: int | None = None,
        attention_mask: Tensor | None = None,
        time_precision: float = 0.02,
        time_precision_features: float = 0.01,
        return_token_timestamps: bool | None = None,
        return_segments: bool = False,
        return_dict_in_generate: bool | None = None,
        force_unique_generate_call: bool | None = None,
        monitor_progress: Callable[[Tensor], None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Transcribe or translate; see `corpus_asr.models.generation.generate.generate`.

        Raises:
            ValueError: an argument is unknown, wrong, or does not go with another.
        """
        return generate(
            self,
            input_features,
            generation_config=generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            synced_gpus=synced_gpus,
            return_timestamps=return_timestamps,
            task=task,
            language=language,
            is_multilingual=is_multilingual,
            prompt_ids=prompt_ids,
            prompt_condition_type=prompt_condition_type,
            condition_on_prev_tokens=condition_on_prev_tokens,
            temperature=temperature,
            compression_ratio_threshold=compression_ratio_threshold,
            logprob_threshold=logprob_threshold,
            no_speech_threshold=no_speech_threshold,
            num_segment_frames=num_segment_frames,
            attention_mask=attention_mask,
            time_precision=time_precision,
            time_precision_features=time_precision_features,
            return_token_timestamps=return_token_timestamps,
            return_segments=return_segments,
            return_dict_in_generate=return_dict_in_generate,
            force_unique_generate_call=force_unique_generate_call,
            monitor_progress=monitor_progress,
            **kwargs,
        )

    def detect_language(
        self,
        input_features: Tensor | None = None,
        encoder_outputs: Any = None,
        generation_config: Any = None,
        num_segment_frames: int = 3000,
    ) -> Tensor:
        """Return the most probable language token of each window.

        Raises:
            ValueError: none or both of features and encoding are given, or the model knows no
                languages.
        """
        detected: Tensor = detect_language(
            self,
            input_features,
            encoder_outputs=encoder_outputs,
            generation_config=generation_config,
            num_segment_frames=num_segment_frames,
        )
        return detected
