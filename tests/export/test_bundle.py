"""A bundle: whole, checked before use, without anything that only training saw."""
import hashlib
import json
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest
import safetensors.numpy

from jaxkd import errors
from jaxkd.export import __main__ as command
from jaxkd.export import artificial, bundle, contents, programs
from jaxkd.inference import deployed
from jaxkd.runtime import files
from tests.export import students
from tests.fixtures import trained

pytest.importorskip('onnx')
pytest.importorskip('flatbuffers')


@pytest.fixture
def copy(tmp_path):
    """A bundle that may be damaged."""
    return shutil.copytree(students.exported('table'), tmp_path / 'bundle')


def resum(folder):
    """SHA256SUMS anew, as the damaging side would."""
    content = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    content.pop(bundle.SUMS)
    shutil.rmtree(folder)
    bundle.write(folder, content)


def change_metadata(folder, **changes):
    """metadata.json with other values, and sums that fit."""
    content = json.loads((folder / 'metadata.json').read_text()) | changes
    content['digest'] = files.json_digest(content)
    (folder / 'metadata.json').write_text(json.dumps(content))
    resum(folder)


@pytest.mark.parametrize('kind', students.STUDENTS)
def test_a_bundle_predicts_what_the_run_predicts(kind):
    path = students.exported(kind)
    student, packed = deployed.load(students.run(kind)), bundle.load(path)
    for field in ('labels', 'inputs', 'exclusive', 'decision', 'windows', 'batch'):
        assert getattr(packed, field) == getattr(student, field), field
    assert packed.files.kinds == student.files.kinds and not packed.files.privileged
    one = artificial.case(student)
    batch = {k: np.repeat(np.asarray(a)[None], 3, 0) for k, a in one.items() if k != 'present'}
    flags = {'present': {k: np.ones(3, np.float32) for k in one['present']}} if 'present' in one else {}
    names = tuple(packed.model.outputs)
    expected, found = (d.model.predict_batch({**batch, **flags}, names) for d in (student, packed))
    assert programs.difference(*({k: np.asarray(a) for k, a in out.items()} for out in (found, expected))) < 1e-4
    assert packed.model.shapes({**batch, **flags})['logits'].shape == expected['logits'].shape
    windows = packed.model.windows(names, {k: 1.0 for k in one.get('present', {})})(batch)
    np.testing.assert_allclose(np.asarray(windows['logits']), np.asarray(expected['logits']), atol=1e-4)


def test_what_is_in_a_bundle():
    path = students.exported('image')
    names = {*bundle.verify(path)}
    assert names >= {*bundle.REQUIRED, 'model.onnx', 'run.py', 'timm/model.safetensors', 'timm/config.json',
                     'huggingface/model.safetensors', 'huggingface/config.json', 'huggingface/preprocessor_config.json'}
    metadata = json.loads((path / 'metadata.json').read_text())
    assert metadata['data_licence'] == 'CC-BY-4.0' and metadata['name'] == 'a student'
    assert metadata['network_data_format']['inputs'] == {'image': dict(
        type='image', kind='picture', dtype='float32', num_channels=1, spatial_shape=[32, 32], is_patch_data=False,
        layout='channels last')}
    assert metadata['network_data_format']['outputs']['logits']['channel_def'] == {'0': 'effusion', '1': 'nodule'}
    assert metadata['programs']['program.stablehlo']['platforms'] == ['cpu', 'cuda', 'tpu']
    assert not metadata['not_included']
    weights = safetensors.numpy.load_file(path / 'model.safetensors')
    assert programs.difference({'w': weights['params/head/linear/kernel']},
                               {'w': deployed.load(students.run('image')).model.variables['params']['head']['linear'][
                                   'kernel']}) == 0


@pytest.mark.parametrize('kind', students.STUDENTS)
def test_inputs_are_those_of_deployment_and_no_string_of_the_training_is_left(kind):
    path = students.exported(kind)
    metadata = json.loads((path / 'metadata.json').read_text())
    inputs = metadata['network_data_format']['inputs']
    assert {key.removeprefix('present/') for key in inputs} == {*students.STUDENTS[kind]['inputs']}
    own = pathlib.Path(bundle.__file__).parents[2]
    names = '|'.join(map(re.escape, (students.CANARY, str(own), str(students.folder()))))
    for file in (p for p in path.rglob('*') if p.is_file()):
        assert not re.findall(rb'(?i)' + names.encode(), file.read_bytes()), file
    if kind == 'image':  # nor a word of the transform that reads reports
        assert b'"text"' not in (path / 'preprocessing.json').read_bytes()


def test_a_flipped_bit_in_any_file_is_refused_by_name(tmp_path):
    path = shutil.copytree(students.exported('image'), tmp_path / 'bundle')
    files = [p for p in path.rglob('*') if p.is_file()]
    assert len(files) > 10
    rng = np.random.default_rng(0)
    for file in files:
        data = file.read_bytes()
        for place in {0, len(data) - 1, int(rng.integers(len(data)))}:
            damaged = bytearray(data)
            damaged[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
            with pytest.raises(errors.Damaged, match=re.escape(file.name) if file.name != bundle.SUMS else 'differs'):
                bundle.verify(path)
        file.write_bytes(data)
    bundle.verify(path)


@pytest.mark.parametrize('name', bundle.REQUIRED)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(errors.Damaged, match=name):
        bundle.load(copy)
    resum(copy)
    with pytest.raises(errors.Damaged, match=name):
        bundle.load(copy)


def test_random_damage_is_refused_by_name(copy):
    for name, _ in damaged(copy, 450):
        with pytest.raises(errors.Damaged, match=re.escape(name)):
            bundle.verify(copy)


def test_random_damage_with_new_sums_is_refused_by_name(copy):
    refused(copy, 150)


@pytest.mark.long
def test_much_random_damage(copy):
    refused(copy, 5000)


def damaged(folder, rounds):
    """Yields (name, its bytes before) with a byte changed, the end cut off or bytes put in, file by file."""
    rng = np.random.default_rng(5)
    names = [n for n in bundle.verify(folder) if n in (*bundle.REQUIRED, 'model.onnx')]
    original = {name: (folder / name).read_bytes() for name in names}
    for i in range(rounds):
        name = names[i % len(names)]
        data, kind = bytearray(original[name]), int(rng.integers(4))
        place = int(rng.integers(len(data)))
        if kind < 2:
            data[place] ^= int(rng.integers(1, 256))
        elif kind == 2:
            del data[place:]
        else:
            data[place:place] = rng.bytes(int(rng.integers(1, 9)))
        (folder / name).write_bytes(data)
        yield name, original[name]
        (folder / name).write_bytes(original[name])


def refused(folder, rounds):
    """Damage with sums written anew, as the damaging side would."""
    sums, metadata = (folder / bundle.SUMS).read_text(), json.loads((folder / 'metadata.json').read_bytes())
    for name, _ in damaged(folder, rounds):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        (folder / bundle.SUMS).write_text(re.sub(rf'[0-9a-f]{{64}}  {re.escape(name)}\n', f'{digest}  {name}\n', sums))
        try:
            bundle.load(folder)
            assert name == 'metadata.json' and json.loads((folder / name).read_bytes()) == metadata  # a space more
        except errors.Damaged as e:
            assert name in str(e)
    bundle.write(folder, {n: (folder / n).read_bytes() for n in re.findall(r'  (.*)\n', sums)})
    bundle.load(folder)


def test_bundles_of_later_versions_and_foreign_modules_are_refused(copy):
    change_metadata(copy, programs={'program.stablehlo': dict(oldest_jax='9.1')})
    for use in (bundle.load, lambda path: bundle.check_golden(path, bundle.verify(path))):
        with pytest.raises(errors.ConfigError, match='needs jax 9.1'):
            use(copy)
    change_metadata(copy, programs={'program.stablehlo': dict(oldest_jax='0.1')}, format=2)
    with pytest.raises(errors.ConfigError, match='format 2'):
        bundle.load(copy)
    change_metadata(copy, format=1, digests={})
    content = json.loads((copy / 'preprocessing.json').read_text())
    content['transforms'] = [dict(name='os.path', options={}, fitted=None, evaluation=False)]
    (copy / 'preprocessing.json').write_text(json.dumps(content))
    resum(copy)
    with pytest.raises(errors.Damaged, match='os.path'):
        bundle.load(copy)


def test_another_golden_output_is_refused(copy):
    given, expected = bundle.golden(copy)
    arrays = {f'input/{k}': a for k, a in given.items()} | {f'output/{k}': a + 0.01 for k, a in expected.items()}
    (copy / 'golden.npz').write_bytes(bundle.npz(arrays))
    resum(copy)
    with pytest.raises(errors.Damaged, match='golden.npz is not what was exported'):
        bundle.verify(copy)
    change_metadata(copy, digests={})
    with pytest.raises(errors.Damaged, match='program.stablehlo gives another output'):
        bundle.load(copy)


def test_names_in_the_sums_stay_in_the_folder(copy):
    text = (copy / bundle.SUMS).read_text()
    (copy / bundle.SUMS).write_text(text.replace('golden.npz', '../golden.npz'))
    with pytest.raises(errors.Damaged, match=bundle.SUMS):
        bundle.verify(copy)


def test_a_bundle_replaces_a_bundle_and_nothing_else(copy, tmp_path):
    content = {'a.txt': b'a'}
    bundle.write(copy, content)
    assert sorted(p.name for p in copy.iterdir()) == [bundle.SUMS, 'a.txt']
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'thesis.txt').write_text('mine')
    with pytest.raises(errors.ConfigError, match='is no bundle'):
        bundle.write(other, content)
    assert (other / 'thesis.txt').read_text() == 'mine'


def test_cases_of_different_shapes_have_no_program():
    spec = students.STUDENTS['scan']
    data = {k: v for k, v in spec['data'].items() if k not in ('augment', 'patch', 'intensity')}
    run = trained.write(students.folder() / 'runs' / 'whole', **{**spec, 'data': data})
    with pytest.raises(errors.ConfigError, match='another shape in each case'):
        contents.of_stage(run)


def test_the_example_of_the_how_to_calls_the_program_with_jax_alone(monkeypatch):
    page = (pathlib.Path(__file__).parents[2] / 'docs/how_to/export.md').read_text()
    example = page.split('```python\n')[1].split('```')[0].replace('224', '32')
    monkeypatch.chdir(students.exported('image').parent)
    pathlib.Path('bundle').symlink_to('image')
    names = {}
    exec(example, names)
    pathlib.Path('bundle').unlink()
    given = {'image': np.zeros((3, 32, 32, 1), np.float32)}
    expected = bundle.load(students.exported('image')).model.predict_batch(given)['logits']
    np.testing.assert_allclose(names['logits'], expected, atol=1e-6)


def test_a_network_in_half_precision_is_float32_in_onnx(tmp_path):
    run = trained.write(tmp_path / 'run', **students.STUDENTS['table'], dtype='bfloat16')
    files, notes = contents.of_stage(run)
    metadata = json.loads(files['metadata.json'])
    assert 'model.onnx' in files and metadata['dtype'] == 'bfloat16' and metadata['tolerance'] == 0.05
    assert 1e-5 < metadata['programs']['model.onnx']['difference'] < 0.05
    assert metadata['programs']['program.stablehlo']['difference'] < 1e-6 and not notes
    bundle.write(tmp_path / 'bundle', files)
    assert {*bundle.check_golden(tmp_path / 'bundle', bundle.verify(tmp_path / 'bundle'))} == {'program.stablehlo',
                                                                                               'model.onnx'}


def test_a_network_of_reports_takes_its_vocabulary_along(tmp_path):
    pytest.importorskip('tokenizers')
    path = students.exported('pieces')
    assert {'run.py', 'report_sections.py', 'vocabulary.txt'} <= {*bundle.verify(path)}
    assert not json.loads((path / 'metadata.json').read_text())['not_included']
    reports = [dict(text=report) for report in ('No acute f.', 'acutes ' * 20)]
    of_run, of_bundle = (d.transforms for d in (deployed.load(students.run('pieces')), bundle.load(path)))
    expected, found = ([t.apply(r)[0]['tokens'] for r in reports] for t in (of_run, of_bundle))
    np.testing.assert_array_equal(found, expected)
    assert found[0].tolist()[:5] == [2, 1, 5, 7, 1]  # [CLS], hidden, acute, f, the full stop


def test_a_transform_that_run_py_does_not_know_leaves_it_out(monkeypatch):
    monkeypatch.setattr(contents.run_file, '_tables', lambda source: {'STEPS': {'image': 'image'}})
    files, notes = contents.of_stage(students.run('pieces'))
    assert 'run.py' not in files and 'report_sections.py' not in files
    assert any('"wordpiece" is not among those that run.py knows' in note for note in notes)
    assert json.loads(files['metadata.json'])['not_included'] == notes


def test_own_transforms_are_refused_because_a_bundle_holds_no_code(tmp_path, monkeypatch):
    from jaxkd.data.transforms import image
    monkeypatch.setitem(sys.modules, 'own.picture', image)
    spec = students.STUDENTS['breast']
    run = trained.write(tmp_path / 'run', **{**spec, 'data': dict(
        spec['data'], transforms=('own.picture',), picture=dict(size=32))})
    with pytest.raises(errors.ConfigError, match='own.picture is not of jaxkd'):
        contents.of_stage(run)


def test_the_command(tmp_path, capsys):
    assert command.main(['--run', students.run('table'), '--out', str(tmp_path / 'b'), '--data_licence', 'CC0']) == 0
    assert command.main(['verify', str(tmp_path / 'b')]) == 0
    assert 'program.stablehlo differs from the golden output by' in capsys.readouterr().out
    (tmp_path / 'b' / 'decision.json').write_text('{}')
    assert command.main(['verify', str(tmp_path / 'b')]) == 74
    assert 'decision.json' in capsys.readouterr().err
    assert command.main(['verify', str(tmp_path)]) == 66
    assert command.main(['--out', str(tmp_path / 'c')]) == 2
