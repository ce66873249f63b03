"""The vectorised grammar equals openai-whisper's, token for token."""

from types import SimpleNamespace

import pytest
import torch
from whisper.decoding import ApplyTimestampRules

from corpus_asr.decoding.protocols import TokenRules
from corpus_asr.decoding.rules import SlotRules

VOCAB, END, NO_TIMESTAMPS, BEGIN = 60, 30, 39, 40
RULES = TokenRules(
    end=END, timestamp_begin=BEGIN, no_timestamps=NO_TIMESTAMPS, max_initial_timestamp=5
)
PLAIN = TokenRules(end=END)


def oracle(prefix: list[list[int]], logits: torch.Tensor) -> torch.Tensor:
    tokenizer = SimpleNamespace(
        no_timestamps=NO_TIMESTAMPS, timestamp_begin=BEGIN, eot=END, encode=None
    )
    rule = ApplyTimestampRules(tokenizer, sample_begin=0, max_initial_timestamp_index=5)
    masked = logits.clone()
    rule.apply(masked, torch.tensor(prefix, dtype=torch.long).reshape(len(prefix), -1))
    return masked


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("timestamp_boost", [-3.0, 0.0, 2.0])
def test_every_step_forbids_what_openai_whisper_forbids(seed: int, timestamp_boost: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    slots, steps = 4, 25
    rules = SlotRules(slots, VOCAB, torch.device("cpu"))
    for slot in range(slots):
        rules.admit(torch.tensor([slot]), [RULES])
    said: list[list[int]] = [[] for _ in range(slots)]
    for step in range(steps):
        logits = torch.randn(slots, VOCAB, generator=generator)
        logits[:, BEGIN:] += timestamp_boost
        expected = oracle(said, logits)
        first = step == 0
        found = rules.apply_first(logits, [RULES] * slots) if first else rules.apply(logits)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        tokens = torch.multinomial(found.softmax(dim=1), 1, generator=generator).squeeze(1)
        rules.update(tokens, torch.arange(slots))
        for row, token in zip(said, tokens.tolist(), strict=True):
            row.append(token)


def test_slots_without_timestamps_are_left_alone_beside_slots_with_them() -> None:
    rules = SlotRules(2, VOCAB, torch.device("cpu"))
    rules.admit(torch.tensor([0]), [RULES])
    rules.admit(torch.tensor([1]), [PLAIN])
    logits = torch.zeros(2, VOCAB)
    logits[:, BEGIN:] = 5.0
    found = rules.apply_first(logits.clone(), [RULES, PLAIN])
    assert torch.equal(found[1], logits[1])
    rules.update(torch.tensor([BEGIN, BEGIN]), torch.tensor([0, 1]))
    assert torch.equal(rules.apply(logits.clone())[1], logits[1])


def test_suppressed_tokens_stay_forbidden_and_first_ones_only_at_first() -> None:
    own = TokenRules(end=END, suppress=(3,), suppress_first=(END,))
    rules = SlotRules(1, VOCAB, torch.device("cpu"))
    rules.admit(torch.tensor([0]), [own])
    first = rules.apply_first(torch.zeros(1, VOCAB), [own])[0]
    assert first.isinf().nonzero().flatten().tolist() == [3, END]
    rules.update(torch.tensor([7]), torch.tensor([0]))
    assert rules.apply(torch.zeros(1, VOCAB))[0].isinf().nonzero().flatten().tolist() == [3]


def test_only_named_tokens_are_allowed_when_some_are_named() -> None:
    own = TokenRules(end=END, only=(11, 12))
    rules = SlotRules(1, VOCAB, torch.device("cpu"))
    rules.admit(torch.tensor([0]), [own])
    first = rules.apply_first(torch.zeros(1, VOCAB), [own])[0]
    assert first.isfinite().nonzero().flatten().tolist() == [11, 12]


def test_a_readmitted_slot_forgets_its_past_and_a_moved_one_takes_it_along() -> None:
    rules = SlotRules(2, VOCAB, torch.device("cpu"))
    rules.admit(torch.tensor([0]), [RULES])
    rules.admit(torch.tensor([1]), [RULES])
    for token in (BEGIN, 5, BEGIN + 9):
        rules.update(torch.tensor([BEGIN, token]), torch.tensor([0, 1]))
    expected = rules.apply(torch.zeros(2, VOCAB))[1]
    rules.move(1, 0)
    assert torch.equal(rules.apply(torch.zeros(1, VOCAB))[0], expected)
    rules.admit(torch.tensor([0]), [RULES])
    fresh = SlotRules(1, VOCAB, torch.device("cpu"))
    fresh.admit(torch.tensor([0]), [RULES])
    assert torch.equal(rules.apply(torch.zeros(1, VOCAB)), fresh.apply(torch.zeros(1, VOCAB)))


def test_two_vocabularies_in_one_decoder_are_refused() -> None:
    rules = SlotRules(2, VOCAB, torch.device("cpu"))
    rules.admit(torch.tensor([0]), [RULES])
    with pytest.raises(ValueError, match="one decoder per vocabulary"):
        rules.admit(torch.tensor([1]), [TokenRules(end=END, timestamp_begin=BEGIN + 1)])
