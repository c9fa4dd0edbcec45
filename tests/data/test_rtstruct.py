import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.data.formats import rtstruct
from tests.fixtures import dicom_series

SHAPE, SPACING, ORIGIN = (60, 50, 8), (1.2, 0.9, 2.5), (-20.0, -30.0, 100.0)
MIDDLE = (12.0, -8.0)  # LPS mm, in the middle of the slices
AFFINE = np.diag([-1, -1, 1, 1]) @ np.array([[SPACING[0], 0, 0, ORIGIN[0]], [0, SPACING[1], 0, ORIGIN[1]],
                                             [0, 0, SPACING[2], ORIGIN[2]], [0, 0, 0, 1]])


def height(k):
    return ORIGIN[2] + k * SPACING[2]


def ellipse(a, b, z, middle=MIDDLE, n=72):
    t = np.arange(n) * 2 * np.pi / n
    return np.column_stack([middle[0] + a * np.cos(t), middle[1] + b * np.sin(t), np.full(n, z)])


@pytest.fixture
def draw(tmp_path):
    def draw(contours, name='GTV', kind='CLOSED_PLANAR', region='GTV'):
        dicom_series.rtstruct(tmp_path / 'RS.dcm', '1.2', {name: contours}, kind)
        return rtstruct.read(str(tmp_path / 'RS.dcm'), region, SHAPE, AFFINE)
    return draw


@given(a=st.floats(4, 18), b=st.floats(4, 14), x=st.floats(-1, 1), y=st.floats(-1, 1), hole=st.floats(0, 0.7))
@settings(deadline=None, max_examples=200)
def test_pixels_and_middle_of_an_elliptic_tube(tmp_path_factory, a, b, x, y, hole):
    """Elliptic cylinders, with a hole that is a second contour: each pixel whose middle lies within, and no other."""
    folder = pathlib.Path(tmp_path_factory.getbasetemp())
    middle = (MIDDLE[0] + x, MIDDLE[1] + y)
    sizes = (1, hole) if hole > 0.2 else (1,)
    contours = [ellipse(a * size, b * size, height(k), middle) for k in (2, 3, 4) for size in sizes]
    dicom_series.rtstruct(folder / 'RS.dcm', '1.2', {'GTV': contours})
    inside = rtstruct.read(str(folder / 'RS.dcm'), 'GTV', SHAPE, AFFINE)
    counts = inside.sum(axis=(0, 1))
    np.testing.assert_array_equal(counts[[0, 1, 5, 6, 7]], 0)
    assert (counts[2:5] == counts[2]).all()
    column, row = np.ogrid[:SHAPE[0], :SHAPE[1]]
    radius = np.hypot((ORIGIN[0] + column * SPACING[0] - middle[0]) / a, (ORIGIN[1] + row * SPACING[1] - middle[1]) / b)
    expected = (radius < 1) & ~((radius < hole) & (hole > 0.2))
    decided = (abs(radius - 1) > 1e-3) & (abs(radius - hole) > 1e-3)  # the contours are polygons within the ellipses
    np.testing.assert_array_equal(inside[..., 3][decided], expected[decided])
    i, j, k = (inside.nonzero()[n].mean() for n in range(3))
    assert k == pytest.approx(3)
    assert (ORIGIN[0] + i * SPACING[0], ORIGIN[1] + j * SPACING[1]) == pytest.approx(middle, abs=1)


def test_a_rectangle_holds_the_pixels_whose_middles_it_holds(draw):
    """Columns 3 to 6 and rows 4 to 8 have their middles inside; a corner on a middle counts for one side alone."""
    x0, x1, y0, y1 = (ORIGIN[0] + 2.5 * SPACING[0], ORIGIN[0] + 6.5 * SPACING[0], ORIGIN[1] + 3.5 * SPACING[1],
                      ORIGIN[1] + 8.5 * SPACING[1])
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    expected = np.zeros(SHAPE, bool)
    expected[3:7, 4:9, 5] = True
    for order in (corners, corners[::-1]):
        contour = np.array([(x, y, height(5)) for x, y in order])
        np.testing.assert_array_equal(draw([contour]), expected)
        np.testing.assert_array_equal(draw([contour], kind='CLOSEDPLANAR_XOR'), expected)
    half = [np.array([(ORIGIN[0] + x * SPACING[0], ORIGIN[1] + y * SPACING[1], height(5)) for x, y in square])
            for square in ([(2, 2), (5, 2), (5, 7), (2, 7)], [(5, 2), (9, 2), (9, 7), (5, 7)])]
    whole = draw([np.array([(ORIGIN[0] + x * SPACING[0], ORIGIN[1] + y * SPACING[1], height(5))
                            for x, y in [(2, 2), (9, 2), (9, 7), (2, 7)]])])
    np.testing.assert_array_equal(draw(half[:1]) | draw(half[1:]), whole)  # neighbours share no pixel and leave none
    assert not (draw(half[:1]) & draw(half[1:])).any() and whole.sum() == 7 * 5


def test_a_hole_that_a_channel_joins(draw):
    outer, inner = ellipse(15, 12, height(1)), ellipse(6, 5, height(1))[::-1]
    keyhole = np.concatenate([outer, outer[:1], inner[-1:], inner[:-1], inner[-1:], outer[:1]])
    np.testing.assert_array_equal(draw([keyhole]), draw([outer, inner]))


def test_contours_that_cannot_be_filled(draw, tmp_path):
    good = ellipse(5, 5, height(2))
    tilted = good + np.outer(np.linspace(0, 1, len(good)), (0, 0, 1))
    for contours, why in (([good, ellipse(5, 5, height(2.5))], 'contour 2 of 2 of GTV is not on a slice.*0.5 of'),
                          ([tilted], 'contour 1 of 1 of GTV is not on a slice'),
                          ([ellipse(5, 5, height(9))], 'slice 9 is none of the 8'),
                          ([ellipse(5, 5, height(-1))], 'slice -1 is none of the 8'),
                          ([ellipse(60, 5, height(1))], 'reaches .* pixels out of its slice'),
                          ([], 'nothing is drawn of GTV'), ([good[:2]], 'has 6 numbers')):
        with pytest.raises(errors.BadData, match=f'RS.dcm.*{why}'):
            draw(contours)
    with pytest.raises(errors.BadData, match='0 regions called "GTV"; its regions are GTV_edema'):
        draw([good], name='GTV_edema')
    with pytest.raises(errors.BadData, match='is POINT, which has no inside'):
        draw([good], kind='POINT')
    dicom_series.series(tmp_path / 'ct', np.zeros((4, 4, 2), np.uint16))
    with pytest.raises(errors.BadData, match='CT Image Storage.*no RTSTRUCT'):
        rtstruct.regions(str(tmp_path / 'ct' / '1-001.dcm'))


def test_on_the_grid_of_its_series(tmp_path):
    """In RAS, as all volumes: the axes of LPS are turned, the middle stays where it is in the world."""
    uid = dicom_series.series(tmp_path / 'ct', np.zeros(SHAPE, np.uint16), SPACING, ORIGIN)
    dicom_series.rtstruct(tmp_path / 'rt' / 'RS.dcm', uid, {'a': [ellipse(6, 4, height(5))]})
    assert rtstruct.regions(str(tmp_path / 'rt' / 'RS.dcm')) == (['a'], [uid])
    scan = volume.read(tmp_path / 'ct')
    mask = volume.read_contours(rtstruct.Contours(str(tmp_path / 'rt' / 'RS.dcm'), 'a', str(tmp_path / 'ct')))
    np.testing.assert_allclose(mask.affine, scan.affine)
    middle = volume.world(mask.affine, np.argwhere(mask.voxels).mean(axis=0))
    np.testing.assert_allclose(middle, (-MIDDLE[0], -MIDDLE[1], height(5)), atol=0.3)
    for k in range(SHAPE[2]):  # another series in the folder, with slices twice as far apart
        (tmp_path / 'ct' / f'1-{k + 1:03d}.dcm').unlink()
    dicom_series.series(tmp_path / 'ct', np.zeros((60, 50, 4), np.uint16), (1.2, 0.9, 5.0), ORIGIN)
    with pytest.raises(errors.BadData, match='not on a slice'):
        volume.read_contours(rtstruct.Contours(str(tmp_path / 'rt' / 'RS.dcm'), 'a', str(tmp_path / 'ct')))
