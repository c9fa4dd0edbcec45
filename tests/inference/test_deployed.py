"""Which stage is deployed, what files it reads, and what is privileged to it."""
import json

import numpy as np
import pytest

from jaxkd import config, errors
from jaxkd.inference import case_columns, case_files, deployed
from jaxkd.inference.case_files import Inputs
from jaxkd.inference.deployed import Deployed, Reading, Windows
from jaxkd.metrics import operating_points


def write_run(folder, **stages):
    """A run of stages {name: (inputs, teachers, entry of summary.json)}, without checkpoints."""
    for name, (inputs, teachers, _) in stages.items():
        (folder / 'checkpoints' / name).mkdir(parents=True)
        hp = dict(inputs=inputs, teachers={t: dict(stage=t, path='') for t in teachers}, networks={},
                  init=dict(stage='', path=''))
        (folder / 'checkpoints' / name / 'stage.json').write_text(json.dumps(dict(config=hp)))
    (folder / 'summary.json').write_text(json.dumps(dict(stages={n: entry for n, (*_, entry) in stages.items()})))


TAUGHT = dict(uses_teacher=True, other_networks=dict(t=dict(frozen=True, inputs=['tokens'], privileged=['tokens'])))


@pytest.mark.parametrize('stages, name', [
    (dict(only=(['image'], [], {})), 'only'),
    (dict(teacher=(['tokens'], [], {}), student=(['image'], ['teacher'], TAUGHT)), 'student'),
    (dict(teacher=(['tokens'], [], {}), image_only=(['image'], [], {}), kd=(['image'], ['teacher'], TAUGHT)), 'kd'),
    (dict(teacher=(['tokens'], [], {}), spare=(['tokens'], [], {}), kd=(['image'], ['teacher'], TAUGHT)), 'kd'),
    (dict(teacher=(['tokens'], [], {}), student=(['image'], ['teacher'], TAUGHT),
          shuffled=(['image'], ['teacher'], TAUGHT)), 'student'),
])
def test_the_stage_that_a_run_was_made_for(tmp_path, stages, name):
    write_run(tmp_path, **stages)
    assert deployed.stage_of(str(tmp_path))[1] == name


def test_several_students_are_listed(tmp_path):
    write_run(tmp_path, teacher=(['tokens'], [], {}), kd=(['image'], ['teacher'], TAUGHT),
              dpk=(['image'], ['teacher'], TAUGHT))
    with pytest.raises(errors.ConfigError, match='several stages that could be deployed: kd, dpk. Say which: --stage'):
        deployed.stage_of(str(tmp_path))
    assert deployed.stage_of(str(tmp_path), 'dpk')[0] == tmp_path / 'checkpoints' / 'dpk'
    with pytest.raises(errors.ConfigError, match='no trained stage "kdd". Did you mean "kd"'):
        deployed.stage_of(str(tmp_path), 'kdd')
    with pytest.raises(errors.MissingInput, match='no trained stage'):
        deployed.stage_of(str(tmp_path / 'checkpoints'))


@pytest.mark.parametrize('name, stage, kinds, privileged', [
    ('mmpkd_cxr', 'student', dict(image='picture'), {'text', 'tokens'}),
    ('mmpkd_cxr', 'teacher', dict(text='text'), {'image'}),
    ('mmpkd_mammo', 'student', dict(image='picture'), {'table', 'row'}),
    ('mmpkd_mammo', 'teacher', dict(table='table'), {'image'}),
    ('cpkd_ct_mri', 'cpkd', dict(ct='volume'), {'t1', 't2'}),
    ('cpkd_ct_mri', 'mri', dict(t2='volume'), {'ct', 't1'}),
    ('cpmn_pe', 'cpmn', dict(nct='volume'), {'ctpa'}),
    ('sikd_acdc', 'sikd', dict(image='picture'), set()),
    ('specialist', 'specialist', dict(image='picture'), set()),
])
def test_the_files_of_the_stages_of_our_configs(name, stage, kinds, privileged):
    run = config.load(f'configs/{name}.py')
    transforms, found, others, _ = deployed.input_transforms(run[stage].inputs, config.stage_data(run, stage), {})
    assert found == kinds and privileged <= {*others} and not {*others} & {*kinds}
    assert transforms.prepare or stage == 'specialist'


def test_rows_of_findings_and_privileged_columns(tmp_path):
    inputs = Inputs({'table': 'table'}, ('image',), ('side', 'shape'))
    table = tmp_path / 'cases.csv'
    table.write_text('case,side,shape\na,LEFT,OVAL\nb,RIGHT,\na,LEFT,ROUND\n')
    found = case_files.find(inputs, [str(table)])
    assert [(c.name, len(c.values['table'])) for c in found] == [('a', 2), ('b', 1)]
    assert found[0].values['table'][1] == {'side': 'LEFT', 'shape': 'ROUND'}
    table.write_text('case,image\na,x.png\n')
    with pytest.raises(errors.ConfigError, match='column "image": the network reads table alone'):
        case_files.find(inputs, [str(table)])
    table.write_text('case,sid\na,LEFT\n')
    with pytest.raises(errors.BadData, match='none of the columns that the network reads: side, shape'):
        case_files.find(inputs, [str(table)])


def test_centres_of_crops(tmp_path):
    inputs = Inputs({'ct': 'volume'})
    table = tmp_path / 'cases.csv'
    (tmp_path / 'a.nii').write_bytes(b'')
    table.write_text('ct,centre_x,centre_y,centre_z\na.nii,1,-2.5,30\n')
    assert case_files.find(inputs, [str(table)])[0].centre == (1, -2.5, 30)
    for cells in ('1,2,', '1,2,x', '1,2,nan', '1,2,1e9'):
        table.write_text(f'ct,centre_x,centre_y,centre_z\na.nii,{cells}\n')
        with pytest.raises(errors.BadData, match='row 2: centre_x, centre_y, centre_z must be three numbers'):
            case_files.find(inputs, [str(table)])
    table.write_text('ct\n../a.nii\n')
    with pytest.raises(errors.BadData, match='leaves the root'):
        case_files.find(inputs, [str(table)])


def member(decision, exclusive=False, labels=('a', 'b')):
    return Deployed('m', labels, ('x',), Inputs({'x': 'picture'}), None, '', Reading(), None, exclusive, decision,
                    Windows(), 1, 1, '')


def test_columns_of_one_network_and_of_two():
    """Of two the mean probability; positive where the mean distance from the thresholds is not negative."""
    points = [{'youden': dict(threshold=t, sensitivity=1, specificity=1)} for t in (0.5, 1.0)]
    fitted = [dict(labels={n: dict(slope=2.0, intercept=1.0, points=p) for n in 'ab'}) for p in points]
    one = case_columns.of_logits([member(fitted[0])], [np.float32([0.5, -1])])
    assert one['logit/a'] == '0.5' and float(one['probability/b']) == pytest.approx(0.2689414)
    assert float(one['calibrated/a']) == pytest.approx(0.8807971) and (one['youden/a'], one['youden/b']) == ('1', '0')
    assert not any(key.startswith('sd/') for key in one)
    two = case_columns.of_logits([member(f) for f in fitted], [np.float32([0.5, -1]), np.float32([0.9, 3.1])])
    assert float(two['probability/a']) == pytest.approx((0.6224593 + 0.7109495) / 2)
    assert float(two['sd/a']) == pytest.approx(np.std([0.6224593, 0.7109495], ddof=1), rel=1e-5)
    assert (two['youden/a'], two['youden/b']) == ('0', '1')  # 0 and -0.1; -1.5 and 2.1
    assert 'logit/a' not in two


def test_columns_of_classes_and_of_what_was_not_fitted():
    classes = member(dict(temperature=2.0), exclusive=True)
    row = case_columns.of_logits([classes], [np.float32([0, 2])])
    assert row['class'] == 'b' and float(row['probability/b']) == pytest.approx(0.8807971)
    assert float(row['calibrated/b']) == pytest.approx(0.7310586)
    bare = case_columns.of_logits([member(None)], [np.float32([0, 2])])
    assert {key.partition('/')[0] for key in bare} == {'logit', 'probability'}
    unknown = dict(labels={n: dict(slope=1.0, intercept=0.0, points={}) for n in 'ab'})
    assert not {f'{p}/a' for p in operating_points.POINTS} & {
        *case_columns.of_logits([member(unknown)], [np.float32([0, 2])])}


def test_the_rule_for_a_patient():
    """The mean of the two largest windows, or the volume; null as a volume decides nothing."""
    def row(t, v, name='volume_ml'):
        rule = dict(combine='top', topk=2, t_cls=t, v_min=v)
        fitted = dict(labels=dict(PE=dict(slope=1.0, intercept=0.0, points={})), scan=rule)
        members = [member(fitted, True, ('background', 'embolus'))]
        return case_columns.of_scan(members, np.array([900, 100]), (0.01, name), None, [np.array([0.1, 0.5, 0.7])])
    assert float(row(0.65, None)['probability/PE']) == pytest.approx(0.6)
    assert row(0.65, None)['volume_ml/embolus'] == '1'
    assert [row(*rule)['patient/PE'] for rule in ((0.65, None), (0.55, None), (0.65, 0.9))] == ['0', '1', '1']
    assert row(0.65, 0.9, 'pixels')['patient/PE'] == '0'
