"""mini-MIAS: the phantom written as films and Info.txt, and the traps of the real file."""
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import splits
from jaxkd.data.sources import mini_mias
from jaxkd.phantoms.breast import renderer
from jaxkd.phantoms.layouts import mini_mias as layout

LINES = """The list is arranged in pairs of films.
mdb001 G CIRC B 535 425 197
mdb002 G CIRC B 522 280 69
mdb003 D NORM
mdb005 F CIRC B 477 133 30
mdb005 F CIRC M 500 168 26
mdb059  F CIRC B
mdb216 D CALC M *NOTE 3*
"""


def _build(root, **changes):
    return mini_mias.build(ConfigDict({**mini_mias.DEFAULTS, 'root': str(root), **changes}))


def _films(root, text=LINES, sides=(1024, 1024)):
    (root / 'Info.txt').write_text(text)
    for name in mini_mias.read(str(root / 'Info.txt')):
        (root / f'{name}.pgm').write_bytes(f'P5\n{sides[1]} {sides[0]}\n255\n'.encode() + bytes(sides[0] * sides[1]))
    return root


def test_lines_of_the_real_file(tmp_path):
    films = mini_mias.read(str(_films(tmp_path) / 'Info.txt'))
    assert films['mdb001'] == [('G', 'CIRC', 'B', (535, 425, 197))] and films['mdb003'] == [('D', 'NORM', '', None)]
    assert [f[3] for f in films['mdb005']] == [(477, 133, 30), (500, 168, 26)]
    assert films['mdb059'][0][3] is None and films['mdb216'] == [('D', 'CALC', 'M', None)]
    found = _build(tmp_path)
    by = {c.id: i for i, c in enumerate(found.cases)}
    assert [found.cases[by[n]].patient for n in ('mdb001', 'mdb002', 'mdb003')] == ['pair001', 'pair001', 'pair002']
    assert [found.cases[by[n]].groups['side'] for n in ('mdb001', 'mdb002')] == ['RIGHT', 'LEFT']
    assert found[by['mdb005']]['label'] == 1 and found[by['mdb001']]['label'] == 0 and found[by['mdb003']]['label'] == 0
    assert (len(found[by['mdb216']]['boxes']) == len(found[by['mdb059']]['boxes']) == 0
            and found[by['mdb216']]['label'] == 1)
    assert found.table(by['mdb005'])[1] == {'tissue': 'F', 'class': 'CIRC', 'side': 'RIGHT'}
    assert {c.id for c in _build(tmp_path, normals=False).cases} == {c.id for c in found.cases} - {'mdb003'}


def test_y_is_counted_from_below(tmp_path):
    """mdb001: centre 535, 425 from below is row 1023 - 425 = 598; radius 197."""
    record = _build(_films(tmp_path))[0]
    np.testing.assert_array_equal(record['boxes'], [[-1, 535 - 197, 598 - 197, 395, 395]])
    assert record['masks'].sum() == pytest.approx(np.pi * 197 ** 2, rel=0.01)
    rows, columns = np.nonzero(record['masks'][0])
    assert (rows.mean(), columns.mean()) == (598, 535)


def test_a_circle_is_cut_at_the_edge_of_the_film():
    mask = mini_mias.disc((2, 2, 5), (20, 30))
    assert mask[17, 2] and mask[19, 0] and mask[12, 2] and not mask[11, 2] and not mask[:12].any()


def test_the_written_films_hold_what_the_phantom_shows(tmp_path):
    layout.write(tmp_path / 'all', 8, size=128)
    found = _build(tmp_path)  # one folder above
    assert len(found) == 16 and len({c.patient for c in found.cases}) == 8
    for i, case in enumerate(found.cases):
        patient, side = divmod(int(case.id[3:]) - 1, 2)
        side = ('RIGHT', 'LEFT')[side]
        lesions = renderer.facts(0, patient).lesions.get(side, ())
        record = found[i]
        assert (case.groups['side'] == side and record['image'].shape == (1024, 1024)
                and record['image'].dtype == np.uint8)
        assert len(found.table(i)) == max(1, len(lesions)) and record['label'] == any(x.malignant for x in lesions)
        assert (case.groups['class'] == 'NORM') == (not lesions)
        if lesions and len(record['boxes']) == len(lesions):
            shown = renderer.render(0, patient, side, 'MLO', 128)['boxes'] * 8
            centres = [b[:, 1:3] + b[:, 3:5] / 2 for b in (record['boxes'], shown)]
            np.testing.assert_allclose(centres[0][:, 1], centres[1][:, 1], atol=40)
            np.testing.assert_allclose(centres[0][:, 0] - (1024 - 816) // 2, centres[1][:, 0], atol=40)
    splits.check(found.cases, splits.make(found.cases, {'train': 0.5, 'val': 0.25, 'test': 0.25}))


@pytest.mark.parametrize('line', ['mdb001 G CIRC B 535 425', 'mdb001 X CIRC B 1 2 3', 'mdb001 G LUMP B 1 2 3',
                                  'mdb001 G CIRC',
                                  'mdb001 G NORM M', 'mdb001 G CIRC Q 1 2 3', 'mdb01 G NORM'])
def test_lines_that_cannot_be_read_are_named(tmp_path, line):
    (tmp_path / 'Info.txt').write_text('mdb002 G NORM\n' + line + '\n')
    with pytest.raises(errors.BadData, match='Info.txt, line 2'):
        mini_mias.read(str(tmp_path / 'Info.txt'))


def test_films_that_cannot_be_read_are_named_or_skipped(tmp_path):
    root = _films(tmp_path)
    first = root / 'mdb001.pgm'
    whole = first.read_bytes()
    for broken, match in ((whole[:5000], 'damaged'), (b'P6' + whole[2:], 'not a binary PGM|damaged'),
                          (b'junk', 'damaged'),
                          (b'P5\n90000 90000\n255\n', 'more than max_pixels')):
        first.write_bytes(broken)
        with pytest.raises(errors.BadData, match=match):
            _build(root)[0]
    skipping = _build(root, on_error='skip')
    assert [s[0] for s in skipping.skipped] == ['mdb001'] and 'mdb001' not in {c.id for c in skipping.cases}
    first.unlink()
    with pytest.raises(errors.MissingInput, match='mdb001.pgm does not exist'):
        _build(root)
    assert [s[0] for s in _build(root, on_error='skip').skipped] == ['mdb001']
    shutil.rmtree(root)
    with pytest.raises(errors.MissingInput, match='is not a folder'):
        _build(root)


def test_smaller_films_with_circles_outside_are_refused(tmp_path):
    with pytest.raises(errors.BadData, match='lies outside its film'):
        _build(_films(tmp_path, sides=(64, 64)))[0]


def test_an_info_without_films_or_of_another_place_is_refused(tmp_path):
    with pytest.raises(errors.MissingInput, match='holds Info.txt'):
        _build(tmp_path)
    (tmp_path / 'Info.txt').write_text('nothing')
    with pytest.raises(errors.BadData, match='names no film'):
        _build(tmp_path)
    with pytest.raises(errors.ConfigError, match='on_error'):
        _build(tmp_path, on_error='x')
