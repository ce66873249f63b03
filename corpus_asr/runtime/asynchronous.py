"""Calls of a `Transcriber` from coroutines: each in a thread of its own, ended when its task is."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from corpus_asr.runtime.in_flight import CallCancelledError, Cancellation

_Found = TypeVar("_Found")
_ENDED = object()


async def called(call: Callable[[], _Found], cancellation: Cancellation) -> _Found:
    """Return what a call returns, made in a thread of its own.

    When the task is cancelled, the call ends first: what it holds is free afterwards.
    """
    with _Thread() as thread:
        return await _in(thread, call, cancellation)


async def iterated(
    iterator: Iterator[_Found], cancellation: Cancellation
) -> AsyncGenerator[_Found, None]:
    """Yield what an iterator yields, asked for in a thread of its own; then close it."""
    with _Thread() as thread:
        try:
            while True:
                found: Any = await _in(thread, lambda: next(iterator, _ENDED), cancellation)
                if found is _ENDED:
                    return
                yield found
        finally:
            cancellation.cancel()
            # Not in the loop's thread: closing waits for what is under way.
            thread.submit(getattr(iterator, "close", lambda: None))


class _Thread(ThreadPoolExecutor):
    # The loop's own threads are few, and each call would hold one until it ends.
    def __init__(self) -> None:
        super().__init__(max_workers=1, thread_name_prefix="transcribe")

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=False)  # the loop goes on


async def _in(
    thread: ThreadPoolExecutor, call: Callable[[], _Found], cancellation: Cancellation
) -> _Found:
    def ended() -> Any:
        try:
            return call()
        except CallCancelledError:
            return None  # nobody waits for it

    future = asyncio.get_running_loop().run_in_executor(thread, ended)
    try:
        found: _Found = await asyncio.shield(future)
        return found
    except asyncio.CancelledError:
        cancellation.cancel()
        future.add_done_callback(_seen)
        # Cancelled once more, as scopes of anyio do at each await, this does not wait.
        await asyncio.wait([future])
        raise


def _seen(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()  # nobody else asks for it
