"""Triton kernels, run by its interpreter, beside their plain equals; and what happens without."""

import importlib
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from corpus_asr.decoding import alignment, kernels


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    pytest.importorskip("triton")
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield importlib.reload(kernels)
    importlib.reload(kernels)


@pytest.mark.parametrize(("tokens", "positions"), [(1, 1), (1, 7), (6, 1), (5, 12)])
def test_sums_along_diagonals_are_those_of_torch(
    interpreted: ModuleType, tokens: int, positions: int
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    shape = (tokens + positions + 1, 3, tokens + 1)
    # Few values, so that ways cost the same.
    costs = torch.randint(-2, 3, shape, generator=generator) / 2
    costs[torch.rand(shape, generator=generator) < 0.1] = torch.inf
    sums = torch.full(shape, torch.inf)
    sums[0, :, 0] = 0.0
    expected, found = sums.clone(), sums.clone()
    alignment._sum_diagonals(costs, expected)
    interpreted.sum_diagonals(costs, found)
    assert torch.equal(found, expected)


def right(given: torch.Tensor, filled: torch.Tensor) -> None:
    filled.copy_(given)


def wrong(given: torch.Tensor, filled: torch.Tensor) -> None:
    filled.copy_(given + 1)


def broken(given: torch.Tensor, filled: torch.Tensor) -> None:
    raise RuntimeError("no compiler")


@pytest.mark.parametrize(
    ("kernel", "calls", "message"),
    [(right, 3, None), (wrong, 1, "its result differs"), (broken, 1, "no compiler")],
)
def test_a_kernel_is_used_if_it_gives_what_its_equal_gives(
    kernel: Any, calls: int, message: str | None,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(kernels, "_HAS_TRITON", True)
    called: list[int] = []

    def counted(*arguments: torch.Tensor) -> None:
        called.append(1)
        kernel(*arguments)

    checked = kernels.Checked(counted, right)
    with caplog.at_level(logging.WARNING):
        for value in (1.0, 2.0):
            filled = torch.zeros(2)
            checked(torch.full((2,), value), filled)
            assert filled.tolist() == [value] * 2
    assert len(called) == calls
    assert message in caplog.text if message else not caplog.messages
