"""Report to WordPiece tokens of a pretrained BERT: choose sections, hide terms, split by the vocabulary of the weights.

`file` is what lies beside the weights: vocab.txt (one piece a line, its number is its id) or tokenizer.json of the
library tokenizers. BERT's normalisation, its words and greedy longest-match pieces (Devlin et al., NAACL 2019
[published]) are that library's. A tokenizer.json that asks for another model or other steps is refused; its truncation
and padding are replaced by `length`.

    [CLS] pieces [SEP] [PAD] ...        [PAD] must be id 0, as the networks of jaxkd/models take it

Pieces of special tokens come from here alone: "[SEP]" in a report is text. Sections are those of
jaxkd/data/report_sections.py: with 'both' the impression stands first and is kept whole, a report that is too long
loses the end of its findings [our choice]. Where reports are cut, and where even an impression is, a line says how many
and how long the longest is.

Nothing is learned from training cases, so a prepared cache may hold the tokens.
"""
import collections
import functools
import hashlib
import json
import os
import re
import threading
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.data import report_sections
from jaxkd.data.formats import image
from jaxkd.data.transforms import text
from jaxkd.runtime import log, versions

DEFAULTS = dict(
    file='',  # vocab.txt or tokenizer.json, as it lies beside the weights
    section='both',  # of a report: both (impression, then findings), findings or impression
    length=256,  # tokens with [CLS] and [SEP]; longer reports are cut, shorter ones padded
    mask_terms=(),  # words or phrases of which each word is read as [UNK], such as those that name the label; (): none
    lower=True,  # lower case without accents; False: for a cased vocabulary
    key='text',  # key of the report in a record
    out='tokens',  # key of the tokens in a batch
)

SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]')
MOST_BYTES = 2**25  # of the file; that of 120,000 pieces in 100 languages has 3 MB

# ids {piece: id}; digest of what decides; longest word that is looked up, in characters
Vocabulary = collections.namedtuple('Vocabulary', 'ids digest longest')


def build(hp: ConfigDict) -> Transform:
    """Raises ConfigError, BadData or MissingInput for options, or a file, that cannot be used."""
    text.check_section('wordpiece', hp.section)
    if hp.length < 3:
        raise errors.ConfigError(f'wordpiece.length = {hp.length} leaves no room for a piece between [CLS] and [SEP].')
    found = vocabulary(hp)
    normalizer, encoder = _library(found, hp.lower)
    terms = tuple(map(normalizer.normalize_str, hp.mask_terms))
    special = tuple(found.ids[name] for name in SPECIAL[1:])
    tokenize = functools.partial(apply, normalizer=normalizer, encoder=encoder, special=special,
                                 hide=text.hider(terms, 'wordpiece'),
                                 section=hp.section, length=hp.length, key=hp.key, out=hp.out, cuts=Cuts(hp.length))
    return Transform(tokenize, reads=(hp.key,), writes=(hp.out, 'present'), takes='text')


def apply(record: Record, normalizer: Any, encoder: Any, special: tuple[int, int, int], hide: re.Pattern | None,
          section: str, length: int, key: str, out: str, cuts: 'Cuts') -> Record:
    """Adds int32 [length]: [CLS], the pieces, [SEP], [PAD]; and whether there was any piece, in present[out]."""
    unknown, cls, sep = special
    ids: list[int] = []
    impression = 0  # pieces of the impression
    for name, body in report_sections.chosen(record[key], section):
        for part, hidden in report_sections.shown(normalizer.normalize_str(body), hide):
            ids += ([unknown] * len(report_sections.WORD.findall(part)) if hidden else
                    encoder.encode(part, add_special_tokens=False).ids)
        impression = len(ids) if name == 'impression' else impression
    if len(ids) + 2 > length:
        cuts.add(record[key], len(ids) + 2, impression + 2 > length)
    found = [cls, *ids[:length - 2], sep]
    tokens = np.zeros(length, np.int32)
    tokens[:len(found)] = found
    present = {**record.get('present', {}), out: np.float32(len(ids) > 0)}
    return {**record, out: tokens, 'present': present}


class Cuts:
    """Counts the reports that were cut; logs at the first, tenth, hundredth ..., and at the first cut impression."""

    def __init__(self, length: int) -> None:
        self.length, self.lock = length, threading.Lock()
        self.reports: set[int] = set()  # hashes of reports
        self.impressions, self.longest = 0, 0

    def __reduce__(self) -> tuple:  # another process counts its own
        return Cuts, (self.length,)

    def add(self, report: str, tokens: int, impression: bool) -> None:
        """A report of so many tokens, and whether even its impression did not fit."""
        with self.lock:
            if hash(report) in self.reports:
                return
            self.reports.add(hash(report))
            self.impressions += impression
            self.longest = max(self.longest, tokens)
            due = str(len(self.reports)).strip('0') == '1' or impression and self.impressions == 1
            message = (f'wordpiece: reports longer than data.wordpiece.length = {self.length} so far: '
                       f'{len(self.reports)}, the longest of {self.longest} tokens. Their end is cut{self._where()}')
        if due:
            log.info(message)

    def _where(self):
        if not self.impressions:
            return ', behind the impression where they have one.'
        return f'; in {self.impressions} of them that is the end of the impression. Raise the length.'


def size(hp: ConfigDict) -> int:
    """Pieces of the vocabulary: rows of the table that a network needs for these tokens."""
    return len(vocabulary(hp).ids)


def file_digest(hp: ConfigDict) -> str:
    """A digest of what the file holds: tokens in a prepared cache are only right for it."""
    return vocabulary(hp).digest


def vocabulary(hp: ConfigDict) -> Vocabulary:
    """The Vocabulary of hp.file. Raises ConfigError, BadData, MissingInput."""
    if not hp.file:
        raise errors.ConfigError('data.wordpiece.file is empty. Give the vocab.txt or tokenizer.json that lies beside '
                                 'the weights.')
    try:
        stamp = os.stat(hp.file).st_mtime_ns
    except (OSError, ValueError):  # `contents` tells why
        stamp = None
    return _vocabulary(str(hp.file), hp.lower, stamp)


@functools.lru_cache(maxsize=4)
def _vocabulary(path, lower, stamp):
    try:
        data = image.read_bytes(path, MOST_BYTES)
    except errors.MissingInput as e:
        raise errors.MissingInput(f'data.wordpiece.file = {path} does not exist. Give the vocab.txt or tokenizer.json '
                                  'that lies beside the weights.') from e
    try:
        content = data.decode('utf-8-sig')
    except UnicodeDecodeError as e:
        raise _damaged(path, f'byte {e.start} is not UTF-8') from e
    ids, longest = _tokenizer_json(path, content, lower) if path.endswith('.json') else (_vocab_txt(path, content), 100)
    missing = [name for name in SPECIAL if name not in ids]
    if missing:
        raise errors.ConfigError(f'data.wordpiece.file = {path} has no {missing[0]}: it is no vocabulary of BERT. Give '
                                 'the one that lies beside the weights.')
    if ids['[PAD]']:
        raise errors.ConfigError(f'data.wordpiece.file = {path}: [PAD] has the id {ids["[PAD]"]}. The networks take 0 '
                                 'for padding, so weights of this vocabulary cannot be used.')
    if not lower and not any(piece != piece.lower() for piece in ids if not piece.startswith('[')):
        raise errors.ConfigError(f'data.wordpiece.lower is False, but {path} has no capital letter: every word with '
                                 'one would be unknown. Set it to True.')
    digest = hashlib.sha256(json.dumps([sorted(ids.items()), longest]).encode()).hexdigest()
    return Vocabulary(ids, digest, longest)


def _vocab_txt(path, content):
    pieces = content.replace('\r\n', '\n').removesuffix('\n').split('\n')
    ids = {piece: i for i, piece in enumerate(pieces)}
    if '' in ids or len(ids) < len(pieces):
        at = next(i for i, piece in enumerate(pieces) if not piece or ids[piece] != i)
        raise _damaged(path, f'line {at + 1} {"stands there twice" if pieces[at] else "is empty"}')
    return ids


def _tokenizer_json(path, content, lower):
    """({piece: id}, characters of the longest word that is looked up)."""
    try:
        tree = json.loads(content)
        model, normalizer = tree['model'], tree['normalizer'] or {}
        steps = {'model': model.get('type', 'none'), 'normalizer': normalizer.get('type', 'none'),
                 'pre_tokenizer': (tree['pre_tokenizer'] or {}).get('type', 'none')}
        required = {'model': 'WordPiece', 'normalizer': 'BertNormalizer', 'pre_tokenizer': 'BertPreTokenizer'}
        wrong = [step for step in required if steps[step] != required[step]]
        if wrong:
            raise _other(path, f'its {wrong[0]} is {steps[wrong[0]]}, not {required[wrong[0]]}')
        ids, longest = model['vocab'], model['max_input_chars_per_word']
        ''.join(ids).encode()  # half a character is a ValueError
        integers = type(longest) is int and all(type(i) is int for i in ids.values())
        if not integers or sorted(ids.values()) != list(range(len(ids))):
            raise _damaged(path, 'the ids of its vocabulary are not 0, 1, 2, ..., each once')
        if (model['unk_token'], model['continuing_subword_prefix']) != ('[UNK]', '##'):
            raise _other(path, 'it has another unk_token than [UNK] or another continuing_subword_prefix than ##')
        if normalizer['lowercase'] != lower:
            raise errors.ConfigError(f'{path} says lowercase = {normalizer["lowercase"]}. Set data.wordpiece.lower = '
                                     f'{normalizer["lowercase"]}.')
        if (not normalizer['clean_text'] or not normalizer['handle_chinese_chars']
                or normalizer['strip_accents'] not in (None, lower)):
            raise _other(path, 'clean_text or handle_chinese_chars is off, or strip_accents goes against lowercase')
        if _around(tree.get('post_processor')) not in (None, ['[CLS]', '[SEP]']):
            raise _other(path, f'its post_processor puts {" ".join(_around(tree["post_processor"]))} around a text, '
                               'not [CLS] [SEP]')
        added = [token['content'] for token in tree.get('added_tokens') or ()
                 if ids.get(token['content']) != token['id']]
        if added:
            raise _other(path, f'it adds "{added[0]}" to its vocabulary')
        return ids, longest
    except errors.JaxkdError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise _damaged(path, f'{type(e).__name__}: {e}') from e


def _around(processor):
    """Names of the special tokens that a post_processor puts around one text; None where there is none."""
    if processor is None:
        return None
    if processor['type'] == 'BertProcessing':
        return [processor['cls'][0], processor['sep'][0]]
    if processor['type'] == 'TemplateProcessing':
        return [part['SpecialToken']['id'] for part in processor['single'] if 'SpecialToken' in part]
    return [processor['type']]


def _library(found, lower):
    """(normaliser, encoder) of the library, without special tokens: "[SEP]" in a report is text. Both pickle."""
    try:
        import tokenizers
    except ImportError as e:
        raise errors.ConfigError('data.transforms: wordpiece needs the library tokenizers, which cannot be imported '
                                 f'({e}). Install it: {versions.install("text")}.') from e
    model = tokenizers.models.WordPiece(found.ids, unk_token='[UNK]', max_input_chars_per_word=found.longest)
    encoder = tokenizers.Tokenizer(model)
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return tokenizers.normalizers.BertNormalizer(lowercase=lower), encoder


def _other(path, reason):
    return errors.ConfigError(f'data.wordpiece.file = {path}: {reason}. Only the steps of BERT are supported. Give a '
                              'tokenizer.json of BERT, or the vocab.txt of the weights.')


def _damaged(path, reason):
    return errors.BadData(f'data.wordpiece.file = {path} is damaged or no vocabulary: {reason}. Copy it again from '
                          'where the weights came.')


PLUGIN = TransformPlugin(file_digest=file_digest, vocabulary_size=size, describe=text.describe)
