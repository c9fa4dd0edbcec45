"""The viewer of slices: the pixels are those of the volumes, the sliders reach the first and the last of each."""
import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

import jaxkd
from jaxkd import errors
from jaxkd.data.volume import Volume


def pictures(html):
    """Arrays of all pictures of a page."""
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
            for data in re.findall(r'data:image/png;base64,([^"]+)', html)]


def test_slices_stand_below_each_other():
    volume = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    page = jaxkd.show_slices(volume, window=(0, 59))
    (strip,) = pictures(page.html)
    assert strip.shape == (12, 5)
    np.testing.assert_array_equal(strip, (volume.reshape(12, 5) / 59 * 255).astype(np.uint8))
    assert 'data-n="3"' in page.html and 'step="0.5"' in page.html  # three positions


def test_volumes_side_by_side_with_an_overlay_on_those_of_its_shape():
    a, b = np.random.default_rng(0).random((2, 4, 6, 6))
    mask = np.zeros((4, 6, 6), np.uint8)
    mask[1, 2, 3], mask[2, 0, 0] = 2, 255
    page = jaxkd.show_slices({'ct <1>': a, 'mri': b[:2]}, mask)
    strips = pictures(page.html)
    assert [s.shape for s in strips] == [(24, 6), (24, 6, 4), (12, 6)]
    assert np.argwhere(strips[1][..., 3]).tolist() == [[8, 3]]  # one visible pixel: 255 is ignored
    assert 'ct &lt;1&gt;' in page.html and 'class 2' in page.html and page.html.count('type="range"') == 2


def test_axial_slices_of_a_volume_have_the_front_above():
    voxels = np.zeros((2, 3, 4), np.float32)
    voxels[0, 2, 1] = 1  # left-most, front-most in RAS
    (strip,) = pictures(jaxkd.show_slices(Volume(voxels, np.eye(4)), window=(0, 1)).html)
    assert strip.reshape(4, 3, 2)[1].tolist() == [[255, 0], [0, 0], [0, 0]]


def test_a_deep_volume_is_thinned_and_an_image_has_no_slider():
    (strip,) = pictures(jaxkd.show_slices(np.zeros((130, 2, 2))).html)
    assert strip.shape == (2 * 44, 2)
    assert 'type="range"' not in jaxkd.show_slices(np.eye(8)).html


@pytest.mark.parametrize('volumes, overlay', [
    (np.zeros(3), None), (np.zeros((2, 2, 2, 2)), None), (np.zeros((2, 3, 3)), np.zeros((2, 3, 4))),
    ({'a': np.zeros((2, 3, 3))}, {'b': np.zeros((2, 3, 3))})])
def test_other_shapes_are_refused(volumes, overlay):
    with pytest.raises(errors.BadData, match='shape'):
        jaxkd.show_slices(volumes, overlay)
