"""The layout of Open-i, written by the thorax phantom, read back, and spoilt; and all 3,955 reports of the archive."""
import collections
import gzip
import io
import os
import pathlib
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import report_sections, splits
from jaxkd.data.formats import openi_xml
from jaxkd.data.sources import openi
from jaxkd.data.transforms import text
from jaxkd.phantoms import thorax
from jaxkd.phantoms.layouts import openi as layout
from jaxkd.phantoms.thorax import labeller

REAL = pathlib.Path(os.environ.get('JAXKD_REAL_DATA')
                    or pathlib.Path(__file__).parents[2] / '../shared/data') / 'openi_reports'
FOLDER, PACKED = openi.REPORTS
PHANTOM = dict(patients=30, size=48, seed=3)


def made(root, **given):
    return openi.build(ConfigDict({**openi.DEFAULTS, 'root': str(root), **given}))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('openi')
    layout.write(folder, **PHANTOM)
    return folder


@pytest.fixture
def tree(written, tmp_path):
    shutil.copytree(written, tmp_path / 'openi')
    return tmp_path / 'openi'


def test_written_tree_is_the_phantom(written):
    phantom = thorax.build(ConfigDict({**thorax.DEFAULTS, **PHANTOM}))
    source = pickle.loads(pickle.dumps(made(written, images='images')))
    assert len(source) == len(phantom) and source.labels == openi.LABELS and source.skipped == ()
    assert source.labels[:8] == labeller.LABELS and not source.values[:, 8:].any()
    numbers, shots = {}, collections.Counter()
    for case in phantom.cases:
        numbers.setdefault(case.study, len(numbers) + 1)
    want = {}
    for i, case in enumerate(phantom.cases):
        number = numbers[case.study]
        want[f'CXR{number}_IM-{number:04d}-{1001 + shots[number]}'] = i
        shots[number] += 1
    assert len({c.study for c in source.cases}) == len(numbers)
    for k, case in enumerate(source.cases):
        i = want[case.id]
        record, of = source[k], phantom[i]
        assert case.patient == case.study == f'CXR{numbers[phantom.cases[i].study]}'
        assert case.groups == phantom.cases[i].groups
        np.testing.assert_array_equal(record['image'], of['image'])
        for section in ('findings', 'impression'):
            assert text.words(record['text'], section) == text.words(of['text'], section)
        borderline = (of['label'] == -1) & (np.array(labeller.LABELS) == 'Cardiomegaly')  # no other doubt has a code
        np.testing.assert_array_equal(source.values[k, :8], np.where(borderline, -1, of['label'] == 1))
        np.testing.assert_array_equal(record['label'], source.values[k])
    assert (source.values == -1).any()


def test_reports_alone_have_no_image(written):
    source, images = made(written), made(written, images='images')
    assert ([c.id for c in source.cases] == list(dict.fromkeys(c.study for c in images.cases))
            and {*source[0]} == {'text', 'label'})
    at = {c.study: i for i, c in enumerate(images.cases)}
    for i, case in enumerate(source.cases):
        assert source[i]['text'] == source.text(i) == images.text(at[case.id])
        np.testing.assert_array_equal(source.values[i], images.values[at[case.id]])
    assert source.paths(0) == () and images.paths(0)[0].endswith('.png') and 'patients are not known' in source.note
    splits.check(source.cases, splits.make(source.cases))


def test_packed_reports_and_a_folder_of_reports_are_the_same(written, tmp_path):
    want = made(written)
    layout.write(tmp_path, **PHANTOM, reports='tgz')
    assert not (tmp_path / FOLDER).exists()
    for found in (made(tmp_path), made(written / FOLDER)):
        assert found.cases == want.cases and found.texts == want.texts
        np.testing.assert_array_equal(found.values, want.values)
    (tmp_path / PACKED).write_bytes(gzip.decompress((tmp_path / PACKED).read_bytes()))  # gzip or not
    assert made(tmp_path).cases == want.cases
    with pytest.raises(errors.ConfigError, match='xml, tgz'):
        layout.write(tmp_path, 1, reports='zip')


def test_frontal_images_are_those_of_the_table_of_views(tree):
    path = tree / 'nlmcxr_tsne_pa.csv'
    rows = path.read_text().splitlines()
    every = made(tree, images='images')
    name = rows[1].partition(',')[0]
    turned = [rows[0], f'{name},L', *rows[2:-1]]  # one is a lateral, and of one nothing is known
    os.remove(path)
    (tree / f'{path.name}.gz').write_bytes(gzip.compress(('\r\n'.join(turned) + '\r\n').encode('utf-8-sig')))
    found = made(tree, images='images')
    assert {c.id for c in every.cases} - {c.id for c in found.cases} == {name, rows[-1].partition(',')[0]}
    found = {c.id: c.groups['view'] for c in made(tree, images='images', frontal=False).cases}
    assert len(found) == len(every) and found[name] == 'lateral' and found[rows[-1].partition(',')[0]] == ''
    os.remove(tree / f'{path.name}.gz')
    found = made(tree, images='images')
    assert len(found) == len(every) and 'laterals' in found.note and 'laterals' not in every.note
    with pytest.raises(errors.MissingInput, match='other.csv'):
        made(tree, images='images', views='other.csv')


@pytest.mark.parametrize('codes, present, unsure', [
    ('normal', (), ()), ('Cardiomegaly/mild', ('Cardiomegaly',), ()),
    ('Cardiomegaly/borderline', (), ('Cardiomegaly',)),
    ('Cardiac Shadow/enlarged', ('Cardiomegaly',), ()), ('Cardiac Shadow', (), ()),
    ('Opacity/lung/base/left', ('Lung Opacity',), ()),
    ('Opacity/ribs', (), ()), ('Infiltrate/lung | Pulmonary Atelectasis', ('Lung Opacity', 'Atelectasis'), ()),
    ('Hydropneumothorax/left', ('Pneumothorax', 'Pleural Effusion'), ()), ('Pericardial Effusion', (), ()),
    ('Cardiomegaly/borderline | Cardiomegaly/mild', ('Cardiomegaly',), ()),
    ('Pulmonary  Emphysema', ('Emphysema',), ()),
    ('Subcutaneous Emphysema', (), ()), ('Pneumonectomy', (), ()), ('No Indexing', (), openi.LABELS),
    ('', (), openi.LABELS)])
def test_labels_are_read_from_codes(tmp_path, codes, present, unsure):
    majors = ''.join(f'<major>{code.strip()}</major>' for code in codes.split('|') if code)
    (tmp_path / '7.xml').write_text('<a><uId id="CXR7"/><AbstractText '
                                    f'Label="FINDINGS">x</AbstractText><MeSH>{majors}</MeSH></a>')
    found = dict(zip(openi.LABELS, made(tmp_path).values[0]))
    assert ({k for k, v in found.items() if v == 1} == {*present}
            and {k for k, v in found.items() if v == -1} == {*unsure})
    assert made(tmp_path, labels=('Edema', 'Cardiomegaly')).values.tolist() == [[found['Edema'], found['Cardiomegaly']]]


def report(number=1, said='Clear.', extra='', head='<?xml version="1.0" encoding="utf-8"?>'):
    return (f'{head}<e><uId id="CXR{number}"/><AbstractText Label="FINDINGS">{said}</AbstractText><major>normal</major>'
            f'<parentImage id="CXR{number}_1"/>{extra}</e>')


BOMB = '<!DOCTYPE e [<!ENTITY a "xx">' + ''.join(f'<!ENTITY {b} "&{a};&{a};">'
                                                 for a, b in zip('abcdefgh', 'bcdefghi')) + ']>'


@pytest.mark.parametrize('data, what', [
    (report(said='&i;', head=BOMB), 'document type'), (report(head='<!DOCTYPE e SYSTEM "file:///etc/passwd">'),
                                                       'document type'),
    (report(said='&i;', head=BOMB).encode('utf-16'), 'document type'), (report(said='&i;'), 'undefined entity'),
    (report()[:-9], 'damaged'), (b'', 'damaged'), (b'\x00' * 9, 'damaged'),
    (report(head='<?xml version="1.0" encoding="x"?>'), 'damaged'),
    (report(extra='<uId id="CXR2"/>'), 'not one <uId'), (report(extra='<parentImage id="../x"/>'), 'names no file'),
    ('<e/>', 'not one <uId'), (report(said='x' * 2**20), '1,048,576')])
def test_damaged_reports(tmp_path, data, what):
    data = data if isinstance(data, bytes) else data.encode()
    (tmp_path / 'bad.xml').write_bytes(data)
    (tmp_path / 'good.xml').write_text(report(5))
    with pytest.raises(errors.BadData, match=rf'bad\.xml.*{what}'):
        made(tmp_path)
    kept = made(tmp_path, on_error='skip')
    assert [c.id for c in kept.cases] == ['CXR5'] and len(kept.skipped) == 1 and 'bad.xml' in kept.skipped[0][0]
    os.makedirs(tmp_path / 'tar')
    (tmp_path / 'tar' / PACKED).write_bytes(layout.tgz({f'{FOLDER}/good.xml': report(5)}))
    add(tmp_path / 'tar' / PACKED, f'{FOLDER}/bad.xml', data)
    kept = made(tmp_path / 'tar', on_error='skip')
    assert [c.id for c in kept.cases] == ['CXR5'] and f'{PACKED}, {FOLDER}/bad.xml' in kept.skipped[0][0]


def add(path, name, data):
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
        texts = [(member, tar.extractfile(member).read()) for member in tar]
    member = tarfile.TarInfo(name)
    member.size = len(data)
    with tarfile.open(path, 'w:gz') as tar:
        for info, content in [*texts, (member, data)]:
            tar.addfile(info, io.BytesIO(content))


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_any_damage_is_bad_data_or_a_report(at, byte):
    data = bytearray(layout.xml(3, dict(text='FINDINGS: One & two.\nIMPRESSION: Three.', label=np.zeros(8)),
                                ['CXR3_1']).encode())
    data[at % len(data)] = byte
    try:
        assert openi_xml.parse(bytes(data), 'x.xml').id
    except errors.BadData as e:
        assert 'x.xml' in str(e)


def test_damaged_archives(tmp_path, monkeypatch):
    layout.write(tmp_path, 5, size=32, reports='tgz')
    path, whole = tmp_path / PACKED, (tmp_path / PACKED).read_bytes()
    for data in (whole[:-100], whole[:50], b'', b'x' * 2000, whole[:200] + bytes(20) + whole[220:]):
        path.write_bytes(data)
        with pytest.raises(errors.BadData, match=PACKED):
            made(tmp_path, on_error='skip')
    path.write_bytes(whole)
    monkeypatch.setattr(openi_xml, 'MAX_ARCHIVE_BYTES', 5000)
    with pytest.raises(errors.BadData, match=f'{PACKED}.*unpacks to far more'):
        made(tmp_path)


def test_missing_and_damaged_images_and_twice_the_same_report(tree):
    source = made(tree, images='images')
    paths = [pathlib.Path(*file) for file in source.files[:2]]
    paths[0].write_bytes(paths[0].read_bytes()[:200])
    with pytest.raises(errors.BadData, match=paths[0].name):
        source[0]
    os.remove(paths[1])
    with pytest.raises(errors.MissingInput,
                       match=rf'{source.cases[1].id}.png is not in .*images \(1 of {len(source)} are missing'):
        made(tree, images='images')
    kept = made(tree, images='images', on_error='skip')
    assert kept.cases == source.cases[2:] and len(kept.skipped) == 2 and len(kept.texts) == len(kept)
    shutil.copy(tree / FOLDER / '3.xml', tree / FOLDER / '3b.xml')
    with pytest.raises(errors.BadData, match=r'3b\.xml: report CXR3 stands there a second time'):
        made(tree)
    assert len(made(tree, on_error='skip').skipped) == 1
    os.remove(tree / FOLDER / '3b.xml')
    for wrong, error, what in ((dict(images='nowhere'), errors.MissingInput, 'nowhere'),
                               (dict(labels=('X',)), errors.ConfigError, 'X'),
                               (dict(labels=('Edema',) * 2), errors.ConfigError, 'once'),
                               (dict(on_error='x'), errors.ConfigError, 'x'),
                               (dict(root=''), errors.MissingInput, FOLDER)):
        with pytest.raises(error, match=what):
            made(**{'root': tree, **wrong})


def test_reports_without_findings_and_impression(tmp_path):
    (tmp_path / '1.xml').write_text(report(1, ' '))
    (tmp_path / '2.xml').write_text(report(2, 'A &lt;b&gt;\n  c.'))
    assert [c.id for c in made(tmp_path).cases] == ['CXR2'] and made(tmp_path).texts == ('FINDINGS: A <b> c.',)
    assert made(tmp_path, require_text=False).texts == ('', 'FINDINGS: A <b> c.')
    os.remove(tmp_path / '2.xml')
    with pytest.raises(errors.BadData, match='no usable case'):
        made(tmp_path)


@pytest.mark.skipif(not (REAL / PACKED).is_file(), reason=f'no openi_reports in {REAL.parent} (JAXKD_REAL_DATA)')
def test_all_reports_of_the_archive():
    source = made(REAL, require_text=False)
    assert len(source) == 3955 and source.skipped == () and sum(map(bool, source.texts)) == 3927
    positive = dict(zip(source.labels, (source.values == 1).sum(0)))
    assert positive['Atelectasis'] == 332 and positive['Calcified Granuloma'] == 274 and positive['Pneumothorax'] == 27
    assert (source.values == -1).all(1).sum() == 95  # not indexed
    with_text = [i for i, said in enumerate(source.texts) if said]
    reports = {found.id: found for _, found in openi_xml.read(str(REAL / PACKED))}
    assert sum(len(r.images) for r in reports.values()) == 7470
    lost = []
    for case, said in zip(source.cases, source.texts):  # the tokeniser sees every word of both sections
        for section in ('findings', 'impression'):
            want = report_sections.WORD.findall(reports[case.id].sections.get(section.upper(), '').lower())
            if text.words(said, section) != want:
                lost.append(case.id)
    assert lost == []
    hp = ConfigDict({**text.DEFAULTS, 'vocab': 4096})
    asset = text.fit(hp, source, with_text, iter)
    assert len(asset['words']) > 1500
    apply = text.build(hp, asset).apply
    tokens = np.array([apply({'text': said})['tokens'] for said in source.texts])
    assert ((tokens != text.PAD).sum(1) > 1).sum() == 3927 and (tokens == text.UNK).sum() < 10
