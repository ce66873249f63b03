"""Decoder slots on the device: admit windows, advance all by one token, collect finished ones."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.alignment import Alignments, align_windows
from corpus_asr.decoding.device import (
    Download,
    to_device,
    upload,
    upload_stack,
)
from corpus_asr.decoding.jobs import AlignJob, Job, Outcome, WindowJob, WindowResult, no_numbers
from corpus_asr.decoding.options import (
    CHOOSE_NEXT,
    choose,
    is_exact,
    log_probability,
)
from corpus_asr.decoding.places import PlaceBatch, StepLayout
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.errors import ItemError

# Limits of recorded starts, in windows and prompt tokens: larger ones keep a GPU busy for about as
# long as the host needs to launch kernels.
MOST_RECORDED = 16
_SHORTEST_RECORDED, _LONGEST_RECORDED = 4, 256


class SlotBatch(PlaceBatch):
    """Slots of one text each.

    Filling and starting a few slots can be recorded as well, with slot numbers in a device tensor.
    """

    def _allocate(self) -> None:
        model, slots = self.model, self.places
        length, device = model.max_target_positions, model.device
        # Prompt and text; the spare column takes tokens of finished slots until they are collected.
        self._text = torch.zeros(slots, length + 1, dtype=torch.long, device=device)
        self._logprob = torch.zeros(slots, length + 1, device=device)
        self._token = torch.zeros(slots, dtype=torch.long, device=device)
        # Not 0, so that slots used only for alignment have a last token.
        self._numbers = torch.ones(4, slots, dtype=torch.long, device=device)
        self._length, self._limit, self._end, self._seed = self._numbers.unbind()
        self._temperature = torch.zeros(slots, device=device)
        self._looped = torch.zeros(slots, dtype=torch.bool, device=device)
        self._score = torch.zeros(slots, device=device)
        self._slot_numbers = torch.arange(slots, device=device)
        # Also for empty slots: a replayed step computes some free slots.
        ended = torch.ones(slots, dtype=torch.bool, device=device)
        self._share(self._text, self._length, ended)
        # A CPU does not record starts: it has no kernel launch overhead.
        self._starts = self._graphs if device.type != "cpu" else None
        if self._starts is not None:
            windows = (min(MOST_RECORDED, slots), *model.window_shape)
            self._windows = torch.zeros(windows, dtype=model.dtype, device=device)
        self._aligned: dict[int, tuple[Alignments, int]] = {}

    @torch.inference_mode()
    def fill(
        self, slots: Sequence[int], jobs: Sequence[Job], encoded: Float[Tensor, "batch pos width"]
    ) -> None:
        """Store the jobs' encoded windows in `slots` until the next fill."""
        num_frames = frames_encoded(jobs)
        self._has_short |= num_frames is not None
        if self._starts is None or self._has_short:
            self.model.fill(self._state, slots, encoded, num_frames=num_frames)
            return
        slots_to_fill = list(slots)
        while slots_to_fill:
            # In groups of powers of two, to limit the number of recordings without padding.
            count = min(len(self._windows), 1 << (len(slots_to_fill).bit_length() - 1))
            index = self._starts.hold(torch.tensor(slots_to_fill[:count]), self.model.device)
            windows = self._windows[:count].copy_(
                encoded[len(slots) - len(slots_to_fill) :][:count]
            )
            fill = partial(self.model.fill, self._state, index, windows)
            self._starts.run(("fill", count), fill)
            slots_to_fill = slots_to_fill[count:]

    @torch.inference_mode()
    def admit(self, slots: Sequence[int], jobs: Sequence[Job]) -> None:
        """Start the jobs in `slots`, whose windows are filled.

        Prompts are run and first tokens chosen; alignments are completed. The jobs must have passed
        `check_job`.
        """
        windows = {s: job for s, job in zip(slots, jobs, strict=True) if isinstance(job, WindowJob)}
        texts = {s: job for s, job in zip(slots, jobs, strict=True) if isinstance(job, AlignJob)}
        if texts:
            for slot in texts:
                self._longest[slot] = 1
            self._aligned |= align_windows(self.model, self._state, [*texts], [*texts.values()])
        if windows:
            self._start([*windows], [*windows.values()])

    def _watched(self, places: Sequence[int]) -> bool:
        return self._repetition.watches(places)

    def ended(self, active: int) -> list[int]:
        """Return the slots among the first `active` that are known to have finished."""
        return sorted({*super().ended(active), *(s for s in self._aligned if s < active)})

    def _download(self, places: Sequence[int]) -> Callable[[], list[Outcome]]:
        decoded = [slot for slot in places if slot not in self._aligned]
        aligned = {slot: self._aligned.pop(slot) for slot in places if slot in self._aligned}
        groups = list({id(group): group for group, _ in aligned.values()}.values())
        tensors = [tensor for group in groups for tensor in (group.logprobs, group.found)]
        if decoded:
            (index,) = upload(self.model.device, decoded)
            rows = (self._text, self._logprob, self._length, self._looped, self._score)
            tensors += [tensor[index] for tensor in rows]
        # One transfer, as each is a synchronization.
        download = Download(*tensors)

        def results() -> list[Outcome]:
            copies = iter(download.wait())
            read = {id(group): (next(copies), next(copies)) for group in groups}
            outcomes: dict[int, Outcome] = {
                slot: group.result(row, *read[id(group)], self.model)
                for slot, (group, row) in aligned.items()
            }
            for slot, *row in zip(decoded, *copies, strict=True) if decoded else ():
                outcomes[slot] = self._result(slot, row)
            return [outcomes[slot] for slot in places]

        return results

    def _tensors(self) -> Sequence[Tensor]:
        return (
            self._text, self._logprob, self._token, self._length, self._limit, self._end,
            self._seed, self._temperature, self._ended, self._looped, self._score,
        )  # fmt: skip

    def move(self, source: int, target: int) -> None:
        """Copy slot `source` to slot `target` and free `source`."""
        super().move(source, target)
        if source in self._aligned:
            self._aligned[target] = self._aligned.pop(source)

    @property
    def _position(self) -> Int[Tensor, " slot"]:
        """Return the position of each slot's newest token, which the model has not read yet."""
        return self._length - 1

    def _start(self, slots: list[int], jobs: list[WindowJob]) -> None:
        device, room = self.model.device, self.model.max_target_positions
        graphs = self._starts if _can_be_recorded(jobs) else None
        width = max(len(job.prompt) for job in jobs)
        if graphs is not None:
            width = min(room, max(_SHORTEST_RECORDED, 1 << (width - 1).bit_length()))
            # Padded with the last one, which writes the same values again.
            more = graphs.graph_size(len(jobs)) - len(jobs)
            slots, jobs = slots + slots[-1:] * more, jobs + jobs[-1:] * more
        numbers = _numbers_of(slots, jobs, width=width, room=room)
        numbers = to_device(numbers, device) if graphs is None else graphs.hold(numbers, device)
        index = numbers[0]
        for slot, job in zip(slots, jobs, strict=True):
            self._jobs[slot] = job
            self._longest[slot] = len(job.prompt) + 1
        self._rules.admit(index, [job.rules for job in jobs], [job.prefix for job in jobs])
        self._repetition.admit(slots, jobs)
        self._options.admit(slots, index, [job.search for job in jobs])
        self._phrases.admit(slots, index, [job.search.phrases for job in jobs])
        is_recorded = graphs is not None
        is_scored = any(job.score_token is not None for job in jobs)
        sampled = any(job.search.temperature > 0 for job in jobs)
        layout = self._layout(slots, sampled=sampled)
        begin = partial(self._begin, numbers, slots, jobs, is_recorded, is_scored, layout)
        if graphs is None:
            begin()
            return
        key = (numbers.shape, is_scored, layout, self._has_short, *self._rules.layout)
        graphs.run(("start", *key), begin)

    def _begin(
        self,
        numbers: Int[Tensor, "number batch"],
        slots: list[int],
        jobs: list[WindowJob],
        is_recorded: bool,
        is_scored: bool,
        layout: StepLayout,
    ) -> None:
        index, length, _, _, _, temperature, scored_at, score_token = numbers[:_NUMBERS]
        prompts = numbers[_NUMBERS:].T
        hidden = self.model.prefill(
            self._state, index if is_recorded else slots, prompts, [len(job.prompt) for job in jobs]
        )  # (batch, token, width)
        logits = self.model.logits(
            hidden[self._slot_numbers[: len(jobs)], length - 1]
        )  # (batch, vocab)
        if is_scored:
            scores = token_scores(self.model, hidden, scored_at, score_token)
            self._score.index_copy_(0, index, scores)
        self._text[:, : prompts.shape[1]].index_copy_(0, index, prompts)
        self._numbers.index_copy_(1, index, numbers[1:5])
        self._temperature.index_copy_(0, index, temperature.view(torch.float64).float())
        self._ended.index_fill_(0, index, False)
        self._looped.index_fill_(0, index, False)
        logits = self._options.before_rules(logits, slots, index, layout.options)
        allowed = self._rules.apply_first(logits, index, [job.prefix for job in jobs])
        self._choose_tokens(allowed, index, slots, layout)

    def _advance(self, count: int, layout: StepLayout) -> None:
        logits = self.model.step(
            self._state, self._token[:count], self._position[:count], reach=layout.reach
        )
        slots, index = range(count), self._slot_numbers[:count]
        logits = self._options.before_rules(logits, slots, index, layout.options)
        plain = not (layout.options.top_k or layout.phrases or self._options.exact)
        if self.model.device.type == "cpu" or not plain:
            self._choose_tokens(self._rules.apply(logits), index, slots, layout)
            return
        held = self._temperature[:count], self._seed[:count], self._length[:count]
        rule_state = self._rules.of_first(count)
        token, logprob = CHOOSE_NEXT(
            logits, *rule_state, *held, *self._rules.layout, layout.sampled
        )
        self._append_tokens(token, logprob, index, self._length[index], slots, layout)

    def _choose_tokens(
        self,
        allowed: Float[Tensor, "batch vocab"],
        index: Int[Tensor, " batch"],
        slots: Sequence[int],
        layout: StepLayout,
    ) -> None:
        sampled, phrases = layout.sampled, layout.phrases
        self._options.after_rules(allowed, slots)
        length = self._length[index]
        if sampled and layout.options.top_k:
            temperatures = self._temperature[index]
            allowed = self._options.narrow(allowed, index, layout.options, temperatures)
        self._options.keep(allowed, slots)
        scores = allowed
        if phrases is not None:  # the bonus is not part of log-probabilities
            allowed = scores.clone()
            self._phrases.boost(allowed, index, phrases)
        # `max`, as `argmax` takes three times as long on CPUs.
        token = self._choose(allowed, index, length - 1) if sampled else allowed.max(dim=1).indices
        if phrases is not None:
            self._phrases.update(token, index, phrases)
        logprob = log_probability(scores, token)
        self._append_tokens(token, logprob, index, length, slots, layout)

    def _append_tokens(
        self,
        token: Int[Tensor, " batch"],
        logprob: Float[Tensor, " batch"],
        index: Int[Tensor, " batch"],
        length: Int[Tensor, " batch"],
        slots: Sequence[int],
        layout: StepLayout,
    ) -> None:
        going = ~self._ended[index]
        column = length.masked_fill(~going, self._text.shape[1] - 1)
        self._text[index, column] = token
        self._logprob[index, column] = logprob
        self._rules.update(token, index)
        self._token[index] = token
        self._length[index] = length + going
        ended = (token == self._end[index]) | (length + 1 >= self._limit[index])
        if layout.watched:
            looped = self._repetition.update(token, index, self._text, length, going) & ~ended
            self._looped[index] |= looped
            ended |= looped
        # In place, as the options share this tensor.
        self._ended[index] |= ended
        for slot in self._options.stopped(slots):
            self._ended[slot] = True

    def _choose(
        self,
        allowed: Float[Tensor, "batch vocab"],
        index: Int[Tensor, " batch"],
        positions: Int[Tensor, " batch"],
    ) -> Int[Tensor, " batch"]:
        temperatures, seeds = self._temperature[index], self._seed[index]
        return choose(allowed, temperatures=temperatures, seeds=seeds, positions=positions)

    def _result(self, slot: int, row: Sequence[Tensor]) -> WindowResult | ItemError:
        text, logprob, length, looped, score = row
        job = self._jobs[slot]
        assert job is not None, "collected from an empty slot"
        new = slice(len(job.prompt), int(length))
        tokens: list[int] = text[new].tolist()
        logprobs: list[float] = logprob[new].tolist()
        scores = self._options.kept(slot)
        if (error := no_numbers(logprobs, self.model)) is not None:
            return error
        end_logprob = logprobs.pop() if tokens[-1] == job.rules.last else None
        return WindowResult(
            tokens=tuple(tokens[: len(logprobs)]),
            logprobs=tuple(logprobs),
            end_logprob=end_logprob,
            score=None if job.score_token is None else float(score),
            looped=bool(looped),
            scores=scores,
        )


def encode_windows(
    model: SlotModel, jobs: Sequence[Job], *, batch_size: int | None = None
) -> Float[Tensor, "batch pos width"]:
    """Encode the jobs' features; a job with an encoding is not encoded again.

    With a `batch_size` whole windows are encoded in batches of exactly that size, padded with
    repeated windows, and short ones individually.
    """
    with torch.inference_mode():
        rows: dict[int, Tensor] = {
            row: job.encoded.to(model.device, model.dtype)
            for row, job in enumerate(jobs)
            if job.encoded is not None
        }
        missing = [row for row in range(len(jobs)) if row not in rows]
        if missing:
            encoded = _encode(model, [jobs[row] for row in missing], batch_size)
            if not rows:
                return encoded
            rows.update(zip(missing, encoded, strict=True))
        shapes = sorted({tuple(row.shape) for row in rows.values()})
        if len(shapes) > 1:
            raise ValueError(
                f"filling {len(jobs)} windows with encodings: found shapes {shapes}, expected one "
                "(pos, width) for all; encode each with this model"
            )
        return torch.stack([rows[row] for row in range(len(jobs))])


def _encode(
    model: SlotModel, jobs: Sequence[Job], batch_size: int | None
) -> Float[Tensor, "batch pos width"]:
    num_frames = frames_encoded(jobs)
    if batch_size is not None and num_frames is not None:
        # Of one size are batches of whole windows alone.
        whole = [row for row, job in enumerate(jobs) if frames_encoded([job]) is None]
        rows = {row: _encode(model, [job], None)[0] for row, job in enumerate(jobs)
                if row not in whole}  # fmt: skip
        if whole:
            rows |= zip(
                whole, _encode(model, [jobs[row] for row in whole], batch_size), strict=True
            )
        return torch.stack([rows[row] for row in range(len(jobs))])
    wanted = batch_size or len(jobs)
    features = [torch.from_numpy(job.features) for job in jobs]
    # In the original type, usually half as wide, until they are on the device.
    stacked = upload_stack(features + features[:1] * (wanted - len(jobs)), model.device)
    return model.encode(stacked.to(model.dtype), num_frames=num_frames)[: len(jobs)]


def frames_encoded(jobs: Sequence[Job]) -> list[int] | None:
    """Return the number of encoded frames of each job; None if all jobs encode all frames."""
    whole = [job.features.shape[1] for job in jobs]
    frames = [job.num_frames or all_frames for job, all_frames in zip(jobs, whole, strict=True)]
    return None if frames == whole else frames


def _can_be_recorded(jobs: Sequence[WindowJob]) -> bool:
    short = all(len(job.prompt) <= _LONGEST_RECORDED for job in jobs)
    by_host = any(job.num_prefix or is_exact(job.search) for job in jobs)
    return len(jobs) <= MOST_RECORDED and short and not by_host


# Integers per starting window, before its prompt tokens.
_NUMBERS = 8


def _numbers_of(
    slots: Sequence[int], jobs: Sequence[WindowJob], *, width: int, room: int
) -> Int[Tensor, "number batch"]:
    # One tensor, as each copy to a GPU costs the host as much as one or two kernel launches.
    temperatures = torch.tensor([job.search.temperature for job in jobs], dtype=torch.float64)
    rows = [
        list(slots),
        [len(job.prompt) for job in jobs],
        [min(job.max_new_tokens + len(job.prompt), room) for job in jobs],
        [job.rules.last for job in jobs],
        [job.seed for job in jobs],
        temperatures.view(torch.long).tolist(),
        *scores_wanted(jobs),
        *zip(*(job.prompt + (0,) * (width - len(job.prompt)) for job in jobs), strict=True),
    ]
    return torch.tensor(rows)


def pad_prompts(jobs: Sequence[WindowJob]) -> Int[Tensor, "batch token"]:
    """Return the jobs' prompts as rows, padded on the right."""
    return pad_sequence([torch.tensor(job.prompt) for job in jobs], batch_first=True)


def scores_wanted(jobs: Sequence[WindowJob]) -> tuple[list[int], list[int]]:
    """Return the prompt position and token of each job's requested score; 0 if none."""
    return [job.score_position for job in jobs], [job.score_token or 0 for job in jobs]


def token_scores(
    model: SlotModel,
    hidden: Float[Tensor, "batch token width"],
    positions: Int[Tensor, " batch"],
    tokens: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Return the probability of a token after a position of each row."""
    rows = torch.arange(len(hidden), device=hidden.device)
    probabilities = model.logits(hidden[rows, positions]).softmax(dim=1)  # (batch, vocab)
    return probabilities.gather(1, tokens.unsqueeze(1)).squeeze(1)
