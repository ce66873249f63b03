"""Slots whose tokens an assistant drafts: a step checks several at once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.batch import SlotBatch, encode_windows, frames_encoded
from corpus_asr.decoding.device import upload
from corpus_asr.decoding.protocols import Job, SlotModel, WindowJob


class SpeculativeBatch(SlotBatch):
    """A `SlotBatch` whose steps take up to `num_draft_tokens` + 1 tokens.

    Every token is the main model's own choice, by the same rules and the same noise, given the
    tokens before it; the drafts only tell which tokens to look at in one go. So the text is the
    one without an assistant, greedy or sampled, but where two tokens are as likely within rounding
    (tests/decoding/test_beam.py).

    Source: Leviathan et al. 2022, "Fast Inference from Transformers via Speculative Decoding", with
    equality in place of rejection sampling: here noise is a function of seed, position and token,
    so a sampled choice is as certain as a greedy one.
    """

    def __init__(
        self, model: SlotModel, assistant: SlotModel, places: int, num_draft_tokens: int
    ) -> None:
        super().__init__(model, places)
        self.assistant = assistant
        self.num_draft_tokens = num_draft_tokens
        self._assistant_state: Any = assistant.new_state(places)

    @property
    def works_behind(self) -> bool:
        """A step looks at what the one before it found."""
        return False

    @torch.inference_mode()
    def fill(
        self, places: Sequence[int], jobs: Sequence[Job], encoded: Float[Tensor, "batch pos width"]
    ) -> None:
        """Put the jobs' windows into `places`, as each model encodes them; they stay until then."""
        super().fill(places, jobs, encoded)
        if self.assistant.has_encoder:
            encoded = encode_windows(self.assistant, [replace(job, encoded=None) for job in jobs])
        num_frames = frames_encoded(jobs)
        self.assistant.fill(self._assistant_state, places, encoded, num_frames=num_frames)

    @torch.inference_mode()
    def step(self, active: int, *, sampled: bool) -> None:
        """Advance the first `active` slots by what the assistant guessed right, and one token more.

        Slots that have ended stay as they are.
        """
        # Ended slots run along; their caches are free, and have room at the front.
        start = self._position[:active].masked_fill(self._ended[:active], 1)
        ended, starts = torch.stack([self._ended[:active].long(), start]).tolist()
        going = [slot for slot in range(active) if not ended[slot]]
        if not going:
            return
        # What the longest text leaves: all slots draft as many tokens, in one call.
        room = self.model.max_target_positions - 1 - max(starts)
        drafts = self._draft(active, start, min(self.num_draft_tokens, room), sampled=sampled)
        tokens = torch.cat([self._token[:active].unsqueeze(1), drafts], dim=1)
        logits = self.model.extend(self._state, range(active), tokens, start)
        self._verify(going, logits, drafts, sampled=sampled)

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Make slot `target` what slot `source` is; `source` is free afterwards."""
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
        # Drafts follow the slot's `TokenRules`: others could never be accepted.
        # Options beyond the rules do not guide drafts: these may be wrong, and are cheaper so.
        index = torch.arange(active, device=start.device)
        rule_snapshot = self._rules.snapshot()
        # It has not read the last draft that was right, so it reads the two newest tokens.
        newest = self._text[index.unsqueeze(1), torch.stack([start - 1, start], dim=1)]
        logits = self.assistant.extend(self._assistant_state, range(active), newest, start - 1)
        logits = logits[:, 1]
        drafts: list[Tensor] = []
        for number in range(num_drafts):
            if drafts:
                logits = self.assistant.step(self._assistant_state, drafts[-1], start + number)
            allowed = self._rules.apply(logits)
            # As the main model will, with the same noise.
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
        # The model's own choices count as long as what it read was what it had chosen.
        last = drafts.shape[1]
        for number in range(last + 1):
            (index,) = upload(logits.device, going)
            position_logits = logits[:, number].contiguous()
            options = self._options.layout(going)
            position_logits[index] = self._options.before_rules(
                position_logits[index], going, index, options
            )
            self._take(
                self._rules.apply(position_logits)[index],
                index,
                slots=going,
                sampled=sampled,
                watched=self._repetition.watches(going),
                options=options,
                phrases=self._phrases.layout(going),
            )
            if number == last:
                return
            right = (self._token[index] == drafts[index, number]) & ~self._ended[index]
            going = [slot for slot, goes in zip(going, right.tolist(), strict=True) if goes]
            if not going:
                return
