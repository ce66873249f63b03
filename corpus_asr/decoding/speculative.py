"""Speculative decoding: slots whose tokens an assistant model drafts and one step verifies."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.batch import SlotBatch, encode_windows, frames_encoded
from corpus_asr.decoding.device import upload
from corpus_asr.decoding.jobs import Job, WindowJob
from corpus_asr.decoding.protocols import SlotModel


class SpeculativeBatch(SlotBatch):
    """A `SlotBatch` whose steps accept up to `num_draft_tokens` + 1 tokens.

    Every token is the main model's own choice, by the same rules and the same noise, given the
    tokens before it; drafts only determine which tokens are verified together. The text is
    therefore the one without an assistant, greedy or sampled, except for tokens of equal
    probability within rounding (tests/decoding/test_beam.py).

    Source: Leviathan et al. 2022, "Fast Inference from Transformers via Speculative Decoding", with
    equality in place of rejection sampling: here noise is a function of seed, position and token,
    so a sampled choice is as deterministic as a greedy one.
    """

    def __init__(
        self, model: SlotModel, assistant: SlotModel, places: int, num_draft_tokens: int
    ) -> None:
        super().__init__(model, places)
        self.assistant = assistant
        self.num_draft_tokens = num_draft_tokens
        self._assistant_state: Any = assistant.new_state(places)

    @property
    def is_asynchronous(self) -> bool:
        """False: each step reads the result of the one before."""
        return False

    @torch.inference_mode()
    def fill(
        self, places: Sequence[int], jobs: Sequence[Job], encoded: Float[Tensor, "batch pos width"]
    ) -> None:
        """Store the jobs' windows in `places`, encoded by each model, until the next fill."""
        super().fill(places, jobs, encoded)
        if self.assistant.has_encoder:
            encoded = encode_windows(self.assistant, [replace(job, encoded=None) for job in jobs])
        num_frames = frames_encoded(jobs)
        self.assistant.fill(self._assistant_state, places, encoded, num_frames=num_frames)

    @torch.inference_mode()
    def step(self, active: int, *, sampled: bool) -> None:
        """Advance the first `active` slots by their accepted draft tokens and one more token.

        Slots that have ended are unchanged.
        """
        # Ended slots are computed too; their caches are free, with room at the front.
        start = self._position[:active].masked_fill(self._ended[:active], 1)
        ended, starts = torch.stack([self._ended[:active].long(), start]).tolist()
        going = [slot for slot in range(active) if not ended[slot]]
        if not going:
            return
        # Limited by the longest text: all slots draft the same number of tokens in one call.
        room = self.model.max_target_positions - 1 - max(starts)
        drafts = self._draft(active, start, min(self.num_draft_tokens, room), sampled=sampled)
        tokens = torch.cat([self._token[:active].unsqueeze(1), drafts], dim=1)
        logits = self.model.extend(self._state, range(active), tokens, start)
        self._verify(going, logits, drafts, sampled=sampled)

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Copy slot `source` to slot `target` and free `source`."""
        super().move(source, target)
        self.assistant.move(self._assistant_state, source, target)

    def _start(self, slots: list[int], jobs: list[WindowJob]) -> None:
        super()._start(slots, jobs)
        lengths = [len(job.prompt) for job in jobs]
        (index,) = upload(self.model.device, slots)
        prompts = self._text[index, : max(lengths)]
        self.assistant.prefill(self._assistant_state, slots, prompts, lengths)

    def _draft(
        self,
        active: int,
        start: Int[Tensor, " slot"],
        num_drafts: int,
        *,
        sampled: bool,
    ) -> Int[Tensor, "slot draft"]:
        # Drafts follow the slot's `TokenRules`: others would never be accepted.
        # Other options do not apply to drafts: wrong drafts are allowed and cheaper.
        index = torch.arange(active, device=start.device)
        rule_snapshot = self._rules.snapshot()
        # The assistant has not read the last accepted draft, so it reads the two newest tokens.
        newest = self._text[index.unsqueeze(1), torch.stack([start - 1, start], dim=1)]
        logits = self.assistant.extend(self._assistant_state, range(active), newest, start - 1)
        logits = logits[:, 1]
        drafts: list[Tensor] = []
        for number in range(num_drafts):
            if drafts:
                logits = self.assistant.step(self._assistant_state, drafts[-1], start + number)
            allowed = self._rules.apply(logits)
            # With the main model's noise.
            token = (
                self._choose(allowed, index, start + number) if sampled else allowed.argmax(dim=1)
            )
            self._rules.update(token, index)
            drafts.append(token)
        self._rules.restore(rule_snapshot)
        return torch.stack(drafts, dim=1) if drafts else newest[:, :0]

    def _verify(
        self,
        going: list[int],
        logits: Float[Tensor, "slot token vocab"],
        drafts: Int[Tensor, "slot draft"],
        *,
        sampled: bool,
    ) -> None:
        # The model's choices are valid as long as its input equals its own earlier choices.
        last = drafts.shape[1]
        for number in range(last + 1):
            (index,) = upload(logits.device, going)
            position_logits = logits[:, number].contiguous()
            layout = self._layout(going, sampled=sampled)
            position_logits[index] = self._options.before_rules(
                position_logits[index], going, index, layout.options
            )
            self._choose_tokens(self._rules.apply(position_logits)[index], index, going, layout)
            if number == last:
                return
            right = (self._token[index] == drafts[index, number]) & ~self._ended[index]
            going = [slot for slot, goes in zip(going, right.tolist(), strict=True) if goes]
            if not going:
                return
