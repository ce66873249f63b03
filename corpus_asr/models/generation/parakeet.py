"""Parakeet under transformers' names: `generate` on top of the family's networks."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.transducer import GreedySearch
from corpus_asr.families.layers.stack import within
from corpus_asr.families.outputs import ModelOutput, States, Weights
from corpus_asr.families.parakeet.model import ParakeetCTC, ParakeetRNNT, ParakeetTDT


@dataclass(eq=False)
class ParakeetCTCGenerateOutput(ModelOutput):
    """What `generate` of CTC returns."""

    sequences: Int[Tensor, "batch pos"] | None = None
    logits: Float[Tensor, "batch pos vocab"] | None = None
    attentions: Weights | None = None
    hidden_states: States | None = None


@dataclass(eq=False)
class ParakeetRNNTGenerateOutput(ModelOutput):
    """What `generate` of transducers returns: every step after the first token, blanks too."""

    sequences: Int[Tensor, "batch step"] | None = None
    durations: Int[Tensor, "batch step"] | None = None
    """Positions that each step moved on by; 0 of the first token and of padding."""
    attentions: Weights | None = None
    hidden_states: States | None = None


class ParakeetForCTC(ParakeetCTC):
    """The encoder with a CTC head."""

    @torch.no_grad()
    def generate(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        return_dict_in_generate: bool = False,
        **kwargs: Any,
    ) -> ParakeetCTCGenerateOutput | Int[Tensor, "batch pos"]:
        """Return the likeliest token of each position, blanks after a row's own.

        With `return_dict_in_generate`, as an output with logits; other keywords are those of
        `forward`.
        """
        output = self(input_features, attention_mask, **kwargs | {"return_dict": True})
        tokens: Tensor = output.logits.argmax(dim=2)
        if attention_mask is not None:
            frames = (attention_mask != 0).sum(dim=1)
            valid = within(self._get_subsampling_output_length(frames), tokens.shape[1])
            tokens = tokens.masked_fill(~valid, self.blank)
        if not return_dict_in_generate:
            return tokens
        return ParakeetCTCGenerateOutput(
            sequences=tokens,
            logits=output.logits,
            attentions=output.attentions,
            hidden_states=output.hidden_states,
        )


class ParakeetForRNNT(ParakeetRNNT):
    """The encoder with a transducer, whose blanks move on by one position."""

    @torch.no_grad()
    def generate(
        self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> ParakeetRNNTGenerateOutput:
        """Search greedily; returns every step, blanks too, and how far each moved.

        Keywords are those of `get_audio_features`.
        """
        encoded = self.get_audio_features(input_features, attention_mask, **kwargs)
        assert encoded.pooler_output is not None
        steps = GreedySearch(self)(encoded.pooler_output, encoded.lengths)
        padding = self.blank if self.config.pad_token_id is None else self.config.pad_token_id
        inside = within(steps.counts, steps.tokens.shape[1])
        start = steps.tokens.new_full((len(steps.tokens), 1), self.blank)
        return ParakeetRNNTGenerateOutput(
            sequences=torch.cat([start, steps.tokens.masked_fill(~inside, padding)], dim=1),
            durations=torch.cat([torch.zeros_like(start), steps.durations], dim=1),
            attentions=encoded.attentions,
            hidden_states=encoded.hidden_states,
        )


class ParakeetForTDT(ParakeetForRNNT, ParakeetTDT):
    """The encoder with a transducer that says how long tokens and blanks last."""
