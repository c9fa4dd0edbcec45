import csv
import pickle
import time
import tracemalloc
import zlib

import nrrd
import numpy as np
import pydicom
import pytest
import scipy.io
from ml_collections import ConfigDict
from pydicom.dataset import FileDataset, FileMetaDataset

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.data.sources import cad_pe, fumpe, read_pe, rspect
from jaxkd.data.sources.shared import embolism
from jaxkd.data.transforms import pseudo_nct, scan
from jaxkd.data.volume import Volume

SHAPE = (9, 7, 6)  # columns, rows, slices
SIDES = (0.75, 0.5, 1.25)


def made(module, root, **given):
    return module.build(ConfigDict({**module.DEFAULTS, 'root': str(root), **given}))


def case(seed=0):
    """(HU, clots) in which 900 HU is at the clots alone: where one is, the other must be."""
    rng = np.random.default_rng(seed)
    clots = np.zeros(SHAPE, np.uint8)
    clots[2:4, 1:3, 1:3], clots[6:8, 4:6, 4] = 1, 2
    voxels = rng.integers(-1000, 300, SHAPE).astype(np.int16)
    return np.where(clots > 0, 900, voxels).astype(np.int16), clots


def series(folder, voxels, names, down=False, uid='1.2.3'):
    """One file for each slice, from the lowest position up, or from the highest down; LPS, head first."""
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = pydicom.uid.CTImageStorage, f'{uid}.{k + 1}'
        d = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        d.Modality, d.SeriesInstanceUID = 'CT', uid
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = SHAPE[1], SHAPE[0], 1, 'MONOCHROME2'
        d.BitsAllocated = d.BitsStored = 16
        d.HighBit, d.PixelRepresentation = 15, 1
        d.PixelSpacing, d.ImageOrientationPatient = [str(SIDES[1]), str(SIDES[0])], ['1', '0', '0', '0', '1', '0']
        d.ImagePositionPatient = ['-20', '30', str(100 + (-1 if down else 1) * SIDES[2] * k)]
        d.RescaleSlope, d.RescaleIntercept = 1, 0
        d.PixelData = voxels[:, :, k].tobytes(order='F')
        d.save_as(folder / name, enforce_file_format=True)


def together(record):
    """Clots are where the scan has its 900 HU, on one grid."""
    assert np.array_equal(record['label'].affine, record['ctpa'].affine)
    np.testing.assert_array_equal(record['label'].voxels == 1, record['ctpa'].voxels == 900)
    assert set(np.unique(record['label'].voxels)) == {0, 1} and record['label'].voxels.dtype == np.uint8
    return record


# FUMPE

@pytest.fixture
def fumpe_tree(tmp_path):
    """Names of PAT001 go up, of PAT002 down with the position; PAT003 has no clot. The masks follow the names."""
    (tmp_path / 'GroundTruth').mkdir()
    (tmp_path / 'CT_scans').mkdir()
    (tmp_path / 'CT_scans' / 'ReadMe.txt').write_text('not a patient')
    for n, name in enumerate(('PAT001', 'PAT002', 'PAT003')):
        voxels, clots = case(n)
        clots = clots * (n < 2)
        series(tmp_path / 'CT_scans' / name, voxels, [f'D{k + 1:04d}.dcm' for k in range(SHAPE[2])], down=n == 1)
        scipy.io.savemat(tmp_path / 'GroundTruth' / f'{name}.mat', {'Mask': (clots > 0).transpose(1, 0, 2).astype(
            (np.uint8, np.float64, bool)[n]), 'other': np.arange(3)}, do_compression=n != 1)
    return tmp_path


def test_fumpe_masks_follow_file_names(fumpe_tree):
    source = made(fumpe, fumpe_tree)
    assert [c.id for c in source.cases] == ['PAT001', 'PAT002', 'PAT003'] and 'useless for claims' in source.note
    assert source.targets['pe'].tolist() == [1, 1, 0]
    assert [c.groups['pe'] for c in source.cases] == ['present', 'present', 'absent']
    for i in (0, 1):
        record = together(source[i])
        assert record.keys() == {'ctpa', 'label', 'pe', 'case'} and record['pe'] == 1
    # The patient's right is the last column in RAS; both are turned alike
    voxels, clots = case(0)
    np.testing.assert_array_equal(source[0]['label'].voxels, (clots > 0)[::-1, ::-1])
    voxels, clots = case(1)
    np.testing.assert_array_equal(source[1]['label'].voxels, (clots > 0)[::-1, ::-1, ::-1])
    assert not source[2]['label'].voxels.any()
    assert [c.id for c in made(fumpe, fumpe_tree, exclude=('PAT002',)).cases] == ['PAT001', 'PAT003']
    assert pickle.loads(pickle.dumps(source))[1]['case'] == 'PAT002'
    assert source.paths(1) == (str(fumpe_tree / 'CT_scans/PAT002'), str(fumpe_tree / 'GroundTruth/PAT002.mat'))


def test_fumpe_names_that_follow_nothing(fumpe_tree):
    folder = fumpe_tree / 'CT_scans' / 'PAT001'
    (folder / 'D0002.dcm').rename(folder / 'D0009.dcm')
    with pytest.raises(errors.BadData, match='PAT001.*neither up nor down'):
        made(fumpe, fumpe_tree)[0]
    assert [c.id for c in made(fumpe, fumpe_tree, on_error='skip').cases] == ['PAT002', 'PAT003']


def test_fumpe_a_slice_is_missing(fumpe_tree):
    (fumpe_tree / 'CT_scans' / 'PAT001' / 'D0006.dcm').unlink()
    with pytest.raises(errors.BadData, match=r'PAT001.mat.*\(9, 7, 6\).*\(9, 7, 5\)'):
        made(fumpe, fumpe_tree)[0]
    (fumpe_tree / 'GroundTruth' / 'PAT002.mat').unlink()
    with pytest.raises(errors.MissingInput, match='Case PAT002.*exclude'):
        made(fumpe, fumpe_tree)


def compressed(payload, claims=None):
    """A MATLAB 5 file of one compressed element."""
    packed = zlib.compress(payload)
    size = len(packed) if claims is None else claims
    return b'MATLAB 5.0 MAT-file'.ljust(124) + b'\0\1IM' + (15).to_bytes(4, 'little') + size.to_bytes(4,
                                                                                                      'little') + packed


@pytest.mark.parametrize('content, words', [
    (b'MATLAB 7.3 MAT-file'.ljust(512) + b'\x89HDF\r\n\x1a\n', "HDF5.*save.*'-v7'"),
    (b'\x89HDF\r\n\x1a\n' + bytes(200), 'HDF5'),
    (b'', 'MATLAB 5'),
    (b'anything else' * 30, 'MATLAB 5'),
    (b'MATLAB 5.0 MAT-file'.ljust(124) + b'\0\1XX', 'MATLAB 5'),
    (compressed(bytes(2**22)), 'larger than max_voxels'),  # a bomb
    (compressed(bytes(100), claims=2**31), 'ends within'),
    (compressed(bytes(100))[:-3] + b'abc', 'damaged'),
    (compressed(b'\x0e\0\0\0\xff\xff\xff\x7f' + bytes(60)), 'damaged'),
    (compressed(b''), 'no variable Mask')])
def test_fumpe_bad_mat(tmp_path, content, words):
    (tmp_path / 'x.mat').write_bytes(content)
    with pytest.raises(errors.BadData, match=f'x.mat.*{words}'):
        fumpe.read(tmp_path / 'x.mat', 10_000)


@pytest.mark.parametrize('given, words', [
    ({'mask': np.zeros((3, 3, 3))}, 'no variable Mask, but mask'),
    ({'Mask': np.zeros((3, 3))}, 'three-dimensional'),
    ({'Mask': 'text'}, 'char'),
    ({'Mask': {'a': 1}}, 'struct'),
    ({'Mask': np.array([[[1, 'a']]], object)}, 'cell'),
    ({'Mask': np.zeros((30, 30, 30), np.uint8)}, 'more than max_voxels')])
def test_fumpe_other_variables(tmp_path, given, words):
    scipy.io.savemat(tmp_path / 'x.mat', given)
    with pytest.raises(errors.BadData, match=f'x.mat.*{words}'):
        fumpe.read(tmp_path / 'x.mat', 10_000)


def test_fumpe_damage_never_ends_otherwise(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 2, (4, 5, 6)).astype(np.uint8)
    for packed in (False, True):
        scipy.io.savemat(tmp_path / 'x.mat', {'Mask': voxels}, do_compression=packed)
        good = (tmp_path / 'x.mat').read_bytes()
        np.testing.assert_array_equal(fumpe.read(tmp_path / 'x.mat', 200), voxels.transpose(1, 0, 2))
        rng = np.random.default_rng(1)
        for _ in range(60):
            bad = bytearray(good)
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
            (tmp_path / 'x.mat').write_bytes(bytes(bad[:rng.integers(100, len(bad) + 1)]) if rng.random() < 0.3
                                             else bad)
            try:
                assert fumpe.read(tmp_path / 'x.mat', 200).ndim == 3
            except errors.BadData as e:
                assert 'x.mat' in str(e)


# CAD-PE

def save_nrrd(path, voxels, directions=((-0.7, 0, 0), (0, 0.7, 0), (0, 0, 1.2)), origin=(5, 6, 7)):
    path.parent.mkdir(exist_ok=True)
    nrrd.write(str(path), voxels, {'space': 'left-posterior-superior', 'space directions': np.array(directions),
                                   'space origin': np.array(origin), 'encoding': 'gzip'})


@pytest.fixture
def cad_tree(tmp_path):
    for n, (image, mask) in enumerate((('001', '0001'), ('012', '012'), ('e0032', 'e0032'))):
        voxels, clots = case(n)
        save_nrrd(tmp_path / 'images' / f'{image}.nrrd', voxels)
        # The header of the second reference says that its slices go down: index decides
        save_nrrd(tmp_path / 'rs' / f'{mask}RefStd.nrrd', clots.astype(np.uint16) * 200,
                  ((-0.7, 0, 0), (0, 0.7, 0), (0, 0, -1.2 if n == 1 else 1.2)))
    return tmp_path


def test_cad_pe_merges_clots_and_keeps_their_numbers(cad_tree):
    source = made(cad_pe, cad_tree)
    assert [c.id for c in source.cases] == ['001', '012', 'e0032'] and source.targets['pe'].tolist() == [1, 1, 1]
    for i in range(3):
        record = together(source[i])
        assert record.keys() == {'ctpa', 'label', 'instances', 'pe', 'case'}
        assert set(np.unique(record['instances'].voxels)) == {0, 200, 400}
        np.testing.assert_array_equal(record['instances'].voxels > 0, record['label'].voxels)
        assert np.array_equal(record['instances'].affine, record['ctpa'].affine)
    assert [c.id for c in made(cad_pe, cad_tree, exclude=('e0032', '001')).cases] == ['012']
    out = scan.build(ConfigDict({**scan.DEFAULTS, 'keys': ('ctpa',), 'windows': ((-200.0, 700.0),)})).apply(source[0])
    assert out.keys() == {'ctpa', 'label', 'affine', 'present', 'pe'}


def test_cad_pe_references_that_do_not_fit(cad_tree):
    save_nrrd(cad_tree / 'rs' / '012RefStd.nrrd', np.zeros((9, 7, 5), np.uint8))
    with pytest.raises(errors.BadData, match='012RefStd.nrrd.*9, 7, 5'):
        made(cad_pe, cad_tree)[1]
    save_nrrd(cad_tree / 'rs' / '0012RefStd.nrrd', np.zeros(SHAPE, np.uint8))
    with pytest.raises(errors.BadData,
                       match='Case 012.*0012RefStd.nrrd and 012RefStd.nrrd|012RefStd.nrrd and 0012RefStd'):
        made(cad_pe, cad_tree)
    (cad_tree / 'rs' / 'e0032RefStd.nrrd').unlink()
    skipped = made(cad_pe, cad_tree, on_error='skip').skipped
    assert [name for name, _ in skipped] == ['012', 'e0032'] and 'no e0032RefStd.nrrd' in skipped[1][1]
    with pytest.raises(errors.MissingInput, match='cad_pe: .*masks'):
        made(cad_pe, cad_tree, masks='masks')


# READ

@pytest.fixture
def read_tree(tmp_path):
    (tmp_path / 'rs').mkdir()
    for n, (folder, name) in enumerate((('GE (DICOM files)', '01GE'), ('TOSHIBA (DICOM files)', '01TS'))):
        voxels, clots = case(n)
        series(tmp_path / 'images' / folder / name, voxels, [f'{k:03d}' for k in range(SHAPE[2])])
        # The mask's header: slices the other way than DICOM's, a spacing that is rounded, an origin of its own
        affine = np.diag([-0.75, -0.5, -1.2, 1.0])
        affine[:3, 3] = (3, 4, 5)
        like = Volume(clots, affine)
        volume.save(tmp_path / 'rs' / f'{name}.nii.gz', clots, like)
    return tmp_path


def test_read_goes_by_index(read_tree):
    source = made(read_pe, read_tree)
    assert [(c.id, c.groups) for c in source.cases] == [('01GE', {'pe': 'present', 'scanner': 'GE'}),
                                                        ('01TS', {'pe': 'present', 'scanner': 'TOSHIBA'})]
    for i in (0, 1):
        record = together(source[i])
        np.testing.assert_allclose(volume.spacing(record['ctpa'].affine), SIDES)
        voxels, clots = case(i)
        first = np.array([2, 1, 1])  # a voxel of the file, where the header of the mask has it at DICOM's spacing
        at = volume.index(record['label'].affine, np.array([3, 4, 5]) - first * SIDES)
        assert record['label'].voxels[tuple(np.round(at).astype(int))] == 1
        np.testing.assert_allclose(at, np.round(at), atol=1e-5)
        np.testing.assert_array_equal(record['ctpa'].voxels, voxels[::-1, ::-1, ::-1])
    assert [c.id for c in made(read_pe, read_tree, exclude=('01GE',)).cases] == ['01TS']
    (read_tree / 'rs' / '01TS.nii.gz').unlink()
    with pytest.raises(errors.MissingInput, match='Case 01TS'):
        made(read_pe, read_tree)
    with pytest.raises(errors.MissingInput, match='read_pe: .*CT scans'):
        made(read_pe, read_tree, images=('CT scans',))


def test_read_shapes_differ(read_tree):
    clots = np.zeros((9, 7, 5), np.uint8)
    volume.save(read_tree / 'rs' / '01GE.nii.gz', clots, Volume(clots, np.eye(4)))
    with pytest.raises(errors.BadData, match='01GE.nii.gz.*9, 7, 5'):
        made(read_pe, read_tree)[0]


# RSPECT

COLUMNS = ['StudyInstanceUID', 'SeriesInstanceUID', 'SOPInstanceUID', 'pe_present_on_image', 'negative_exam_for_pe',
           'qa_motion', 'qa_contrast', 'flow_artifact', 'rv_lv_ratio_gte_1', 'rv_lv_ratio_lt_1', 'leftsided_pe',
           'chronic_pe',
           'true_filling_defect_not_pe', 'rightsided_pe', 'acute_and_chronic_pe', 'central_pe', 'indeterminate']
EXAMS = {'s1': ((1, 2), 0, 0), 's2': ((), 1, 0), 's3': ((), 0, 1)}  # slices with an embolus, negative, indeterminate


def rows_of(study, positive, negative, indeterminate):
    # Names follow no order of positions: slice k is u<7 k mod 6>
    return [[study, f'{study}a', f'{study}u{5 * k % 6}', str(int(k in positive)), str(negative), *'0' * 11,
             str(indeterminate)] for k in range(SHAPE[2])]


@pytest.fixture
def rspect_tree(tmp_path):
    def write(exams=EXAMS, columns=COLUMNS, edit=None):
        rows = [row for study, facts in exams.items() for row in rows_of(study, *facts)]
        with open(tmp_path / 'train.csv', 'w', newline='') as f:
            csv.writer(f).writerows([columns, *(edit(rows) if edit else rows)])
        return tmp_path
    for n, study in enumerate(EXAMS):
        series(tmp_path / 'train' / study / f'{study}a', case(n)[0],
               [f'{row[2]}.dcm' for row in rows_of(study, (), 0, 0)],
               down=n == 1)
    return write


def test_rspect(rspect_tree):
    source = made(rspect, rspect_tree())
    assert [(c.id, c.patient, c.groups['pe']) for c in source.cases] == [
        ('s1', 's1', 'present'), ('s2', 's2', 'absent'), ('s3', 's3', 'unknown')]
    assert source.targets['pe'].tolist() == [1, 0, -1] and 'no masks' in source.note
    record = source[0]
    label = record['label'].voxels
    assert label.shape == SHAPE and (label[:, :, [1, 2]] == 255).all() and not label[:, :, [0, 3, 4, 5]].any()
    np.testing.assert_array_equal(record['ctpa'].voxels[::-1, ::-1], case(0)[0])
    assert not source[1]['label'].voxels.any() and not source[2]['label'].voxels.any()
    out = scan.build(ConfigDict(scan.DEFAULTS)).apply(pseudo_nct.build(ConfigDict(pseudo_nct.DEFAULTS)).apply(record))
    assert set(np.unique(out['label'])) == {0, 255}
    assert len(pickle.loads(pickle.dumps(source))) == 3


def test_rspect_slices_are_found_where_they_lie(rspect_tree):
    root = rspect_tree()
    pixels = made(rspect, root, exclude=('s1', 's3'))[0]
    np.testing.assert_array_equal(pixels['ctpa'].voxels[::-1, ::-1, ::-1], case(1)[0])
    rspect_tree({**EXAMS, 's2': ((1,), 0, 0)})
    label = made(rspect, root)[1]['label'].voxels  # the second from above
    assert (label[:, :, 4] == 255).all() and not label[:, :, [0, 1, 2, 3, 5]].any()


def test_rspect_needs_no_folder_of_every_exam(rspect_tree):
    root = rspect_tree({**EXAMS, 's4': ((), 1, 0)})
    with pytest.raises(errors.MissingInput, match="Case s4.*missing='skip'"):
        made(rspect, root)
    source = made(rspect, root, missing='skip')
    assert len(source) == 3 and source.skipped == ()
    assert [name for name, _ in made(rspect, root, on_error='skip').skipped] == ['s4']
    with pytest.raises(errors.ConfigError, match='missing'):
        made(rspect, root, missing='ok')


@pytest.mark.parametrize('edit, words', [
    (lambda rows: [*rows[:3], rows[3][:-1], *rows[4:]], 'row 5: 16 cells'),
    (lambda rows: [*rows[:3], [*rows[3][:3], '2', *rows[3][4:]], *rows[4:]], 'row 5: column "pe_present_on_image"'),
    (lambda rows: [*rows[:3], [*rows[3][:4], '1', *rows[3][5:]], *rows[4:]], 'row 5: its study has another'),
    (lambda rows: [[*row[:4], '1', *row[5:]] for row in rows], 'study s1 has negative_exam_for_pe = 1'),
    (lambda rows: [[*row[:4], '', *row[5:]] for row in rows], 'row 2: column "negative_exam_for_pe" is neither 0 nor'),
    (lambda rows: [[*row[:-1], 'perhaps'] for row in rows], 'row 2: column "indeterminate" is neither 0 nor 1'),
    (lambda rows: [['../' + row[0], *row[1:]] for row in rows], 'leaves the root'),
    (lambda rows: [], 'no usable case')])
def test_rspect_bad_tables(rspect_tree, edit, words):
    with pytest.raises(errors.BadData, match=words):
        made(rspect, rspect_tree(edit=edit))


@pytest.mark.parametrize('no, yes', [('False', 'TRUE'), ('no', ' Yes '), ('0.0', '1.00')])
def test_rspect_labels_in_any_spelling(rspect_tree, no, yes):
    plain = rspect.read(rspect_tree() / 'train.csv')
    root = rspect_tree(edit=lambda rows: [row[:3] + [yes if cell == '1' else no for cell in row[3:]] for row in rows])
    assert rspect.read(root / 'train.csv') == plain


def test_rspect_other_bad_tables(rspect_tree):
    root = rspect_tree(columns=['study', *COLUMNS[1:]])
    with pytest.raises(errors.BadData, match='no column "StudyInstanceUID"'):
        made(rspect, root)
    (root / 'train.csv').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(errors.BadData, match='train.csv is not UTF-8'):
        made(rspect, root)
    (root / 'train.csv').unlink()
    with pytest.raises(errors.MissingInput, match='train.csv'):
        made(rspect, root)


def test_rspect_slices_and_table_must_agree(rspect_tree):
    root = rspect_tree(edit=lambda rows: rows[1:])
    with pytest.raises(errors.BadData, match='s1/s1a.*6 slices, the table 5'):
        made(rspect, root)[0]
    rspect_tree(edit=lambda rows: [[*row[:2], row[2] + 'x', *row[3:]] for row in rows])
    with pytest.raises(errors.BadData, match='s1/s1a.*2 of them with an embolus and without a file'):
        made(rspect, root)[0]


def test_rspect_reads_a_large_table_in_bounded_time_and_memory(tmp_path):
    """200,000 of 1,790,594 rows; the bounds are those of 60 s and 300 MB for all of them."""
    rows = 200_000
    with open(tmp_path / 'train.csv', 'w') as f:
        f.write(','.join(COLUMNS) + '\n')
        for r in range(rows):
            study = r // 250
            f.write(f'{study:012x},{study:012x}s,{r:012x},{int(study % 3 == 0 and r % 6 == 0)},{int(study % 3 != 0)}' +
                    ',0' * 12 + '\n')
    begin = time.process_time()
    exams = rspect.read(tmp_path / 'train.csv')
    took = time.process_time() - begin
    assert len(exams) == 800 and sum(len(e[3]) for e in exams.values()) == sum(
        1 for r in range(rows) if r // 250 % 3 == 0 and r % 6 == 0)
    assert {e[1] for e in exams.values()} == {0, 1} and all(e[2] == 250 for e in exams.values())
    assert took < 60 / 9
    with open(tmp_path / 'train.csv') as f, open(tmp_path / 'part.csv', 'w') as part:
        part.writelines(line for line, _ in zip(f, range(rows // 5 + 1)))
    tracemalloc.start()  # which is slow
    rspect.read(tmp_path / 'part.csv')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6 / 45


# what they share

def test_a_damaged_slice_is_named(fumpe_tree):
    (fumpe_tree / 'CT_scans' / 'PAT001' / 'D0003.dcm').write_bytes(b'nothing')
    with pytest.raises(errors.BadData, match='D0003.dcm'):
        embolism.slices(fumpe_tree / 'CT_scans' / 'PAT001')
    with pytest.raises(errors.BadData, match='D0003.dcm'):
        made(fumpe, fumpe_tree)[0]


@pytest.mark.parametrize('module', [fumpe, cad_pe, read_pe, rspect])
def test_no_root(module, tmp_path):
    with pytest.raises(errors.MissingInput, match='root'):
        made(module, tmp_path / 'nowhere')
    with pytest.raises(errors.ConfigError, match='on_error'):
        made(module, tmp_path, on_error='stop')
