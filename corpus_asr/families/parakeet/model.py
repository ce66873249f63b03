"""Parakeet's networks: the encoder with a CTC head, or with an RNN-T or TDT transducer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.emissions import Emissions, collapse
from corpus_asr.decoding.transducer import GreedySearch, State
from corpus_asr.families.generation_config import GenerationConfig
from corpus_asr.families.layers.blocks import Record, activation
from corpus_asr.families.layers.stack import check_tokens
from corpus_asr.families.model_config import ModelConfig
from corpus_asr.families.outputs import CausalLMOutput
from corpus_asr.families.parakeet.config import (
    ParakeetCTCConfig,
    ParakeetRNNTConfig,
    ParakeetTDTConfig,
)
from corpus_asr.families.parakeet.encoder import (
    Context,
    ParakeetEncoder,
    ParakeetEncoderModelOutput,
    ParakeetPreTrainedModel,
    Pointwise,
)
from corpus_asr.families.parakeet.losses import ctc_loss, reduced, transducer_losses
from corpus_asr.families.pretrained import IGNORED_LABEL


class _Recognizer(ParakeetPreTrainedModel):
    """An encoder, and what a family member has on top of it."""

    _generation: ClassVar[Any] = GenerationConfig
    base_model_prefix = "encoder"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        config.encoder_config.attn_implementation = config.attn_implementation
        self.encoder = ParakeetEncoder(config.encoder_config, drawn=False)

    def get_encoder(self) -> ParakeetEncoder:
        """Return the encoder."""
        return self.encoder

    def freeze_encoder(self) -> None:
        """Keep training from changing the encoder."""
        self.encoder.requires_grad_(False)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Choose `sdpa` or `eager` from now on."""
        super().set_attn_implementation(attn_implementation)
        self.encoder.set_attn_implementation(attn_implementation)

    def _encoded(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
    ) -> ParakeetEncoderModelOutput:
        asked = Record.asked(self.config, output_attentions, output_hidden_states)
        encoded: ParakeetEncoderModelOutput = self.encoder(
            input_features,
            attention_mask,
            output_attentions=asked.own is not None,
            output_hidden_states=asked.states is not None,
            return_dict=True,
        )
        return encoded


def _checked_labels(labels: Tensor, size: int) -> None:
    check_tokens(labels, size, doing="training", what="labels", ignored=IGNORED_LABEL)


class ParakeetCTC(_Recognizer):
    """The encoder, and a score of every token at every position."""

    config_class: ClassVar[type[ModelConfig]] = ParakeetCTCConfig
    config: ParakeetCTCConfig

    def __init__(self, config: ParakeetCTCConfig) -> None:
        super().__init__(config)
        width = config.encoder_config.hidden_size
        self.ctc_head = Pointwise(width, config.vocab_size)
        self._draw_weights()

    @property
    def blank(self) -> int:
        """The token that stands for no token."""
        assert self.config.pad_token_id is not None  # of `validate`
        return self.config.pad_token_id

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutput | tuple[Any, ...]:
        """Score every token at every position, and compute the loss of `labels` (batch, token).

        Arguments are those of transformers; None asks the configuration. The loss leaves out -100
        and blanks.
        """
        encoded = self._encoded(
            input_features, attention_mask, output_attentions, output_hidden_states
        )
        logits = self._scored(encoded.last_hidden_state)
        loss = None
        if labels is not None:
            _checked_labels(labels, self.config.vocab_size)
            loss = ctc_loss(
                logits,
                labels.to(logits.device),
                ((labels != IGNORED_LABEL) & (labels != self.blank)).to(logits.device),
                encoded.lengths,
                blank=self.blank,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
            )
        output = CausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output.as_asked(self.config, return_dict)

    def _scored(self, states: Any) -> Float[Tensor, "batch pos vocab"]:
        scores: Tensor = self.ctc_head(states)
        return scores

    @torch.inference_mode()
    def transcribe(
        self,
        input_features: Float[Tensor, "batch frame mel"],
        *,
        num_frames: Sequence[int],
        context: Context | None = None,
    ) -> Emissions:
        """Read the tokens off `num_frames` of each row; attention may be limited to a `context`."""
        states, lengths = self.encoder.encode(
            input_features, num_frames=num_frames, context=context
        )
        return collapse(self._scored(states), lengths, blank=self.blank)


@dataclass(eq=False)
class ParakeetRNNTOutput(ParakeetEncoderModelOutput):
    """What a transducer computes."""

    loss: Float[Tensor, "*_"] | None = None
    logits: Float[Tensor, "batch pos token _"] | None = None


class PredictionNetwork(nn.Module):
    """An LSTM over the tokens so far.

    Source: Graves 2012, section 2.1.
    """

    def __init__(self, config: ParakeetRNNTConfig) -> None:
        super().__init__()
        width = config.decoder_hidden_size
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.lstm = nn.LSTM(width, width, num_layers=config.num_decoder_layers, batch_first=True)
        self.decoder_projector = nn.Linear(width, width)

    def forward(
        self, tokens: Int[Tensor, "batch token"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch token width"], State]:
        """Run tokens after what `state` keeps."""
        hidden, kept = self.lstm(self.embedding(tokens), state)
        return self.decoder_projector(hidden), kept

    def step(
        self, tokens: Int[Tensor, " batch"], state: State | None
    ) -> tuple[Float[Tensor, "batch width"], State]:
        """Run one token of each row after what `state` keeps.

        By two products a layer: of two rows and two layers nn.LSTM takes 7.6 ms on a CPU in float32
        and 3.0 ms in bfloat16, this 1.4 ms in both (640 wide, one thread).
        """
        hidden = self.embedding(tokens)
        if state is None:
            zeros = hidden.new_zeros(self.lstm.num_layers, *hidden.shape)
            state = zeros, zeros
        outputs: list[Tensor] = []
        cells: list[Tensor] = []
        for layer, (before, cell) in enumerate(zip(*state, strict=True)):
            given, kept, given_bias, kept_bias = (
                getattr(self.lstm, f"{name}_l{layer}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            gates = F.linear(hidden, given, given_bias) + F.linear(before, kept, kept_bias)
            enter, stay, new, leave = gates.chunk(4, dim=1)
            cell = stay.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            outputs.append(hidden)
            cells.append(cell)
        return self.decoder_projector(hidden), (torch.stack(outputs), torch.stack(cells))


class JointNetwork(nn.Module):
    """Scores of tokens, and of durations after them, where the encoder and a text meet."""

    def __init__(self, config: ParakeetRNNTConfig) -> None:
        super().__init__()
        num_durations = len(getattr(config, "durations", ()))
        self.activate = activation(config.hidden_act)
        self.head = nn.Linear(config.decoder_hidden_size, config.vocab_size + num_durations)

    def forward(
        self, encoded: Float[Tensor, "*_ width"], predicted: Float[Tensor, "*_ width"]
    ) -> Float[Tensor, "*_ score"]:
        """Score what follows a text at a position; shapes are broadcast."""
        scores: Tensor = self.head(self.activate(encoded + predicted))
        return scores


class ParakeetRNNT(_Recognizer):
    """The encoder, the prediction network, and the joint network of both."""

    config_class: ClassVar[type[ModelConfig]] = ParakeetRNNTConfig
    config: ParakeetRNNTConfig

    durations: tuple[int, ...] = ()

    def __init__(self, config: ParakeetRNNTConfig) -> None:
        super().__init__(config)
        self.blank = config.blank_token_id
        self.vocab_size = config.vocab_size
        self.max_symbols = config.max_symbols_per_step
        width = config.encoder_config.hidden_size
        self.encoder_projector = nn.Linear(width, config.decoder_hidden_size)
        self.decoder = PredictionNetwork(config)
        self.joint = JointNetwork(config)
        self._draw_weights()

    def get_decoder(self) -> PredictionNetwork:
        """Return the prediction network."""
        return self.decoder

    def get_audio_features(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ParakeetEncoderModelOutput:
        """Encode features; `pooler_output` are the states as the joint network takes them."""
        encoded = self._encoded(
            input_features, attention_mask, output_attentions, output_hidden_states
        )
        encoded.pooler_output = self.encoder_projector(encoded.last_hidden_state)
        return encoded

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: ParakeetEncoderModelOutput | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ParakeetRNNTOutput | tuple[Any, ...]:
        """Score what follows each of `decoder_input_ids` (batch, token) at each position.

        Arguments are those of transformers; None asks the configuration. Where only `labels`
        (batch, token) are given, these are read after a blank. The loss leaves out -100, and
        `ignored_label` at the end of a row.
        """
        if (input_features is None) == (encoder_outputs is None):
            found = "neither" if input_features is None else "both"
            raise ValueError(
                f"running {type(self).__name__}: found {found} of input_features and "
                "encoder_outputs, expected one of them"
            )
        if encoder_outputs is None:
            assert input_features is not None
            encoder_outputs = self.get_audio_features(
                input_features, attention_mask, output_attentions, output_hidden_states
            )
        counted = None
        if labels is not None:
            _checked_labels(labels, self.vocab_size)
            labels = labels.to(self.device)
            counted = (labels != IGNORED_LABEL) & (labels != self.ignored_label)
            # What is left out is read, too, as any token: nothing that counts comes after it.
            labels = labels.masked_fill(~counted, self.blank)
            if decoder_input_ids is None:
                start = labels.new_full((len(labels), 1), self.blank)
                decoder_input_ids = torch.cat([start, labels], dim=1)
        if decoder_input_ids is None:
            raise ValueError(
                f"running {type(self).__name__}: found neither decoder_input_ids nor labels, "
                "expected one of them; a text begins with the blank"
            )
        check_tokens(decoder_input_ids, self.vocab_size, doing="decoding")
        predicted, _ = self.decoder(decoder_input_ids.to(self.device))
        states = encoder_outputs.pooler_output
        assert states is not None
        logits = self.joint(states[:, :, None], predicted[:, None])
        loss = None
        if labels is not None and counted is not None:
            loss = self._loss(logits, labels, counted.sum(dim=1), encoder_outputs.lengths)
        output = ParakeetRNNTOutput(**encoder_outputs, loss=loss, logits=logits)
        return output.as_asked(self.config, return_dict)

    @property
    def ignored_label(self) -> int | None:
        """The label that fills up rows."""
        return self.blank

    def _loss(
        self, logits: Tensor, labels: Tensor, label_lengths: Tensor, lengths: Tensor
    ) -> Float[Tensor, ""]:
        losses = transducer_losses(
            logits,
            labels,
            lengths,
            label_lengths,
            blank=self.blank,
            vocab_size=self.vocab_size,
            durations=self.durations,
        )
        return reduced(losses, label_lengths, by_row=bool(self.durations))

    def predict(
        self, tokens: Int[Tensor, " batch"], state: State | None
    ) -> tuple[Float[Tensor, "batch width"], State]:
        """Run one token of each row after what `state` keeps."""
        return self.decoder.step(tokens, state)

    def join(
        self, encoded: Float[Tensor, "*_ width"], predicted: Float[Tensor, "*_ width"]
    ) -> Float[Tensor, "*_ score"]:
        """Score tokens, and durations after them; shapes are broadcast."""
        scores: Tensor = self.joint(encoded, predicted)
        return scores

    @torch.inference_mode()
    def transcribe(
        self,
        input_features: Float[Tensor, "batch frame mel"],
        *,
        num_frames: Sequence[int],
        context: Context | None = None,
        search: GreedySearch | None = None,
    ) -> Emissions:
        """Read the tokens off `num_frames` of each row, by a `search` of this network's.

        Attention may be limited to a `context`.
        """
        states, lengths = self.encoder.encode(
            input_features, num_frames=num_frames, context=context
        )
        steps = (search or GreedySearch(self))(self.encoder_projector(states), lengths)
        return steps.emissions(blank=self.blank)


class ParakeetTDT(ParakeetRNNT):
    """A transducer whose joint network says, too, how many positions a token lasts."""

    config_class: ClassVar[type[ModelConfig]] = ParakeetTDTConfig
    config: ParakeetTDTConfig

    def __init__(self, config: ParakeetTDTConfig) -> None:
        super().__init__(config)
        self.durations = config.durations

    @property
    def ignored_label(self) -> int | None:
        """The label that fills up rows."""
        return self.config.pad_token_id
