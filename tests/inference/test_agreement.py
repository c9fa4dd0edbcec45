"""The test cases of a run, predicted from their files, get the predictions of the run: bit for bit, on this device."""
import csv
import json
import pathlib

import nibabel
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import checkpoint, config, predict, runner, stages
from jaxkd.data import volume
from jaxkd.data.pool import DataPool
from jaxkd.inference import scans
from jaxkd.inference.deployed import NetworkModel, load
from jaxkd.metrics import operating_points
from tests.fixtures import commands, pages

COMMON = dict(length='2 steps', eval_every='1 step', log_every='2 steps', batch=4, method=dict(name='supervised'))
SPLIT = dict(fractions=(0.4, 0.2, 0.4))


def trained(folder, data, **given):
    run = {name: {**COMMON, **stage} for name, stage in given.items()}
    run = config.resolve(ConfigDict(config.tuples(dict(
        run, stages=tuple(given), tensorboard=False, bootstrap=0, data=dict(data, split=SPLIT)))))
    with pages.left_out():
        runner.run(run, folder)
    return run


def evaluated(run, name, folder):
    """(the Predictor of the evaluation of the run, names of its test cases)."""
    student = stages.trained_student(run, name, folder, DataPool())
    variables, _ = checkpoint.load_student(folder / 'checkpoints' / name, None)
    data = student.data
    return student.with_variables(variables), [data.source.cases[i].id for i in data.partition.indices('test')]


def predicted(folder, out, given, *options):
    assert predict.main(['--run', str(folder), '--input', str(given), '--output', str(out), *options]) == 0
    with open(out / 'predictions.csv', newline='') as f:
        return {row['case']: row for row in csv.DictReader(f)}


def agree(rows, run, name, folder):
    """Logits to the bit, the probabilities of predictions/, and the calibration and decisions of summary.json."""
    predictor, ids = evaluated(run, name, folder)
    outputs, labels = predictor('test'), predictor.data.source.labels
    found = np.array([[rows[case][f'logit/{label}'] for label in labels] for case in outputs.ids], np.float32)
    assert len(ids) > 4 and np.array_equal(found, outputs.outputs['logits'])
    with open(folder / 'predictions' / f'{name}_test.csv', newline='') as f:
        for row in csv.DictReader(f):
            for label in labels:
                expected = float(row[f'probability/{label}'])
                assert float(rows[row['case']][f'probability/{label}']) == pytest.approx(expected, rel=1e-6)
    return found, json.loads((folder / 'summary.json').read_text())['stages'][name]['decision']


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """(folder of a run of a teacher that reads reports and a student that reads pictures, its config, table of tests)
    """
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    (folder / 'data' / 'images').mkdir(parents=True)
    rows = ['patient_id,image,text,Edema,Effusion']
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (24 + i, 24), np.uint8)).save(folder / 'data' / 'images' / f'{i}.png')
        rows.append(f'p{i},images/{i}.png,FINDINGS: A disc in cell {i % 3}.,{i % 2},{i // 2 % 2}')
    (folder / 'data' / 'cases.csv').write_text('\n'.join(rows) + '\n')
    model = dict(name='text', width=16, depth=1, heads=2, length=8, vocab=16)
    data = dict(source=dict(name='folder', root=str(folder / 'data')), text=dict(length=8, vocab=16),
                transforms=('image', 'text', 'labels'), image=dict(size=32, fit='squash'))
    run = trained(folder / 'run', data,
                  teacher=dict(inputs=('tokens',), model=model, evals=dict(classification={}), batch=8),
                  student=dict(inputs=('image',), model=dict(name='vit', width=16, depth=1, heads=2, patch=16),
                               evals=dict(classification={}), method=dict(name='mmpkd', alpha=0.5),
                               teachers=dict(report=dict(stage='teacher'))))
    _, ids = evaluated(run, 'student', folder / 'run')
    return folder, run, ids


def test_pictures_of_a_folder(images, tmp_path, capsys):
    """The student is found by itself; the order of the files and the cases beside them change no bit."""
    folder, run, ids = images
    (folder / 'data' / 'test.csv').write_text('image\n' + ''.join(f'{i}\n' for i in ids))
    rows = predicted(folder / 'run', tmp_path / 'out', folder / 'data' / 'test.csv', '--overlays')
    assert [*rows] == ids
    logits, decision = agree(rows, run, 'student', folder / 'run')
    assert decision['kind'] == 'multilabel'
    calibrated = operating_points.calibrated_labels(logits, decision['labels'])
    decided = {label: {point: logits[:, c] >= values['threshold'] for point, values in entry['points'].items()}
               for c, (label, entry) in enumerate(decision['labels'].items())}
    order = json.loads(json.dumps([rows[i] for i in ids]))
    predictor, _ = evaluated(run, 'student', folder / 'run')
    for n, case in enumerate(predictor('test').ids):
        for c, label in enumerate(('Edema', 'Effusion')):
            assert float(rows[case][f'calibrated/{label}']) == pytest.approx(calibrated[n, c], rel=1e-6)
            assert {point: bool(int(rows[case][f'{point}/{label}'])) for point in decided[label]} == {
                point: bool(values[n]) for point, values in decided[label].items()}
    all_rows = predicted(folder / 'run', tmp_path / 'all', folder / 'data' / 'images', '--threads', '3')
    assert len(all_rows) == 40 and [
        {**all_rows[i.rpartition('/')[2]], 'case': i} for i in ids] == [
        {k: v for k, v in row.items() if k != 'overlay'} for row in order]
    assert all((tmp_path / 'out' / row['overlay']).exists() for row in order)
    assert 'student, step' in capsys.readouterr().out


def test_reports_of_a_table_and_privileged_ones(images, tmp_path, capsys):
    folder, run, ids = images
    by_image = dict(line.split(',')[1:3] for line in (folder / 'data' / 'cases.csv').read_text().splitlines()[1:])
    table = tmp_path / 'cases.csv'
    table.write_text('case,text\n' + ''.join(f'{i},{by_image[i]}\n' for i in ids))
    agree(predicted(folder / 'run', tmp_path / 'out', table, '--stage', 'teacher'), run, 'teacher', folder / 'run')
    both = tmp_path / 'both.csv'
    both.write_text('image,text\n' + ''.join(f'{i},{by_image[i]}\n' for i in ids))
    assert predict.main(['--run', str(folder / 'run'), '--input', str(both), '--output', str(tmp_path / 'no')]) == 2
    assert 'column "text": the network reads image alone. Whatever else' in capsys.readouterr().err


def test_volumes_of_classes_that_exclude_each_other(tmp_path):
    rng, rows = np.random.default_rng(1), ['case_id,patient_id,cls']
    (tmp_path / 'data').mkdir()
    for i in range(20):
        array = rng.integers(-200, 300, (12, 10, 8)).astype(np.int16)
        (tmp_path / 'data' / f'c{i}').mkdir()
        volume.save(tmp_path / 'data' / f'c{i}' / 'ct.nii.gz', array, volume.Volume(array, np.diag([1.0, 1.2, 3.0, 1])))
        rows.append(f'c{i},p{i},{"abc"[i % 3]}')
    (tmp_path / 'data' / 'cases.csv').write_text('\n'.join(rows) + '\n')
    cnn = dict(name='cnn', dims=3, channels=(4, 4), act='relu', norm='group', head='gap', dropout=0.0)
    run = trained(tmp_path / 'run', dict(
        source=dict(name='paired', root=str(tmp_path / 'data'), modalities=('ct',), tasks=(), classes=()),
        transforms=('volume',), augment=('crop',), volume=dict(keys=('ct',), spacing=(1.0, 1.0, 3.0), size=(8, 8, 4),
                                                               margin=(2, 2, 0)),
        crop=dict(keys=('ct',), size=(8, 8, 4))), student=dict(
            inputs=('ct',), model=cnn, method=dict(name='supervised', kind='classes'), evals=dict(multiclass={}),
            select='multiclass/accuracy'))
    _, ids = evaluated(run, 'student', tmp_path / 'run')
    table = tmp_path / 'data' / 'test.csv'
    table.write_text('case,ct\n' + ''.join(f'{i},{i}/ct.nii.gz\n' for i in ids))
    out = predicted(tmp_path / 'run', tmp_path / 'out', table, '--overlays')
    # evaluation knows multiclass logits by their network alone
    logits, decision = agree({i: row for i, row in out.items()}, run, 'student', tmp_path / 'run')
    predictor, _ = evaluated(run, 'student', tmp_path / 'run')
    for case, z in zip(predictor('test').ids, logits):
        p = operating_points.calibrated_classes(z[None], decision['temperature'])[0]
        assert [float(out[case][f'calibrated/{c}']) for c in 'abc'] == pytest.approx(p, rel=1e-6)
        assert out[case]['class'] == 'abc'[z.argmax()]
        assert (tmp_path / 'out' / out[case]['overlay']).exists()


def test_masks_of_pictures(tmp_path):
    """Sizes of the evaluation of the run from the masks that are written."""
    rng = np.random.default_rng(2)
    for kind in ('images', 'masks'):
        (tmp_path / 'data' / kind).mkdir(parents=True)
    for i in range(14):
        mask = np.zeros((20 + i, 24), np.uint8)
        mask[4:12, 3:9 + i % 4] = 255
        image = np.clip(rng.normal(90, 20, mask.shape) + mask / 3, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / 'data' / 'images' / f'{i}.png')
        Image.fromarray(mask).save(tmp_path / 'data' / 'masks' / f'{i}.png')
    run = trained(tmp_path / 'run', dict(
        source=dict(name='masks', root=str(tmp_path / 'data')), transforms=('image',),
        image=dict(size=16, fit='squash')), student=dict(
            inputs=('image',), model=dict(name='unet', channels=(4, 8)), method=dict(name='segmentation'),
            evals=dict(segmentation={}), select='segmentation/dice'))
    predictor, ids = evaluated(run, 'student', tmp_path / 'run')
    (tmp_path / 'data' / 'cases.csv').write_text('image\n' + ''.join(f'images/{i}.png\n' for i in ids))
    rows = predicted(tmp_path / 'run', tmp_path / 'out', tmp_path / 'data' / 'cases.csv')
    hp = run.student.evals.segmentation
    for scan in scans.group_scans(predictor.data, predictor.data.partition.indices('test')):
        record, label, _ = scans.predict_scan(predictor, predictor.data, scan, hp)
        expected = scans.scan_truth(predictor.data, scan, record).to_file_grid(label)[0]
        row = rows[f'images/{scan.name}.png']
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'out' / row['mask'])), expected)
        assert int(row['pixels/lesion']) == (expected == 1).sum()


def test_slices_of_a_study(tmp_path):
    """Of ACDC as NIfTI, scaled by the source; files of one study are one case."""
    from jaxkd.phantoms.layouts import acdc
    acdc.write(tmp_path / 'data', 5, size=32)
    run = trained(tmp_path / 'run', dict(source=dict(name='acdc', root=str(tmp_path / 'data')), transforms=('image',),
                                         image=dict(size=24, fit='squash')),
                  student=dict(inputs=('image',), model=dict(name='unet', channels=(4, 8)),
                               method=dict(name='segmentation'), evals=dict(segmentation={}),
                               select='segmentation/dice'))
    predictor, _ = evaluated(run, 'student', tmp_path / 'run')
    data = predictor.data
    listed = scans.group_scans(data, data.partition.indices('test'))
    table = tmp_path / 'data' / 'cases.csv'
    studies = {s.name: data.source.studies[data.source.places[s.indices[0]][0]] for s in listed}
    frames = {}
    for name, study in studies.items():  # of a cine, the frame that is labelled
        image = nibabel.load(study.files[0])
        image = image if study.frame is None else image.slicer[..., study.frame]
        nibabel.save(image, tmp_path / 'data' / f'{name}.nii')
        frames[name] = f'{name}.nii'
    table.write_text('case,image\n' + ''.join(f'{name},{path}\n' for name, path in frames.items()))
    rows = predicted(tmp_path / 'run', tmp_path / 'out', table)
    assert len(listed) >= 2 and [*rows] == [*studies]
    for scan in listed:
        record, label, _ = scans.predict_scan(predictor, data, scan, run.student.evals.segmentation)
        expected = scans.scan_truth(data, scan, record).to_file_grid(label)
        found = np.asarray(nibabel.load(tmp_path / 'out' / rows[scan.name]['mask']).dataobj)
        np.testing.assert_array_equal(found, expected.T)


def test_findings_of_a_table(tmp_path):
    run = trained(tmp_path / 'run', dict(
        source=dict(name='jaxkd.phantoms.breast', patients=24, size=64),
        transforms=('breast', 'image', 'table', 'labels'), image=dict(size=32, fit='letterbox')), student=dict(
            inputs=('row',), model=dict(name='tabular', widths=(8,)), evals=dict(classification={})))
    predictor, ids = evaluated(run, 'student', tmp_path / 'run')
    source = predictor.data.source
    tables = {c.id: source.table(i) for i, c in enumerate(source.cases) if c.id in ids}
    columns = list(dict.fromkeys(column for t in tables.values() for finding in t for column in finding))
    with open(tmp_path / 'cases.csv', 'w', newline='') as f:
        lines = csv.DictWriter(f, ['case', *columns], restval='')
        lines.writeheader()
        lines.writerows({'case': case, **finding} for case in ids for finding in tables[case])
    found = {case for case in ids if tables[case]}
    rows = predicted(tmp_path / 'run', tmp_path / 'out', tmp_path / 'cases.csv')
    assert {*rows} == found
    outputs = predictor('test')
    for case, z in zip(outputs.ids, outputs.outputs['logits']):
        assert np.float32(rows[case]['logit/malignant']) == z[0]


def test_an_exported_program_may_stand_in(images, tmp_path):
    """What runs asks a Model for nothing but its three functions."""
    folder, _, _ = images
    model = load(str(folder / 'run')).model
    assert isinstance(model, NetworkModel)
    batch = {'image': np.zeros((1, 32, 32, 1), np.float32)}
    assert model.shapes(batch)['logits'].shape == (1, 2)
    assert np.isfinite(np.asarray(model.predict_batch(batch)['logits'])).all()


@pytest.mark.slow
def test_the_lines_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(commands.ROOT / 'configs')
    commands.run_lines('README.md', 'test_the_lines_of_the_readme')
    rows, elsewhere = (list(csv.DictReader(open(f'{folder}/predictions.csv', newline='')))
                       for folder in ('predicted', 'elsewhere'))
    assert [row['case'] for row in elsewhere] == [row['case'] for row in rows]
    assert len(rows) > 20 and all(pathlib.Path('predicted', row['mask']).exists() for row in rows)
    mask = np.asarray(Image.open(f"predicted/{rows[0]['mask']}"))
    assert mask.shape == np.asarray(Image.open(f"heart/images/{rows[0]['case']}")).shape
