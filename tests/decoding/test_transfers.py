"""What is copied arrives as it was, in one piece."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corpus_asr.decoding.device import FinishedFlags, download, upload, upload_stack

CPU = torch.device("cpu")
longs = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(width=64, allow_nan=False)


@given(st.lists(st.one_of(st.lists(longs), st.lists(floats, min_size=1)), min_size=1, max_size=6))
def test_numbers_arrive_as_they_were_sent(parts: list[list[int]] | list[list[float]]) -> None:
    assert [tensor.tolist() for tensor in upload(CPU, *parts)] == parts


def test_tensors_keep_shape_and_type() -> None:
    block = torch.arange(6).view(2, 3)
    found, empty, halves = upload(CPU, block, [], [0.5, 1.0])
    assert torch.equal(found, block)
    assert (empty.dtype, empty.shape) == (torch.long, (0,))
    assert halves.dtype == torch.float64
    assert halves.float().tolist() == [0.5, 1.0]


@given(st.lists(st.tuples(longs, st.floats(width=32), st.booleans()), min_size=1, max_size=5))
def test_columns_come_back_row_by_row(rows: list[tuple[int, float, bool]]) -> None:
    whole, numbers, flags = map(list, zip(*rows, strict=True))
    square = torch.tensor(whole).unsqueeze(1).expand(-1, 3)
    found = download(torch.tensor(whole), torch.tensor(numbers), torch.tensor(flags), square)
    assert [column.dtype for column in found] == [
        torch.long, torch.float64, torch.long, torch.long,
    ]  # fmt: skip
    assert found[0].tolist() == whole
    # Every float32 is a float64 too; one that is no number stays none.
    torch.testing.assert_close(
        found[1].float(), torch.tensor(numbers), equal_nan=True, rtol=0, atol=0
    )
    assert found[2].bool().tolist() == flags
    assert torch.equal(found[3], square)


def test_rows_are_stacked_in_their_own_type() -> None:
    rows = [torch.full((2, 3), float(n), dtype=torch.float16) for n in range(4)]
    found = upload_stack(rows, CPU)
    assert found.dtype == torch.float16
    assert torch.equal(found, torch.stack(rows))


@pytest.mark.parametrize("behind", [False, True])
def test_a_lookout_tells_what_was_so_when_it_was_asked(behind: bool) -> None:
    flags = torch.zeros(3, dtype=torch.bool)
    lookout = FinishedFlags(flags, behind=behind)
    assert lookout.read(3) == [False] * 3
    flags[0] = True
    lookout.ask()
    flags[1] = True  # what the last step does, which nobody waits for
    assert lookout.read(3) == [True, not behind, False]
    # Read once: in the meantime the flags may have come to mean other jobs.
    assert lookout.read(2) == ([False] * 2 if behind else [True] * 2)
    lookout.ask()
    assert lookout.read(2) == [True, True]
