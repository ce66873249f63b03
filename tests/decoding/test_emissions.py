"""CTC collapse against a loop over positions, and a tokenizer's grouping."""

import torch

from corpus_asr.decoding.emissions import collapse

BLANK = 3


def test_runs_are_joined_and_blanks_left_out_of_each_row() -> None:
    logits = torch.randn(40, 23, 4, generator=torch.Generator().manual_seed(0)) * 3
    lengths = torch.arange(40) % 24
    found = collapse(logits, lengths, blank=BLANK).rows()
    logprobs = logits.log_softmax(dim=2)
    for row, length in enumerate(lengths.tolist()):
        runs: list[list[int]] = []
        best = logits[row, :length].argmax(dim=1).tolist()
        for pos, token in enumerate(best):
            if pos and best[pos - 1] == token:
                runs[-1].append(pos)
            else:
                runs.append([pos])
        runs = [run for run in runs if best[run[0]] != BLANK]
        assert found[row].tokens == tuple(best[run[0]] for run in runs)
        assert found[row].frames == tuple(run[0] for run in runs)
        assert found[row].durations == tuple(len(run) for run in runs)
        means = [float(logprobs[row, run, best[run[0]]].mean()) for run in runs]
        torch.testing.assert_close(torch.tensor(found[row].logprobs), torch.tensor(means))


def test_rows_of_nothing_but_blanks_are_empty() -> None:
    logits = torch.zeros(2, 5, 4)
    logits[..., BLANK] = 1.0
    rows = collapse(logits, torch.tensor([5, 0]), blank=BLANK).rows()
    assert [row.tokens for row in rows] == [(), ()]
