"""Find the cases that do not load, by loading every one of them."""
import concurrent.futures
import os

from jaxkd import errors


def failures(source):
    """{index: reason} of the cases whose record cannot be made. Threads do not change the result."""
    from tqdm import tqdm
    with concurrent.futures.ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        found = pool.map(lambda i: _failure(source, i), range(len(source)))
        # disable=None: a bar on a terminal, silence in a log file
        reasons = list(tqdm(found, f'{source.name}: checking', len(source), unit='case', disable=None))
    return {i: reason for i, reason in enumerate(reasons) if reason}


def _failure(source, i):
    try:
        source[i]
    except (errors.BadData, errors.MissingInput) as e:
        return str(e)
    return ''
