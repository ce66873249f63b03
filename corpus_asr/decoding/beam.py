"""Beam search over many windows side by side.

In: encoded windows and their jobs. Out: the best sequences of each. A place is one window with
`num_beams` neighbouring slots of the model; the occupied places are always the first ones, and
which job sits where is the scheduler's business.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corpus_asr.decoding.beams import OUT, Beams, pick
from corpus_asr.decoding.protocols import SlotModel, WindowJob, WindowResult
from corpus_asr.decoding.rules import SlotRules
from corpus_asr.errors import EngineError

_UNTIL_FULL, _NEVER = 1, 2
_EARLY_STOPPING: dict[bool | str, int] = {False: 0, True: _UNTIL_FULL, "never": _NEVER}


class BeamBatch:
    """Beams as tensors; every method runs under inference mode.

    Equal token for token to transformers' beam search: the rules are applied to the
    log-probabilities of the raw logits, which are added to a beam's score as they are; of twice
    `num_beams` candidates those that end among the first `num_beams` are finished; and a window
    ends when no running beam can beat its worst finished one (tests/decoding/test_beam.py).

    Source: transformers/generation/utils.py, `_beam_search`.
    """

    def __init__(self, model: SlotModel, places: int, num_beams: int) -> None:
        """Allocate `places` times `num_beams` slots.

        Raises:
            ValueError: there are no places or beams, or too many beams for the vocabulary.
        """
        if places < 1 or not 1 <= num_beams <= model.vocab_size // 2:
            raise ValueError(
                f"allocating beam search: found {places} places of {num_beams} beams, expected at "
                f"least 1 place and 1 to {model.vocab_size // 2} beams"
            )
        self.model = model
        self.places = places
        self.num_beams = num_beams
        self._state: Any = model.new_state(places * num_beams)
        device = model.device
        self._rules = SlotRules(places * num_beams, model.vocab_size, device)
        # A column to spare, for what finished places say until they are collected.
        self._running = Beams.new(places, num_beams, model.max_target_positions + 1, device)
        self._finished = Beams.new(places, num_beams, model.max_target_positions + 1, device)
        self._is_finished = torch.zeros(places, num_beams, dtype=torch.bool, device=device)
        self._can_improve = torch.zeros(places, dtype=torch.bool, device=device)
        self._token = torch.zeros(places, num_beams, dtype=torch.long, device=device)
        self._prompt = torch.zeros(places, dtype=torch.long, device=device)
        self._limit = torch.zeros(places, dtype=torch.long, device=device)
        self._end = torch.zeros(places, dtype=torch.long, device=device)
        self._length_penalty = torch.zeros(places, dtype=torch.float64, device=device)
        self._early_stopping = torch.zeros(places, dtype=torch.long, device=device)
        self._ended = torch.zeros(places, dtype=torch.bool, device=device)
        self._jobs: list[WindowJob | None] = [None] * places
        self._scores: list[float | None] = [None] * places
        self._kept: list[list[Tensor]] = [[] for _ in range(places)]

    @torch.inference_mode()
    def encode(self, jobs: Sequence[WindowJob]) -> Float[Tensor, "batch pos width"]:
        """Encode the jobs' windows."""
        windows = torch.stack([torch.from_numpy(job.features) for job in jobs])
        return self.model.encode(windows.to(self.model.device, self.model.dtype))

    @torch.inference_mode()
    def fill(self, places: Sequence[int], encoded: Float[Tensor, "batch pos width"]) -> None:
        """Put encoded windows into `places`; they stay until the next fill."""
        self.model.fill(self._state, [place * self.num_beams for place in places], encoded)

    @torch.inference_mode()
    def admit(self, places: Sequence[int], jobs: Sequence[WindowJob]) -> None:
        """Run the jobs' prompts in `places`, whose windows are filled, and choose first tokens.

        Raises:
            ValueError: a prompt is empty or leaves no room for a token, or a job asks for another
                search than this.
        """
        for job in jobs:
            self._check(job)
        lengths = [len(job.prompt) for job in jobs]
        prompts = torch.zeros(len(jobs), max(lengths), dtype=torch.long)
        for row, job in enumerate(jobs):
            prompts[row, : lengths[row]] = torch.tensor(job.prompt)
        prompts = prompts.to(self.model.device)
        firsts = [place * self.num_beams for place in places]
        hidden = self.model.prefill(self._state, firsts, prompts, lengths)  # (batch, token, width)
        for first in firsts:
            others = range(first + 1, first + self.num_beams)
            if others:
                self.model.share(self._state, first, others)
        for place, job in zip(places, jobs, strict=True):
            self._admit(place, job)
        index = torch.tensor(places, device=self.model.device)
        self._begin(index, prompts, jobs)
        self._read_scores(places, jobs, hidden)
        last = torch.tensor(lengths, device=self.model.device) - 1
        logits = self.model.logits(hidden[torch.arange(len(jobs), device=last.device), last])
        scores = logits.log_softmax(dim=1).repeat_interleave(self.num_beams, dim=0)
        rules = [job.rules for job in jobs for _ in range(self.num_beams)]
        self._take(self._rules.apply_first(scores, rules), places, index)

    @torch.inference_mode()
    def step(self, active: int, *, sampled: bool) -> None:
        """Advance the beams of the first `active` places by one token.

        Places that ended since the last `collect` go round on their last position; what they say
        is dropped.

        Args:
            active: occupied places.
            sampled: must be false: beams are not sampled.

        Raises:
            ValueError: `sampled` is true.
        """
        if sampled:
            raise ValueError("advancing beams: they are not sampled; use temperature 0")
        tokens = self._token[:active].flatten()
        # Finished places stay inside the cache.
        positions = (self._running.length[:active] - 1).flatten()
        logits = self.model.step(self._state, tokens, positions)  # (place * beam, vocab)
        scores = self._rules.apply(logits.log_softmax(dim=1))
        index = torch.arange(active, device=self.model.device)
        self._take(scores, range(active), index)

    def ended(self, active: int) -> list[int]:
        """The places among the first `active` that are finished; waits for the device."""
        flags: list[bool] = self._ended[:active].tolist()
        return [place for place, flag in enumerate(flags) if flag]

    def collect(self, place: int) -> WindowResult:
        """Read the result of a finished place: its best beam, and beside it the next best.

        Raises:
            EngineError: the model gave no finite number.
        """
        job = self._jobs[place]
        assert job is not None, "collected from an empty place"
        scores: list[float] = self._finished.score[place].tolist()
        if any(math.isnan(score) for score in scores):
            raise EngineError(
                f"decoding in {self.model.dtype}: the model's output is not a number, expected "
                "log-probabilities; set model.dtype to bfloat16 or float32"
            )
        wanted = range(job.search.num_return_sequences)
        best, *others = [self._result(place, beam, job) for beam in wanted]
        return replace(best, others=tuple(others))

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Make place `target` what place `source` is; `source` is free afterwards."""
        beams = self.num_beams
        for beam in range(beams):
            self.model.move(self._state, source * beams + beam, target * beams + beam)
            self._rules.move(source * beams + beam, target * beams + beam)
        for tensor in (
            *self._running.tensors(), *self._finished.tensors(), self._is_finished,
            self._can_improve, self._token, self._prompt, self._limit, self._end,
            self._length_penalty, self._early_stopping, self._ended,
        ):  # fmt: skip
            tensor[target] = tensor[source]
        self._jobs[target] = self._jobs[source]
        self._scores[target] = self._scores[source]
        self._kept[target] = self._kept[source]

    def _check(self, job: WindowJob) -> None:
        search, room = job.search, self.model.max_target_positions - len(job.prompt)
        if not job.prompt or room < 1 or job.max_new_tokens < 1:
            raise ValueError(
                f"admitting a prompt of {len(job.prompt)} tokens for {job.max_new_tokens} new "
                f"ones: the decoder holds {self.model.max_target_positions}; shorten the prompt"
            )
        if search.num_beams != self.num_beams or search.temperature > 0:
            raise ValueError(
                f"admitting a job of {search.num_beams} beams at temperature {search.temperature}: "
                f"expected {self.num_beams} beams at temperature 0; correct its search"
            )
        if not 1 <= search.num_return_sequences <= search.num_beams:
            raise ValueError(
                f"admitting a job that returns {search.num_return_sequences} sequences: expected "
                f"1 to {search.num_beams}, its beams; correct num_return_sequences"
            )
        if search.early_stopping not in _EARLY_STOPPING:
            raise ValueError(
                f"admitting a job with early_stopping {search.early_stopping!r}: expected True, "
                "False or 'never'"
            )

    def _admit(self, place: int, job: WindowJob) -> None:
        self._jobs[place] = job
        self._kept[place] = []
        for slot in range(place * self.num_beams, (place + 1) * self.num_beams):
            self._rules.admit(slot, job.rules)

    def _begin(
        self, index: Tensor, prompts: Int[Tensor, "place token"], jobs: Sequence[WindowJob]
    ) -> None:
        """Start the places of `index` anew."""
        device = self.model.device

        def tensor(values: list[Any], dtype: torch.dtype = torch.long) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        room = self.model.max_target_positions
        self._prompt[index] = tensor([len(job.prompt) for job in jobs])
        self._limit[index] = tensor(
            [min(job.max_new_tokens, room - len(job.prompt)) for job in jobs]
        )
        self._end[index] = tensor([job.rules.end for job in jobs])
        self._length_penalty[index] = tensor(
            [job.search.length_penalty for job in jobs], torch.float64
        )
        self._early_stopping[index] = tensor(
            [_EARLY_STOPPING[job.search.early_stopping] for job in jobs]
        )
        self._ended[index] = False
        self._can_improve[index] = True
        self._is_finished[index] = False
        self._finished.score[index] = OUT
        self._finished.length[index] = self._prompt[index].unsqueeze(1)
        # All beams are one so far: only the first may go on, or all would say the same.
        self._running.score[index] = OUT
        self._running.score[index, 0] = 0.0
        self._running.length[index] = self._prompt[index].unsqueeze(1)
        for beams in (self._running, self._finished):
            beams.text[index, :, : prompts.shape[1]] = prompts.unsqueeze(1)

    def _take(
        self, scores: Float[Tensor, "slot vocab"], places: Sequence[int], index: Tensor
    ) -> None:
        """Choose the next beams of `places`, from what the rules have left of the scores."""
        self._keep_scores(scores, places)
        beams, vocab = self.num_beams, scores.shape[1]
        running = self._running.of(index)
        total = scores.view(len(index), beams, vocab) + running.score.unsqueeze(2)
        # So many that enough are left to go on with if half of them end.
        best, flat = total.flatten(1).topk(2 * beams)  # (place, choice)
        source, token = flat // vocab, flat % vocab
        logprob = scores - scores.logsumexp(dim=1, keepdim=True)
        candidates = running.pick(source).with_token(
            token,
            score=best,
            logprob=logprob.view(len(index), -1).gather(1, flat),
            parent=source,
        )
        count = candidates.length[:, 0] - self._prompt[index]
        limit = self._limit[index]
        stop = (token == self._end[index].unsqueeze(1)) | (count >= limit).unsqueeze(1)

        going = ~self._ended[index]
        self._finish(index, candidates, stop, count, going)
        left, choice = (best + stop * OUT).topk(beams)
        self._running.write(index, candidates.pick(choice).with_scores(left), where=going)
        self._go_on(places, index, token.gather(1, choice), source.gather(1, choice))
        self._ended[index] |= self._is_over(index, count, left[:, 0]) | stop.all(dim=1)

    def _finish(
        self,
        index: Tensor,
        candidates: Beams,
        stop: Bool[Tensor, "place choice"],
        count: Int[Tensor, " place"],
        going: Bool[Tensor, " place"],
    ) -> None:
        """Keep the best finished sequences: those there were, and those that just ended."""
        beams = self.num_beams
        ended = stop.clone()
        ended[:, beams:] = False
        was_finished = self._is_finished[index]
        full = was_finished.all(dim=1) & (self._early_stopping[index] == _UNTIL_FULL)
        closed = full | ~self._can_improve[index]
        score = candidates.score / self._divisor(index, count)
        score = score + closed.unsqueeze(1) * OUT
        score = score + ~ended * OUT
        finished = self._finished.of(index).beside(candidates.with_scores(score))
        choice = finished.score.topk(beams).indices
        self._finished.write(index, finished.pick(choice), where=going)
        is_finished = pick(torch.cat([was_finished, ended], dim=1), choice)
        self._is_finished[index] = torch.where(going.unsqueeze(1), is_finished, was_finished)

    def _go_on(
        self,
        places: Sequence[int],
        index: Tensor,
        token: Int[Tensor, "place beam"],
        source: Int[Tensor, "place beam"],
    ) -> None:
        """Make caches and rules follow the running beams."""
        beams = self.num_beams
        slots = [place * beams + beam for place in places for beam in range(beams)]
        slot = (index.unsqueeze(1) * beams + torch.arange(beams, device=index.device)).flatten()
        sources = (index.unsqueeze(1) * beams + source).flatten()
        self.model.reorder(self._state, slots, sources)
        self._rules.reorder(slot, sources)
        self._rules.update(token.flatten(), slot)
        self._token[index] = token

    def _is_over(
        self, index: Tensor, count: Int[Tensor, " place"], best: Float[Tensor, " place"]
    ) -> Bool[Tensor, " place"]:
        """Tell where no running beam can get among the finished, as far as is known."""
        stopping, finished = self._early_stopping[index], self._is_finished[index]
        longest = (stopping == _NEVER) & (self._length_penalty[index] > 0)
        hoped = torch.where(longest, self._limit[index], count)
        possible = best.unsqueeze(1) / self._divisor(index, hoped)
        worst = self._finished.score[index].amin(dim=1, keepdim=True)
        worst = torch.where(finished, worst, OUT)  # (place, beam)
        self._can_improve[index] &= (possible > worst).any(dim=1)
        full = finished.all(dim=1) & (stopping == _UNTIL_FULL)
        return full | ~self._can_improve[index]

    def _divisor(self, index: Tensor, count: Int[Tensor, " place"]) -> Float[Tensor, "place 1"]:
        """Length to the power of the length penalty."""
        return (count.double() ** self._length_penalty[index]).float().unsqueeze(1)

    def _keep_scores(self, scores: Float[Tensor, "slot vocab"], places: Sequence[int]) -> None:
        for row, place in enumerate(places):
            job = self._jobs[place]
            if job is not None and job.search.keep_scores:
                first = row * self.num_beams
                self._kept[place].append(scores[first : first + self.num_beams].clone())

    def _read_scores(
        self,
        places: Sequence[int],
        jobs: Sequence[WindowJob],
        hidden: Float[Tensor, "batch token width"],
    ) -> None:
        """Read the raw probability of each job's `score_token`."""
        for row, (place, job) in enumerate(zip(places, jobs, strict=True)):
            self._scores[place] = None
            if job.score_token is not None:
                probabilities = self.model.logits(hidden[row, job.score_position]).softmax(dim=0)
                self._scores[place] = float(probabilities[job.score_token])

    def _result(self, place: int, beam: int, job: WindowJob) -> WindowResult:
        """Read one finished sequence."""
        found, prompt = self._finished, len(job.prompt)
        length = int(found.length[place, beam])
        tokens: list[int] = found.text[place, beam, prompt:length].tolist()
        logprobs: list[float] = found.logprob[place, beam, prompt:length].tolist()
        kept = None
        if job.search.keep_scores:
            parents: list[int] = found.parent[place, beam, prompt:length].tolist()
            steps = zip(self._kept[place], parents, strict=False)  # others may have gone further
            kept = torch.stack([step[parent] for step, parent in steps]).cpu()
        end_logprob = logprobs.pop() if tokens and tokens[-1] == job.rules.end else None
        return WindowResult(
            tokens=tuple(tokens[: len(logprobs)]),
            logprobs=tuple(logprobs),
            end_logprob=end_logprob,
            score=self._scores[place],
            scores=kept,
            sequence_score=float(found.score[place, beam]),
        )
