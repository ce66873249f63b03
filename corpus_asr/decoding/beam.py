"""Beam search over many windows in parallel."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from corpus_asr.array_types import Bool, Float, Int
from corpus_asr.decoding.batch import frames_encoded, pad_prompts, scores_wanted, token_scores
from corpus_asr.decoding.device import Download, upload
from corpus_asr.decoding.jobs import Outcome, WindowJob, WindowResult, no_numbers
from corpus_asr.decoding.options import should_stop
from corpus_asr.decoding.phrases import PhraseLayout
from corpus_asr.decoding.places import PlaceBatch, StepLayout

Rows = slice | Tensor
"""Index of places in tensors: a slice of the first ones, which copies nothing, or a tensor."""

_LOOK_FOR_LOOPS = 8
"""Tokens between checks for loops, which cost more here, as beams replace each other."""


# Score below any real one, as minus infinity would make 0 * score NaN. Equal to that of
# transformers, so that ties are resolved alike.
NO_SCORE = -1e9

_RUNNING, _FINISHED = 0, 1
_LOOPED = 2


class Beams:
    """Sequences, each stored as three rows of one tensor, so that a single copy transfers all."""

    def __init__(self, rows: Int[Tensor, "*some 3 column"]) -> None:
        self.rows = rows
        # A float view of equal width; float32 values are preserved exactly.
        numbers = rows.view(torch.float64)
        self.text: Int[Tensor, "*some token"] = rows[..., 0, :-1]
        """Prompt and text."""
        self.logprob: Float[Tensor, "*some token"] = numbers[..., 1, :-1]
        """Log-probability of each token under the rules."""
        self.length: Int[Tensor, "*some"] = rows[..., 0, -1]
        """Number of tokens of prompt and text."""
        self.score: Float[Tensor, "*some"] = numbers[..., 1, -1]
        """Sum of log-probabilities; of finished sequences with length penalty."""
        self.end: Int[Tensor, "*some"] = rows[..., 2, -1]
        """1 if finished, 2 if finished by a repetition loop; 0 if empty. Its row has no others."""


# Columns of which the highest values are compared first; of 128 to 1,024 the quickest.
_COLUMNS = 512


def highest_of_rows(
    scores: Float[Tensor, "row vocab"], count: int
) -> tuple[Float[Tensor, "row choice"], Int[Tensor, "row choice"]]:
    """Return the `count` highest values of each row, highest first, and where they are.

    On a CPU `topk` takes 2.5 times as long (189 us for five rows of 51,865): every value is copied
    beside its index. The highest values lie in the columns that have the highest ones.
    """
    rows = scores.shape[1] // _COLUMNS
    if scores.device.type != "cpu" or rows < 2 or count > _COLUMNS:
        values, places = scores.topk(count, dim=1)
        return values, places
    start = rows * _COLUMNS
    folded = scores[:, :start].view(len(scores), rows, _COLUMNS)
    _, column = folded.amax(dim=1).topk(count, dim=1)
    inside = folded.gather(2, column.unsqueeze(1).expand(-1, rows, -1)).flatten(1)
    values, at = torch.cat([inside, scores[:, start:]], dim=1).topk(count, dim=1)
    folded_at = at // count * _COLUMNS + column.gather(1, at % count)
    return values, torch.where(at < rows * count, folded_at, at - rows * count + start)


def in_place_order(sources: Int[Tensor, "place beam"]) -> Int[Tensor, "place beam"]:
    """Order beams so that the first one of each source is at the place of that source.

    Keys and values are copied for the other beams only.
    """
    beams = sources.shape[1]
    number = torch.arange(beams, device=sources.device)
    same = sources.unsqueeze(2) == sources.unsqueeze(1)
    moves = (same & (number < number.unsqueeze(1))).any(dim=2)
    is_free = (sources.unsqueeze(2) != number).all(dim=1)
    # The first that moves goes to the first free place, and so on.
    free = (~is_free).long().argsort(dim=1, stable=True)
    target = free.gather(1, (moves.cumsum(dim=1) - 1).clamp(min=0))
    return torch.where(moves, target, sources).argsort(dim=1)


class BeamBatch(PlaceBatch):
    """Beams as tensors.

    Equal token for token to transformers' beam search: the rules are applied to the
    log-probabilities of the raw logits, which are added to a beam's score unchanged; of twice
    `num_beams` candidates those that end among the first `num_beams` are finished; and a window
    ends when no running beam can beat its worst finished one (tests/parity/test_generate.py).

    Source: transformers/generation/utils.py, `_beam_search`.
    """

    def _allocate(self) -> None:
        places, num_beams, device = self.places, self.num_beams, self.model.device
        # A spare column for discarded values, and one for values of the whole text.
        self._spare = self.model.max_target_positions
        rows = (2, places, num_beams, 3, self._spare + 2)
        self._beams = Beams(torch.zeros(rows, dtype=torch.long, device=device))
        self._beams.length.fill_(1)  # also if empty: a step may compute these
        self._rows = self._beams.rows.flatten(0, 2)
        self._place_rows = self._beams.rows.transpose(0, 1)
        self._numbers = torch.arange(2 * places * num_beams, device=device)  # row indices
        self._own = self._numbers.view(2, places, num_beams)
        self._token = torch.zeros(places, num_beams, dtype=torch.long, device=device)
        self._prompt = torch.zeros(places, dtype=torch.long, device=device)
        self._limit = torch.zeros(places, dtype=torch.long, device=device)
        self._end = torch.zeros(places, dtype=torch.long, device=device)
        # float64, as transformers computes the divisor in Python
        self._length_penalty = torch.zeros(places, dtype=torch.float64, device=device)
        # Length assumed for running beams' best possible score, if more than the current one.
        self._optimistic_length = torch.zeros(places, dtype=torch.long, device=device)
        self._until_full = torch.zeros(places, dtype=torch.bool, device=device)
        # Also for empty places: a replayed step computes some free places.
        self._share(
            self._beams.text[_RUNNING].flatten(0, 1),
            self._beams.length[_RUNNING].flatten(),
            torch.ones(places, num_beams, dtype=torch.bool, device=device),
        )
        self._token_score = torch.zeros(places, device=device)

    @torch.inference_mode()
    def fill(
        self,
        places: Sequence[int],
        jobs: Sequence[WindowJob],
        encoded: Float[Tensor, "batch pos width"],
    ) -> None:
        """Store the jobs' encoded windows in `places` until the next fill."""
        firsts = [place * self.num_beams for place in places]
        num_frames = frames_encoded(jobs)
        self._has_short |= num_frames is not None
        self.model.fill(self._state, firsts, encoded, num_frames=num_frames)

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
        # All beams of a place continue from its prompt.
        sources = (index * self.num_beams).repeat_interleave(self.num_beams)
        self.model.reorder(self._state, self._slots(places), sources)
        self._begin(index, prompts, jobs)
        rules = [job.rules for job in jobs for _ in range(self.num_beams)]
        prefixes = [job.prefix for job in jobs for _ in range(self.num_beams)]
        self._rules.admit(slots, rules, prefixes)
        if any(job.score_token is not None for job in jobs):
            job_scores = token_scores(self.model, hidden, scored_at, score_tokens)
            self._token_score.index_copy_(0, index, job_scores)
        for place, job in zip(places, jobs, strict=True):
            self._jobs[place], self._longest[place] = job, len(job.prompt) + 1
        searches = [job.search for job in jobs for _ in range(self.num_beams)]
        self._options.admit(self._slots(places), slots, searches)
        self._phrases.admit(self._slots(places), slots, [search.phrases for search in searches])
        self._repetition.admit(places, jobs)
        rows = torch.arange(len(jobs), device=length.device)
        logits = self.model.logits(hidden[rows, length - 1])
        logits = logits.repeat_interleave(self.num_beams, dim=0)
        scores = logits.log_softmax(dim=1)
        layout = self._layout(places, sampled=False)
        scores = self._options.before_rules(scores, self._slots(places), slots, layout.options)
        self._choose_candidates(
            self._rules.apply_first(scores, slots, prefixes), index, places, layout
        )

    def _advance(self, count: int, layout: StepLayout) -> None:
        slots = range(count * self.num_beams)
        tokens = self._token[:count].flatten()
        # The length of a finished place is constant, so that it stays within the cache.
        positions = (self._beams.length[_RUNNING, :count] - 1).flatten()
        logits = self.model.step(self._state, tokens, positions, reach=layout.reach)
        scores = self._options.before_rules(
            logits.log_softmax(dim=1), slots, self._numbers[: len(slots)], layout.options
        )
        self._choose_candidates(self._rules.apply(scores), slice(count), range(count), layout)

    def _watched(self, places: Sequence[int]) -> bool | tuple[int, ...]:
        if not self._by_row:
            return self._repetition.watches(places)
        return tuple(
            row
            for row, place in enumerate(places)
            if (job := self._jobs[place]) is not None
            and (self._longest[place] - len(job.prompt)) % _LOOK_FOR_LOOPS == 0
            and self._repetition.watches([place])
        )

    def _download(self, places: Sequence[int]) -> Callable[[], list[Outcome]]:
        (index,) = upload(self.model.device, list(places))
        download = Download(self._token_score[index], self._beams.rows[_FINISHED, index])

        def results() -> list[Outcome]:
            return list(map(self._result, places, *download.wait()))

        return results

    def _result(self, place: int, token_score: Tensor, rows: Tensor) -> Outcome:
        """Return the result of a place from its best beam."""
        job, beams = self._jobs[place], Beams(rows)
        assert job is not None, "collected from an empty place"
        if (error := no_numbers(beams.score.tolist(), self.model)) is not None:
            return error
        new = slice(len(job.prompt), int(beams.length[0]))
        tokens: list[int] = beams.text[0, new].tolist()
        logprobs: list[float] = beams.logprob[0, new].tolist()
        end_logprob = logprobs.pop() if tokens and tokens[-1] == job.rules.last else None
        return WindowResult(
            tokens=tuple(tokens[: len(logprobs)]),
            logprobs=tuple(logprobs),
            end_logprob=end_logprob,
            score=None if job.score_token is None else float(token_score),
            looped=int(beams.end[0]) == _LOOPED,
        )

    def _tensors(self) -> Sequence[Tensor]:
        return (
            self._token, self._prompt, self._limit, self._end, self._length_penalty,
            self._optimistic_length, self._until_full, self._ended, self._token_score,
            self._place_rows,
        )  # fmt: skip

    def _begin(
        self, index: Tensor, prompts: Int[Tensor, "place token"], jobs: Sequence[WindowJob]
    ) -> None:
        room = self.model.max_target_positions
        searches = [job.search for job in jobs]
        limits = [min(job.max_new_tokens, room - len(job.prompt)) for job in jobs]
        # As in transformers: a longer sequence with a smaller penalty may still become the best.
        hopes = [
            search.early_stopping == "never" and search.length_penalty > 0 for search in searches
        ]
        values = upload(
            self.model.device,
            [len(job.prompt) for job in jobs],
            limits,
            [job.rules.last for job in jobs],
            [float(search.length_penalty) for search in searches],
            [limit * hope for limit, hope in zip(limits, hopes, strict=True)],
            torch.tensor([search.early_stopping not in (False, "never") for search in searches]),
        )
        held = (
            self._prompt, self._limit, self._end, self._length_penalty, self._optimistic_length,
            self._until_full,
        )  # fmt: skip
        for tensor, new in zip(held, values, strict=True):
            tensor.index_copy_(0, index, new)
        # Filled, not assigned: assignment of a number would synchronize with the device.
        self._ended.index_fill_(0, index, False)
        beams = self._beams
        beams.end.index_fill_(1, index, 0)
        # All beams are still equal: only the first continues, or all would be the same.
        beams.score.index_fill_(1, index, NO_SCORE)
        beams.score[_RUNNING, :, 0].index_fill_(0, index, 0.0)
        beams.length[:, index] = self._prompt[index].unsqueeze(1)
        beams.text[:, index, :, : prompts.shape[1]] = prompts.unsqueeze(1)

    def _choose_candidates(
        self,
        scores: Float[Tensor, "slot vocab"],
        at: Rows,
        places: Sequence[int],
        layout: StepLayout,
    ) -> None:
        """Continue the places at `at` with their best candidates.

        Finished places keep their beams.
        """
        numbers, phrases = self._slots(places), layout.phrases
        self._options.after_rules(scores, numbers)
        beams, vocab = self.num_beams, scores.shape[1]
        held, length = self._beams, self._beams.length[_RUNNING, at, 0] + 1
        slots = self._own[_RUNNING, at]
        count = length - self._prompt[at]
        reached_before = held.score[_RUNNING, at].float().unsqueeze(2)
        # As in transformers: enough candidates to continue if all others end.
        considered = min(2, vocab) * beams
        boosted = scores
        if phrases is not None:
            boosted = scores - self._phrases.advance(slots.flatten()).unsqueeze(1)
            self._phrases.boost(boosted, slots.flatten(), phrases)
        # Of each beam first: totals of the whole vocabulary would be one more pass over it.
        likeliest, tokens = highest_of_rows(boosted, min(considered, vocab))
        total = (likeliest.view(len(count), beams, -1) + reached_before).flatten(1)
        best, picked = total.topk(considered)
        source = picked // tokens.shape[1]
        token = tokens.view_as(total).gather(1, picked)
        last = count >= self._limit[at]
        stop = (token == self._end[at].unsqueeze(1)) | last.unsqueeze(1)
        self._stop_by_criteria(stop, source, token, places)
        looped = self._looped(source, token, at, length, layout.watched)
        if looped is not None:
            looped &= ~stop
            stop |= looped
        # As in transformers: ended candidates after the first half are dropped.
        ended = stop & (torch.arange(considered, device=stop.device) < beams)
        lengths = torch.stack([count, torch.maximum(count, self._optimistic_length[at])], dim=1)
        divisor = (lengths.double() ** self._length_penalty[at].unsqueeze(1)).float()
        reached = best
        if phrases is not None:  # an ended text gets no advance bonus
            unsaid = self._phrases.advance_after(
                token.flatten(), slots.gather(1, source).flatten(), phrases
            )
            reached = best - unsaid.view_as(best)
        score = (reached / divisor[:, :1]).add(~ended, alpha=NO_SCORE)
        score = torch.cat([held.score[_FINISHED, at].float(), score], dim=1)
        ranked, finished = score.topk(beams)
        running_scores, running = best.add(stop, alpha=NO_SCORE).topk(beams)
        highest = running_scores[:, :1]
        if scores.device.type == "cpu":  # elsewhere nothing is copied
            order = in_place_order(source.gather(1, running))
            running_scores, running = running_scores.gather(1, order), running.gather(1, order)
        finish_reasons = ended.long() if looped is None else ended.long() + looped
        choice = torch.stack([running + beams, finished])
        ranks = torch.stack([running_scores, ranked])
        token, row = self._copy_beams(
            choice, ranks, source, token, finish_reasons, scores, length, at
        )
        self._append_tokens(token, row, places, at, phrases)
        # Whether a running beam can still beat the worst finished one.
        is_finished = held.end[_FINISHED, at] > 0
        worst = ranked.amin(dim=1, keepdim=True)
        possible = highest / divisor[:, 1:]
        hopeless = ~(possible > worst.where(is_finished, NO_SCORE)).any(dim=1)
        full = is_finished.all(dim=1) & self._until_full[at]
        over = hopeless | full | stop.all(dim=1)
        if looped is not None:  # longer loops are likelier still
            over |= looped[:, 0]
        self._ended[at] = self._ended[at] | over.unsqueeze(1)

    def _copy_beams(
        self,
        choice: Int[Tensor, "2 place beam"],
        ranks: Float[Tensor, "2 place beam"],
        sources: Int[Tensor, "place choice"],
        tokens: Int[Tensor, "place choice"],
        finish_reasons: Int[Tensor, "place choice"],
        scores: Float[Tensor, "slot vocab"],
        length: Int[Tensor, " place"],
        at: Rows,
    ) -> tuple[Int[Tensor, "place beam"], Int[Tensor, "place beam"]]:
        """Replace beams by the chosen ones among finished beams followed by candidates.

        Returns the tokens of running beams, and the rows of the beams they were appended to.
        """
        beams, vocab = self.num_beams, scores.shape[1]
        beam_rows = self._own[:, at]
        was_finished = choice < beams
        candidate = (choice - beams).clamp(min=0)
        source = sources.expand(2, -1, -1).gather(2, candidate)
        token = tokens.expand(2, -1, -1).gather(2, candidate)
        # `log_softmax`, as `logsumexp` takes three times as long on CPUs.
        logprobs = scores.log_softmax(dim=1).view(len(sources), -1)
        likely = logprobs.expand(2, -1, -1).gather(2, source * vocab + token)
        row = torch.where(was_finished, beam_rows[1, :, :1] + choice, beam_rows[0, :, :1] + source)
        ended = self._ended[at]
        row = torch.where(ended, beam_rows, row)
        # Only candidates are written: their token and their sequence values.
        columns = torch.stack([length - 1, torch.full_like(length, self._spare + 1)], dim=1)
        kept = (was_finished | ended).unsqueeze(3)
        columns = columns.view(-1, 1, 2).masked_fill(kept, self._spare)
        values = (
            token, length.unsqueeze(1).expand_as(token),
            likely.double().view(torch.long), ranks.double().view(torch.long),
            token, finish_reasons.expand(2, -1, -1).gather(2, candidate),
        )  # fmt: skip
        new = self._rows.index_select(0, row.flatten()).view(*row.shape, 3, -1)
        new.scatter_(
            4, columns.unsqueeze(3).expand(-1, -1, -1, 3, -1),
            torch.stack(values, dim=3).view(*row.shape, 3, 2),
        )  # fmt: skip
        self._beams.rows[:, at] = new
        return token[_RUNNING], row[_RUNNING]

    def _append_tokens(
        self,
        token: Int[Tensor, "place beam"],
        row: Int[Tensor, "place beam"],
        places: Sequence[int],
        at: Rows,
        phrases: PhraseLayout | None,
    ) -> None:
        self._token[at] = token
        self.model.reorder(self._state, self._slots(places), row.flatten())
        slots = self._own[_RUNNING, at].flatten()
        self._rules.update(token.flatten(), slots, sources=row.flatten())
        if phrases is not None:
            self._phrases.reorder(slots, row.flatten())
            self._phrases.update(token.flatten(), slots, phrases)

    def _texts(
        self, source: Int[Tensor, "row choice"], token: Int[Tensor, "row choice"], at: Rows
    ) -> Int[Tensor, "row choice token"]:
        texts = self._beams.text[_RUNNING, at]
        rows = source.unsqueeze(2).expand(-1, -1, texts.shape[2])
        last = self._beams.length[_RUNNING, at, :1].unsqueeze(2).expand(-1, source.shape[1], 1)
        return texts.gather(1, rows).scatter_(2, last, token.unsqueeze(2))

    def _looped(
        self,
        source: Int[Tensor, "place choice"],
        token: Int[Tensor, "place choice"],
        at: Rows,
        length: Int[Tensor, " place"],
        watched: bool | tuple[int, ...],
    ) -> Bool[Tensor, "place choice"] | None:
        if watched is True:
            is_loop = self._repetition.found_in(self._texts(source, token, at), length, at)
            due = (length - self._prompt[at]) % _LOOK_FOR_LOOPS == 0
            return is_loop & due.unsqueeze(1)
        if not watched:
            return None
        rows = list(watched)
        which = self._numbers[: self.places][at][rows]
        texts = self._texts(source[rows], token[rows], which)
        looped = torch.zeros_like(token, dtype=torch.bool)
        looped[rows] = self._repetition.found_in(texts, length[rows], which)
        return looped

    def _stop_by_criteria(
        self,
        stop: Bool[Tensor, "place choice"],
        source: Int[Tensor, "place choice"],
        token: Int[Tensor, "place choice"],
        places: Sequence[int],
    ) -> None:
        if not self._options.exact:  # else the place of such a job may be free already
            return
        for row, place in enumerate(places):
            job = self._jobs[place]
            if job is None or not job.search.stopping or bool(self._ended[place, 0]):
                continue
            only = slice(row, row + 1)
            (texts,) = self._texts(source[only], token[only], slice(place, place + 1))
            length = int(self._beams.length[_RUNNING, place, 0]) + 1
            stopped = [should_stop(job.search.stopping, text[:length]) for text in texts]
            stop[row] |= torch.tensor(stopped, device=stop.device)
