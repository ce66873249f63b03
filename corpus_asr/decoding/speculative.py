"""Speculation: a small model drafts several tokens, and the large one checks them all at once.

In: encoded windows and their jobs. Out: the results that `SlotBatch` gives for them, in fewer runs
of the large model. Knows nothing of how either model is made.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corpus_asr.decoding.batch import SlotBatch
from corpus_asr.decoding.lanes import encode_windows
from corpus_asr.decoding.protocols import SlotModel, WindowJob
from corpus_asr.decoding.samplers import choose


@runtime_checkable
class ReadsEncoded(Protocol):
    """A model that can tell what encoded windows it reads."""

    @property
    def window_shape(self) -> tuple[int, int]:
        """Positions and width of an encoded window."""


@runtime_checkable
class HasEncoder(Protocol):
    """A model that can tell whether it encodes windows itself."""

    @property
    def has_encoder(self) -> bool:
        """False for a decoder that reads what its main model has encoded."""


class SpeculativeBatch(SlotBatch):
    """A `SlotBatch` whose steps take up to `num_draft_tokens` + 1 tokens.

    Every token is the main model's own choice, by the same rules and the same noise, given the
    tokens before it; the drafts only tell which tokens to look at in one go. So the text is the
    one without an assistant, greedy or sampled, but where two tokens are as likely within rounding
    (tests/decoding/test_speculative.py).

    Source: Leviathan et al. 2022, "Fast Inference from Transformers via Speculative Decoding", with
    equality in place of rejection sampling: here noise is a function of seed, position and token,
    so a sampled choice is as certain as a greedy one.
    """

    def __init__(
        self, model: SlotModel, assistant: SlotModel, places: int, num_draft_tokens: int
    ) -> None:
        """Allocate `places` slots of both models.

        Args:
            model: says what is said.
            assistant: drafts; with an encoder of its own, or reading what `model` encodes.
            places: windows side by side.
            num_draft_tokens: drafted before each check.

        Raises:
            ValueError: the assistant does not fit the model, or drafts nothing.
        """
        check_assistant(model, assistant)
        if num_draft_tokens < 1:
            raise ValueError(
                f"drafting {num_draft_tokens} tokens at a time: expected at least 1; correct "
                "num_draft_tokens or leave the assistant out"
            )
        super().__init__(model, places)
        self.assistant = assistant
        self.num_draft_tokens = num_draft_tokens
        self._assistant_state: Any = assistant.new_state(places)
        self._heard: Tensor | None = None
        # The token before the newest one, which the assistant may not have read yet.
        self._previous = torch.zeros(places, dtype=torch.long, device=model.device)
        # No place stands further: known without waiting for the device.
        self._furthest = [0] * places

    @torch.inference_mode()
    def encode(self, jobs: Sequence[WindowJob]) -> Float[Tensor, "batch pos width"]:
        """Encode the jobs' windows with both models; the assistant's go into the next `fill`."""
        if _listens(self.assistant):
            self._heard = encode_windows(
                self.assistant, [replace(job, encoded=None) for job in jobs]
            )
        return super().encode(jobs)

    @torch.inference_mode()
    def fill(self, places: Sequence[int], encoded: Float[Tensor, "batch pos width"]) -> None:
        """Put encoded windows into `places`; they stay until the next fill."""
        super().fill(places, encoded)
        heard = encoded if self._heard is None else self._heard
        self.assistant.fill(self._assistant_state, places, heard)
        self._heard = None

    @torch.inference_mode()
    def admit(self, places: Sequence[int], jobs: Sequence[WindowJob]) -> None:
        """Run the jobs' prompts in `places`, whose windows are filled, and choose first tokens.

        Raises:
            ValueError: a prompt is empty or leaves no room for a token.
        """
        super().admit(places, jobs)
        lengths = [len(job.prompt) for job in jobs]
        prompts = torch.zeros(len(jobs), max(lengths), dtype=torch.long)
        for row, job in enumerate(jobs):
            prompts[row, : lengths[row]] = torch.tensor(job.prompt)
            self._furthest[places[row]] = lengths[row]
        device = self.model.device
        self.assistant.prefill(self._assistant_state, places, prompts.to(device), lengths)
        last = [job.prompt[-1] for job in jobs]
        self._previous[torch.tensor(places, device=device)] = torch.tensor(last, device=device)

    @torch.inference_mode()
    def step(self, active: int, *, sampled: bool) -> None:
        """Advance the first `active` slots by what the assistant guessed right, and one token more.

        Slots that ended since the last `collect` stay as they are.
        """
        num_drafts = self._num_drafts(active)
        drafts = self._draft(active, num_drafts, sampled=sampled)  # (slot, draft)
        tokens = torch.cat([self._token[:active].unsqueeze(1), drafts], dim=1)
        start = torch.where(self._ended[:active], 0, self._position[:active])
        logits = self.model.extend(self._state, range(active), tokens, start)
        self._verify(logits, drafts, sampled=sampled)
        for place in range(active):
            self._furthest[place] += num_drafts + 1

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Make slot `target` what slot `source` is; `source` is free afterwards."""
        super().move(source, target)
        self.assistant.move(self._assistant_state, source, target)
        self._previous[target] = self._previous[source]
        self._furthest[target] = self._furthest[source]

    def _num_drafts(self, active: int) -> int:
        """As many as wanted, or as all slots have room for."""
        last = self.model.max_target_positions - 1
        if max(self._furthest[:active]) + self.num_draft_tokens > last:
            positions = torch.where(self._ended[:active], 0, self._position[:active])
            self._furthest[:active] = positions.tolist()
        return min(self.num_draft_tokens, last - max(self._furthest[:active]))

    def _draft(self, active: int, num_drafts: int, *, sampled: bool) -> Int[Tensor, "slot draft"]:
        """Let the assistant go on from each slot's newest token, by the slot's own rules."""
        token, going = self._token[:active], ~self._ended[:active]
        position = torch.where(going, self._position[:active], 1)
        said = self._rules.snapshot()
        # The last draft of all was never read: reading the token before again costs nothing.
        both = torch.stack([self._previous[:active], token], dim=1)
        logits = self.assistant.extend(self._assistant_state, range(active), both, position - 1)
        logits, index = logits[:, 1], torch.arange(active, device=token.device)
        drafts: list[Tensor] = []
        for number in range(num_drafts):
            if drafts:
                logits = self.assistant.step(self._assistant_state, token, position + number)
            token = self._guess(self._rules.apply(logits), position + number, sampled=sampled)
            self._rules.update(token, index)
            drafts.append(token)
        self._rules.restore(said, torch.ones_like(going))
        return torch.stack(drafts, dim=1) if drafts else both[:, :0]

    def _guess(
        self,
        allowed: Float[Tensor, "slot vocab"],
        position: Int[Tensor, " slot"],
        *,
        sampled: bool,
    ) -> Int[Tensor, " slot"]:
        """Choose as the main model will, with the same noise."""
        if not sampled:
            return allowed.argmax(dim=1)
        count = len(allowed)
        return choose(
            allowed,
            temperatures=self._temperature[:count],
            seeds=self._seed[:count],
            positions=position,
        )

    def _verify(
        self,
        logits: Float[Tensor, "slot token vocab"],
        drafts: Int[Tensor, "slot draft"],
        *,
        sampled: bool,
    ) -> None:
        """Take the model's own choices, as long as what it read was what it had chosen."""
        active, last = len(logits), drafts.shape[1]
        index = torch.arange(active, device=logits.device)
        over = self._ended[:active].clone()
        lost = over.clone()
        for number in range(last + 1):
            said, token = self._rules.snapshot(), self._token[:active].clone()
            position = self._position[:active].clone()
            # Slots that lost the thread sit still, as ended ones do.
            self._ended[:active] = lost
            allowed = self._rules.apply(logits[:, number].contiguous())
            self._take(allowed, index, sampled=sampled)
            over |= self._ended[:active] & ~lost
            self._rules.restore(said, lost)
            self._previous[:active] = torch.where(lost, self._previous[:active], token)
            self._token[:active] = torch.where(lost, token, self._token[:active])
            self._position[:active] = torch.where(lost, position, self._position[:active])
            lost = lost | over
            if number < last:
                lost = lost | (self._token[:active] != drafts[:, number])
        self._ended[:active] = over


def check_assistant(model: SlotModel, assistant: SlotModel) -> None:
    """Make sure that one model can draft for another.

    Raises:
        ValueError: their vocabularies, lengths or devices differ, or the assistant cannot read
            what the model encodes.
    """
    if assistant.vocab_size != model.vocab_size:
        raise ValueError(
            f"drafting with an assistant of {assistant.vocab_size} tokens for a model of "
            f"{model.vocab_size}: expected one vocabulary; use an assistant of the same kind"
        )
    if assistant.max_target_positions < model.max_target_positions:
        raise ValueError(
            f"drafting with an assistant of {assistant.max_target_positions} positions for a model "
            f"of {model.max_target_positions}: expected as many at least; use another assistant"
        )
    if assistant.device != model.device:
        raise ValueError(
            f"drafting with an assistant on {assistant.device} for a model on {model.device}: "
            "expected one device; move the assistant"
        )
    if _listens(assistant) or not isinstance(assistant, ReadsEncoded):
        return
    if isinstance(model, ReadsEncoded) and model.window_shape != assistant.window_shape:
        raise ValueError(
            f"drafting with a decoder that reads windows of {assistant.window_shape} (positions, "
            f"width) for a model that encodes {model.window_shape}: expected the same; use an "
            "assistant made for this model, or one with an encoder of its own"
        )


def _listens(assistant: SlotModel) -> bool:
    """Tell whether the assistant encodes windows itself; most models do."""
    return not isinstance(assistant, HasEncoder) or assistant.has_encoder
