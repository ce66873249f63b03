"""A process that dies after so many steps, without dying.

left = iter(range(3))
patch.setattr(filesystem, "remove", dying(filesystem.remove, left))
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any


class Killed(BaseException):
    """The process died."""


def dying(function: Callable[..., Any], left: Iterator[int]) -> Callable[..., Any]:
    """Return `function` that works while `left`, shared by several, has steps and then raises."""
    guard = threading.Lock()

    def call(*args: Any, **kwargs: Any) -> Any:
        with guard:
            if next(left, None) is None:
                raise Killed
        return function(*args, **kwargs)

    return call
