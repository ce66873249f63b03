"""Whether a device says what a CPU says, and whether its host waits where it should not."""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import torch

from benchmarks.gpu.figures import Figures, Options, random_network, scheduler_for
from benchmarks.gpu.recordings import GREEDY, MODEL, read_parts, read_texts, text_of, transcribed
from benchmarks.networks import decode_all, random_job
from corpus_asr.decoding.protocols import SlotModel
from corpus_asr.families.loading import load_slot_model
from corpus_asr.segments import Segment
from corpus_asr.text.normalize import EnglishTextNormalizer
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.transcribers import part_transcriber

Texts = Sequence[tuple[Segment, ...]]

# Must be the CPU's in float32: searches whose choices hang on no rounding.
SEARCHES = {
    "greedy": GREEDY,
    "words": replace(GREEDY, word_timestamps=True),
    "beams": replace(GREEDY, beam_size=3),
    "penalty": replace(GREEDY, repetition_penalty=1.1),
}
# Of 250 words: half precision may choose another word where two are nearly as likely.
MAX_WER = 0.03
# Weights of attention are summed in another order; a step of time is 0.02 s.
MAX_WORD_SHIFT_S = 0.021


class DifferenceError(Exception):
    """The device computes something else."""


@contextmanager
def exact_float32() -> Iterator[None]:
    """Switch off TF32, which cuDNN takes for convolutions in float32 by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def validation(options: Options, say: Figures) -> None:
    """Compare the packaged model's text of real speech on the device with that on this CPU."""
    parts, committed = read_parts(), read_texts()
    searches, slot_counts, copies = SEARCHES, [1, 8, 64], 8
    if not options.on_gpu:  # it is compared with itself
        parts, committed, slot_counts, copies = parts[:2], committed[:2], [3], 1
    if options.quick:
        parts, committed, searches = parts[:1], committed[:1], {"greedy": GREEDY}
    wrong: list[str] = []

    def compare(key: str, found: int, unit: str) -> None:
        say(key, found, unit)
        if found:
            wrong.append(f"{key}: {found} {unit}")

    device = str(options.device)
    with exact_float32():
        cpu = other = load_slot_model(MODEL, device="cpu", dtype="float32")
        with engine_of(cpu, 4) as engine:
            expected = {name: transcribed(engine, parts, one) for name, one in searches.items()}
        texts = [text_of(segments) for segments in expected["greedy"]]
        compare("cpu.float32.greedy.not_as_committed", differing(texts, committed), "parts")
        if device != "cpu":
            other = load_slot_model(MODEL, device=device, dtype="float32")
        for slots in slot_counts:
            with engine_of(other, slots) as engine:
                found = transcribed(engine, parts * copies)
            key = f"float32.slots_{slots}.greedy.not_as_on_cpu"
            compare(key, differing(said(found), said(expected["greedy"] * copies)), "parts")
        for name in list(searches)[1:]:
            with engine_of(other, 8) as engine:
                found = transcribed(engine, parts, searches[name])
            key = f"float32.{name}.not_as_on_cpu"
            compare(key, differing(said(found), said(expected[name])), "parts")
            if name == "words":
                shift_s = largest_shift_s(found, expected[name])
                say("float32.words.largest_shift", shift_s, "s")
                if shift_s > MAX_WORD_SHIFT_S:
                    wrong.append(f"a word's time differs by {shift_s:.2f} s")
        # Two engines at work in one process, as with a model per language.
        with engine_of(other, 2) as one, engine_of(other, 3) as two:
            futures = [engine.submit(part) for part in parts * copies for engine in (one, two)]
            found = [future.result().segments for future in futures]
        both = [segments for segments in expected["greedy"] * copies for _ in range(2)]
        compare("float32.two_engines.not_as_on_cpu", differing(said(found), said(both)), "parts")
    for dtype in () if options.quick else ("float16", "bfloat16", "float16_fp8"):
        if dtype == "float16_fp8" and device == "cpu":
            continue
        with engine_of(load_slot_model(MODEL, device=device, dtype=dtype), 8) as engine:
            half = [text_of(segments) for segments in transcribed(engine, parts)]
        rate = word_error_rate(texts, half)
        say(f"{dtype}.greedy.wer_to_float32", 100 * rate, "%")
        if rate > MAX_WER:
            wrong.append(f"{dtype}: word error rate {rate:.1%} to float32")
    if wrong:
        raise DifferenceError(f"{options.device_name} differs from the CPU: {'; '.join(wrong)}")


def engine_of(model: SlotModel, slots: int) -> Engine:
    """Make an engine of the packaged model."""
    return Engine(model, part_transcriber(MODEL), decoding=GREEDY, slots=slots)


def differing(found: Iterable[Any], expected: Iterable[Any]) -> int:
    """Count what is not the same."""
    return sum(ours != theirs for ours, theirs in zip(found, expected, strict=True))


def said(parts: Texts) -> list[list[str]]:
    """Return the texts of each part's segments: probabilities are rounded otherwise elsewhere."""
    return [[segment.text for segment in segments] for segments in parts]


def largest_shift_s(found: Texts, expected: Texts) -> float:
    """Return by how much the time of a word differs at most."""
    ours, theirs = (
        [word for part in parts for segment in part for word in segment.words or ()]
        for parts in (found, expected)
    )
    pairs = list(zip(ours, theirs, strict=False))
    return max(
        (max(abs(a.start_s - b.start_s), abs(a.end_s - b.end_s)) for a, b in pairs), default=0.0
    )


def word_error_rate(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    """Return the share of wrong words after Whisper's normalizer; by hand, as jiwer may be absent.

    Source: Wagner and Fischer 1974, "The String-to-String Correction Problem".
    """
    plain = EnglishTextNormalizer()
    errors = words = 0
    for pair in zip(reference, hypothesis, strict=True):
        wanted, found = (plain(text).split() for text in pair)
        row = list(range(len(found) + 1))
        for number, word in enumerate(wanted, 1):
            diagonal, row[0] = row[0], number
            for at, other in enumerate(found, 1):
                best = min(row[at] + 1, row[at - 1] + 1, diagonal + (word != other))
                diagonal, row[at] = row[at], best
        errors, words = errors + row[-1], words + len(wanted)
    return errors / max(words, 1)


# Where a result is read, which is what the host waits for.
WAITING = {"collect", "align_window"}


def waits(options: Options, say: Figures) -> None:
    """Count, by place in the code, what makes the host wait while windows are decoded."""
    if not options.on_gpu:
        raise SkipTest("counting the waits of a host needs CUDA")
    model = random_network(options).slot_model()
    scheduler = scheduler_for(options, model, 16)
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.7},
        {"repetition_penalty": 1.2},
        {"stop_loops": True},
    ]
    jobs = [
        random_job(
            options.shape, number, tokens=30 + 3 * (number % 7), **kinds[number % len(kinds)]
        )
        for number in range(96)
    ]
    places: Counter[str] = Counter()
    expected: set[str] = set()

    def note(message: Warning | str, *_: object, **__: object) -> None:
        frames = [one for one in traceback.extract_stack() if "corpus_asr" in one.filename]
        if "synchronizing" not in str(message).lower() or not frames:
            return
        name = frames[-1].filename.rpartition("corpus_asr/")[2]
        place = f"{name}:{frames[-1].lineno}:{frames[-1].name}"
        places[place] += 1
        if WAITING & {frame.name for frame in frames}:
            expected.add(place)

    decode_all(scheduler, jobs[:32])  # steps are recorded, which waits
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            decode_all(scheduler, jobs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for place, count in places.most_common():
        say(place, count, "waits")
    elsewhere = sorted(set(places) - expected)
    say("elsewhere_than_for_results", sum(places[place] for place in elsewhere), "waits")
    if elsewhere:
        raise DifferenceError(f"waiting at {', '.join(elsewhere)}, expected for results only")
