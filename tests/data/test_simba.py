"""The layout of SimBA, written by the brain phantom, read back, and spoilt."""
import csv
import gzip
import os
import pickle
import shutil

import nibabel
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.sources import simba
from jaxkd.phantoms import brain
from jaxkd.phantoms.brain import renderer
from jaxkd.phantoms.layouts import simba as layout

SIZE = (17, 21, 16)
COUNT = 16


def made(root, **given):
    return simba.build(ConfigDict({**simba.DEFAULTS, 'root': str(root), **given}))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('simba')
    layout.write(folder, COUNT, 'far', SIZE, 0.03, seed=4)
    return folder


@pytest.fixture
def tree(written, tmp_path):
    shutil.copytree(written, tmp_path / 'data')
    return tmp_path / 'data'


def table(root, part='train'):
    with open(root / f'{part}.csv', newline='') as f:
        return list(csv.reader(f))


def rewrite(root, rows, part='train', encoding='utf-8', end='\n'):
    (root / f'{part}.csv').write_bytes((end.join(','.join(row) for row in rows) + end).encode(encoding))


def refused(what, error, root, **given):
    with pytest.raises(error, match=what) as found:
        made(root, **given)
    return str(found.value)


def test_loader_of_the_written_tree_is_the_phantom_in_memory(written):
    source = pickle.loads(pickle.dumps(made(written / 'clean', twins=str(written / 'biased'))))
    how = dict(cases=COUNT, size=SIZE, region='far', noise=0.03, twins=True, seed=4)
    memory = brain.build(ConfigDict({**brain.DEFAULTS, **how}))
    assert len(source) == COUNT and source.labels == memory.labels and source.skipped == ()
    assert [c.split for c in source.cases].count('train') == 8 and {c.groups['bias'] for c in source.cases} == {'no'}
    assert len({c.patient for c in source.cases}) == COUNT  # numbers start anew in every part
    subject = {(part, n): int(row[0]) for part in ('train', 'val', 'test')
               for n, row in enumerate(table(written / 'clean', part)[1:])}
    for i, case in enumerate(source.cases):
        part, _, name = case.id.partition('/')
        k = subject[part, int(name[:5])]
        record, want = source[i], memory[k]
        assert record['label'] == want['label'] == source.targets['label'][i] and record['label'].dtype == np.int32
        for key in ('t1', 'twin'):
            np.testing.assert_array_equal(record[key].voxels, want[key].voxels)
            np.testing.assert_allclose(record[key].affine, want[key].affine, atol=1e-4)
        assert all(os.path.isfile(path) for path in source.paths(i))


def test_a_file_is_x_y_z_and_no_axis_is_swapped(written):
    name = table(written / 'clean')[1][-1]
    raw = nibabel.load(written / 'clean' / 'train' / name)
    assert raw.shape == SIZE
    voxels = made(written / 'clean')[0]['t1'].voxels
    np.testing.assert_array_equal(voxels, np.asarray(raw.dataobj)[::-1, ::-1])  # mirrored to RAS, as its affine says


def test_bias_is_a_group_and_nothing_else(tmp_path):
    layout.write(tmp_path, 32, 'near', SIZE, seed=1, biased=0.5)
    source = made(tmp_path / 'biased')
    groups = {c.id: c.groups['bias'] for c in source.cases}
    assert all(('_B' in name) == (bias == 'yes') for name, bias in groups.items())
    assert list(groups.values()).count('yes') == 16
    assert sorted(source[0]) == ['case', 'label', 't1']
    label, yes = source.targets['label'], np.array([b == 'yes' for b in groups.values()])
    assert label[yes].mean() == label[~yes].mean() == 0.5  # the coefficients alone decide, not the bias
    refused('0 twins with bias', errors.BadData, tmp_path / 'clean', twins=str(tmp_path / 'biased'))
    kept = made(tmp_path / 'clean', twins=str(tmp_path / 'biased'), on_error='skip')
    assert len(kept) == 16 and len(kept.skipped) == 16 and 'twin' in kept[0]


def test_tables_count_and_not_folders(tree):
    """Tables in one folder, files in another, other columns, other line ends: what the archive may look like."""
    root = tree / 'clean'
    want = [made(root)[i]['t1'].voxels for i in range(3)]
    (root / 'tables').mkdir()
    for part in ('train', 'val', 'test'):
        rows = [row[::-1] for row in table(root, part)]  # shuffled columns
        rewrite(root, rows, part, 'utf-8-sig', '\r\n')
        os.rename(root / f'{part}.csv', root / 'tables' / f'{part}.csv')
        for name in os.listdir(root / part):
            os.renames(root / part / name, root / 'all' / name)
    source = made(root)
    for i in range(3):
        np.testing.assert_array_equal(source[i]['t1'].voxels, want[i])


def test_twins_are_found_when_the_numbers_differ(tree):
    root = tree / 'biased'
    rows = table(root)
    for row in rows[1:]:
        other = f'{int(row[-1][:5]) + 40:05d}{row[-1][5:]}'
        os.rename(root / 'train' / row[-1], root / 'train' / other)
        row[-1] = other
    rewrite(root, rows)
    source = made(tree / 'clean', twins=str(root))
    assert len(source) == COUNT and all('twin' in files for files in source.files)
    assert 'exchange the two' in refused('has bias itself', errors.BadData, root, twins=str(tree / 'clean'))


@pytest.mark.parametrize('spoil, what, error', [
    (lambda rows: [row[:-1] for row in rows], 'no column "filename"', errors.BadData),
    (lambda rows: rows + [rows[3]], 'stands there a second time', errors.BadData),
    (lambda rows: rows[:3] + [rows[3][:-5] + rows[4][-5:]] + rows[5:], 'mixed up', errors.BadData),
    (lambda rows: rows[:3] + [[*rows[3][:6], '1', *rows[3][7:]]] + rows[4:], 'mixed up', errors.BadData),
    (lambda rows: rows[:3] + [[*rows[3][:7], '2', *rows[3][8:]]] + rows[4:], 'must be 0 or 1', errors.BadData),
    (lambda rows: rows[:3] + [[*rows[3][:1], 'x', *rows[3][2:]]] + rows[4:], 'must be 0 or 1', errors.BadData),
    (lambda rows: rows[:3] + [[*rows[3][:-1], '../' + rows[3][-1]]] + rows[4:], 'is not <number>', errors.BadData),
    (lambda rows: rows[:3] + [[*rows[3][:-1], '00099' + rows[3][-1][5:]]] + rows[4:], 'there is no file',
     errors.MissingInput),
])
def test_spoilt_tables(tree, spoil, what, error):
    root = tree / 'clean'
    rewrite(root, spoil(table(root)))
    refused(what, error, root)
    if what != 'no column "filename"':
        kept = made(root, on_error='skip')
        assert len(kept.skipped) == 1 and len(kept) >= COUNT - 2 and kept[0]['t1'].voxels.shape == SIZE


@pytest.mark.parametrize('no, yes', [('False', 'True'), ('no', ' YES '), ('0.00', '1')])
def test_labels_in_any_spelling(tree, no, yes):
    root = tree / 'biased'
    plain, rows = made(root), table(root)
    for row in rows[1:]:
        row[6:8] = [yes if float(cell) else no for cell in row[6:8]]
    rewrite(root, rows)
    assert (made(root).targets['label'] == plain.targets['label']).all() and made(root).cases == plain.cases


def test_damaged_files(tree):
    root = tree / 'clean'
    names = [row[-1] for row in table(root)[1:]]
    path = [root / 'train' / name for name in names]
    path[0].write_bytes(path[0].read_bytes()[:2000])  # truncated
    whole = nibabel.load(path[1])
    data = np.asarray(whole.dataobj)
    nibabel.save(nibabel.Nifti1Image(data[:-1], whole.affine), path[1])  # of another shape
    raw = bytearray(gzip.decompress(path[2].read_bytes()))
    raw[40] = 99  # its number of axes
    path[2].write_bytes(gzip.compress(bytes(raw)))
    path[3].write_bytes(b'')
    source = made(root)
    order = {os.path.basename(files['t1']): i for i, files in enumerate(source.files)}
    for k, what in enumerate(('damaged|claims', 'others have 17 x 21 x 16', 'axes', 'does not start|ends within')):
        with pytest.raises(errors.BadData, match=what) as found:
            source[order[names[k]]]
        assert names[k] in str(found.value)
    assert source[order[names[5]]]['t1'].voxels.shape == SIZE
    kept = made(root, on_error='skip')
    assert len(kept) == COUNT - 4 and len(kept.skipped) == 4


def test_missing_files_folders_and_tables(tree):
    root = tree / 'clean'
    refused('2 files train.csv', errors.MissingInput, tree)  # two experiments below
    refused('is not a folder', errors.MissingInput, tree / 'nowhere')
    refused('on_error', errors.ConfigError, root, on_error='never')
    name = table(root)[2][-1]
    shutil.copy(root / 'train' / name, root / name)
    assert len(made(root)) == COUNT  # the one in the folder of its part
    os.rename(root / 'train' / name, root / 'val' / name)
    refused('is there 2 times, 0 times', errors.BadData, root)
    os.remove(root / name)
    os.remove(root / 'val' / name)
    refused('there is no file', errors.MissingInput, root)
    assert len(made(root, on_error='skip')) == COUNT - 1
    os.remove(root / 'test.csv')
    refused('0 files test.csv', errors.MissingInput, root)


@pytest.mark.parametrize('given', [dict(biased=1.5), dict(patients=4), dict(region='nearby')])
def test_impossible_trees_are_refused(tmp_path, given):
    with pytest.raises(errors.ConfigError, match=next(iter(given))):
        layout.write(tmp_path, **{'patients': 8, **given})


@pytest.mark.slow
def test_the_full_size_is_that_of_simba(tmp_path):
    name = '00000_0.1_S_0.2_D.nii.gz'
    image = renderer.render(0, 0, (173, 211, 155))
    for part in ('train', 'val', 'test'):
        layout.save(tmp_path / part / name, image)
        (tmp_path / f'{part}.csv').write_text(f'{layout.HEADER}\n0,0.1,0.2,5,5,5_5,0,1,1_0_5_5,/else/{name},{name}\n')
    source = made(tmp_path)
    assert nibabel.load(source.files[2]['t1']).shape == source.shape == (173, 211, 155)
    np.testing.assert_array_equal(source[2]['t1'].voxels, image.voxels)
    assert [c.id for c in source.cases] == [f'{part}/00000_0.1_S_0.2_D' for part in ('train', 'val', 'test')]
