"""Sections of a radiology report.

FINDINGS and IMPRESSION (also CONCLUSION) are headings in any case with a colon, wherever they stand; "FINDINGS AND
IMPRESSION" is an impression. Headings of what is not seen on the image (CONTEXT: indication, history, comparison,
technique and the like) are so in capitals, and in any case at the start of a line [our choice]. A heading of another
name, such as LUNGS: or ET TUBE:, is text of the section in which it stands.

This file needs nothing of jaxkd: bundles of networks that read reports hold a copy, from which their run.py imports.
"""
import collections
import functools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxkd.data.source import Source

CONTEXT = (  # words of one heading, in capitals
    r'(?:PAST |PERTINENT |RELEVANT |BRIEF )?(?:CLINICAL |MEDICAL |PATIENT |SURGICAL )?HISTORY',
    r'(?:CLINICAL )?INDICATIONS?', r'CLINICAL (?:INFORMATION|DATA|DETAILS|STATEMENT|QUESTION|CONTEXT)',
    r'(?:HISTORY AND )?REASONS? FOR (?:THE |THIS )?(?:[A-Z]+ )?[A-Z]+', r'REFERRAL(?: REASON)?',
    r'COMPARISONS?(?: (?:STUDY|STUDIES|EXAMS?|EXAMINATIONS?|FILMS?|DATES?|MADE))?',
    r'(?:TECHNIQUES?|PROTOCOL)(?: AND COMPARISON)?', r'CONTRAST(?: AGENT| MEDIUM)?',
    r'(?:TYPE OF )?(?:EXAM|EXAMINATION|STUDY|PROCEDURE)S?(?: (?:DATE|TYPE|NAME|DESCRIPTION))?',
    r'DATE(?: OF (?:EXAM|EXAMINATION|STUDY|SERVICE))?', r'(?:FINAL|PRELIMINARY) REPORT', r'WET READ',
    r'(?:NOTIFICATION|RECOMMENDATION)S?',
    r'(?:ELECTRONICALLY )?(?:SIGNED|DICTATED|TRANSCRIBED|REPORTED)(?: BY)?')
_CONTEXT = '(?:{})(?:\\([Ss]\\))?'.format('|'.join(CONTEXT)).replace(' ', r'[ \t]+')
_HEADING = re.compile(
    rf'(?:(?P<line>(?m:^)[ \t]*(?i:{_CONTEXT}))|(?P<context>(?<![A-Z][ /])\b{_CONTEXT})'
    r'|\b(?i:(?P<both>findings\s*(?:and|/|&)\s*impressions?)|(?P<findings>findings)'
    r'|(?P<impression>impressions?|conclusions?)))\s*:')
WORD = re.compile(r'[^\W_]+')
HIDDEN = '[unk]'  # no word: it has brackets
_LONGEST = 80  # characters of a heading
KINDS = ('impression', 'findings')
_KIND = {'both': 'impression', 'findings': 'findings', 'impression': 'impression'}
_MOST_REPORTS = 2000  # [our choice] reports that are counted for the log
_MOST_HEADINGS = 8


class Section(NamedTuple):
    """A section of a report."""

    kind: str  # 'findings', 'impression', or '' for any other
    heading: str  # in capitals, without colon; '' for what stands before the first
    body: str


def headings(text: str) -> list[tuple[str, int, int]]:
    """(kind, start, end) of the headings of a report, in order; kind as in Section, the colon is the last character.

    Colons are few, so what stands before each is looked at. No heading holds a full stop, and what follows one is often
    the same.
    """
    found: list[tuple[str, int, int]] = []
    start = 0
    while (colon := text.find(':', start)) >= 0:
        start = text.rfind('.', start, colon) + 1 or start
        if colon - start < _LONGEST:
            heading = _heading(text[start:colon + 1], start == 0)
        else:
            start = colon - _LONGEST
            heading = _found(_HEADING.search(text, start, colon + 1), start)
        if heading:
            found.append((heading[0], start + heading[1], colon + 1))
        start = colon + 1
    return found


@functools.lru_cache(2**14)
def _heading(text: str, first: bool) -> tuple[str, int] | None:
    """(kind, start) of the heading at the end of what stands between a full stop or colon and a colon.

    first: whether the report begins with it.
    """
    before = '' if first else '.'
    return _found(_HEADING.search(before + text), len(before))


def _found(heading: re.Match | None, start: int) -> tuple[str, int] | None:
    return (_KIND.get(heading.lastgroup or '', ''), heading.start() - start) if heading else None


def _with_bodies(text: str) -> list[tuple[str, str, str]]:
    """(kind, heading with its colon, body) of each heading; kind as in Section."""
    found = headings(text)
    stops = [*(start for _, start, _ in found[1:]), len(text)]
    return [(kind, text[start:end], text[end:stop]) for (kind, start, end), stop in zip(found, stops)]


def split(text: str) -> list[Section]:
    """The sections of a report in their order; what stands before the first heading is one, too."""
    first = next((start for _, start, _ in headings(text)), len(text))
    return [Section('', '', text[:first]), *(Section(kind, ' '.join(heading[:-1].upper().split()), body)
                                             for kind, heading, body in _with_bodies(text))]


def chosen(text: str, section: str) -> tuple[tuple[str, str], ...]:
    """((kind, body), ...) of 'findings', 'impression' or 'both': the impression first; bodies of one kind are joined.

    With 'both' (('', text),) of a report without either heading.
    """
    bodies: dict[str, str] = {}
    for kind, _, body in _with_bodies(text):
        if kind:
            bodies[kind] = f'{bodies.get(kind, "")} {body}'
    if section == 'both' and not bodies:
        return (('', text),)
    return tuple((kind, bodies[kind]) for kind in KINDS if kind in bodies and section in (kind, 'both'))


def sections(text: str, section: str) -> str:
    """The text of 'findings', 'impression', or 'both'."""
    return ' '.join(body for _, body in chosen(text, section))


def hider(terms: Sequence[str]) -> re.Pattern | None:
    """A pattern that finds terms as whole words in any case, whatever stands between the words of a phrase; None
    without terms. ValueError for a term without a letter or digit.
    """
    phrases = [WORD.findall(term) for term in terms]
    if [] in phrases:
        raise ValueError('a term without a letter or digit')
    phrases.sort(key=lambda phrase: -len(' '.join(phrase)))  # the longest that fits
    either = '|'.join(r'[\W_]+'.join(map(re.escape, phrase)) for phrase in phrases)
    return re.compile(rf'(?<![^\W_])({either})(?![^\W_])', re.I) if phrases else None


def shown(text: str, hide: re.Pattern | None) -> list[tuple[str, bool]]:
    """[(part of the text, whether it is to be hidden), ...]. hide: what `hider` made."""
    return [(part, i % 2 == 1) for i, part in enumerate(hide.split(text) if hide else [text])]


def words(text: str, section: str, hide: re.Pattern | None = None) -> list[str]:
    """The words of 'findings', 'impression' or 'both' in lower case, those of hidden terms replaced by HIDDEN."""
    found: list[str] = []
    for part, hidden in shown(sections(text, section), hide):
        lower = WORD.findall(part.lower())
        found += [HIDDEN] * len(lower) if hidden else lower
    return found


def without_headings(text: str) -> str:
    """A text in which no word is a heading: each loses its colon, also one that this makes."""
    while ends := [end for *_, end in headings(text)]:
        text = ''.join([*(text[start:stop - 1] for start, stop in zip([0, *ends], ends)), text[ends[-1]:]])
    return text


def reports(source: 'Source', indices: Sequence[int]) -> Iterator[tuple[str, str]]:
    """(case id, text) of these cases, each study once."""
    studies = set()
    for i in indices:
        case = source.cases[i]
        study = (case.patient, case.study) if case.study else case.id
        if study not in studies:
            studies.add(study)
            yield case.id, source.text(i)


def coverage(source: 'Source', indices: Sequence[int], section: str) -> str:
    """One sentence or two for the log: how much of the reports of these cases is read, and from which sections.

    Of many reports an even sample is counted; a small one where each opens an image.
    """
    limit = _MOST_REPORTS if source.text_without_image else 100
    sample = list(indices)[::max(1, -(-len(indices) // limit))]
    total, words, words_read, silent = 0, 0, 0, []
    read: collections.Counter[str] = collections.Counter()
    unread: collections.Counter[str] = collections.Counter()
    for case, text in reports(source, sample):
        sizes = [(kind, heading, len(WORD.findall(body))) for kind, heading, body in split(text)]
        used = {kind: sum(size for k, _, size in sizes if k == kind) for kind in KINDS
                if section in (kind, 'both') and any(k == kind for k, *_ in sizes)}
        if section == 'both' and not used:
            used = {'': len(WORD.findall(text))}
        total += 1
        words += sum(used.values()) if '' in used else sum(size for *_, size in sizes)
        words_read += sum(used.values())
        read.update(kind.upper() or 'the whole text' for kind, size in used.items() if size)
        silent += [] if any(used.values()) else [case]
        if '' not in used:
            unread.update({heading or 'before the first heading' for kind, heading, size in sizes
                           if size and kind not in used})
    sampled = f' (a sample of {len(sample):,} of {len(indices):,} cases)' if len(sample) < len(indices) else ''
    share = 100 * words_read / max(1, words)
    message = (f'{total:,} reports{sampled}: {share:.0f} % of their words are read with section="{section}", '
               f'from {_listed(read) or "no section"}')
    message += f'; not read: {_listed(unread)}' if unread else ''
    return message + (f'; {len(silent):,} give no word, the first is {silent[0]}' if silent else '')


def _listed(counts: collections.Counter[str]) -> str:
    """'FINDINGS (in 90), ...', the most frequent first."""
    shown = [f'{name} (in {count:,})' for name, count in counts.most_common(_MOST_HEADINGS)]
    return ', '.join([*shown, *([f'{len(counts) - len(shown)} more'] if len(counts) > len(shown) else [])])
