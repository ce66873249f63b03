"""Beam search over many windows side by side.

A place is one window with `num_beams` neighboring slots of the model; the occupied places are
always the first ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Float, Int
from corpus_asr.decoding.batch import frames_encoded, pad_prompts, scores_wanted, token_scores
from corpus_asr.decoding.device import Download, FinishedFlags, reach_of, upload
from corpus_asr.decoding.options import SlotOptions, gumbel_noise, should_stop
from corpus_asr.decoding.phrases import SlotPhrases
from corpus_asr.decoding.protocols import (
    BeamTrace,
    SlotModel,
    WindowJob,
    WindowResult,
    no_numbers,
)
from corpus_asr.decoding.rules import SlotRules, repeats_itself
from corpus_asr.errors import ItemError

_UNTIL_FULL, _NEVER = 1, 2
_EARLY_STOPPING: dict[bool | str, int] = {False: 0, True: _UNTIL_FULL, "never": _NEVER}

_LOOK_FOR_LOOPS = 8
"""Tokens between looks, which cost more here than where nothing takes another's place."""


# A score nothing real has, where minus infinity would make 0 * score not a number. The value of
# transformers, so that ties fall alike.
OUT = -1e9


@dataclass(frozen=True, slots=True)
class Beams:
    """Sequences of every place, one beside the other: running, finished or considered."""

    score: Float[Tensor, "place beam"]
    """Sum of log-probabilities; of finished ones with their length penalty."""
    length: Int[Tensor, "place beam"]
    """Tokens of prompt and text."""
    text: Int[Tensor, "place beam token"]
    """Prompt and text."""
    logprob: Float[Tensor, "place beam token"]
    """Of each token under the rules."""
    parent: Int[Tensor, "place beam token"]
    """The beam each token was appended to."""
    looped: Bool[Tensor, "place beam"]
    """Whether it was ended because it repeated itself."""

    @classmethod
    def new(cls, places: int, beams: int, max_length: int, device: torch.device) -> "Beams":
        """Allocate beams that hold nothing."""
        shape = (places, beams, max_length)
        return cls(
            torch.full((places, beams), OUT, device=device),
            torch.zeros((places, beams), dtype=torch.long, device=device),
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.zeros((places, beams), dtype=torch.bool, device=device),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything held, place by place."""
        return self.score, self.length, self.text, self.logprob, self.parent, self.looped

    def of(self, places: Int[Tensor, " place"]) -> "Beams":
        """Copy what `places` hold."""
        return Beams(*(tensor[places] for tensor in self.tensors()))

    def pick(self, beams: Int[Tensor, "place choice"]) -> "Beams":
        """Copy some beams of each place, possibly several times."""
        return Beams(*(pick(tensor, beams) for tensor in self.tensors()))

    def beside(self, other: "Beams") -> "Beams":
        """Put the beams of `other` after these."""
        pairs = zip(self.tensors(), other.tensors(), strict=True)
        return Beams(*(torch.cat(pair, dim=1) for pair in pairs))

    def with_token(
        self,
        token: Int[Tensor, "place beam"],
        *,
        score: Float[Tensor, "place beam"],
        logprob: Float[Tensor, "place beam"],
        parent: Int[Tensor, "place beam"],
    ) -> "Beams":
        """Append a token to each sequence, in place."""
        at = self.length.unsqueeze(2)
        for held, new in ((self.text, token), (self.logprob, logprob), (self.parent, parent)):
            held.scatter_(2, at, new.unsqueeze(2))
        return replace(self, score=score, length=self.length + 1)

    def write(
        self,
        places: Int[Tensor, " place"],
        new: "Beams",
        *,
        where: Bool[Tensor, " place"],
    ) -> None:
        """Replace what `places` hold, in place, where `where` is true."""
        for held, values in zip(self.tensors(), new.tensors(), strict=True):
            keep = where.view(-1, *[1] * (values.ndim - 1))
            held[places] = torch.where(keep, values, held[places])


def pick(values: Tensor, beams: Int[Tensor, "place choice"]) -> Tensor:
    """Copy some beams' values of each place."""
    index = beams.view(*beams.shape, *[1] * (values.ndim - 2))
    return torch.take_along_dim(values, index, dim=1)


def result_of(
    found: Sequence[Tensor],
    job: WindowJob,
    *,
    token_score: float,
    scores: Tensor | None,
    logits: Tensor | None,
    beams: BeamTrace | None = None,
) -> WindowResult:
    """Make a result of the finished sequences of one window, best first."""
    score, length, text, logprob, parent, looped = found
    results = []
    for beam in range(job.search.num_return_sequences):
        new = slice(len(job.prompt), int(length[beam]))
        tokens: list[int] = text[beam, new].tolist()
        logprobs: list[float] = logprob[beam, new].tolist()
        # What a token was chosen from is what the beam saw that it was appended to.
        parents = parent[beam, new]
        steps = torch.arange(len(parents))
        end_logprob = logprobs.pop() if tokens and tokens[-1] == job.rules.last else None
        results.append(
            WindowResult(
                tokens=tuple(tokens[: len(logprobs)]),
                logprobs=tuple(logprobs),
                end_logprob=end_logprob,
                score=None if job.score_token is None else token_score,
                looped=bool(looped[beam]),
                scores=None if scores is None else scores[parents, steps],
                logits=None if logits is None else logits[parents, steps],
                sequence_score=float(score[beam]),
                parents=tuple(parents.tolist()),
            )
        )
    return replace(results[0], others=tuple(results[1:]), beams=beams)


class BeamBatch:
    """Beams as tensors; every method runs under inference mode.

    Equal token for token to transformers' beam search: the rules are applied to the
    log-probabilities of the raw logits, which are added to a beam's score as they are; of twice
    `num_beams` candidates those that end among the first `num_beams` are finished; and a window
    ends when no running beam can beat its worst finished one (tests/parity/test_generate.py).

    Source: transformers/generation/utils.py, `_beam_search`.
    """

    def __init__(
        self, model: SlotModel, places: int, num_beams: int, *, whole: bool = False
    ) -> None:
        """Allocate the places; with `whole` the model runs all of them in every step."""
        self.model = model
        self._whole = whole
        self.places = places
        self.num_beams = num_beams
        self._state: Any = model.new_state(places * num_beams, beams=num_beams)
        device = model.device
        rows, by_row = places * num_beams, device.type == "cpu"
        self._rules = SlotRules(rows, model.vocab_size, device, by_row=by_row)
        # A column to spare, for what finished places say until they are collected.
        self._running = Beams.new(places, num_beams, model.max_target_positions + 1, device)
        self._running.length.fill_(1)  # also where nothing is: a step may take these along
        self._finished = Beams.new(places, num_beams, model.max_target_positions + 1, device)
        self._is_finished = torch.zeros(places, num_beams, dtype=torch.bool, device=device)
        self._can_improve = torch.zeros(places, dtype=torch.bool, device=device)
        self._token = torch.zeros(places, num_beams, dtype=torch.long, device=device)
        self._prompt = torch.zeros(places, dtype=torch.long, device=device)
        self._limit = torch.zeros(places, dtype=torch.long, device=device)
        self._end = torch.zeros(places, dtype=torch.long, device=device)
        # In float64, as transformers computes the divisor in Python.
        self._length_penalty = torch.zeros(places, dtype=torch.float64, device=device)
        self._early_stopping = torch.zeros(places, dtype=torch.long, device=device)
        self._ended = torch.zeros(places, num_beams, dtype=torch.bool, device=device)
        texts = self._running.text.flatten(0, 1), self._running.length.flatten()
        self._options = SlotOptions(*texts, self._ended.flatten())
        self._phrases = SlotPhrases(rows, model.vocab_size, device)
        self._flags = FinishedFlags(self._ended[:, 0], behind=device.type == "cuda")
        self._numbers = torch.arange(places * num_beams, device=device)
        self._requested: tuple[tuple[int, ...], Download] | None = None
        self._jobs: list[WindowJob | None] = [None] * places
        self._token_score = torch.zeros(places, device=device)
        self._counts = [0] * places
        self._seed = torch.zeros(places, dtype=torch.long, device=device)
        self._temperature = torch.zeros(places, dtype=torch.double, device=device)
        # Tokens and parents of the steps of jobs that keep their beams, by place.
        self._traces: dict[int, list[tuple[Tensor, Tensor]]] = {}

    @torch.inference_mode()
    def fill(
        self,
        places: Sequence[int],
        jobs: Sequence[WindowJob],
        encoded: Float[Tensor, "batch pos width"],
    ) -> None:
        """Put the jobs' encoded windows into `places`; they stay until the next fill."""
        firsts = [place * self.num_beams for place in places]
        self.model.fill(self._state, firsts, encoded, num_frames=frames_encoded(jobs))

    @torch.inference_mode()
    def admit(self, places: Sequence[int], jobs: Sequence[WindowJob]) -> None:
        """Run the jobs' prompts in `places`, whose windows are filled, and choose first tokens.

        The jobs must have passed `check_job`.
        """
        lengths = [len(job.prompt) for job in jobs]
        index, slots, prompts, length, scored_at, score_tokens = upload(
            self.model.device, list(places), self._slots(places), pad_prompts(jobs), lengths,
            *scores_wanted(jobs),
        )  # fmt: skip
        firsts = [place * self.num_beams for place in places]
        hidden = self.model.prefill(self._state, firsts, prompts, lengths)  # (batch, token, width)
        # All beams of a place go on from its prompt.
        sources = (index * self.num_beams).repeat_interleave(self.num_beams)
        self.model.reorder(self._state, self._slots(places), sources)
        self._begin(index, prompts, jobs)
        rules = [job.rules for job in jobs for _ in range(self.num_beams)]
        prefixes = [job.prefix for job in jobs for _ in range(self.num_beams)]
        self._rules.admit(slots, rules, prefixes)
        if any(job.score_token is not None for job in jobs):
            found = token_scores(self.model, hidden, scored_at, score_tokens)
            self._token_score.index_copy_(0, index, found)
        for place, job in zip(places, jobs, strict=True):
            self._jobs[place], self._counts[place] = job, 0
            self._traces.pop(place, None)
            if job.search.keep_beams:
                self._traces[place] = []
        searches = [job.search for job in jobs for _ in range(self.num_beams)]
        self._options.admit(self._slots(places), slots, searches)
        self._phrases.admit(self._slots(places), slots, [s.phrases for s in searches])
        rows = torch.arange(len(jobs), device=length.device)
        logits = self.model.logits(hidden[rows, length - 1])
        logits = logits.repeat_interleave(self.num_beams, dim=0)
        scores = logits.log_softmax(dim=1)
        options = self._options.layout(self._slots(places))
        scores = self._options.before_rules(
            scores, self._slots(places), slots, options, logits=logits
        )
        self._take(self._rules.apply_first(scores, slots, prefixes), places, index)

    @torch.inference_mode()
    def step(self, active: int, *, sampled: bool) -> None:
        """Advance the beams of the first `active` places by one token, as `SlotBatch.step`."""
        taken = self.places if self._whole else active
        tokens = self._token[:taken].flatten()
        # The length of a finished place stands still, so that it stays inside the cache.
        positions = (self._running.length[:taken] - 1).flatten()
        logits = self.model.step(  # (place * beam, vocab)
            self._state, tokens, positions, reach=self._look_no_further(active)
        )
        logits = logits[: active * self.num_beams]
        scores = logits.log_softmax(dim=1)
        slots = range(active * self.num_beams)
        rows = self._numbers[: len(slots)]
        options = self._options.layout(slots)
        scores = self._options.before_rules(scores, slots, rows, options, logits=logits)
        self._take(self._rules.apply(scores), range(active), self._numbers[:active])

    def _look_no_further(self, active: int) -> int:
        room = self.model.max_target_positions
        jobs = zip(self._jobs[:active], self._counts[:active], strict=True)
        longest = max(len(job.prompt) + count for job, count in jobs if job is not None)
        return room if self._whole else reach_of(longest, room)

    def look(self) -> None:
        """Ask which places have finished by now; does not wait."""
        self._flags.ask()

    def ended(self, active: int) -> list[int]:
        """The places among the first `active` that are known to have finished."""
        flags = self._flags.read(active)
        return [place for place, flag in enumerate(flags) if flag]

    @property
    def works_behind(self) -> bool:
        """As of `SlotBatch`."""
        return self._flags.behind

    def request(self, places: Sequence[int]) -> None:
        """Ask for the results of finished places as they are now; `collect` waits for them."""
        (index,) = upload(self.model.device, list(places))
        tensors = self._token_score[index], *self._finished.of(index).tensors()
        self._requested = tuple(places), Download(*tensors)

    def collect(self, places: Sequence[int]) -> list[WindowResult | ItemError]:
        """Read the results of finished places: the best beam, and beside it the next best."""
        if self._requested is None or self._requested[0] != tuple(places):
            self.request(places)
        assert self._requested is not None, "just requested"
        (_, arriving), self._requested = self._requested, None
        token_scores, *found = arriving.wait()
        results: list[WindowResult | ItemError] = []
        for row, place in enumerate(places):
            job = self._jobs[place]
            assert job is not None, "collected from an empty place"
            scores, logits = self._kept(place)
            beams = self._trace(place, scores, logits)
            if (error := no_numbers(found[0][row].tolist(), self.model)) is not None:
                results.append(error)
                continue
            one = [held[row] for held in found]
            token_score = float(token_scores[row])
            results.append(
                result_of(
                    one, job, token_score=token_score, scores=scores, logits=logits, beams=beams
                )
            )
        return results

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Make place `target` what place `source` is; `source` is free afterwards."""
        beams = self.num_beams
        for beam in range(beams):
            self.model.move(self._state, source * beams + beam, target * beams + beam)
            self._rules.move(source * beams + beam, target * beams + beam)
            self._options.move(source * beams + beam, target * beams + beam)
            self._phrases.move(source * beams + beam, target * beams + beam)
        for tensor in (
            *self._running.tensors(), *self._finished.tensors(), self._is_finished,
            self._can_improve, self._token, self._prompt, self._limit, self._end,
            self._length_penalty, self._early_stopping, self._ended, self._token_score,
            self._seed, self._temperature,
        ):  # fmt: skip
            tensor[target] = tensor[source]
        self._jobs[target] = self._jobs[source]
        self._counts[target] = self._counts[source]
        self._traces.pop(target, None)
        if source in self._traces:
            self._traces[target] = self._traces.pop(source)

    def _slots(self, places: Sequence[int]) -> list[int]:
        beams = self.num_beams
        return [place * beams + beam for place in places for beam in range(beams)]

    def _begin(
        self, index: Tensor, prompts: Int[Tensor, "place token"], jobs: Sequence[WindowJob]
    ) -> None:
        room = self.model.max_target_positions
        searches = [job.search for job in jobs]
        values = upload(
            self.model.device,
            [len(job.prompt) for job in jobs],
            [min(job.max_new_tokens, room - len(job.prompt)) for job in jobs],
            [job.rules.last for job in jobs],
            [float(search.length_penalty) for search in searches],
            [_EARLY_STOPPING[search.early_stopping] for search in searches],
            [job.seed for job in jobs],
            [float(search.temperature) for search in searches],
        )
        held = (
            self._prompt, self._limit, self._end, self._length_penalty, self._early_stopping,
            self._seed, self._temperature,
        )  # fmt: skip
        for tensor, new in zip(held, values, strict=True):
            tensor.index_copy_(0, index, new)
        # Filled, not assigned: by an index a number comes from the host, which waits for that.
        self._ended.index_fill_(0, index, False)
        self._can_improve.index_fill_(0, index, True)
        self._is_finished.index_fill_(0, index, False)
        self._finished.score.index_fill_(0, index, OUT)
        self._finished.length[index] = self._prompt[index].unsqueeze(1)
        # All beams are one so far: only the first may go on, or all would say the same.
        self._running.score.index_fill_(0, index, OUT)
        self._running.score[:, 0].index_fill_(0, index, 0.0)
        self._running.length[index] = self._prompt[index].unsqueeze(1)
        for beams in (self._running, self._finished):
            beams.text[index, :, : prompts.shape[1]] = prompts.unsqueeze(1)

    def _take(
        self, scores: Float[Tensor, "slot vocab"], places: Sequence[int], index: Tensor
    ) -> None:
        slots = self._slots(places)
        self._options.after_rules(scores, slots)
        sampled = any(job.search.temperature > 0 for p in places if (job := self._jobs[p]))
        scores = self._options.warp(scores, slots) if sampled else scores
        self._options.keep(scores, slots)
        beams, vocab = self.num_beams, scores.shape[1]
        running = self._running.of(index)
        total = scores.view(len(index), beams, vocab)
        if sampled:
            total = self._warmed(total, index)
        total = total + running.score.unsqueeze(2)
        phrases = self._phrases.layout(slots)
        if phrases is not None:
            rows = self._numbered(index)
            total -= self._phrases.advance(rows).view(len(index), beams, 1)
            self._phrases.boost(total.view(len(slots), vocab), rows, phrases)
        # As in transformers: so many that enough are left to go on with if all others end.
        ends = max(job.search.num_ends if job else 1 for job in map(self._jobs.__getitem__, places))
        considered = min((1 + ends) * beams, beams * vocab)
        best, flat = total.flatten(1).topk(considered)  # (place, choice)
        if sampled:
            drawn = total + self._noise(index, running, vocab)
            flat = drawn.flatten(1).topk(considered).indices
            best = total.flatten(1).gather(1, flat)
        source, token = flat // vocab, flat % vocab
        likely = scores.view(len(index), -1).gather(1, flat)
        under_rules = scores.logsumexp(dim=1).view(len(index), beams).gather(1, source)
        candidates = running.pick(source).with_token(
            token, score=best, logprob=likely - under_rules, parent=source
        )
        count = candidates.length[:, 0] - self._prompt[index]
        limit = self._limit[index]
        stop = (token == self._end[index].unsqueeze(1)) | (count >= limit).unsqueeze(1)
        going = ~self._ended[index, 0]
        candidates, stop = self._stop_early(places, candidates, stop)
        ended = candidates
        if phrases is not None:
            # A text that ends has said no more than it has.
            slot = (index.unsqueeze(1) * beams + source).flatten()
            unsaid = self._phrases.advance_after(token.flatten(), slot, phrases)
            ended = replace(candidates, score=best - unsaid.view_as(best))
        self._finish(index, ended, stop, count, going)
        left, choice = (best + stop * OUT).topk(beams)
        self._running.write(index, replace(candidates.pick(choice), score=left), where=going)
        self._go_on(places, index, token.gather(1, choice), source.gather(1, choice), going)
        over = self._is_over(index, count, left[:, 0]) | stop.all(dim=1)
        self._ended[index] |= over.unsqueeze(1)

    def _warmed(self, scores: Float[Tensor, "place beam vocab"], index: Tensor) -> Tensor:
        # At temperature 0, in the place of another job, they stay as they are.
        temperature = self._temperature[index].float().view(-1, 1, 1)
        return scores / torch.where(temperature > 0, temperature, 1.0)

    def _noise(
        self, index: Tensor, running: Beams, vocab: int
    ) -> Float[Tensor, "place beam vocab"]:
        """Noise whose largest sums draw candidates without replacement; none at temperature 0.

        Source: Kool et al. 2019, "Stochastic Beams and Where to Find Them", section 2.3.
        """
        beams = torch.arange(self.num_beams, device=index.device)
        seeds = (self._seed[index].unsqueeze(1) * self.num_beams + beams).flatten()
        noise = gumbel_noise(seeds, running.length.flatten(), vocab)
        return noise.view(len(index), -1, vocab) * (self._temperature[index] > 0).view(-1, 1, 1)

    def _finish(
        self,
        index: Tensor,
        candidates: Beams,
        stop: Bool[Tensor, "place choice"],
        count: Int[Tensor, " place"],
        going: Bool[Tensor, " place"],
    ) -> None:
        beams = self.num_beams
        ended = stop.clone()
        # As in transformers: a candidate beyond the first half that ends is dropped.
        ended[:, beams:] = False
        was_finished = self._is_finished[index]
        full = was_finished.all(dim=1) & (self._early_stopping[index] == _UNTIL_FULL)
        closed = full | ~self._can_improve[index]
        score = candidates.score / self._divisor(index, count)
        score = score + closed.unsqueeze(1) * OUT
        score = score + ~ended * OUT
        finished = self._finished.of(index).beside(replace(candidates, score=score))
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
        going: Bool[Tensor, " place"],
    ) -> None:
        beams = self.num_beams
        for row, place in enumerate(places):
            if place in self._traces and bool(going[row]):
                self._traces[place].append((token[row].cpu(), source[row].cpu()))
        slot = self._numbered(index)
        sources = (index.unsqueeze(1) * beams + source).flatten()
        self.model.reorder(self._state, self._slots(places), sources)
        self._rules.reorder(slot, sources)
        self._rules.update(token.flatten(), slot)
        if (phrases := self._phrases.layout(self._slots(places))) is not None:
            self._phrases.reorder(slot, sources)
            self._phrases.update(token.flatten(), slot, phrases)
        self._token[index] = token

    def _numbered(self, index: Int[Tensor, " place"]) -> Int[Tensor, " slot"]:
        beams = torch.arange(self.num_beams, device=index.device)
        return (index.unsqueeze(1) * self.num_beams + beams).flatten()

    def _is_over(
        self, index: Tensor, count: Int[Tensor, " place"], best: Float[Tensor, " place"]
    ) -> Bool[Tensor, " place"]:
        # As in transformers: whether a running beam can still beat the worst finished one.
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
        return (count.double() ** self._length_penalty[index]).float().unsqueeze(1)

    def _stop_early(
        self, places: Sequence[int], candidates: Beams, stop: Bool[Tensor, "place choice"]
    ) -> tuple[Beams, Bool[Tensor, "place choice"]]:
        # A repetition loop, or a stopping criterion of the job, ends a candidate.
        looped = torch.zeros_like(stop)
        for row, place in enumerate(places):
            job = self._jobs[place]
            assert job is not None, "an empty place speaks"
            self._counts[place] += 1
            if job.search.stop_loops and self._counts[place] % _LOOK_FOR_LOOPS == 0:
                begin = job.rules.timestamp_begin
                length = candidates.length[row]
                looped[row] = repeats_itself(
                    candidates.text[row],
                    length,
                    starts=torch.full_like(length, len(job.prompt) - job.num_prefix),
                    alike_from=torch.full_like(length, begin or self.model.vocab_size),
                )
            if job.search.stopping and not bool(self._ended[place, 0]):
                texts = zip(candidates.text[row], candidates.length[row].tolist(), strict=True)
                stopped = [should_stop(job.search.stopping, t[:n], None) for t, n in texts]
                stop[row] |= torch.tensor(stopped, device=stop.device)
        looped &= ~stop
        return replace(candidates, looped=looped), stop | looped

    def _kept(self, place: int) -> tuple[Tensor | None, Tensor | None]:
        kept = [self._options.kept(slot) for slot in self._slots([place])]
        scores = [steps for steps, _ in kept if steps is not None]
        logits = [steps for _, steps in kept if steps is not None]
        return torch.stack(scores) if scores else None, torch.stack(logits) if logits else None

    def _trace(self, place: int, scores: Tensor | None, logits: Tensor | None) -> BeamTrace | None:
        steps = self._traces.pop(place, None)
        if steps is None:
            return None
        tokens, parents = (torch.stack(list(kept)) for kept in zip(*steps, strict=True))
        by_step = [None if kept is None else kept.transpose(0, 1) for kept in (scores, logits)]
        return BeamTrace(tokens=tokens, parents=parents, scores=by_step[0], logits=by_step[1])
