"""Work in threads, a bounded number of items ahead."""
import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')


def map_ahead(pool: Executor, f: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """f of each item in order, in threads, at most `ahead` items before the consumer, which bounds the memory."""
    waiting: collections.deque = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(f, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
