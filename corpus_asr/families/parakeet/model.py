"""Parakeet's networks: the encoder with a CTC head, or with an RNN-T or TDT transducer."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.emissions import Emissions, collapse
from corpus_asr.decoding.transducer import GreedySearch, State
from corpus_asr.families.layers.blocks import activation
from corpus_asr.families.model_config import ModelConfig
from corpus_asr.families.parakeet.config import (
    ParakeetCTCConfig,
    ParakeetRNNTConfig,
    ParakeetTDTConfig,
)
from corpus_asr.families.parakeet.encoder import ParakeetEncoder, Pointwise
from corpus_asr.families.pretrained import PreTrainedModel


class _ParakeetModel(PreTrainedModel):
    """An encoder, and what a family member has on top of it."""

    base_model_prefix = "encoder"
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = ParakeetEncoder(config.encoder_config)


class ParakeetCTC(_ParakeetModel):
    """The encoder, and a score of every token at every position."""

    config_class: ClassVar[type[ModelConfig]] = ParakeetCTCConfig
    config: ParakeetCTCConfig

    def __init__(self, config: ParakeetCTCConfig) -> None:
        super().__init__(config)
        width = config.encoder_config.hidden_size
        self.ctc_head = Pointwise(width, config.vocab_size)

    @property
    def blank(self) -> int:
        """ID of the blank token."""
        assert self.config.pad_token_id is not None  # ensured by `validate`
        return self.config.pad_token_id

    def forward(
        self,
        input_features: Float[Tensor, "batch frame mel"],
        *,
        num_frames: Sequence[int],
    ) -> tuple[Float[Tensor, "batch pos vocab"], Int[Tensor, " batch"]]:
        """Score every token at every position; returns how many of each row are its own, too."""
        states, lengths = self.encoder.encode(input_features, num_frames=num_frames)
        return self.ctc_head(states), lengths

    @torch.inference_mode()
    def transcribe(
        self,
        input_features: Float[Tensor, "batch frame mel"],
        *,
        num_frames: Sequence[int],
    ) -> Emissions:
        """Read the tokens off `num_frames` of each row."""
        scores, lengths = self(input_features, num_frames=num_frames)
        return collapse(scores, lengths, blank=self.blank)


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

    def step(
        self, tokens: Int[Tensor, " batch"], state: State | None
    ) -> tuple[Float[Tensor, "batch width"], State]:
        """Run one token of each row, continuing from `state`.

        With two products per layer: for two rows and two layers nn.LSTM takes 7.6 ms on a CPU in
        float32 and 3.0 ms in bfloat16, this 1.4 ms in both (640 wide, one thread).
        """
        hidden = self.embedding(tokens)
        if state is None:
            zeros = hidden.new_zeros(self.lstm.num_layers, *hidden.shape)
            state = zeros, zeros
        outputs: list[Tensor] = []
        cells: list[Tensor] = []
        for layer, (previous, cell) in enumerate(zip(*state, strict=True)):
            input_weight, hidden_weight, input_bias, hidden_bias = (
                getattr(self.lstm, f"{name}_l{layer}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            gates = F.linear(hidden, input_weight, input_bias) + F.linear(
                previous, hidden_weight, hidden_bias
            )
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
        """Return the scores of the next token at a position; input shapes are broadcast."""
        scores: Tensor = self.head(self.activate(encoded + predicted))
        return scores


class ParakeetRNNT(_ParakeetModel):
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

    def predict(
        self, tokens: Int[Tensor, " batch"], state: State | None
    ) -> tuple[Float[Tensor, "batch width"], State]:
        """Run one token of each row, continuing from `state`."""
        return self.decoder.step(tokens, state)

    def join(
        self, encoded: Float[Tensor, "*_ width"], predicted: Float[Tensor, "*_ width"]
    ) -> Float[Tensor, "*_ score"]:
        """Return scores of tokens, then of durations; input shapes are broadcast."""
        scores: Tensor = self.joint(encoded, predicted)
        return scores

    @torch.inference_mode()
    def transcribe(
        self,
        input_features: Float[Tensor, "batch frame mel"],
        *,
        num_frames: Sequence[int],
        search: GreedySearch | None = None,
    ) -> Emissions:
        """Read the tokens off `num_frames` of each row, by a `search` of this network's."""
        states, lengths = self.encoder.encode(input_features, num_frames=num_frames)
        steps = (search or GreedySearch(self))(self.encoder_projector(states), lengths)
        return steps.emissions(blank=self.blank)


class ParakeetTDT(ParakeetRNNT):
    """A transducer whose joint network says, too, how many positions a token lasts."""

    config_class: ClassVar[type[ModelConfig]] = ParakeetTDTConfig
    config: ParakeetTDTConfig

    def __init__(self, config: ParakeetTDTConfig) -> None:
        super().__init__(config)
        self.durations = config.durations
