"""jaxkd.predict with a bundle in the place of the run."""
import csv

import numpy as np
import pytest

from jaxkd import predict
from tests.export import students
from tests.export.test_run import same_mask

pytest.importorskip('onnx')


def rows(folder):
    with open(folder / 'predictions.csv', newline='') as f:
        return list(csv.DictReader(f))


@pytest.mark.parametrize('kind', students.STUDENTS)
def test_a_bundle_gives_the_table_and_masks_of_its_run(kind, tmp_path):
    inputs = students.cases(kind, tmp_path / 'cases')
    run, model = students.predicted(kind), tmp_path / 'out'
    assert predict.main(['--model', str(students.exported(kind)), '--input', *inputs, '--output', str(model)]) == 0
    expected, found = rows(run), rows(model)
    assert len(found) >= 3
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys() and a['case'] == b['case']
        numbers = [c for c in a if c.startswith(('logit/', 'probability/', 'calibrated/', 'volume_ml/'))]
        np.testing.assert_allclose([float(a[c]) for c in numbers], [float(b[c]) for c in numbers], atol=1e-4, rtol=1e-4)
        if 'mask' in a:
            assert same_mask(model / a['mask'], run / b['mask']) > 0.999


def test_a_run_and_its_bundle_are_averaged_and_a_damaged_bundle_is_refused(tmp_path, capsys):
    inputs = students.cases('table', tmp_path / 'cases')
    both = ['--run', students.run('table'), '--model', str(students.exported('table')), '--input', *inputs]
    assert predict.main([*both, '--output', str(tmp_path / 'out')]) == 0
    assert all(float(row['sd/malignant']) < 1e-5 for row in rows(tmp_path / 'out'))
    assert predict.main(['--model', str(tmp_path), '--input', *inputs, '--output', str(tmp_path / 'b')]) == 66
    assert 'is no bundle' in capsys.readouterr().err
    assert predict.main(['--input', *inputs, '--output', str(tmp_path / 'b')]) == 2


def test_overlays_of_a_bundle_are_pictures_without_a_map(tmp_path):
    inputs = students.cases('image', tmp_path / 'cases')
    assert predict.main(['--model', str(students.exported('image')), '--input', *inputs, '--output',
                         str(tmp_path / 'out'), '--overlays']) == 0
    assert all((tmp_path / 'out' / row['overlay']).is_file() for row in rows(tmp_path / 'out'))
