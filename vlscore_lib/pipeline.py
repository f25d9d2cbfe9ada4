"""A pipeline of two steps: the second step runs in a thread while the first continues."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


def finish_behind(items: Iterable, finish: Callable) -> Iterator:
    """Finish each item in a thread while the next one is made -> the results, in order.

    At most two items are held at a time.  If making an item fails, the one before it is still finished and
    yielded, so that no work is lost.

    Args:
        items: an iterator that makes an item at each step, in this thread.
        finish: a function of an item.
    """
    items, waiting, failure = iter(items), None, None
    with ThreadPoolExecutor(1) as pool:
        while True:
            try:
                following = pool.submit(finish, next(items))
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
    if failure is not None:
        raise failure
