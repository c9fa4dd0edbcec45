"""Masks and scans that lie where their scan is not: refused where nothing is in common, counted where a part is."""
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from scipy.spatial.transform import Rotation

from jaxkd import errors
from jaxkd.data import fields_of_view, volume
from jaxkd.data.sources import dualphase, paired
from jaxkd.data.transforms import scan as scan_transform
from jaxkd.data.transforms import volume as volume_transform
from jaxkd.data.volume import Volume
from tests.fixtures import dicom_series

GRID = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = 10, 8, 6


def at(x, y=0.0, z=0.0):
    affine = GRID.copy()
    affine[:3, 3] = x, y, z
    return affine


def mask(affine=GRID):
    """A box of 4 x 2 x 1 labelled voxels, of which the first is (4, 3, 2)."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[4:8, 3:5, 2] = 1
    return Volume(voxels, affine)


turned_grids = st.builds(
    lambda angles, sides, origin: np.block([[Rotation.from_euler('xyz', angles).as_matrix() * sides,
                                             np.reshape(origin, (3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]),
    st.tuples(*[st.floats(-3, 3)] * 3), st.tuples(*[st.floats(0.5, 3)] * 3), st.tuples(*[st.floats(-15, 15)] * 3))


@settings(max_examples=200, deadline=None)
@given(turned_grids, turned_grids, st.integers(0, 2**32))
def test_labelled_voxels_outside_are_those_whose_middle_no_voxel_of_the_scan_holds(a, b, seed):
    scan, part = Volume(np.zeros((6, 5, 4)), a), Volume(np.random.default_rng(seed).random((5, 4, 3)) < 0.5, b)
    places = volume.index(a, volume.world(b, np.argwhere(part.voxels)))
    assume((np.abs(np.abs(places - np.round(places)) - 0.5) > 1e-4).all())
    inside = [tuple(p) in np.ndindex(6, 5, 4) for p in np.round(places).astype(int).tolist()]
    found = fields_of_view.outside(part, 'm', scan)
    assert found == ('m', inside.count(False), len(inside))
    if any(inside):
        fields_of_view.check(part, 'm', scan, 's')  # what shares a voxel is not apart


@pytest.mark.parametrize('affine, apart', [(at(9.9), False), (at(10.1), True), (at(-9.9), False), (at(-10.1), True),
                                           (at(0, 0, 11.9), False), (at(0, 0, 12.1), True)])
def test_boxes_reach_to_the_outer_faces_of_their_voxels(affine, apart):
    scan = Volume(np.zeros(SHAPE), GRID)
    for a, b in ((mask(affine), scan), (scan, mask(affine))):
        if apart:
            with pytest.raises(errors.BadData, match='a.nii lies wholly outside of b.nii: it reaches over x .* to .*, '
                                                     'y .*, z .*the other over x .*mm, RAS.*save the mask on the grid'):
                fields_of_view.check(a, 'a.nii', b, 'b.nii')
        else:
            fields_of_view.check(a, 'a.nii', b, 'b.nii')


def test_a_turned_box_beside_a_corner_is_apart_though_its_frame_along_the_axes_is_not():
    """A square on its tip: left of x = 18 its edge is at y = tip + 18 - x, at the corner (9.5, 7.5) at tip + 8.5."""
    scan, half = Volume(np.zeros(SHAPE), GRID), 2**-0.5
    for first, apart in ((-2.0, False), (1.0, True)):
        turned = np.array([[half, -half, 0, 18], [half, half, 0, first], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        square = Volume(np.zeros((20, 20, 6)), turned)  # its tip is at y = first - 0.7
        if apart:
            with pytest.raises(errors.BadData, match='x 4 to 32, y 0 to 29, z 0 to 6, the other over x 0 to 10, y 0 '):
                fields_of_view.check(square, 'd', scan, 's')
        else:
            fields_of_view.check(square, 'd', scan, 's')


def save(path, voxels, affine=GRID):
    path.parent.mkdir(parents=True, exist_ok=True)
    volume.save(path, voxels, Volume(voxels, affine))


def build_paired(root, affines, dicom=False, **options):
    """Three cases of a CT on GRID (or 0.5 mm pixels from (-11, -21, 100) as DICOM), with masks on these grids."""
    rows = ['case_id,patient_id,cls']
    for i, affine in enumerate(affines):
        if dicom:
            dicom_series.series(root / f'c{i}' / 'ct', np.full((30, 30, 4), i, np.uint16), number=i)
        else:
            save(root / f'c{i}' / 'ct.nii.gz', np.full(SHAPE, i, np.int16))
        save(root / f'c{i}' / 'roi_ct.nrrd', mask().voxels, affine)
        rows.append(f'c{i},p{i},{i % 2}')
    (root / 'cases.csv').write_text('\n'.join(rows))
    given = dict(root=str(root), modalities=('ct',), tasks=(), classes=(), labels=('no', 'yes'), **options)
    return paired.build(ConfigDict({**paired.DEFAULTS, **given}))


def test_a_mask_elsewhere_is_refused_at_the_start_or_left_out(tmp_path, capsys):
    words = 'c1/roi_ct.nrrd lies wholly outside of c1/ct.nii.gz: it reaches over x 40 to 50.*the other over x 0 to 10'
    with pytest.raises(errors.BadData, match=words):
        build_paired(tmp_path, [GRID, at(40), GRID])
    source = build_paired(tmp_path, [GRID, at(40), at(0)], on_error='skip')
    (case, reason), = source.skipped
    assert len(source) == 2 and case == 'c1' and 'lies wholly outside of' in reason
    assert 'reach out' not in capsys.readouterr().out


def test_a_mask_elsewhere_of_a_dicom_series_is_refused_when_the_case_is_read(tmp_path):
    source = build_paired(tmp_path, [at(400)] * 3, dicom=True)
    with pytest.raises(errors.BadData, match='c1/roi_ct.nrrd lies wholly outside of c1/ct'):
        source[1]


def test_a_mask_that_reaches_out_of_its_scan_is_said_with_its_share(tmp_path, capsys):
    """Moved by 4 mm, 2 of 4 columns of 2 voxels of the box are beyond x = 9.5; by 8.4 mm all of them."""
    source = build_paired(tmp_path, [GRID, at(4), at(8.4)])
    assert len(source) == 3
    assert ('paired: 2 of 3 masks reach out of their scans: 12 of their 16 labelled voxels (75.0 %) are where the scan '
            'shows nothing, most of c2/roi_ct.nrrd (100.0 %)') in capsys.readouterr().out


def build_dualphase(root, label, ctpa, **options):
    for i in range(2):
        save(root / f'c{i}' / 'nct.nii.gz', np.full(SHAPE, -100, np.int16))
        save(root / f'c{i}' / 'ctpa.nii', np.full(SHAPE, 100, np.int16), ctpa)
        save(root / f'c{i}' / 'label.nii.gz', mask().voxels, label)
    (root / 'cases.csv').write_text('case_id,patient_id,pe,split\nc0,p0,,\nc1,p1,,\n')
    return dualphase.build(ConfigDict({**dualphase.DEFAULTS, 'root': str(root), **options}))


def test_an_embolus_mask_belongs_to_the_scan_that_it_was_drawn_on(tmp_path, capsys):
    with pytest.raises(errors.BadData, match='c0/label.nii.gz lies wholly outside of .*c0/ctpa.nii: '):
        build_dualphase(tmp_path, at(0, 30), GRID)
    assert len(build_dualphase(tmp_path, at(0, 30), at(0, 30))) == 2  # registration may bring both to the NCT
    with pytest.raises(errors.BadData, match='c0/label.nii.gz lies wholly outside of .*c0/nct.nii.gz: '):
        build_dualphase(tmp_path, at(0, 30), at(0, 30), label_on='nct')
    build_dualphase(tmp_path, at(4), GRID)
    assert 'dualphase: 2 of 2 masks reach out of their scans: 8 of their 16 labelled' in capsys.readouterr().out


def test_a_further_scan_elsewhere_is_no_empty_input(tmp_path):
    """The CTPA, with its mask, in another frame of reference and no registration: all of it would be air."""
    source = build_dualphase(tmp_path, at(0, 30), at(0, 30))
    apply = scan_transform.build(ConfigDict({**scan_transform.DEFAULTS, 'spacing': (0.0, 0.0, 0.0)})).apply
    with pytest.raises(errors.BadData, match='Case c0: ctpa lies wholly outside of its nct: it reaches over x 0 to 10, '
                                             'y 30 to 38, z -1 to 11, the other over .*y 0 to 8'):
        apply(source[0])
    alone = {k: v for k, v in source[0].items() if k != 'ctpa'}
    with pytest.raises(errors.BadData, match='Case c0: label lies wholly outside of its nct'):
        apply(alone)


def test_a_crop_that_shows_nothing_of_its_scan_is_refused():
    """An MRI without a mask of its own is cropped where the CT is."""
    options = {**volume_transform.DEFAULTS, 'size': (4, 4, 4), 'keys': ('ct', 't1')}
    apply = volume_transform.build(ConfigDict(options)).apply
    record = {'case': 'c0', 'ct': mask(), 't1': mask(at(200))}
    with pytest.raises(errors.BadData, match='Case c0: the crop of t1 around .*ct, lies wholly outside of the scan'):
        apply(record)
    assert apply({**record, 't1': mask(at(3))})['present']['t1'] == 1
