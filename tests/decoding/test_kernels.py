"""Triton kernels, run by its interpreter, and alignment on a device, beside their plain equals."""

import importlib
import logging
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from corpus_asr.decoding import alignment, kernels, options
from corpus_asr.decoding.jobs import TokenTiming
from corpus_asr.families.layers import blocks
from corpus_asr.families.layers.kv_cache import to_float8

# NumPy, by which the interpreter computes, warns of what a GPU is silent about.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@contextmanager
def remade(*modules: ModuleType, **environment: str) -> Iterator[None]:
    """Functions of Triton's are made for the interpreter, or for a compiler, when defined."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(torch.version, "cuda", "13.0")
        for module in modules:
            importlib.reload(module)
        yield
    for module in modules:
        importlib.reload(module)


@pytest.fixture
def interpreted() -> Iterator[ModuleType]:
    triton = pytest.importorskip("triton")
    library = triton.language.standard, triton.language
    with remade(*library, kernels, TRITON_INTERPRET="1"):
        yield kernels


HALF, FLOAT, LONG, FLAG, BYTE = "*fp16", "*fp32", "*i64", "*i1", "*u8"
SUMS = {"attended": FLOAT, "sums": FLOAT}
CACHED = {"queries": HALF, "keys": HALF, "values": HALF, **SUMS}
SIZES = {"PART": 512, "AT_ONCE": 32, "WIDTH": 64, "STAGES": 3}
ROWS = {
    "logits": FLOAT, "bias": FLOAT, "grammar": FLAG, "last_is_timestamp": FLAG,
    "before_is_timestamp": FLAG, "last_timestamp": LONG, "temperatures": FLOAT, "seeds": LONG,
    "lengths": LONG, "tokens": LONG, "logprobs": FLOAT,
}  # fmt: skip
# By kernel: types of what is no whole number, and constants.
COMPILED: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "diagonals": ("_diagonals", {"costs": FLOAT, "sums": FLOAT}, {"BLOCK": 256}),
    "attend": (
        "_attend_part",
        CACHED,
        SIZES | {"MASKED": False, "FLOAT8": False, "NATIVE": True, "unseen": None, "scales": None},
    ),
    "attend, masked, in 8 bits": (
        "_attend_part",
        CACHED | {"keys": BYTE, "values": BYTE, "unseen": FLAG, "scales": FLOAT},
        SIZES | {"MASKED": True, "FLOAT8": True, "NATIVE": True},
    ),
    "attend in 8 bits, as older GPUs do": (
        "_attend_part",
        CACHED | {"keys": BYTE, "values": BYTE, "scales": FLOAT},
        SIZES | {"MASKED": False, "FLOAT8": True, "NATIVE": False, "unseen": None},
    ),
    "parts": ("_attend_whole", SUMS | {"result": HALF}, {"PARTS": 4, "WIDTH": 64}),
    "choose": ("_choose", ROWS, {"SAMPLED": True, "BLOCK": 1024}),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if "masked" in name else [pytest.mark.slow]) for name in COMPILED],
)
def test_kernels_compile_for_a_gpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    # In a process of its own: once kernels were interpreted in one, it cannot compile.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        assembly, size = processes.submit(compile_kernel, name).result()
    assert size > 1000
    # What is rounded less than float32 does, near 1, would choose other tokens.
    assert "lg2.approx" not in assembly


def compile_kernel(name: str) -> tuple[str, int]:
    """Compile a kernel for an H100; return its assembly, and the size of its binary in bytes."""
    triton = importlib.import_module("triton")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    kernel_name, types, constants = COMPILED[name]
    with remade(kernels):
        kernel = getattr(kernels, kernel_name)
        signature = {one: types.get(one, "i32") for one in kernel.arg_names}
        source = triton.compiler.ASTSource(
            fn=kernel,
            signature=signature | dict.fromkeys(constants, "constexpr"),
            constexprs={(kernel.arg_names.index(one),): v for one, v in constants.items()},
        )
        made = triton.compile(source, target=target)
    return made.asm["ptx"], len(made.asm["cubin"])


@pytest.mark.parametrize(("tokens", "positions"), [(1, 1), (1, 7), (6, 1), (5, 12)])
def test_sums_along_diagonals_are_those_of_torch(
    interpreted: ModuleType, tokens: int, positions: int
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    shape = (tokens + positions + 1, 3, tokens + 1)
    # Few values, so that ways cost the same.
    costs = torch.randint(-2, 3, shape, generator=generator) / 2
    costs[torch.rand(shape, generator=generator) < 0.1] = torch.inf
    assert torch.equal(interpreted.sum_diagonals(costs), alignment._sum_diagonals(costs))


@pytest.mark.long
@pytest.mark.parametrize(
    "dtype",
    [torch.float16, *(pytest.param(each, marks=pytest.mark.slow)
                      for each in (torch.float32, torch.bfloat16))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("masked", [False, True])
def test_one_query_attends_as_the_plain_products_do(
    interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, masked: bool
) -> None:
    # Three parts of two blocks each, of which the last is not full.
    monkeypatch.setattr(interpreted, "_PART", 16)
    monkeypatch.setattr(interpreted, "_AT_ONCE", 8)
    generator = torch.Generator().manual_seed(1)
    # The first 45 of 50 positions of a cache, as a reach leaves them; heads of an odd width.
    query, *cache = (
        torch.randn(2, 2, count, 12, generator=generator).to(dtype) for count in (1, 50, 50)
    )
    key, value = (held[:, :, :45] for held in cache)
    unseen = None
    if masked:
        # A whole block, and a part, of the first row; all but one position of the second.
        unseen = torch.zeros(2, 1, 1, 45, dtype=torch.bool)
        unseen[0, ..., 8:33] = unseen[1] = True
        unseen[1, ..., 44] = False
        key.masked_fill_(unseen.transpose(2, 3), torch.nan)
    given: tuple[Any, ...] = query, key, value, unseen, None
    found = interpreted.attend_one(*given)
    assert found.dtype == dtype
    assert blocks._is_same_attention(found, found, given)
    for row in range(2):
        wrong = found.clone()
        wrong[row, 1, 0, 3] += 0.05
        assert not blocks._is_same_attention(wrong, found, given)
    in_8_bits = [to_float8(held.nan_to_num()) for held in (key, value)]
    scales = torch.stack([each for _, each in in_8_bits])
    given = query, *(held for held, _ in in_8_bits), unseen, scales
    rounded = interpreted.attend_one(*given)
    assert blocks._is_same_attention(rounded, rounded, given)
    assert 0.0 < (rounded - found).abs().max() < 0.2
    given = query, key, value, unseen, None
    query[1, 1, 0, 3] = torch.nan
    spoilt = interpreted.attend_one(*given).isnan()
    assert spoilt[1, 1].all()
    assert spoilt.sum() == 12


VOCAB, BEGIN, END = 60, 40, 30


@pytest.mark.long
@pytest.mark.parametrize(
    ("begin", "sampled"),
    [
        (BEGIN, True),
        (VOCAB, False),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((BEGIN, False), (VOCAB, True))),
    ],
)
def test_the_next_tokens_are_those_that_rules_and_noise_choose(
    interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch, sampled: bool, begin: int
) -> None:
    monkeypatch.setattr(interpreted, "_VOCAB_AT_ONCE", 16)
    generator = torch.Generator().manual_seed(2)
    # Every state of the grammar twice, once with timestamps that are likelier than any text.
    states = torch.tensor([[g, a, b] for g in (0, 1) for a in (0, 1) for b in (0, 1)] * 2).bool()
    rows = len(states)
    logits = 4 * torch.randn(rows, VOCAB, generator=generator)
    logits[rows // 2 :, BEGIN:] += 6
    logits[0, :4] = logits[0].max() + 1  # of equal ones the first
    bias = torch.zeros(rows, VOCAB)
    bias[:, [3, 7, 41]] = -torch.inf
    bias[1, :30] = -torch.inf
    last = torch.randint(-1, VOCAB - BEGIN, (rows,), generator=generator)
    temperatures = torch.tensor([0.0, 0.4, 1.0, 2.0]).repeat(rows // 4)
    seeds = torch.randint(-(1 << 62), 1 << 62, (rows,), generator=generator)
    lengths = 1 + torch.arange(rows)
    said = states.t().contiguous() if begin == BEGIN else torch.zeros(3, rows, dtype=torch.bool)
    given = (bias, *said, last, temperatures, seeds, lengths, begin, END, sampled)
    expected = options.choose_next(logits.clone(), *given)
    found = interpreted.choose_next(logits, *given)
    assert options._is_same_choice(found, expected, ())
    assert not options._is_same_choice((found[0], found[1] + 0.01), expected, ())
    assert not options._is_same_choice((found[0] + 1, found[1]), expected, ())
    assert len(set(found[0].tolist())) > 5
    logits[2] = torch.nan
    tokens, logprobs = interpreted.choose_next(logits, *given)
    expected = options.choose_next(logits, *given)
    assert options._is_same_choice((tokens, logprobs), expected, ())
    assert logprobs.isnan().tolist() == [row == 2 for row in range(rows)]
    assert 0 <= int(tokens[2]) < VOCAB


def right(given: torch.Tensor) -> torch.Tensor:
    return given + 1


def wrong(given: torch.Tensor) -> torch.Tensor:
    return given + 2


def broken(given: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no compiler")


@pytest.mark.parametrize(
    ("kernel", "calls", "message"),
    [(right, 4, None), (wrong, 2, "its result differs"), (broken, 2, "no compiler")],
)
def test_a_kernel_is_used_if_it_gives_what_its_equal_gives(
    kernel: Any, calls: int, message: str | None,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(kernels, "_HAS_TRITON", True)
    called: list[int] = []

    def counted(given: torch.Tensor) -> torch.Tensor:
        called.append(1)
        return torch.Tensor(kernel(given))

    checked = kernels.Checked(counted, right)
    with caplog.at_level(logging.WARNING):
        # Another type is looked at again.
        for dtype in (torch.float32, torch.float16):
            for value in (1.0, 2.0):
                assert checked(torch.tensor([value], dtype=dtype)).tolist() == [value + 1]
    assert len(called) == calls
    assert message in caplog.text if message else not caplog.messages


def test_a_kernel_that_lacks_memory_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_HAS_TRITON", True)
    lacking = [True]

    def kernel(given: torch.Tensor) -> torch.Tensor:
        if lacking.pop():
            raise torch.OutOfMemoryError("no memory")
        return given + 1

    checked = kernels.Checked(kernel, right)
    with pytest.raises(torch.OutOfMemoryError):
        checked(torch.zeros(1))
    lacking += [False, False]
    for _ in range(2):
        assert checked(torch.zeros(1)).tolist() == [1.0]
    assert lacking == []


HEADS = 3


def attention(rng: np.random.Generator, tokens: int, positions: int) -> np.ndarray:
    """Weights that follow the text through the window, with some noise."""
    places = np.sort(rng.uniform(0, positions, tokens))
    distance = np.arange(positions) - places[:, None]
    scores = -np.square(distance / 6) + rng.normal(0, 1, (HEADS, tokens, positions))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def side_by_side(windows: list[np.ndarray], timings: list[TokenTiming]) -> list[tuple[int, ...]]:
    longest = max(window.shape[1] for window in windows)
    padded = torch.full((len(windows), HEADS, longest, windows[0].shape[2]), torch.nan)
    for row, window in enumerate(windows):
        padded[row, :, : window.shape[1]] = torch.from_numpy(window)
    steps = alignment._steps_on_device(padded, [w.shape[1] for w in windows], timings)
    return [
        tuple(alignment._begins_in(own.numpy(), count=timing.count, end=timing.positions))
        for own, timing in zip(steps, timings, strict=True)
    ]


@pytest.mark.parametrize("width", [1, 3, 7])
def test_tokens_begin_where_they_do_alone(width: int) -> None:
    rng = np.random.default_rng(width)
    for _ in range(4):
        # Two of hardly any audio, where there is nothing to reflect.
        positions = [*rng.integers(4, 90, 5).tolist(), 1, 3]
        windows, timings = [], []
        for end in positions:
            tokens = int(rng.integers(4, 30))
            first = int(rng.integers(0, 3))
            windows.append(attention(rng, tokens, 90))
            timings.append(
                TokenTiming(first=first, count=tokens - first, positions=end, filter_width=width)
            )
        expected = [
            alignment.token_begins(window, timing)
            for window, timing in zip(windows, timings, strict=True)
        ]
        assert side_by_side(windows, timings) == expected
        assert all(begins == tuple(sorted(begins)) for begins in expected)


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_where_all_ways_cost_the_same_it_is_the_one_along_the_positions(value: float) -> None:
    window = np.full((HEADS, 6, 20), value, dtype=np.float32)
    timing = TokenTiming(first=1, count=4, positions=17, filter_width=3)
    expected = alignment.token_begins(window, timing)
    assert side_by_side([window, window], [timing, timing]) == [expected] * 2
