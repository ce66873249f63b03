"""Decoder-only models in the pipeline: prompts, answers, settings, and a second family."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.config.decoding import DecodingSettings, Hotword
from corpus_asr.decoding.jobs import Gather, Task, WindowJob, WindowResult
from corpus_asr.errors import ConfigError, ItemError
from corpus_asr.families import registry
from corpus_asr.families.audio_prompts import text_room
from corpus_asr.families.qwen3_asr.tokenizer import Qwen3ASRPrompts
from corpus_asr.segments import PartTranscript, SpeechSpan
from corpus_asr.transcription.engine import Engine
from corpus_asr.transcription.prompted import PromptedTranscriber
from corpus_asr.transcription.windows import PartRequest
from tests.support.qwen3_asr import Pair, qwen3_asr_pair
from tests.support.second_family import END, SECOND, SecondSeq2SeqLM, second_checkpoint
from tests.support.slots import Listening

GREEDY: dict[str, Any] = {
    "temperature": (0.0,), "logprob_threshold": None, "compression_ratio_threshold": None,
    "beam_size": 1,
}  # fmt: skip
SPANS = [(0.5, 8.0), (12.0, 20.0), (30.0, 34.5)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return qwen3_asr_pair(tmp_path_factory.mktemp("checkpoint"), seed=4)


@pytest.fixture(scope="module")
def transcriber(pair: Pair) -> PromptedTranscriber:
    return PromptedTranscriber.from_folder(pair.folder)


@pytest.fixture(scope="module")
def prompts(pair: Pair) -> Qwen3ASRPrompts:
    return Qwen3ASRPrompts.from_folder(pair.folder)


def part(
    seconds: float = 40.0,
    *,
    bins: int = 128,
    spans_s: Sequence[tuple[float, float]] = SPANS,
    **fields: Any,
) -> PartRequest:
    spans = tuple(SpeechSpan(start_s=start, end_s=end) for start, end in spans_s)
    values = np.random.default_rng(0).standard_normal((round(seconds * 100), bins))
    return PartRequest(
        recording_id="a", part=0, features=values.astype(np.float16), pad_value=-1.5,
        num_samples=round(seconds * 16_000), start_s=0.0, speech=spans, **fields,
    )  # fmt: skip


def answered(task: Task, say: Callable[[WindowJob], str], prompts: Qwen3ASRPrompts) -> Any:
    """Run a task whose windows are answered by `say`, each token with a probability of 0.9."""
    try:
        request = next(task)
        while True:
            reply: Any
            if isinstance(request, Gather):
                reply = [answered(inner, say, prompts) for inner in request.tasks]
            else:
                assert isinstance(request, WindowJob)
                tokens = prompts._ids(say(request))
                logprobs = (math.log(0.9),) * len(tokens)
                reply = WindowResult(tokens=tokens, logprobs=logprobs, end_logprob=0.0, score=None)
            request = task.send(reply)
    except StopIteration as stop:
        return stop.value


class Asked:
    """Answers with texts in turn, and keeps what was asked."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.jobs: list[WindowJob] = []

    def __call__(self, job: WindowJob) -> str:
        self.jobs.append(job)
        return self.texts[(len(self.jobs) - 1) % len(self.texts)]


def transcribe(
    transcriber: PromptedTranscriber,
    prompts: Qwen3ASRPrompts,
    say: Asked,
    request: PartRequest | None = None,
    **settings: Any,
) -> PartTranscript:
    decoding = DecodingSettings(**GREEDY | settings)
    transcriber.check(decoding)
    task = transcriber.transcribe(request or part(), decoding)
    found: PartTranscript = answered(task, say, prompts)
    return found


def test_answers_name_languages_and_become_segments(
    transcriber: PromptedTranscriber, prompts: Qwen3ASRPrompts
) -> None:
    # The longest window is asked first.
    say = Asked(
        "language German<asr_text>Der Nordwind.",
        "language Japanese<asr_text>北風と太陽",
        "language None<asr_text>",
    )
    heard = Listening()
    request = part(listener=heard)
    found = transcribe(transcriber, prompts, say, request)
    assert [segment.text for segment in found.segments] == ["北風と太陽", " Der Nordwind."]
    assert [segment.language for segment in found.segments] == ["ja", "de"]
    assert [(s.start_s, s.end_s) for s in found.segments] == SPANS[:2]
    assert found.language == "de"
    german = found.segments[1]
    named = prompts._ids("language German<asr_text>")
    assert german.tokens == prompts.encode("Der Nordwind.")
    assert german.language_probability == pytest.approx(0.9 ** len(named))
    assert german.text_logprob == pytest.approx(math.log(0.9))
    assert 0 < german.confidence <= 1
    heard.check(request, found.segments)


def test_a_window_s_prompt_has_its_positions_and_text_its_room(
    transcriber: PromptedTranscriber, prompts: Qwen3ASRPrompts
) -> None:
    say = Asked("Der Wind.")
    found = transcribe(transcriber, prompts, say, language="de", initial_prompt="Äsop")
    assert {segment.language for segment in found.segments} == {"de"}
    assert found.segments[0].language_probability is None
    assert [job.num_frames for job in say.jobs] == [800, 750, 450]
    for job in say.jobs:
        assert job.num_frames is not None
        positions = prompts.positions(job.num_frames)
        assert job.prompt == prompts.prompt(positions, language="de", context="Äsop")
        assert job.max_new_tokens == text_room(positions)
        assert not job.features[:, job.num_frames :].any()


def test_a_window_that_is_tried_again_is_no_longer(
    transcriber: PromptedTranscriber, prompts: Qwen3ASRPrompts
) -> None:
    say = Asked("na " * 40, "Der Wind.")
    found = transcribe(
        transcriber, prompts, say, part(spans_s=[(1.0, 4.0)]),
        temperature=(0.0, 0.2), compression_ratio_threshold=2.4, beam_size="auto",
    )  # fmt: skip
    assert [segment.text for segment in found.segments] == [" Der Wind."]
    assert [job.num_frames for job in say.jobs] == [300, 300]


def test_hotwords_are_boosted_or_part_of_the_context(
    transcriber: PromptedTranscriber, prompts: Qwen3ASRPrompts
) -> None:
    words = (Hotword("Nordwind"), Hotword("Sonne"))
    say = Asked("Wind")
    request = part(hotwords=(Hotword("Strom"),))
    transcribe(transcriber, prompts, say, request, hotwords=words)
    assert all(job.search.phrases is not None for job in say.jobs)
    context = "So it goes.\nNordwind, Sonne, Strom"
    say = Asked("Wind")
    transcribe(
        transcriber, prompts, say, request,
        hotwords=words, hotwords_mode="prompt", initial_prompt="So it goes.",
    )  # fmt: skip
    assert say.jobs[0].search.phrases is None
    assert say.jobs[0].prompt == prompts.prompt(104, language=None, context=context)
    long = part(hotwords=tuple(Hotword(f"word{number}") for number in range(300)))
    with pytest.raises(ItemError, match=r"found a prompt of \d+ tokens"):
        transcribe(transcriber, prompts, say, long, hotwords_mode="prompt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "sw"}, r"decoding\.language: found sw, but qwen3_asr knows ar, .*, zh"),
        ({"language": ("de", "en")}, r"decoding\.language: found a choice of 2"),
        ({"language_mode": "part"}, r"decoding\.language_mode: found part"),
        ({"task": "translate"}, r"decoding\.task: .* writes the spoken language"),
        ({"window_s": 31.0}, r"decoding\.window_s: found 31, .* at most 30 s"),
        ({"word_timestamps": True}, r"decoding\.word_timestamps: .* unlike an align\.model"),
        ({"prefix": "a"}, r"decoding\.prefix"),
        (
            {"initial_prompt": "word " * 600},
            r"initial_prompt: found a prompt of \d+ tokens, .* 512",
        ),
        (
            {
                "initial_prompt": "a<|im_end|>",
                "hotwords": (Hotword("b"),),
                "hotwords_mode": "prompt",
            },
            r"initial_prompt: found a control token",
        ),
        ({"hotwords": (Hotword("<|im_end|>"),)}, r"decoding\.hotwords: found a control token"),
        (
            {"hotwords": (Hotword("word " * 35),) * 9, "hotwords_mode": "prompt"},
            r"decoding\.hotwords: found a prompt",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_are_not_supported_are_refused_by_name(
    transcriber: PromptedTranscriber, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        transcriber.check(DecodingSettings(**GREEDY | settings))


@pytest.mark.long
def test_an_answer_that_never_ends_is_stopped_by_the_audio_s_length(pair: Pair) -> None:
    endless = qwen3_asr_pair(pair.folder.parent / "endless", seed=4, ends=0.0)
    settings = DecodingSettings(**GREEDY, stop_loops=False)
    with Engine.from_folder(endless.folder, decoding=settings, dtype="float32") as engine:
        found = engine.submit(part()).result()
    prompts = Qwen3ASRPrompts.from_folder(pair.folder)
    for segment, (start, end) in zip(found.segments, SPANS, strict=True):
        most = text_room(prompts.positions(round(100 * (end - start))))
        assert most - 20 < len(segment.tokens) <= most  # control tokens are no text


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint of a family that is not part of the package."""
    families = {**registry.FAMILIES, SECOND.model_type: SECOND}
    monkeypatch.setattr(registry, "FAMILIES", families)
    return second_checkpoint(tmp_path / "second", end=2.0)


def greedy(model: Any, features: torch.Tensor, prompt: Sequence[int], most: int) -> list[int]:
    """Decode one window without steps: the whole text is read again for every token."""
    state, tokens = model.new_state(1), list(prompt)
    encoded = model.encode(features[None], num_frames=None)
    for _ in range(most):
        model.fill(state, [0], encoded)
        hidden = model.prefill(state, [0], torch.tensor([tokens]), [len(tokens)])
        token = int(model.logits(hidden[0, -1]).argmax())
        if token == END:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


def test_a_second_family_is_decoded_without_a_line_of_its_own(second: Path) -> None:
    settings = DecodingSettings(**GREEDY, language="de", stop_loops=False)
    spans_s = [(0.5, 2.0), (4.0, 5.0), (8.0, 8.7)]
    request = part(10.0, bins=16, spans_s=spans_s)
    with Engine.from_folder(second, decoding=settings, dtype="float32", slots=2) as engine:
        found = engine.submit(request).result()
    transcriber = PromptedTranscriber.from_folder(second)
    prompts: Any = transcriber._prompts
    model = SecondSeq2SeqLM.from_pretrained(second).slot_model()
    texts = []
    for start, end in spans_s:
        frames = round(100 * (end - start))
        window = transcriber._features.window(
            request.features, round(start * 100), round(end * 100)
        )
        features = torch.zeros(16, 3000)
        features[:, :frames] = torch.from_numpy(window.astype(np.float16)).float().T
        positions = prompts.positions(frames)
        prompt = prompts.prompt(positions, language="de", context="")
        tokens = greedy(model, features, prompt, text_room(positions))
        texts.append(prompts.decode(tokens).strip())
    assert [segment.text.strip() for segment in found.segments] == [text for text in texts if text]
    assert len(set(texts)) == len(texts)
    assert found.language == "de"


def test_memory_is_that_of_the_slots(pair: Pair) -> None:
    from corpus_asr.transcription.engine import predicted_bytes
    from tests.support.slots import held_bytes

    model = pair.slots
    predicted = predicted_bytes(model.size, slots=3, encode_batch=1)
    assert predicted.self_cache + predicted.cross_cache == pytest.approx(
        held_bytes(model.new_state(3)), rel=0.07
    )
