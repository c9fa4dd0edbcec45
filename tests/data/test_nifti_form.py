"""The option nifti_form of every source that reads NIfTI: files whose two forms contradict each other."""
import csv

import nibabel
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import volume
from jaxkd.data.formats import nifti
from jaxkd.data.sources import acdc, dualphase, mnms, paired, read_pe, simba, sts
from jaxkd.phantoms.layouts import simba as simba_layout
from tests.data import test_acdc

SOURCES = acdc, dualphase, mnms, paired, read_pe, simba, sts


def write_sts(root):
    mask = np.zeros((9, 9, 9), np.uint8)
    mask[4, 4, 4] = 1
    for name in ('CT_image', 'MR_T1_image', 'PET_image', 'mask'):
        (root / 'nifti_3mm' / 'STS_001').mkdir(parents=True, exist_ok=True)
        path = root / 'nifti_3mm' / 'STS_001' / f'{name}.nii.gz'
        volume.save(path, mask, volume.Volume(mask, np.diag([3, 3, 3, 1.0])))
    with open(root / 'labels.csv', 'w', newline='') as f:
        csv.writer(f).writerows([['patient', 'lung_metastasis', 'gtv_ml'], ['STS_001', '0', '60']])


WRITERS = {acdc: lambda root: test_acdc.write(root / 'training', 1), sts: write_sts,
           simba: lambda root: simba_layout.write(root, 8, 'far', (17, 21, 16), 0.03, seed=4)}


def contradict(root):
    """Moves the qform of all files by 30 mm."""
    for path in root.rglob('*.nii*'):
        image = nibabel.load(path)
        image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
        moved = image.affine.copy()
        moved[0, 3] += 30
        image.set_sform(image.affine, 1)
        image.set_qform(moved, 1)
        image.to_filename(path)


@pytest.mark.parametrize('source', WRITERS, ids=lambda source: source.__name__)
def test_which_form_holds(tmp_path, source):
    root = tmp_path / 'clean' if source is simba else tmp_path

    def build(form):
        return source.build(ConfigDict({**source.DEFAULTS, 'root': str(root), 'nifti_form': form}))[0]
    WRITERS[source](tmp_path)
    before = build('auto')
    contradict(tmp_path)
    with pytest.raises(errors.BadData, match='its sform and its qform put .* 30 mm apart.*nifti_form'):
        build('auto')
    for form, shift in (('sform', 0), ('qform', 30)):
        for key, scan in build(form).items():
            if isinstance(scan, volume.Volume):
                np.testing.assert_allclose(scan.affine[0, 3] - before[key].affine[0, 3], shift, atol=1e-4)


@pytest.mark.parametrize('source', SOURCES, ids=lambda source: source.__name__)
def test_other_forms_are_refused_by_every_source(tmp_path, source):
    with pytest.raises(errors.ConfigError, match=f'nifti_form = "both" is none of {", ".join(nifti.FORMS)}'):
        source.build(ConfigDict({**source.DEFAULTS, 'root': str(tmp_path), 'nifti_form': 'both'}))
