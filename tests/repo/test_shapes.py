"""Shapes of the package's arguments are checked in tests: often at first, rarely in long loops."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from corpus_asr.audio.vad import even_level
from tests.support.shapes import begin_test


def refused(samples: np.ndarray) -> bool:
    try:
        even_level(samples)
    except TypeCheckError:
        return True
    except ValueError:  # of numpy, where nothing checked
        return False
    return False


def test_a_wrong_shape_is_told_of() -> None:
    assert not refused(np.zeros(4, np.float32))
    with pytest.raises(TypeCheckError, match="samples"):
        even_level(np.zeros((2, 2), np.float32))


def test_each_test_checks_its_first_calls() -> None:
    for _ in range(100):
        refused(np.zeros(4, np.float32))
    begin_test()
    assert refused(np.zeros((2, 2), np.float32))
