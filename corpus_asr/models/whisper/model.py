"""Whisper as a whole: the networks by the names of the reference, and the form search runs.

In: a checkpoint folder, features and token ids. Out: hidden states and logits. Knows no audio, no
text and no search; `WhisperSlotModel` is what search (`decoding.protocols.SlotModel`) runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from corpus_asr.errors import CheckpointError
from corpus_asr.models.checkpoint import load_weights, share_parameter
from corpus_asr.models.layers.positions import sinusoids
from corpus_asr.models.registry import resolve
from corpus_asr.models.whisper.config import CONFIG_NAME, WhisperConfig
from corpus_asr.models.whisper.decoder import WhisperDecoder
from corpus_asr.models.whisper.encoder import WhisperEncoder
from corpus_asr.models.whisper.slot_model import WhisperSlotModel

_GENERATE = "corpus_asr.transcription.generation.generate:generate"
_DETECT_LANGUAGE = "corpus_asr.transcription.generation.generate:detect_language"


@dataclass(frozen=True, slots=True, kw_only=True)
class WhisperModelOutput:
    """What `WhisperModel` computes."""

    last_hidden_state: Float[Tensor, "batch token width"]
    encoder_last_hidden_state: Float[Tensor, "batch pos width"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WhisperOutput:
    """What `WhisperForConditionalGeneration` computes."""

    logits: Float[Tensor, "batch token vocab"]
    encoder_last_hidden_state: Float[Tensor, "batch pos width"]


class WhisperPreTrainedModel(nn.Module):
    """What the Whisper networks share: a configuration and loading.

    The `state_dict()` keys equal those of the same class in transformers.
    """

    _tied: ClassVar[dict[str, str]] = {}
    """Parameters that share another's weights."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Load a checkpoint folder, ready for inference.

        Args:
            folder: holds config.json and the weights, of this class or of another with the same
                encoder and decoder.
            dtype: type of the weights; None keeps the stored one.
            device: where the weights go; None means the CPU.

        Raises:
            CheckpointError: a file is missing or broken, or does not fit the configuration.
        """
        config = WhisperConfig.from_pretrained(folder)
        try:
            # No memory and no random numbers for weights about to be replaced.
            with torch.device("meta"):
                model = cls(config)
        except ValueError as error:
            raise CheckpointError(
                f"building the network of {Path(folder) / CONFIG_NAME}: {error}"
            ) from error
        load_weights(
            model,
            Path(folder),
            dtype=dtype,
            device=torch.device(device or "cpu"),
            tied=cls._tied,
            computed={
                "model.encoder.embed_positions.weight": lambda: sinusoids(
                    config.max_source_positions, config.d_model
                )
            },
            ignored=frozenset({"proj_out.weight"}),
        )
        return model.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    def _draw_weights(self) -> None:
        """Draw fresh weights as transformers does: normal, biases zero, encoder sinusoidal."""
        for name, parameter in self.named_parameters():
            if name.endswith("encoder.embed_positions.weight"):
                parameter.requires_grad_(False).copy_(sinusoids(*parameter.shape))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "layer_norm" not in name:
                nn.init.normal_(parameter, std=self.config.init_std)


class WhisperModel(WhisperPreTrainedModel):
    """Encoder and decoder, without the projection to the vocabulary."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        self.encoder = WhisperEncoder(config)
        self.decoder = WhisperDecoder(config)
        self._draw_weights()

    def forward(
        self,
        input_features: Float[Tensor, "batch mel frame"],
        decoder_input_ids: Int[Tensor, "batch token"],
    ) -> WhisperModelOutput:
        """Encode whole windows and run whole token sequences over them.

        Raises:
            ValueError: the features are no whole window, or the sequences are too long.
        """
        encoded = self.encoder(input_features)
        return WhisperModelOutput(
            last_hidden_state=self.decoder(decoder_input_ids, encoded),
            encoder_last_hidden_state=encoded,
        )


class WhisperForConditionalGeneration(WhisperPreTrainedModel):
    """Encoder, decoder and the projection to the vocabulary, tied to the token embedding."""

    _tied: ClassVar[dict[str, str]] = {"proj_out.weight": "model.decoder.embed_tokens.weight"}

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        self.model = WhisperModel(config)
        self.proj_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        for target, source in self._tied.items():
            share_parameter(self, target, source)

    def forward(
        self,
        input_features: Float[Tensor, "batch mel frame"],
        decoder_input_ids: Int[Tensor, "batch token"],
    ) -> WhisperOutput:
        """Score every token after each of `decoder_input_ids`.

        Raises:
            ValueError: the features are no whole window, or the sequences are too long.
        """
        outputs = self.model(input_features, decoder_input_ids)
        return WhisperOutput(
            logits=self.proj_out(outputs.last_hidden_state),
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
        )

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
        """Transcribe or translate; see `corpus_asr.transcription.generation.generate.generate`.

        Raises:
            ValueError: an argument is unknown, wrong, or does not go with another.
        """
        # By name: the engine lies in a higher layer, which imports this one.
        return resolve(_GENERATE)(
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
        detected: Tensor = resolve(_DETECT_LANGUAGE)(
            self,
            input_features,
            encoder_outputs=encoder_outputs,
            generation_config=generation_config,
            num_segment_frames=num_segment_frames,
        )
        return detected

    def slot_model(self) -> WhisperSlotModel:
        """Return the form of this model that search runs; see `WhisperSlotModel`."""
        return WhisperSlotModel(self)
