"""The decoder's slots on the device: admit windows, advance all by one token, collect what ended.

In: encoded windows and their jobs. Out: results per slot. The occupied slots are always the first
ones, so a step computes nothing for empty ones; which job sits where is `slots.py`'s business.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from corpus_asr.decoding.lanes import encode_windows
from corpus_asr.decoding.protocols import SlotModel, WindowJob, WindowResult
from corpus_asr.decoding.rules import SlotRules
from corpus_asr.decoding.samplers import choose
from corpus_asr.errors import EngineError


class SlotBatch:
    """Per-slot state as tensors; every method runs under inference mode."""

    def __init__(self, model: SlotModel, slots: int) -> None:
        self.model = model
        self.places = slots
        self._state: Any = model.new_state(slots)
        self._rules = SlotRules(slots, model.vocab_size, model.device)
        length, device = model.max_target_positions, model.device
        self._token = torch.zeros(slots, dtype=torch.long, device=device)
        self._position = torch.zeros(slots, dtype=torch.long, device=device)
        self._count = torch.zeros(slots, dtype=torch.long, device=device)
        self._limit = torch.zeros(slots, dtype=torch.long, device=device)
        self._end = torch.zeros(slots, dtype=torch.long, device=device)
        self._seed = torch.zeros(slots, dtype=torch.long, device=device)
        self._temperature = torch.zeros(slots, device=device)
        self._ended = torch.zeros(slots, dtype=torch.bool, device=device)
        # One column to spare, for what finished slots say until they are collected.
        self._said = torch.zeros(slots, length + 1, dtype=torch.long, device=device)
        self._logprob = torch.zeros(slots, length + 1, device=device)
        self._scores: list[float | None] = [None] * slots

    @torch.inference_mode()
    def encode(self, jobs: Sequence[WindowJob]) -> Float[Tensor, "batch pos width"]:
        """Encode the jobs' windows, or take the encodings they bring."""
        return encode_windows(self.model, jobs)

    @torch.inference_mode()
    def fill(self, slots: Sequence[int], encoded: Float[Tensor, "batch pos width"]) -> None:
        """Put encoded windows into `slots`; they stay until the next fill."""
        self.model.fill(self._state, slots, encoded)

    @torch.inference_mode()
    def admit(self, slots: Sequence[int], jobs: Sequence[WindowJob]) -> None:
        """Run the jobs' prompts in `slots`, whose windows are filled, and choose first tokens.

        Raises:
            ValueError: a prompt is empty or leaves no room for a token.
        """
        device = self.model.device
        lengths = [len(job.prompt) for job in jobs]
        for job, length in zip(jobs, lengths, strict=True):
            room = self.model.max_target_positions - length
            if length < 1 or room < 1 or job.max_new_tokens < 1:
                raise ValueError(
                    f"admitting a prompt of {length} tokens for {job.max_new_tokens} new ones: the "
                    f"decoder holds {self.model.max_target_positions}; shorten the prompt"
                )
        index = torch.tensor(slots, device=device)
        prompts = torch.zeros(len(jobs), max(lengths), dtype=torch.long, device=device)
        for row, job in enumerate(jobs):
            prompts[row, : lengths[row]] = torch.tensor(job.prompt, device=device)
            self._rules.admit(slots[row], job.rules)
        hidden = self.model.prefill(self._state, slots, prompts, lengths)  # (batch, token, width)
        rows = torch.arange(len(jobs), device=device)
        last = torch.tensor(lengths, device=device) - 1
        logits = self.model.logits(hidden[rows, last])  # (batch, vocab)
        self._score(slots, jobs, hidden)

        self._position[index] = last
        self._count[index] = 0
        self._ended[index] = False
        self._limit[index] = torch.tensor(
            [
                min(job.max_new_tokens, self.model.max_target_positions - length)
                for job, length in zip(jobs, lengths, strict=True)
            ],
            device=device,
        )
        self._end[index] = torch.tensor([job.rules.end for job in jobs], device=device)
        self._seed[index] = torch.tensor([job.seed for job in jobs], device=device)
        self._temperature[index] = torch.tensor(
            [job.search.temperature for job in jobs], dtype=torch.float32, device=device
        )
        allowed = self._rules.apply_first(logits, [job.rules for job in jobs])
        self._take(allowed, index, sampled=any(job.search.temperature > 0 for job in jobs))

    @torch.inference_mode()
    def step(self, active: int, *, sampled: bool) -> None:
        """Advance the first `active` slots by one token.

        Slots that ended since the last `collect` go round on their last position; what they say is
        dropped.
        """
        index = torch.arange(active, device=self.model.device)
        logits = self.model.step(self._state, self._token[:active], self._position[:active])
        self._take(self._rules.apply(logits), index, sampled=sampled)

    def ended(self, active: int) -> list[int]:
        """The slots among the first `active` that are finished; waits for the device."""
        flags: list[bool] = self._ended[:active].tolist()
        return [slot for slot, flag in enumerate(flags) if flag]

    def collect(self, slot: int) -> WindowResult:
        """Read the result of a finished slot.

        Raises:
            EngineError: the model gave no finite number.
        """
        count, end = int(self._count[slot]), int(self._end[slot])
        said: list[int] = self._said[slot, :count].tolist()
        logprobs: list[float] = self._logprob[slot, :count].tolist()
        if any(math.isnan(logprob) for logprob in logprobs):
            raise EngineError(
                f"decoding in {self.model.dtype}: the model's output is not a number, expected "
                "log-probabilities; set model.dtype to bfloat16 or float32"
            )
        end_logprob = logprobs.pop() if said[-1] == end else None
        return WindowResult(
            tokens=tuple(said[: len(logprobs)]),
            logprobs=tuple(logprobs),
            end_logprob=end_logprob,
            score=self._scores[slot],
        )

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Make slot `target` what slot `source` is; `source` is free afterwards."""
        self.model.move(self._state, source, target)
        self._rules.move(source, target)
        for tensor in (
            self._token, self._position, self._count, self._limit, self._end, self._seed,
            self._temperature, self._ended, self._said, self._logprob,
        ):  # fmt: skip
            tensor[target] = tensor[source]
        self._scores[target] = self._scores[source]

    def _take(self, allowed: Float[Tensor, "batch vocab"], index: Tensor, *, sampled: bool) -> None:
        """Choose a token for each slot of `index`, from logits the rules have been applied to."""
        position = self._position[index]
        if sampled:
            token = choose(
                allowed,
                temperatures=self._temperature[index],
                seeds=self._seed[index],
                positions=position,
            )
        else:
            token = allowed.argmax(dim=1)
        chosen = allowed.gather(1, token.unsqueeze(1)).squeeze(1)
        logprob = chosen - allowed.logsumexp(dim=1)

        going = ~self._ended[index]
        count = self._count[index]
        column = torch.where(going, count, self._said.shape[1] - 1)
        self._said[index, column] = token
        self._logprob[index, column] = logprob
        count = count + going.long()
        self._count[index] = count
        self._rules.update(token, index)
        self._token[index] = token
        ended = (token == self._end[index]) | (count >= self._limit[index])
        self._ended[index] |= ended
        # The new token goes to the next position; one that ended stays inside the cache.
        self._position[index] = torch.where(self._ended[index], position, position + 1)

    def _score(
        self,
        slots: Sequence[int],
        jobs: Sequence[WindowJob],
        hidden: Float[Tensor, "batch token width"],
    ) -> None:
        """Read the raw probability of each job's `score_token`."""
        wanted = [row for row, job in enumerate(jobs) if job.score_token is not None]
        for slot in slots:
            self._scores[slot] = None
        if not wanted:
            return
        at = torch.tensor([jobs[row].score_position for row in wanted], device=hidden.device)
        rows = torch.tensor(wanted, device=hidden.device)
        probabilities = self.model.logits(hidden[rows, at]).softmax(dim=1)  # (wanted, vocab)
        tokens = torch.tensor([[jobs[row].score_token] for row in wanted], device=hidden.device)
        values: list[float] = probabilities.gather(1, tokens).squeeze(1).tolist()
        for row, value in zip(wanted, values, strict=True):
            self._scores[slots[row]] = value
