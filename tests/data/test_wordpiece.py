"""WordPiece: the ids of Hugging Face's (tests/reference/minilm_numbers.py), sections and what is cut, hidden words,
files that do not fit.
"""
import concurrent.futures
import importlib.util
import json
import os
import pathlib
import pickle
import re
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import report_sections, transform
from jaxkd.data.source import Source
from jaxkd.data.sources import openi
from jaxkd.data.stores import identity
from jaxkd.data.transforms import text, wordpiece
from jaxkd.phantoms.thorax import labeller, renderer
from tests.reference import minilm_numbers as numbers

tokenizers = pytest.importorskip('tokenizers')
KNOWN = json.loads(numbers.FILE.read_text())
PAD, UNK, CLS, SEP = 0, 4, 5, 6
REAL = pathlib.Path(os.environ.get('JAXKD_REAL_DATA')
                    or pathlib.Path(__file__).parents[2] / '../shared/data') / 'openi_reports'


@pytest.fixture(scope='module')
def vocab(tmp_path_factory):
    path = tmp_path_factory.mktemp('vocab') / 'vocab.txt'
    path.write_text('\n'.join(numbers.VOCABULARY) + '\n')
    return str(path)


def tokenizer_json(vocab, lower=True):
    """What the library writes for BERT."""
    made = tokenizers.BertWordPieceTokenizer(vocab, lowercase=lower)
    made.enable_truncation(7)
    made.enable_padding(length=9)
    return json.loads(made.to_str())


def make(file, **given):
    return wordpiece.build(ConfigDict(dict(wordpiece.DEFAULTS, file=str(file), length=320) | given)).apply


def pieces(transform, report):
    ids = transform({'text': report})['tokens']
    used = ids[:np.flatnonzero(ids)[-1] + 1]
    assert ids.dtype == np.int32 and used[0] == CLS and used[-1] == SEP and (used != PAD).all()
    return used[1:-1].tolist()


def said(ids):
    return [numbers.VOCABULARY[i] for i in ids]


@pytest.mark.parametrize('lower', [True, False])
@pytest.mark.parametrize('kind', ['vocab.txt', 'tokenizer.json'])
def test_ids_are_those_of_the_reference(lower, kind, vocab, tmp_path):
    file = pathlib.Path(vocab)
    if kind == 'tokenizer.json':
        file = tmp_path / kind
        file.write_text(json.dumps(tokenizer_json(vocab, lower)))
    transform, known = make(file, lower=lower), KNOWN['pieces'][str(lower)]
    assert len(known) == len(numbers.TEXTS) and sum(map(len, known)) > 250
    for report, ids in zip(numbers.TEXTS, known):
        # the reference in plain Python joins e and accent, the fast one does not
        if lower or unicodedata.is_normalized('NFC', report):
            assert pieces(transform, report) == ids, report


def test_layout(vocab):
    found = make(vocab, length=6)({'text': 'no heart', 'present': {'image': 1}, 'label': 2})
    assert found['tokens'].tolist() == [CLS, *map(numbers.VOCABULARY.index, ('no', 'heart')), SEP, PAD, PAD]
    assert found['present'] == {'image': 1, 'tokens': 1} and found['label'] == 2
    empty = make(vocab, length=4, key='note', out='pieces')({'note': '', 'text': 'no'})
    assert empty['pieces'].tolist() == [CLS, SEP, PAD, PAD] and empty['present'] == {'pieces': 0}
    wanted = {'findings': ['heart'], 'impression': ['no'], 'both': ['no', 'heart']}
    for section, words in wanted.items():
        assert said(pieces(make(vocab, section=section), 'FINDINGS: heart TECHNIQUE: lung IMPRESSION: no')) == words
    assert not pieces(make(vocab, section='findings'), 'a note without headers')


def test_the_impression_is_kept_and_what_is_cut_is_counted(vocab, capsys):
    transform = make(vocab, length=7)
    report = 'FINDINGS: heart lung heart lung IMPRESSION: no effusion no'
    assert said(pieces(transform, report)) == ['no', 'effusion', 'no', 'heart', 'lung']  # findings lose their end
    assert capsys.readouterr().out == (
        'wordpiece: reports longer than data.wordpiece.length = 7 so far: 1, the longest of 9 tokens. Their end is '
        'cut, behind the impression where they have one.\n')
    assert pieces(transform, report) and pieces(transform, 'IMPRESSION: no no no FINDINGS: heart lung')
    assert not capsys.readouterr().out  # told before; not too long
    assert said(pieces(transform, 'IMPRESSION: no no no lung no lung no')) == ['no', 'no', 'no', 'lung', 'no']
    assert ('so far: 2, the longest of 9 tokens. Their end is cut; in 1 of them that is the end of the impression. '
            'Raise' in capsys.readouterr().out)
    for i in range(30):
        pieces(transform, f'{"heart " * (6 + i)} {i}')
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1 and 'so far: 10,' in told[0]
    assert pieces(pickle.loads(pickle.dumps(transform)), report) and 'so far: 1,' in capsys.readouterr().out


def test_masked_words(vocab):
    terms = ('pneumothorax', 'Pleural effusion', 'naïve')
    transform = make(vocab, mask_terms=terms)
    hidden = pieces(transform, 'No pneumothorax, pleural-EFFUSION naive; effusion')
    assert hidden == [*map(numbers.VOCABULARY.index, ('no',)), UNK, numbers.VOCABULARY.index(','), UNK, UNK, UNK,
                      numbers.VOCABULARY.index(';'), numbers.VOCABULARY.index('effusion')]
    for spelling in ('pneumo\u00adthorax', 'pne\u0301umothorax', 'PNEUMOTHORAX', 'pneumo\u200bthorax',
                     'pneumothor\u00e1x'):
        assert pieces(transform, spelling) == [UNK], spelling  # whatever the network would read as that word
    assert UNK not in pieces(transform, 'pneumo thorax hydropneumothorax pleural. lung effusions')
    with pytest.raises(errors.ConfigError, match='wordpiece.mask_terms'):
        make(vocab, mask_terms=('--',))


def test_a_report_cannot_write_special_tokens(vocab):
    for lower in (True, False):
        for name in ('[PAD]', '[CLS]', '[SEP]', '[MASK]', '[unused1]'):
            found = said(pieces(make(vocab, lower=lower), f'no {name} heart{name}'))
            assert found[0] == 'no' and found.count('[') == found.count(']') == 2 and name not in found


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.integers(3, 30), st.booleans())
def test_any_text_gives_ids_of_the_table(vocab, report, length, lower):
    ids = make(vocab, length=length, lower=lower, mask_terms=('no',))({'text': report})['tokens']
    assert ids.shape == (length,) and ids[0] == CLS and ids.min() >= 0 and ids.max() < len(numbers.VOCABULARY)
    end = int(np.flatnonzero(ids)[-1])
    assert ids[end] == SEP and not set(ids[1:end].tolist()) & {0, 1, 2, 3, 5, 6, 7}


def test_threads_and_processes_read_the_same(vocab):
    transform = make(vocab, mask_terms=('heart',))
    reports = [f'{i} heart {report}' for i in range(5) for report in numbers.TEXTS]
    alone = [pieces(transform, report) for report in reports]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda report: pieces(transform, report), reports)) == alone
    copy = pickle.loads(pickle.dumps(transform))
    assert [pieces(copy, report) for report in reports] == alone


def test_a_prepared_cache_belongs_to_one_vocabulary(vocab, tmp_path):
    source = Source()
    source.cases = ()

    def settings_of(file):
        hp = ConfigDict(dict(source=dict(name='a'), transforms=('wordpiece',),
                             wordpiece=dict(wordpiece.DEFAULTS, file=str(file))))
        assert transform.shared_prefix(hp) == 1
        return identity.settings(hp, source)
    copy = tmp_path / 'vocab.txt'
    copy.write_bytes(pathlib.Path(vocab).read_bytes().replace(b'\n', b'\r\n'))
    one, other = settings_of(vocab), settings_of(copy)
    assert one['transforms']['wordpiece'].pop('file') != other['transforms']['wordpiece'].pop('file') and one == other
    copy.write_text('\n'.join([*numbers.VOCABULARY, 'more']))
    os.utime(copy, ns=(1, 1))
    assert settings_of(copy)['transforms'] != other['transforms']


@pytest.mark.parametrize('content, error, says', [
    ('a\nb\n', errors.ConfigError, r'has no \[PAD\]'), ('', errors.BadData, 'line 1 is empty'),
    ('x\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n', errors.ConfigError, r'\[PAD\] has the id 1'),
    ('[PAD]\n[UNK]\n[CLS]\n[SEP]\n\nb\n', errors.BadData, 'line 5 is empty'),
    ('[PAD]\n[UNK]\n[CLS]\n[SEP]\nb\nb\n', errors.BadData, 'line 5 stands there twice'),
    (b'[PAD]\n\xff\xfe', errors.BadData, 'byte 6 is not UTF-8'),
    (None, errors.MissingInput, 'does not exist. Give the vocab.txt')])
def test_lists_that_are_refused(content, error, says, tmp_path):
    path = tmp_path / 'vocab.txt'
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=says):
        make(path)


def put(tree, value, *at):
    for key in at[:-1]:
        tree = tree[key]
    tree[at[-1]] = value


@pytest.mark.parametrize('change, error, says', [
    (lambda t: put(t, 'BPE', 'model', 'type'), errors.ConfigError, 'its model is BPE, not WordPiece'),
    (lambda t: put(t, {'type': 'NFC'}, 'normalizer'), errors.ConfigError, 'its normalizer is NFC'),
    (lambda t: put(t, None, 'normalizer'), errors.ConfigError, 'its normalizer is none'),
    (lambda t: put(t, {'type': 'Whitespace'}, 'pre_tokenizer'), errors.ConfigError, 'its pre_tokenizer is Whitespace'),
    (lambda t: put(t, False, 'normalizer', 'lowercase'), errors.ConfigError, 'Set data.wordpiece.lower = False'),
    (lambda t: put(t, False, 'normalizer', 'strip_accents'), errors.ConfigError, 'strip_accents goes against'),
    (lambda t: put(t, '@@', 'model', 'continuing_subword_prefix'), errors.ConfigError, 'continuing_subword_prefix'),
    (lambda t: put(t, ['[MASK]', 7], 'post_processor', 'sep'), errors.ConfigError, r'puts \[CLS\] \[MASK\] around'),
    (lambda t: put(t, {'type': 'ByteLevel'}, 'post_processor'), errors.ConfigError, 'puts ByteLevel around'),
    (lambda t: t['added_tokens'].append({'id': 500, 'content': 'covid'}), errors.ConfigError,
     'adds "covid" to its vocabulary'),
    (lambda t: put(t, 900, 'model', 'vocab', 'no'), errors.BadData, 'are not 0, 1, 2'),
    (lambda t: put(t, '0', 'model', 'vocab', '[PAD]'), errors.BadData, 'are not 0, 1, 2'),
    (lambda t: t['model']['vocab'].update({'\ud800': t['model']['vocab'].pop('no')}), errors.BadData, 'damaged'),
    (lambda t: t.pop('model'), errors.BadData, "KeyError: 'model'"),
    (lambda t: put(t, [], 'model'), errors.BadData, 'damaged')])
def test_tokenizers_of_another_kind_are_refused(change, error, says, vocab, tmp_path):
    tree = tokenizer_json(vocab)
    change(tree)
    path = tmp_path / 'tokenizer.json'
    path.write_text(json.dumps(tree))
    with pytest.raises(error, match=says):
        make(path)


@pytest.mark.parametrize('content', ['', '{', '[]', '[' * 100_000, '{"model": 1}'])
def test_damaged_json(content, tmp_path):
    path = tmp_path / 'tokenizer.json'
    path.write_text(content)
    with pytest.raises(errors.BadData, match='tokenizer.json is damaged or no vocabulary'):
        make(path)


def test_options(vocab, tmp_path, monkeypatch):
    for options, says in ((dict(section='all'), 'wordpiece.section'), (dict(length=2), 'wordpiece.length = 2'),
                          (dict(file=''), 'file is empty')):
        with pytest.raises(errors.ConfigError, match=says):
            make(options.pop('file', vocab), **options)
    small = tmp_path / 'vocab.txt'
    small.write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n')
    with pytest.raises(errors.ConfigError, match='has no capital letter.*Set it to True'):
        make(small, lower=False)
    with open(small, 'ab') as f:
        f.truncate(wordpiece.MOST_BYTES + 1)
    with pytest.raises(errors.BadData, match='the most are'):
        make(small)
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(errors.ConfigError, match=r"library tokenizers.*pip install 'jaxkd-medical\[text\]'"):
        make(vocab)


def test_reports_of_the_phantom_without_the_labellers_terms_state_nothing():
    hide, found = text.hider(labeller.TERMS), 0
    for patient in range(300):
        report = renderer.study_report(0, patient, 0)[0]
        found += np.isfinite(labeller.labels(report)).sum()
        assert np.isnan(labeller.labels(hide.sub('[UNK]', report))).all(), report
    assert found > 900


def test_all_real_reports(vocab, capsys):
    """Of the 3,955 reports 3,425 have findings and 3,921 an impression; all are read, and masked they state no
    label.
    """
    if not (REAL / 'NLMCXR_reports.tgz').exists():
        pytest.skip('JAXKD_REAL_DATA names no folder with openi_reports/NLMCXR_reports.tgz')
    source = openi.build(ConfigDict(dict(openi.DEFAULTS, root=str(REAL), require_text=False)))
    reports = [source.text(i) for i in range(len(source.cases))]
    assert len(reports) == 3955
    parts = [dict(report_sections.chosen(report, 'both')) for report in reports]
    assert [sum(bool(part.get(name, '').strip()) for part in parts) for name in ('findings', 'impression')] == [3425,
                                                                                                                3921]
    assert sum(part.keys() == {''} for part in parts) == sum(not report for report in reports)  # none without headers
    masked = make(vocab, mask_terms=labeller.TERMS)
    hide = text.hider(labeller.TERMS)
    for report, part in zip(reports, parts):
        ids = pieces(masked, report)
        assert bool(ids) == bool(re.search(r'\S', ''.join(part.values())))
    assert not any(np.isfinite(labeller.labels(hide.sub('[UNK]', report))).any() for report in reports[::4])
    package = importlib.util.find_spec(numbers.PACKAGE)
    if package:  # with a real vocabulary hardly a word is unknown, and 256 tokens hold nearly all
        real = make(pathlib.Path(package.origin).parent / 'model' / 'vocab.txt', length=512)
        rows = np.stack([real({'text': report})['tokens'] for report in reports])
        used = (rows > 0).sum(1)
        assert (rows == 100).sum() < 10 and np.mean(used <= 256) > 0.99
