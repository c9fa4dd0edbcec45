"""Work in threads, a bounded number of items ahead."""
import collections


def map_ahead(pool, f, items, ahead):
    """f of each item in order, in threads, at most so many beyond what was taken: millions of futures would fill the
    memory.
    """
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
