"""Losses of transducers against a sum over all alignments, one by one."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from corpus_asr.families.parakeet.losses import reduced, transducer_losses

BLANK, VOCAB = 0, 4


def alignments(
    scores: Tensor, lasting: Tensor | None, labels: list[int], durations: tuple[int, ...], pos: int
) -> Iterator[float]:
    """Yield the log-probability of every way from a position to the end that says all labels."""
    if pos >= len(scores):
        if pos == len(scores) and not labels:
            yield 0.0
        return
    said = scores.shape[1] - 1 - len(labels)
    for number, duration in enumerate(durations or (0, 1)):
        sure = 0.0 if lasting is None else float(lasting[pos, said, number])
        ways = []
        # Without durations of its own a blank lasts one position and a label none.
        if duration > 0:
            ways.append((BLANK, labels))
        if labels and (durations or duration == 0):
            ways.append((labels[0], labels[1:]))
        for token, rest in ways:
            here = sure + float(scores[pos, said, token])
            if pos + duration == len(scores) and token != BLANK:
                continue  # the last step is a blank
            for after in alignments(scores, lasting, rest, durations, pos + duration):
                yield here + after


@pytest.mark.parametrize("durations", [(), (0, 1, 2), (1, 3), (2, 0, 1)])
def test_a_loss_is_the_sum_over_all_alignments(durations: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(len(durations))
    logits = torch.randn(4, 4, 4, VOCAB + len(durations), generator=generator)
    labels = torch.tensor([[1, 2, 2], [3, 1, 0], [1, 0, 0], [2, 2, 2]])
    lengths, label_lengths = torch.tensor([4, 3, 1, 2]), torch.tensor([3, 2, 1, 0])
    found = transducer_losses(
        logits,
        labels,
        lengths,
        label_lengths,
        blank=BLANK,
        vocab_size=VOCAB,
        durations=durations,
    )
    for row, (length, count) in enumerate(
        zip(lengths.tolist(), label_lengths.tolist(), strict=True)
    ):
        kept = logits[row, :length, : count + 1]
        lasting = kept[..., VOCAB:].log_softmax(-1) if durations else None
        ways = alignments(
            kept[..., :VOCAB].log_softmax(-1), lasting, labels[row, :count].tolist(), durations, 0
        )
        each = torch.tensor(list(ways))
        if len(each):
            torch.testing.assert_close(found[row], -each.logsumexp(0), rtol=1e-4, atol=1e-4)
        else:
            assert found[row] > 1e20  # it cannot be said in so few positions


def test_rows_that_cannot_be_said_leave_gradients_finite() -> None:
    logits = torch.randn(1, 2, 4, VOCAB + 1, requires_grad=True)
    labels = torch.tensor([[1, 2, 3]])
    losses = transducer_losses(
        logits,
        labels,
        torch.tensor([2]),
        torch.tensor([3]),
        blank=BLANK,
        vocab_size=VOCAB,
        durations=(1,),
    )
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_means_are_by_row_or_over_all_labels() -> None:
    losses, counts = torch.tensor([6.0, 2.0]), torch.tensor([3, 1])
    assert reduced(losses, counts, by_row=True) == 2.0
    assert reduced(losses, counts, by_row=False) == 2.0
    assert reduced(torch.tensor([6.0, 4.0]), counts, by_row=True) == 3.0
    assert reduced(torch.tensor([6.0, 4.0]), counts, by_row=False) == 2.5
