"""Report to tokens: choose the sections, split into words, look the words up.

Words are lower case, split on everything that is neither letter nor digit; the vocabulary holds the most
frequent words of the training reports alone; [PAD] = 0, [CLS] = 1, [UNK] = 2.

Sections [our choice]: a header is FINDINGS or IMPRESSION (also CONCLUSION) in any case with a colon, wherever
it stands; any other word group in capitals with a colon ends a section. "FINDINGS AND IMPRESSION" counts as
impression.
    both         impression, then findings: a report that is too long loses the end of its findings first.
                 Without either header the whole text is taken (notes, short reports).
    findings, impression
                 that section alone. A report without it gives [CLS] alone, never another section: labels are
                 often made from the impression, and a teacher that must not read it then would.
"""
import collections
import functools
import re

import numpy as np

from jaxkd import errors

DEFAULTS = dict(
    section='both',  # or 'findings', 'impression'
    length=256,  # tokens with [CLS]; longer reports are cut, shorter ones padded
    vocab=8192,  # ids in all, the three special ones included: the size of the network's table
    mask_terms=(),  # words or phrases that are read as [UNK], such as those that name the label
    key='text',
    out='tokens',
)

PAD, CLS, UNK = 0, 1, 2
_FIRST = 3  # id of the first word
_HIDDEN = '[unk]'  # no word: it has brackets
_HEADER = re.compile(r'\b(?:(?i:(?P<both>findings\s*(?:and|/|&)\s*impressions?)|(?P<findings>findings)'
                     r'|(?P<impression>impressions?|conclusions?))|[A-Z]{2,}(?:[ '
                     r'/]+[A-Z]{2,}){0,8}(?:\([A-Z]+\))?)\s*:')
_WORD = re.compile(r'[^\W_]+')


def fit(hp, source, indices, progress):
    """{'words': [...]}, most frequent first, ties in alphabetical order. Each study's report is counted once.

    A source that offers `text(i)` is asked for that alone, so that no image is decoded.
    """
    read = getattr(source, 'text', None) or (lambda i: source[i]['text'])
    hide, counts, seen = _hider(hp.mask_terms), collections.Counter(), set()
    for i in progress(list(indices)):
        case = source.cases[i]
        study = (case.patient, case.study) if case.study else case.id
        if study not in seen:
            seen.add(study)
            counts.update(words(read(i), hp.section, hide))
    del counts[_HIDDEN]
    if not counts:
        raise errors.BadData(f'{source.name}: no training report has a word in section "{hp.section}". '
                             'Choose another section or another text column.')
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {'words': ranked[:hp.vocab - _FIRST]}


def build(hp, asset=None):
    """asset: what `fit` returned. Without one every word is [UNK], which is enough to know shapes."""
    if hp.section not in ('both', 'findings', 'impression'):
        raise errors.ConfigError(f'text.section = "{hp.section}" is none of both, findings, impression.')
    if hp.length < 1 or hp.vocab <= _FIRST:
        raise errors.ConfigError(f'text: length = {hp.length} and vocab = {hp.vocab} leave no room for a '
                                 'word.')
    known = (asset or {'words': ()})['words']
    if len(known) + _FIRST > hp.vocab:
        raise errors.ConfigError(f'text.vocab = {hp.vocab} is smaller than the stored vocabulary of '
                                 f'{len(known) + _FIRST}.')
    ids = {_HIDDEN: UNK, **{word: i for i, word in enumerate(known, _FIRST)}}
    return functools.partial(apply, ids=ids, hide=_hider(hp.mask_terms), section=hp.section, length=hp.length,
                             key=hp.key, out=hp.out)


def apply(record, ids, hide, section, length, key, out):
    """Adds int32 [length]: [CLS], the words, [PAD]; and whether there was any word, in present[out]."""
    tokens = np.full(length, PAD, np.int32)
    found = [CLS, *(ids.get(word, UNK) for word in words(record[key], section, hide)[:length - 1])]
    tokens[:len(found)] = found
    present = {**record.get('present', {}), out: np.float32(len(found) > 1)}
    return {**record, out: tokens, 'present': present}


def words(text, section, hide=None):
    """The words of the chosen section, hidden terms replaced. hide: what `_hider` made."""
    found = _WORD.findall(sections(text, section).lower())
    if hide is None:
        return found
    return hide.sub(lambda match: ' '.join([_HIDDEN] * len(match[0].split())), ' '.join(found)).split()


def sections(text, section):
    """The text of 'findings', 'impression', or 'both' (see the head of the file)."""
    found, headers = {}, list(_HEADER.finditer(text))
    for header, following in zip(headers, [*headers[1:], None]):
        kind = 'impression' if header.lastgroup == 'both' else header.lastgroup
        if kind:
            body = text[header.end():following.start() if following else len(text)]
            found[kind] = found.get(kind, '') + ' ' + body
    if section != 'both':
        return found.get(section, '')
    return ' '.join(found[kind] for kind in ('impression', 'findings') if kind in found) if found else text


def _hider(terms):
    """A pattern for whole words and phrases in words joined by single spaces; None without terms."""
    phrases = [' '.join(_WORD.findall(term.lower())) for term in terms]
    if '' in phrases:
        raise errors.ConfigError('text.mask_terms holds a term without a letter or digit. Remove it.')
    phrases.sort(key=len, reverse=True)  # the longest that fits
    return re.compile(r'(?<!\S)(?:' + '|'.join(map(re.escape, phrases)) + r')(?!\S)') if phrases else None
