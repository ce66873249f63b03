"""Whisper as a whole: the networks by the names of the reference, and the form search runs.

In: a checkpoint folder, features and token ids. Out: hidden states and logits. Knows no audio, no
text and no search; `WhisperSlotModel` is what search (`decoding.protocols.SlotModel`) runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from corpus_asr.errors import CheckpointError
from corpus_asr.models.checkpoint import load_weights, share_parameter
from corpus_asr.models.layers.cache import SlotCache
from corpus_asr.models.layers.positions import sinusoids
from corpus_asr.models.layers.projection import Projection
from corpus_asr.models.whisper.config import CONFIG_NAME, WhisperConfig
from corpus_asr.models.whisper.decoder import CachedWhisperDecoder, WhisperDecoder
from corpus_asr.models.whisper.encoder import WhisperEncoder


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

    def slot_model(self) -> "WhisperSlotModel":
        """Return the form of this model that search runs; see `WhisperSlotModel`."""
        return WhisperSlotModel(self)


class WhisperSlotModel:
    """A `WhisperForConditionalGeneration` whose decoder keeps its caches in numbered slots.

    Meets `decoding.protocols.SlotModel`. Shares the encoder, embeddings and norms of `model`; the
    decoder's linear maps are fused copies made here, so training `model` further, or moving it,
    needs a new slot model. What a slot gives does not depend on what the others hold.
    """

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        self._model = model
        self._encoder = model.model.encoder
        self._decoder = CachedWhisperDecoder(model.model.decoder)
        self._vocabulary = Projection([model.proj_out])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and caches."""
        return self._model.dtype

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._model.config.vocab_size

    @property
    def max_target_positions(self) -> int:
        """Longest token sequence a slot can hold."""
        return self._model.config.max_target_positions

    def new_state(self, slots: int) -> SlotCache:
        """Allocate caches for `slots` sequences.

        Raises:
            ValueError: `slots` is not positive.
        """
        if slots < 1:
            raise ValueError(f"allocating {slots} slots: expected at least 1")
        with torch.inference_mode():
            return self._decoder.new_cache(slots)

    @torch.inference_mode()
    def encode(
        self, features: Float[Tensor, "batch mel frame"]
    ) -> Float[Tensor, "batch pos width"]:
        """Encode whole windows.

        Raises:
            ValueError: the features are no whole window.
        """
        encoded: Tensor = self._encoder(features.to(self.device, self.dtype))
        return encoded

    @torch.inference_mode()
    def fill(
        self, state: SlotCache, slots: Sequence[int], encoded: Float[Tensor, "batch pos width"]
    ) -> None:
        """Write the cross-attention keys and values of `encoded` into `slots`."""
        self._decoder.fill(state, slots, encoded)

    @torch.inference_mode()
    def prefill(
        self,
        state: SlotCache,
        slots: Sequence[int],
        tokens: Int[Tensor, "batch token"],
        lengths: Sequence[int],
    ) -> Float[Tensor, "batch token width"]:
        """Run prompts padded on the right from position 0, starting `slots` anew.

        Raises:
            ValueError: the prompts are longer than the model's positions, or a length is not
                within its row.
        """
        if not all(1 <= length <= tokens.shape[1] for length in lengths):
            raise ValueError(
                f"running prompts padded to {tokens.shape[1]} tokens: found lengths "
                f"{list(lengths)}, expected 1 to {tokens.shape[1]}"
            )
        return self._decoder.prefill(state, slots, tokens)

    @torch.inference_mode()
    def step(
        self, state: SlotCache, tokens: Int[Tensor, " slot"], positions: Int[Tensor, " slot"]
    ) -> Float[Tensor, "slot vocab"]:
        """Advance the first `len(tokens)` slots by one token each, at its own position.

        Raises:
            ValueError: a position is outside the model's. On a GPU it is not checked: the host
                would have to wait for it.
        """
        return self.logits(self._decoder.step(state, tokens, positions))

    @torch.inference_mode()
    def logits(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocab"]:
        """Project hidden states to the vocabulary, in float32."""
        return self._vocabulary(hidden).float()

    @torch.inference_mode()
    def move(self, state: SlotCache, source: int, target: int) -> None:
        """Copy everything slot `source` holds into slot `target`."""
        state.move(source, target)
