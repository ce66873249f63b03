"""Attentions and hidden states of `generate`: the modules themselves read again what was found.

Search keeps none, so that it stays fast where nobody asks. Here the tokens are known: each step is
run once, as search ran it, token by token and beam by beam.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from corpus_asr.array_types import Int
from corpus_asr.decoding.protocols import BeamTrace
from corpus_asr.families.generation_config import GenerationConfig
from corpus_asr.families.layers.module_slots import evaluating
from corpus_asr.families.outputs import BaseModelOutput, as_encoder_output
from corpus_asr.models.generation.inputs import EncodedBatch, PaddedBatch
from corpus_asr.models.generation.outputs import Batch
from corpus_asr.models.generation.settings import Settings

# By name in the result: that of the network's output.
_ATTENTIONS = {"decoder_attentions": "decoder_attentions", "cross_attentions": "cross_attentions"}
_HIDDEN = {"decoder_hidden_states": "decoder_hidden_states"}
_ALONE = {
    "attentions": {"attentions": "attentions", "cross_attentions": "cross_attentions"},
    "hidden": {"hidden_states": "hidden_states"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedStates:
    """What of them is asked for by name."""

    attentions: bool
    hidden: bool
    cached: bool = True
    """Whether each step is run with the newest token alone; else with all so far."""

    @classmethod
    def of(cls, config: GenerationConfig) -> "WantedStates | None":
        """Return what settings ask for; None for nothing."""
        by_name = bool(config.return_dict_in_generate)
        wanted = cls(
            attentions=by_name and bool(config.output_attentions),
            hidden=by_name and bool(config.output_hidden_states),
            cached=config.use_cache is not False,
        )
        return wanted if wanted.attentions or wanted.hidden else None

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of a network."""
        return {
            "output_attentions": self.attentions,
            "output_hidden_states": self.hidden,
            "return_dict": True,
        }

    @property
    def names(self) -> dict[str, str]:
        """Names of what the decoder gives."""
        return (_ATTENTIONS if self.attentions else {}) | (_HIDDEN if self.hidden else {})

    def of_encoder(self, encoded: BaseModelOutput) -> dict[str, Any]:
        """Return what the encoder gave, by the names of the result."""
        given = {
            "encoder_attentions": encoded.attentions if self.attentions else None,
            "encoder_hidden_states": encoded.hidden_states if self.hidden else None,
        }
        return {name: value for name, value in given.items() if value is not None}


@torch.no_grad()
def batch_states(
    model: Any,
    wanted: WantedStates,
    batch: PaddedBatch | EncodedBatch,
    given: Any,
    sequences: Int[Tensor, "row token"],
    traces: Sequence[BeamTrace],
    *,
    prompt_length: int,
    beams: int,
    pad: int,
) -> dict[str, Any]:
    """Return the states of a padded batch of Speech2Text, or of a decoder alone.

    `given` are the caller's `encoder_outputs`; rows of `sequences` are copies of those of the
    batch, or its best beams, of which `traces` have all.
    """
    device = model.device
    more: dict[str, Tensor] = {}
    with evaluating(model):
        if isinstance(batch, EncodedBatch):
            encoded = BaseModelOutput(last_hidden_state=batch.encoded())
        else:
            mask = torch.arange(max(batch.num_frames)) < torch.tensor(batch.num_frames).unsqueeze(1)
            more["attention_mask"] = mask = mask.long().to(device)
            if batch.features is not None:
                features = batch.features.to(device, model.dtype)[:, : mask.shape[1]]
                encoded = model.get_encoder()(features, attention_mask=mask, **wanted.options)
            else:
                encoded = as_encoder_output(given)
        copies = max(1, len(sequences) // batch.size) if beams == 1 else beams
        prompts = sequences[:: len(sequences) // batch.size, :prompt_length]
        if beams == 1:
            tokens, parents = sequences[:, prompt_length:].t(), None
        else:
            tokens, parents = _beam_steps(traces, pad=pad)
            parents = parents.to(device)
        states = decoder_states(
            model,
            wanted,
            _repeated(encoded, copies),
            prompts.repeat_interleave(copies, dim=0).to(device),
            tokens.to(device),
            parents,
            **{name: tensor.repeat_interleave(copies, dim=0) for name, tensor in more.items()},
        )
    return wanted.of_encoder(encoded) | states


@torch.no_grad()
def note_window_states(model: Any, wanted: WantedStates, batch: Batch, settings: Settings) -> None:
    """Set the states of all windows of Whisper that were kept, in `batch`."""
    with evaluating(model):
        for row, attempt in ((one.row, kept) for one in batch.results for kept in one.kept):
            if row.encoded is None:
                features = torch.from_numpy(attempt.window.features).unsqueeze(0)
                encoded = model.get_encoder()(
                    features.to(model.device, model.dtype), **wanted.options
                )
            else:
                encoded = BaseModelOutput(last_hidden_state=row.encoded.unsqueeze(0))
            prompt = torch.tensor([attempt.window.prompt], device=model.device)
            tokens = torch.tensor(batch.said(attempt), device=model.device).unsqueeze(1)
            hidden = encoded.last_hidden_state.to(model.device, model.dtype)
            found = decoder_states(model, wanted, hidden, prompt, tokens)
            before = batch.prompt_length(attempt) - prompt.shape[1]
            cache = found.pop("past_key_values", None)
            # Keys of padding in front of a shorter prompt would be seen by who continues with it.
            kept = {} if cache is None or before else {"past_key_values": cache}
            of_encoder = wanted.of_encoder(encoded)
            # Off the device, window by window: a recording has many.
            batch.states[attempt] = {
                **{name: tuple(t[0].cpu() for t in held) for name, held in of_encoder.items()},
                **{name: _padded(name, held, before) for name, held in found.items()},
                **kept,
            }


def decoder_states(
    model: Any,
    wanted: WantedStates,
    encoded: Tensor | None,
    prompts: Int[Tensor, "row token"],
    tokens: Int[Tensor, "step row"],
    parents: Int[Tensor, "step row"] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Run the decoder as it chose `tokens` after `prompts`; returns its states, step by step.

    `parents` are the rows whose tokens each token was appended to; without them each row's own.
    With them comes what the cache holds after the last step, if there is one.
    """
    alone = not model.config.is_encoder_decoder
    names = wanted.names
    if alone:
        names = (_ALONE["attentions"] if wanted.attentions else {}) | (
            _ALONE["hidden"] if wanted.hidden else {}
        )
    window = None if encoded is None else BaseModelOutput(last_hidden_state=encoded)
    found: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in names}
    read, past = prompts, None
    for step, newest in enumerate(tokens):
        output = model(
            encoder_outputs=window,
            **{"input_ids" if alone else "decoder_input_ids": read},
            past_key_values=past,
            use_cache=wanted.cached,
            **more,
            **wanted.options,
        )
        for name, own in names.items():
            if own in output:
                found[name].append(output[own])
        past = output.past_key_values if wanted.cached else None
        last = step == len(tokens) - 1
        if parents is not None and not last:
            read = read[parents[step]]
            if past is not None:
                past.reorder_cache(parents[step])
        column = newest.unsqueeze(1)
        read = column if wanted.cached else torch.cat([read, column], dim=1)
    states: dict[str, Any] = {name: tuple(steps) for name, steps in found.items() if steps}
    return states if past is None else {**states, "past_key_values": past}


def _beam_steps(
    traces: Sequence[BeamTrace], *, pad: int
) -> tuple[Int[Tensor, "step row"], Int[Tensor, "step row"]]:
    # Where a search has ended before the others, padding is read on.
    longest = max(len(trace.tokens) for trace in traces)
    tokens, parents = [], []
    for number, trace in enumerate(traces):
        missing, beams = longest - len(trace.tokens), trace.tokens.shape[1]
        tokens.append(F.pad(trace.tokens, (0, 0, 0, missing), value=pad))
        own = torch.arange(beams).expand(missing, beams)
        parents.append(torch.cat([trace.parents, own]) + number * beams)
    return torch.cat(tokens, dim=1), torch.cat(parents, dim=1)


def _repeated(encoded: BaseModelOutput, copies: int) -> Tensor | None:
    hidden = encoded.last_hidden_state
    if hidden is None or not hidden.shape[1]:  # of a decoder alone that attends to no window
        return None
    return hidden.repeat_interleave(copies, dim=0)


def _padded(
    name: str, steps: tuple[tuple[Tensor, ...], ...], before: int
) -> tuple[tuple[Tensor, ...], ...]:
    # A shorter prompt is padded in front, as in the batch of the reference; nothing sees padding.
    padded = []
    for number, layers in enumerate(steps):
        keys = before if name == "decoder_attentions" else 0
        new = before if number == 0 else 0
        padded.append(tuple(F.pad(layer.cpu(), (keys, 0, new, 0)) for layer in layers))
    return tuple(padded)
