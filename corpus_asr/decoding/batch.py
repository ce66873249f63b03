"""Decoder slots on the device: admit windows, advance all by one token, collect finished ones.

The occupied slots are always the first ones, so a step computes nothing for empty ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from corpus_asr.array_types import Float, Int
from corpus_asr.decoding.alignment import Alignments, align_windows
from corpus_asr.decoding.device import (
    CudaRecorder,
    Download,
    FinishedFlags,
    StepGraphs,
    reach_of,
    to_device,
    upload,
    upload_stack,
)
from corpus_asr.decoding.jobs import AlignJob, Job, Outcome, WindowJob, WindowResult, no_numbers
from corpus_asr.decoding.options import (
    CHOOSE_NEXT,
    Layout,
    SlotOptions,
    choose,
    is_exact,
    log_probability,
)
from corpus_asr.decoding.phrases import PhraseLayout, SlotPhrases
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.decoding.rules import RepetitionDetector, SlotRules
from corpus_asr.errors import ItemError

# Limits of recorded starts, in windows and prompt tokens: larger ones keep a GPU busy for about as
# long as the host needs to launch kernels.
MOST_RECORDED = 16
_SHORTEST_RECORDED, _LONGEST_RECORDED = 4, 256


@dataclass(frozen=True, slots=True)
class _InFlight:
    """Results being copied to the host."""

    slots: tuple[int, ...]
    decoded: list[int]
    aligned: dict[int, tuple[Alignments, int]]
    groups: list[Alignments]
    download: Download


class SlotBatch:
    """Per-slot state as tensors; methods that change it run under inference mode.

    A step uses tensors at fixed addresses, never synchronizes with the device, and depends only on
    these and on its key in `step`, so it can be recorded and replayed. Filling and starting a few
    slots can be recorded as well, with slot numbers in a device tensor.
    """

    def __init__(
        self,
        model: SlotModel,
        slots: int,
        *,
        recorder: CudaRecorder | None = None,
        whole: bool = False,
    ) -> None:
        """Allocate the slots; with `whole` every step computes all of them."""
        self.model = model
        self.places = slots
        self._whole = whole
        self._state: Any = model.new_state(slots)
        length, device = model.max_target_positions, model.device
        by_row = device.type == "cpu" and recorder is None
        self._rules = SlotRules(slots, model.vocab_size, device, by_row=by_row)
        self._repetition = RepetitionDetector(slots, model.vocab_size, device)
        self._phrases = SlotPhrases(slots, model.vocab_size, device)
        # Prompt and text; the spare column takes tokens of finished slots until they are collected.
        self._text = torch.zeros(slots, length + 1, dtype=torch.long, device=device)
        self._logprob = torch.zeros(slots, length + 1, device=device)
        self._token = torch.zeros(slots, dtype=torch.long, device=device)
        # Not 0, so that slots used only for alignment have a last token.
        self._numbers = torch.ones(4, slots, dtype=torch.long, device=device)
        self._length, self._limit, self._end, self._seed = self._numbers.unbind()
        self._temperature = torch.zeros(slots, device=device)
        # Also for empty slots: a replayed step computes some free slots.
        self._ended = torch.ones(slots, dtype=torch.bool, device=device)
        self._looped = torch.zeros(slots, dtype=torch.bool, device=device)
        self._score = torch.zeros(slots, device=device)
        self._slots = torch.arange(slots, device=device)
        self._options = SlotOptions(self._text, self._length, self._ended)
        self._flags = FinishedFlags(
            self._ended, behind=recorder is not None or device.type == "cuda"
        )
        self._graphs = StepGraphs(slots, recorder) if recorder else None
        # A CPU does not record starts: it has no kernel launch overhead.
        self._starts = self._graphs if device.type != "cpu" else None
        if self._starts is not None:
            windows = (min(MOST_RECORDED, slots), *model.window_shape)
            self._windows = torch.zeros(windows, dtype=model.dtype, device=device)
        self._heard_short = False  # whether steps must handle windows of several lengths
        # Upper bound of each text's length, known to the host without a device read.
        self._longest = [1] * slots
        self._jobs: list[WindowJob | None] = [None] * slots
        self._aligned: dict[int, tuple[Alignments, int]] = {}
        self._requested: _InFlight | None = None

    @torch.inference_mode()
    def fill(
        self, slots: Sequence[int], jobs: Sequence[Job], encoded: Float[Tensor, "batch pos width"]
    ) -> None:
        """Store the jobs' encoded windows in `slots` until the next fill."""
        num_frames = frames_encoded(jobs)
        self._heard_short |= num_frames is not None
        if self._starts is None or self._heard_short:
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

    @torch.inference_mode()
    def step(self, active: int, *, sampled: bool) -> None:
        """Advance the first `active` slots by one token.

        Slots that ended since the last `collect` repeat their last position; their tokens are
        dropped.
        """
        active = self.places if self._whole else active
        watched = self._repetition.watches(range(active))
        options = self._options.layout(range(active))
        phrases = self._phrases.layout(range(active))
        reach = self._look_no_further(active)
        arguments: dict[str, Any] = {
            "sampled": sampled, "watched": watched, "options": options, "phrases": phrases,
            "reach": reach,
        }  # fmt: skip
        if self._graphs is None or self._options.exact:
            self._advance(active, **arguments)
            return
        count = self._graphs.rung(active)
        self._graphs.run(
            (count, *arguments.values(), self._heard_short, *self._rules.layout),
            partial(self._advance, count, **arguments),
        )

    def _look_no_further(self, active: int) -> int:
        room = self.model.max_target_positions
        if self._whole:
            return room
        reach = reach_of(max(self._longest[:active]), room)
        for slot in range(active):
            self._longest[slot] += 1
        return reach

    def look(self) -> None:
        """Request the finished flags of the slots without waiting."""
        self._flags.ask()

    def ended(self, active: int) -> list[int]:
        """Return the slots among the first `active` that are known to have finished."""
        flags = self._flags.read(active)
        return [slot for slot, flag in enumerate(flags) if flag or slot in self._aligned]

    @property
    def works_behind(self) -> bool:
        """Whether the device runs asynchronously and can have steps queued while the host reads."""
        return self._flags.behind

    def request(self, slots: Sequence[int]) -> None:
        """Request the current results of finished slots; `collect` waits for them."""
        decoded = [slot for slot in slots if slot not in self._aligned]
        aligned = {slot: self._aligned.pop(slot) for slot in slots if slot in self._aligned}
        groups = list({id(group): group for group, _ in aligned.values()}.values())
        tensors = [tensor for group in groups for tensor in (group.logprobs, group.found)]
        if decoded:
            (index,) = upload(self.model.device, decoded)
            held = (self._text, self._logprob, self._length, self._looped, self._score)
            tensors += [tensor[index] for tensor in held]
        # One transfer, as each is a synchronization.
        self._requested = _InFlight(tuple(slots), decoded, aligned, groups, Download(*tensors))

    def collect(self, slots: Sequence[int]) -> list[Outcome]:
        """Return the results of finished slots, requested before or not."""
        if self._requested is None or self._requested.slots != tuple(slots):
            self.request(slots)
        requested, self._requested = self._requested, None
        assert requested is not None, "just requested"
        copies = iter(requested.download.wait())
        read = {id(group): (next(copies), next(copies)) for group in requested.groups}
        outcomes: dict[int, Outcome] = {
            slot: group.result(row, *read[id(group)], self.model)
            for slot, (group, row) in requested.aligned.items()
        }
        rows = zip(requested.decoded, *copies, strict=True) if requested.decoded else ()
        for slot, *row in rows:
            outcomes[slot] = self._result(slot, row)
        return [outcomes[slot] for slot in slots]

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Copy slot `source` to slot `target` and free `source`."""
        self.model.move(self._state, source, target)
        self._rules.move(source, target)
        self._repetition.move(source, target)
        self._options.move(source, target)
        self._phrases.move(source, target)
        for tensor in (
            self._text, self._logprob, self._token, self._length, self._limit, self._end,
            self._seed, self._temperature, self._ended, self._looped, self._score,
        ):  # fmt: skip
            tensor[target] = tensor[source]
        # Not assigned: assignment of a number would synchronize with the device.
        self._ended[source].fill_(True)
        self._jobs[target] = self._jobs[source]
        self._longest[target] = self._longest[source]
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
            more = graphs.rung(len(jobs)) - len(jobs)
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
        arguments: dict[str, Any] = {
            "recorded": graphs is not None,
            "scored": any(job.score_token is not None for job in jobs),
            "sampled": any(job.search.temperature > 0 for job in jobs),
            "watched": self._repetition.watches(slots),
            "options": self._options.layout(slots),
            "phrases": self._phrases.layout(slots),
        }
        begin = partial(self._begin, numbers, slots, jobs, **arguments)
        if graphs is None:
            begin()
            return
        key = (numbers.shape, *arguments.values(), self._heard_short, *self._rules.layout)
        graphs.run(("start", *key), begin)

    def _begin(
        self,
        numbers: Int[Tensor, "number batch"],
        slots: list[int],
        jobs: list[WindowJob],
        *,
        recorded: bool,
        scored: bool,
        sampled: bool,
        watched: bool,
        options: Layout,
        phrases: PhraseLayout | None,
    ) -> None:
        index, length, _, _, _, temperature, scored_at, score_token = numbers[:_NUMBERS]
        prompts = numbers[_NUMBERS:].T
        hidden = self.model.prefill(
            self._state, index if recorded else slots, prompts, [len(job.prompt) for job in jobs]
        )  # (batch, token, width)
        logits = self.model.logits(hidden[self._slots[: len(jobs)], length - 1])  # (batch, vocab)
        if scored:
            scores = token_scores(self.model, hidden, scored_at, score_token)
            self._score.index_copy_(0, index, scores)
        self._text[:, : prompts.shape[1]].index_copy_(0, index, prompts)
        self._numbers.index_copy_(1, index, numbers[1:5])
        self._temperature.index_copy_(0, index, temperature.view(torch.float64).float())
        self._ended.index_fill_(0, index, False)
        self._looped.index_fill_(0, index, False)
        logits = self._options.before_rules(logits, slots, index, options)
        self._take(
            self._rules.apply_first(logits, index, [job.prefix for job in jobs]),
            index,
            slots=slots,
            sampled=sampled,
            watched=watched,
            options=options,
            phrases=phrases,
        )

    def _advance(
        self,
        count: int,
        *,
        sampled: bool,
        watched: bool,
        options: Layout,
        phrases: PhraseLayout | None,
        reach: int,
    ) -> None:
        logits = self.model.step(
            self._state, self._token[:count], self._position[:count], reach=reach
        )
        slots, index = range(count), self._slots[:count]
        logits = self._options.before_rules(logits, slots, index, options)
        plain = not (options.top_k or phrases or self._options.exact)
        if self.model.device.type == "cpu" or not plain:
            self._take(
                self._rules.apply(logits),
                index,
                slots=slots,
                sampled=sampled,
                watched=watched,
                options=options,
                phrases=phrases,
            )
            return
        held = self._temperature[:count], self._seed[:count], self._length[:count]
        rule_state = self._rules.of_first(count)
        token, logprob = CHOOSE_NEXT(logits, *rule_state, *held, *self._rules.layout, sampled)
        self._note(token, logprob, index, self._length[index], slots=slots, watched=watched)

    def _take(
        self,
        allowed: Float[Tensor, "batch vocab"],
        index: Int[Tensor, " batch"],
        *,
        slots: Sequence[int],
        sampled: bool,
        watched: bool,
        options: Layout,
        phrases: PhraseLayout | None,
    ) -> None:
        self._options.after_rules(allowed, slots)
        length = self._length[index]
        if sampled and options.top_k:
            temperatures = self._temperature[index]
            allowed = self._options.narrow(allowed, index, options, temperatures)
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
        self._note(token, logprob, index, length, slots=slots, watched=watched)

    def _note(
        self,
        token: Int[Tensor, " batch"],
        logprob: Float[Tensor, " batch"],
        index: Int[Tensor, " batch"],
        length: Int[Tensor, " batch"],
        *,
        slots: Sequence[int],
        watched: bool,
    ) -> None:
        going = ~self._ended[index]
        column = length.masked_fill(~going, self._text.shape[1] - 1)
        self._text[index, column] = token
        self._logprob[index, column] = logprob
        self._rules.update(token, index)
        self._token[index] = token
        self._length[index] = length + going
        ended = (token == self._end[index]) | (length + 1 >= self._limit[index])
        if watched:
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
