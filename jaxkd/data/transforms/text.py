"""Report to tokens: choose the sections, split into words, look the words up.

Words are lower case, split on everything that is neither letter nor digit; the vocabulary holds the most
frequent words of the training reports alone; [PAD] = 0, [CLS] = 1, [UNK] = 2.

Sections [our choice], by the headings of jaxkd/data/report_sections.py:
    both         impression, then findings: a report that is too long loses the end of its findings first.
                 Without either header the whole text is taken (notes, short reports).
    findings, impression
                 that section alone. A report without it gives [CLS] alone, never another section: labels are
                 often made from the impression, and a teacher that must not read it then would.
"""
import collections
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.data import report_sections
from jaxkd.data.report_sections import HIDDEN, words

DEFAULTS = dict(
    section='both',  # of a report: both (impression, then findings), findings or impression
    length=256,  # tokens with [CLS]; longer reports are cut, shorter ones padded
    vocab=8192,  # ids in all, the three special ones included: the size of the network's table
    mask_terms=(),  # words or phrases that are read as [UNK], such as those that name the label; (): none
    key='text',  # key of the report in a record
    out='tokens',  # key of the tokens in a batch
)

PAD, CLS, UNK = 0, 1, 2
_FIRST = 3  # id of the first word


def fit(hp: ConfigDict, source: Any, indices: Sequence[int], progress: Callable) -> dict:
    """{'words': [...]}, most frequent first, ties in alphabetical order. Each study's report is counted once."""
    hide = hider(hp.mask_terms)
    counts: collections.Counter[str] = collections.Counter()
    for _, report in report_sections.reports(source, progress(list(indices))):
        counts.update(words(report, hp.section, hide))
    del counts[HIDDEN]
    if not counts:
        raise errors.BadData(f'{source.name}: no training report has a word in section "{hp.section}". '
                             'Choose another section or another text column.')
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {'words': ranked[:hp.vocab - _FIRST]}


def build(hp: ConfigDict, fitted: dict | None = None) -> Transform:
    """fitted: what `fit` returned. Without one every word is [UNK], which is enough to know shapes."""
    check_section('text', hp.section)
    if hp.length < 1 or hp.vocab <= _FIRST:
        raise errors.ConfigError(f'text: length = {hp.length} and vocab = {hp.vocab} leave no room for a word.')
    vocabulary = (fitted or {'words': ()})['words']
    if len(vocabulary) + _FIRST > hp.vocab:
        raise errors.ConfigError(f'text.vocab = {hp.vocab} is smaller than the stored vocabulary of '
                                 f'{len(vocabulary) + _FIRST}.')
    ids = {HIDDEN: UNK, **{word: i for i, word in enumerate(vocabulary, _FIRST)}}
    tokenize = functools.partial(apply, ids=ids, hide=hider(hp.mask_terms), section=hp.section, length=hp.length,
                                 key=hp.key, out=hp.out)
    return Transform(tokenize, reads=(hp.key,), writes=(hp.out, 'present'), takes='text')


def apply(record: Record, ids: dict[str, int], hide: re.Pattern | None, section: str, length: int, key: str,
          out: str) -> Record:
    """Adds int32 [length]: [CLS], the words, [PAD]; and whether there was any word, in present[out]."""
    tokens = np.full(length, PAD, np.int32)
    parts_found = [CLS, *(ids.get(word, UNK) for word in words(record[key], section, hide)[:length - 1])]
    tokens[:len(parts_found)] = parts_found
    present = {**record.get('present', {}), out: np.float32(len(parts_found) > 1)}
    return {**record, out: tokens, 'present': present}


def size(hp: ConfigDict) -> int:
    """Words of the table that a network needs for these tokens."""
    return hp.vocab


def check_section(name: str, section: str) -> None:
    """ConfigError for a section that there is not."""
    if section not in ('both', 'findings', 'impression'):
        raise errors.ConfigError(f'{name}.section = "{section}" is none of both, findings, impression.')


def hider(terms: Sequence[str], name: str = 'text') -> re.Pattern | None:
    """That of report_sections; ConfigError for a term without a letter or digit."""
    try:
        return report_sections.hider(terms)
    except ValueError as e:
        raise errors.ConfigError(f'{name}.mask_terms holds {e}. Remove it.') from e


def describe(hp: ConfigDict, source: Any, indices: Sequence[int]) -> str:
    """How much of the training reports is read, and from which sections."""
    return report_sections.coverage(source, indices, hp.section)


PLUGIN = TransformPlugin(fit=fit, vocabulary_size=size, describe=describe)
