"""The decoder's slots on the device: admit windows, advance all by one token, collect what ended.

In: encoded windows and their jobs. Out: results per slot. The occupied slots are always the first
ones, so a step computes nothing for empty ones; which job sits where is `slots.py`'s business.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corpus_asr.decoding.alignment import align_window
from corpus_asr.decoding.checks import check_numbers
from corpus_asr.decoding.lanes import encode_windows
from corpus_asr.decoding.loops import LoopWatch
from corpus_asr.decoding.options import SlotOptions, Texts
from corpus_asr.decoding.protocols import (
    AlignJob,
    AlignResult,
    Job,
    Result,
    SlotModel,
    WindowJob,
    WindowResult,
)
from corpus_asr.decoding.rules import SlotRules
from corpus_asr.decoding.samplers import choose


class SlotBatch:
    """Per-slot state as tensors; every method runs under inference mode."""

    def __init__(self, model: SlotModel, slots: int) -> None:
        self.model = model
        self.places = slots
        self._state: Any = model.new_state(slots)
        length, device = model.max_target_positions, model.device
        self._rules = SlotRules(slots, model.vocab_size, device)
        self._loops = LoopWatch(slots, model.vocab_size, device)
        # Prompt and text; a column to spare, for what finished slots say until they are collected.
        self._text = torch.zeros(slots, length + 1, dtype=torch.long, device=device)
        self._logprob = torch.zeros(slots, length + 1, device=device)
        self._token = torch.zeros(slots, dtype=torch.long, device=device)
        # Not 0, so that a slot that has only been aligned in has a last token as others do.
        self._length = torch.ones(slots, dtype=torch.long, device=device)
        self._limit = torch.ones(slots, dtype=torch.long, device=device)
        self._end = torch.zeros(slots, dtype=torch.long, device=device)
        self._seed = torch.zeros(slots, dtype=torch.long, device=device)
        self._temperature = torch.zeros(slots, device=device)
        self._ended = torch.zeros(slots, dtype=torch.bool, device=device)
        self._looped = torch.zeros(slots, dtype=torch.bool, device=device)
        self._options = SlotOptions(Texts(self._text, self._length, self._ended))
        self._starts = [1] * slots
        self._scores: list[float | None] = [None] * slots
        self._aligned: dict[int, AlignResult] = {}

    def encode(self, jobs: Sequence[Job]) -> Float[Tensor, "batch pos width"]:
        """Encode the jobs' windows, or take the encodings they bring."""
        return encode_windows(self.model, jobs)

    @torch.inference_mode()
    def fill(self, slots: Sequence[int], encoded: Float[Tensor, "batch pos width"]) -> None:
        """Put encoded windows into `slots`; they stay until the next fill."""
        self.model.fill(self._state, slots, encoded)

    @torch.inference_mode()
    def admit(self, slots: Sequence[int], jobs: Sequence[Job]) -> None:
        """Start the jobs in `slots`, whose windows are filled.

        Prompts are run and first tokens chosen; alignments are done at once. The jobs must have
        passed `checks.check_job`.
        """
        windows = {s: job for s, job in zip(slots, jobs, strict=True) if isinstance(job, WindowJob)}
        for slot, job in zip(slots, jobs, strict=True):
            if isinstance(job, AlignJob):
                self._aligned[slot] = align_window(self.model, self._state, slot, job)
                self._ended[slot] = True
        if windows:
            self._start(list(windows), list(windows.values()))

    @torch.inference_mode()
    def step(self, active: int, *, sampled: bool) -> None:
        """Advance the first `active` slots by one token.

        Slots that ended since the last `collect` go round on their last position; what they say is
        dropped.
        """
        logits = self.model.step(self._state, self._token[:active], self._position[:active])
        self._options.before_rules(logits, range(active))
        index = torch.arange(active, device=self.model.device)
        self._take(self._rules.apply(logits), index, sampled=sampled)

    def ended(self, active: int) -> list[int]:
        """The slots among the first `active` that are finished; waits for the device."""
        flags: list[bool] = self._ended[:active].tolist()
        return [slot for slot, flag in enumerate(flags) if flag]

    def collect(self, slot: int) -> Result:
        """Read the result of a finished slot.

        Raises:
            EngineError: the model gave no finite number.
        """
        if slot in self._aligned:
            return self._aligned.pop(slot)
        start, length, end = self._starts[slot], int(self._length[slot]), int(self._end[slot])
        said: list[int] = self._text[slot, start:length].tolist()
        logprobs: list[float] = self._logprob[slot, start:length].tolist()
        check_numbers(logprobs, self.model)
        end_logprob = logprobs.pop() if said[-1] == end else None
        scores, logits = self._options.kept(slot)
        return WindowResult(
            tokens=tuple(said[: len(logprobs)]),
            logprobs=tuple(logprobs),
            end_logprob=end_logprob,
            score=self._scores[slot],
            looped=bool(self._looped[slot]),
            scores=scores,
            logits=logits,
        )

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Make slot `target` what slot `source` is; `source` is free afterwards."""
        self.model.move(self._state, source, target)
        self._rules.move(source, target)
        self._loops.move(source, target)
        self._options.move(source, target)
        for tensor in (
            self._text, self._logprob, self._token, self._length, self._limit, self._end,
            self._seed, self._temperature, self._ended, self._looped,
        ):  # fmt: skip
            tensor[target] = tensor[source]
        self._starts[target] = self._starts[source]
        self._scores[target] = self._scores[source]
        if source in self._aligned:
            self._aligned[target] = self._aligned.pop(source)

    @property
    def _position(self) -> Int[Tensor, " slot"]:
        """Where the newest token of each slot, not read by the model yet, goes."""
        return self._length - 1

    def _start(self, slots: list[int], jobs: list[WindowJob]) -> None:
        """Run prompts and choose first tokens."""
        device = self.model.device
        lengths = [len(job.prompt) for job in jobs]
        index = torch.tensor(slots, device=device)
        prompts = torch.zeros(len(jobs), max(lengths), dtype=torch.long, device=device)
        for row, job in enumerate(jobs):
            prompts[row, : lengths[row]] = torch.tensor(job.prompt, device=device)
            self._rules.admit(slots[row], job.rules)
        hidden = self.model.prefill(self._state, slots, prompts, lengths)  # (batch, token, width)
        rows = torch.arange(len(jobs), device=device)
        length = torch.tensor(lengths, device=device)
        logits = self.model.logits(hidden[rows, length - 1])  # (batch, vocab)
        self._score(slots, jobs, hidden)

        room = self.model.max_target_positions
        limits = [
            min(job.max_new_tokens + length, room)
            for job, length in zip(jobs, lengths, strict=True)
        ]
        self._text[index, : prompts.shape[1]] = prompts
        self._length[index] = length
        self._limit[index] = torch.tensor(limits, device=device)
        self._end[index] = torch.tensor([job.rules.end for job in jobs], device=device)
        self._seed[index] = torch.tensor([job.seed for job in jobs], device=device)
        self._temperature[index] = torch.tensor(
            [job.search.temperature for job in jobs], dtype=torch.float32, device=device
        )
        self._ended[index] = False
        self._looped[index] = False
        for slot, start in zip(slots, lengths, strict=True):
            self._starts[slot] = start
        self._loops.admit(slots, jobs)
        self._options.admit(slots, [job.search for job in jobs])

        self._options.before_rules(logits, slots)
        allowed = self._rules.apply_first(logits, [job.rules for job in jobs])
        sampled = any(job.search.temperature > 0 for job in jobs)
        self._take(allowed, index, sampled=sampled, slots=slots)

    def _take(
        self,
        allowed: Float[Tensor, "batch vocab"],
        index: Int[Tensor, " batch"],
        *,
        sampled: bool,
        slots: Sequence[int] | None = None,
    ) -> None:
        """Choose the next tokens from logits the rules have been applied to.

        What slots say that have ended is not kept.

        Args:
            allowed: one row per slot.
            index: the slots.
            sampled: whether any of their jobs has a temperature above 0.
            slots: the same as `index` for the host; left out, the first ones.
        """
        slots = range(len(allowed)) if slots is None else slots
        self._options.after_rules(allowed, slots)
        length = self._length[index]
        if sampled:
            allowed = self._options.narrow(allowed, slots, self._temperature[index])
        self._options.keep(allowed, slots)
        token = self._choose(allowed, index, length) if sampled else allowed.argmax(dim=1)
        chosen = allowed.gather(1, token.unsqueeze(1)).squeeze(1)
        logprob = chosen - allowed.logsumexp(dim=1)

        going = ~self._ended[index]
        column = torch.where(going, length, self._text.shape[1] - 1)
        self._text[index, column] = token
        self._logprob[index, column] = logprob
        self._rules.update(token, index)
        self._token[index] = token
        self._length[index] = length + going
        ended = (token == self._end[index]) | (length + 1 >= self._limit[index])
        if self._loops.watches(slots):
            looped = self._loops.update(token, index, self._text, length, going) & ~ended
            self._looped[index] |= looped
            ended |= looped
        # In place, as the options look at the very same tensor.
        self._ended[index] |= ended
        for slot in self._options.stopped(slots):
            self._ended[slot] = True

    def _choose(
        self,
        allowed: Float[Tensor, "batch vocab"],
        index: Int[Tensor, " batch"],
        length: Int[Tensor, " batch"],
    ) -> Int[Tensor, " batch"]:
        return choose(
            allowed,
            temperatures=self._temperature[index],
            seeds=self._seed[index],
            positions=length - 1,
        )

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
