"""The decoder's slots on the device: admit windows, advance all by one token, collect what ended.

The occupied slots are always the first ones, so a step computes nothing for empty ones. Where an
assistant drafts, a step checks several tokens at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    upload,
    upload_stack,
)
from corpus_asr.decoding.options import (
    CHOOSE_NEXT,
    Layout,
    SlotOptions,
    choose,
)
from corpus_asr.decoding.phrases import PhraseLayout, SlotPhrases
from corpus_asr.decoding.protocols import (
    AlignJob,
    Job,
    Outcome,
    SlotModel,
    WindowJob,
    WindowResult,
    no_numbers,
)
from corpus_asr.decoding.rules import RepetitionDetector, SlotRules
from corpus_asr.errors import ItemError


@dataclass(frozen=True, slots=True)
class _Requested:
    """Results on their way to the host."""

    slots: tuple[int, ...]
    decoded: list[int]
    aligned: dict[int, tuple[Alignments, int]]
    groups: list[Alignments]
    download: Download


class SlotBatch:
    """Per-slot state as tensors; what changes it runs under inference mode.

    A step reads and writes tensors that stay where they are, never waits for the device, and
    depends on nothing else but what names it in `step`: so it can be recorded and replayed.
    """

    def __init__(
        self,
        model: SlotModel,
        slots: int,
        *,
        recorder: CudaRecorder | None = None,
        whole: bool = False,
    ) -> None:
        """Allocate the slots; with `whole` every step takes all of them along."""
        self.model = model
        self.places = slots
        self._whole = whole
        self._state: Any = model.new_state(slots)
        length, device = model.max_target_positions, model.device
        by_row = device.type == "cpu" and recorder is None
        self._rules = SlotRules(slots, model.vocab_size, device, by_row=by_row)
        self._repetition = RepetitionDetector(slots, model.vocab_size, device)
        self._phrases = SlotPhrases(slots, model.vocab_size, device)
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
        # Also where nothing is: a replayed step takes some free slots along.
        self._ended = torch.ones(slots, dtype=torch.bool, device=device)
        self._looped = torch.zeros(slots, dtype=torch.bool, device=device)
        self._score = torch.zeros(slots, device=device)
        self._slots = torch.arange(slots, device=device)
        self._options = SlotOptions(self._text, self._length, self._ended)
        self._flags = FinishedFlags(
            self._ended, behind=recorder is not None or device.type == "cuda"
        )
        self._graphs = StepGraphs(slots, recorder) if recorder else None
        self._heard_short = False  # whether a step has to tell windows of several lengths apart
        # What the host knows of each text without asking the device: its length is no more.
        self._longest = [1] * slots
        self._jobs: list[WindowJob | None] = [None] * slots
        self._aligned: dict[int, tuple[Alignments, int]] = {}
        self._requested: _Requested | None = None

    @torch.inference_mode()
    def fill(
        self, slots: Sequence[int], jobs: Sequence[Job], encoded: Float[Tensor, "batch pos width"]
    ) -> None:
        """Put the jobs' encoded windows into `slots`; they stay until the next fill."""
        num_frames = frames_encoded(jobs)
        self._heard_short |= num_frames is not None
        self.model.fill(self._state, slots, encoded, num_frames=num_frames)

    @torch.inference_mode()
    def admit(self, slots: Sequence[int], jobs: Sequence[Job]) -> None:
        """Start the jobs in `slots`, whose windows are filled.

        Prompts are run and first tokens chosen; alignments are done at once. The jobs must have
        passed `check_job`.
        """
        windows = {s: job for s, job in zip(slots, jobs, strict=True) if isinstance(job, WindowJob)}
        texts = {s: job for s, job in zip(slots, jobs, strict=True) if isinstance(job, AlignJob)}
        if texts:
            for slot in texts:
                self._longest[slot] = 1
            self._aligned |= align_windows(self.model, self._state, [*texts], [*texts.values()])
        if windows:
            self._start(list(windows), list(windows.values()))

    @torch.inference_mode()
    def step(self, active: int, *, sampled: bool) -> None:
        """Advance the first `active` slots by one token.

        Slots that ended since the last `collect` go round on their last position; what they say is
        dropped.
        """
        active = self.places if self._whole else active
        watched = self._repetition.watches(range(active))
        options = self._options.layout(range(active))
        phrases = self._phrases.layout(range(active))
        reach = self._look_no_further(active)
        asked: dict[str, Any] = {
            "sampled": sampled, "watched": watched, "options": options, "phrases": phrases,
            "reach": reach,
        }  # fmt: skip
        if self._graphs is None or self._options.exact:
            self._advance(active, **asked)
            return
        count = self._graphs.rung(active)
        self._graphs.run(
            (count, *asked.values(), self._heard_short, *self._rules.layout),
            partial(self._advance, count, **asked),
        )

    def _look_no_further(self, active: int) -> int:
        room = self.model.max_target_positions
        if self._whole:
            return room
        found = reach_of(max(self._longest[:active]), room)
        for slot in range(active):
            self._longest[slot] += 1
        return found

    def look(self) -> None:
        """Ask which slots have finished by now; does not wait."""
        self._flags.ask()

    def ended(self, active: int) -> list[int]:
        """The slots among the first `active` that are known to have finished."""
        flags = self._flags.read(active)
        return [slot for slot, flag in enumerate(flags) if flag or slot in self._aligned]

    @property
    def works_behind(self) -> bool:
        """Whether the device works behind the host, and can have more to do while it reads."""
        return self._flags.behind

    def request(self, slots: Sequence[int]) -> None:
        """Ask for the results of finished slots as they are now; `collect` waits for them."""
        decoded = [slot for slot in slots if slot not in self._aligned]
        aligned = {slot: self._aligned.pop(slot) for slot in slots if slot in self._aligned}
        groups = list({id(group): group for group, _ in aligned.values()}.values())
        tensors = [tensor for group in groups for tensor in (group.logprobs, group.found)]
        if decoded:
            (index,) = upload(self.model.device, decoded)
            held = (self._text, self._logprob, self._length, self._looped, self._score)
            tensors += [tensor[index] for tensor in held]
        # All at once, as each time the host waits for the device.
        self._requested = _Requested(tuple(slots), decoded, aligned, groups, Download(*tensors))

    def collect(self, slots: Sequence[int]) -> list[Outcome]:
        """Read the results of finished slots, which may have been requested before."""
        if self._requested is None or self._requested.slots != tuple(slots):
            self.request(slots)
        requested, self._requested = self._requested, None
        assert requested is not None, "just requested"
        copies = iter(requested.download.wait())
        read = {id(group): (next(copies), next(copies)) for group in requested.groups}
        found: dict[int, Outcome] = {
            slot: group.result(row, *read[id(group)], self.model)
            for slot, (group, row) in requested.aligned.items()
        }
        rows = zip(requested.decoded, *copies, strict=True) if requested.decoded else ()
        for slot, *row in rows:
            found[slot] = self._result(slot, row)
        return [found[slot] for slot in slots]

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Make slot `target` what slot `source` is; `source` is free afterwards."""
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
        # Not assigned: the host would wait until a number has been copied into one place.
        self._ended[source].fill_(True)
        self._jobs[target] = self._jobs[source]
        self._longest[target] = self._longest[source]
        if source in self._aligned:
            self._aligned[target] = self._aligned.pop(source)

    @property
    def _position(self) -> Int[Tensor, " slot"]:
        """Where the newest token of each slot, not read by the model yet, goes."""
        return self._length - 1

    def _start(self, slots: list[int], jobs: list[WindowJob]) -> None:
        lengths = [len(job.prompt) for job in jobs]
        room = self.model.max_target_positions
        index, prompts, length, limit, end, seed, temperature = upload(
            self.model.device,
            slots,
            pad_prompts(jobs),
            lengths,
            [min(job.max_new_tokens + len(job.prompt), room) for job in jobs],
            [job.rules.last for job in jobs],
            [job.seed for job in jobs],
            [float(job.search.temperature) for job in jobs],
        )
        hidden = self.model.prefill(self._state, slots, prompts, lengths)  # (batch, token, width)
        logits = self.model.logits(hidden[self._slots[: len(jobs)], length - 1])  # (batch, vocab)
        if (scores := token_scores(self.model, hidden, jobs)) is not None:
            self._score.index_copy_(0, index, scores)

        self._text[:, : prompts.shape[1]].index_copy_(0, index, prompts)
        for held, values in (
            (self._length, length), (self._limit, limit), (self._end, end), (self._seed, seed),
            (self._temperature, temperature.float()),
        ):  # fmt: skip
            held.index_copy_(0, index, values)
        self._ended.index_fill_(0, index, False)
        self._looped.index_fill_(0, index, False)
        for slot, job in zip(slots, jobs, strict=True):
            self._jobs[slot] = job
            self._longest[slot] = len(job.prompt) + 1
        rules = [job.rules for job in jobs]
        prefixes = [job.prefix for job in jobs]
        self._rules.admit(index, rules, prefixes)
        self._repetition.admit(slots, jobs)
        self._options.admit(slots, index, [job.search for job in jobs])
        self._phrases.admit(slots, index, [job.search.phrases for job in jobs])

        options = self._options.layout(slots)
        logits = self._options.before_rules(logits, slots, index, options)
        self._take(
            self._rules.apply_first(logits, rules, index, prefixes),
            index,
            slots=slots,
            sampled=any(job.search.temperature > 0 for job in jobs),
            watched=self._repetition.watches(slots),
            options=options,
            phrases=self._phrases.layout(slots),
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
        said = self._rules.of_first(count)
        token, logprob = CHOOSE_NEXT(logits, *said, *held, *self._rules.layout, sampled)
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
        if sampled:
            allowed = self._options.warp(allowed, slots)
        self._options.keep(allowed, slots)
        # What a token is worth to the search changes no log-probability.
        logprobs = allowed.log_softmax(dim=1)
        if phrases is not None:
            self._phrases.boost(allowed, index, phrases)
        # `max`, as `argmax` takes three times as long on CPUs.
        token = self._choose(allowed, index, length - 1) if sampled else allowed.max(dim=1).indices
        if phrases is not None:
            self._phrases.update(token, index, phrases)
        logprob = logprobs.gather(1, token.unsqueeze(1)).squeeze(1)
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
        # In place, as the options look at the very same tensor.
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
        scores, logits = self._options.kept(slot)
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
            logits=logits,
        )


def encode_windows(
    model: SlotModel, jobs: Sequence[Job], *, batch_size: int | None = None
) -> Float[Tensor, "batch pos width"]:
    """Encode the jobs' features; a job that brings its encoding is not encoded again.

    With a `batch_size` whole windows are encoded in batches of just that size, filled up with some
    twice, and short ones alone.
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
                "(pos, width) for all; encode each with this very model"
            )
        return torch.stack([rows[row] for row in range(len(jobs))])


def _encode(
    model: SlotModel, jobs: Sequence[Job], batch_size: int | None
) -> Float[Tensor, "batch pos width"]:
    num_frames = frames_encoded(jobs)
    if batch_size is not None and num_frames is not None:
        return torch.cat([_encode(model, [job], None) for job in jobs])
    wanted = batch_size or len(jobs)
    features = [torch.from_numpy(job.features) for job in jobs]
    # In their own type, mostly half as wide, until they are there.
    stacked = upload_stack(features + features[:1] * (wanted - len(jobs)), model.device)
    return model.encode(stacked.to(model.dtype), num_frames=num_frames)[: len(jobs)]


def frames_encoded(jobs: Sequence[Job]) -> list[int] | None:
    """The frames of each job's window that are encoded; None where all are."""
    whole = [job.features.shape[1] for job in jobs]
    frames = [job.num_frames or all_frames for job, all_frames in zip(jobs, whole, strict=True)]
    return None if frames == whole else frames


def pad_prompts(jobs: Sequence[WindowJob]) -> Int[Tensor, "batch token"]:
    """The jobs' prompts as rows, padded on the right."""
    return pad_sequence([torch.tensor(job.prompt) for job in jobs], batch_first=True)


def token_scores(
    model: SlotModel, hidden: Float[Tensor, "batch token width"], jobs: Sequence[WindowJob]
) -> Float[Tensor, " batch"] | None:
    """The probability of each job's `score_token` after its prompt; None where none is wanted."""
    if all(job.score_token is None for job in jobs):
        return None
    rows, positions, tokens = upload(
        hidden.device,
        range(len(jobs)),
        [job.score_position for job in jobs],
        [job.score_token or 0 for job in jobs],
    )
    probabilities = model.logits(hidden[rows, positions]).softmax(dim=1)  # (batch, vocab)
    return probabilities.gather(1, tokens.unsqueeze(1)).squeeze(1)


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
        said = self._rules.snapshot()
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
        self._rules.restore(said)
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
            here = logits[:, number].contiguous()
            options = self._options.layout(going)
            here[index] = self._options.before_rules(here[index], going, index, options)
            self._take(
                self._rules.apply(here)[index],
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
