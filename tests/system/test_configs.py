"""Every config that is shipped: all variants resolve, and the small ones run to their report."""
import importlib.util
import json
import pathlib
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import config, errors, main, stages
from jaxkd.config import plugins
from jaxkd.data import external, loader, pool
from jaxkd.data.sources.shared import ms_cxr
from jaxkd.phantoms import __main__ as phantoms
from jaxkd.phantoms.layouts import mnms, paired
from jaxkd.phantoms.thorax import labeller
from jaxkd.report import comparison, run_folder
from jaxkd.state import Progress
from tests.reference import minilm_numbers

CONFIGS = sorted(pathlib.Path('configs').glob('*.py'))


def variants(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return '', *module.VARIANTS


@pytest.mark.parametrize('spec', [f'{path}:{variant}' for path in CONFIGS for variant in variants(path)])
def test_every_variant_resolves_and_its_json_runs_again(spec, tmp_path):
    conf = config.load(spec)
    assert conf.stages and all(conf[name].inputs for name in conf.stages)
    (tmp_path / 'config.json').write_text(config.dump(conf))
    assert config.load(tmp_path / 'config.json') == conf


@pytest.mark.parametrize('old, new', [('elsewhere', 'external'), ('hold_out', 'holdout_fold'),
                                      ('train_where', 'train_filter')])
def test_a_key_of_an_earlier_version_is_refused_with_its_new_name(old, new):
    given = config.load('configs/mmpkd_cxr.py:smoke').to_dict()
    given['data'][old] = given['data'].pop(new)
    with pytest.raises(errors.ConfigError, match=f'no key "{old}". It is called "{new}" now.'):
        config.resolve(ConfigDict(given))


@pytest.mark.parametrize('spec', ['configs/specialist.py:smoke', 'configs/cpkd_ct_mri.py', 'configs/sikd_acdc.py'])
def test_an_override_reaches_the_stage_that_it_names_and_no_other(spec):
    """Also where stages left the default that is overridden untouched, so that all of them had the same one."""
    before = config.load(spec)
    first, *others = before.stages[::-1]
    after = config.load(spec, [f'{first}.init.which=last', f'{first}.optim.no_decay=bias'])
    assert after[first].init.which == 'last' and after[first].optim.no_decay == ('bias',)
    for name in others:
        assert after[name] == before[name], name


def test_the_arms_of_the_comparison_are_one_network_with_equal_training():
    conf = config.load('configs/cpkd_ct_mri.py')
    arms = [conf[name] for name in ('ct_only', 'kd', 'dpk', 'cpkd', 'cpkd_same_modality')]
    for key in ('model', 'inputs', 'optim', 'batch', 'length', 'data', 'dtype', 'init'):
        assert all(arm[key] == arms[0][key] for arm in arms), key


@pytest.mark.parametrize('spec, patients, arms', [
    ('configs/mmpkd_cxr.py:losses,smoke', 60, ()), ('configs/cpkd_ct_mri.py:losses,smoke', 30, ()),
    ('configs/sikd_acdc.py:smoke', 10, ('kd', 'born_again', 'hint', 'attention', 'channel', 'affinity', 'variation',
                                        'region', 'pmkl', 'protokd', 'kdnet', 'acn'))])
def test_each_loss_is_an_arm_that_differs_from_the_others_in_nothing_else(spec, patients, arms, tmp_path):
    conf, data = config.load(spec, [f'data.source.patients={patients}']), pool.DataPool()
    arms, alone = arms or conf.stages[2:], conf.stages[1]
    for key in ('model', 'inputs', 'optim', 'batch', 'length', 'data', 'dtype', 'init'):
        assert all(conf[arm][key] == conf[arms[0]][key] for arm in arms), key
        assert key == 'data' or conf[alone][key] == conf[arms[0]][key], key
    for arm in arms:
        method = stages.build(conf, arm, tmp_path, dry=True, pool=data).method
        taught = {*method.teacher_terms()}
        assert taught and taught < {*method.loss_weights(Progress(0, 0, 0))}, arm


def test_one_network_for_all_subsets_of_its_inputs_is_checked_before_training(tmp_path):
    spec, few, data = 'configs/cpkd_ct_mri.py:subsets,smoke', ['data.source.patients=30'], pool.DataPool()
    conf = config.load(spec, few)
    for name in ('mmanet', 'shaspec'):
        stage = stages.build(conf, name, tmp_path, dry=True, pool=data)
        assert stage.context.networks['student'].inputs == ('ct', 't2')
    alone = config.load(spec, [*few, 'dropped.inputs=ct,'])
    with pytest.raises(errors.ConfigError, match='modalities: the network reads "ct" alone'):
        stages.build(alone, 'dropped', tmp_path, dry=True, pool=data)


@pytest.mark.slow
def test_one_network_is_tested_on_every_subset_of_its_inputs(tmp_path):
    assert main.main(['--config', 'configs/cpkd_ct_mri.py:subsets,smoke', '--workdir', str(tmp_path),
                      '--config.tensorboard=false', '--config.data.source.patients=40']) == 0
    stages_of = json.loads((tmp_path / 'summary.json').read_text())['stages']
    for alone in ('ct_only', 'mri'):  # beside it, a network of each subset
        assert 'multiclass/accuracy' in stages_of[alone]['test']['best']
    for name in ('full', 'dropped', 'mmanet', 'shaspec'):
        found = stages_of[name]['test']['best']
        assert {f'modalities/accuracy@inputs={of}' for of in ('ct', 't2', 'ct+t2')} <= set(found)
        assert found['modalities/accuracy@inputs=ct+t2']['value'] == found['multiclass/accuracy']['value']
    page = (tmp_path / 'report.html').read_text()
    assert set(re.findall(r'inputs=([a-z0-9+]+)', page)) == {'ct', 't2', 'ct+t2'}, 'all of them in one report'


def test_several_teachers_have_the_weights_that_the_config_names(tmp_path):
    data, conf = pool.DataPool(), config.load('configs/cpkd_ct_mri.py:several,smoke', ['data.source.patients=30'])
    built = {name: stages.build(conf, name, tmp_path, dry=True, pool=data) for name in ('mean', 'confident', 'weighed')}
    for name, terms in dict(mean=['ensemble'], confident=['confident'], weighed=['ct', 'mri']).items():
        assert sorted(built[name].method.teacher_terms()) == terms and {*built[name].teachers} == {'mri', 'ct'}
    weights = [{k: float(v) for k, v in built['weighed'].method.loss_weights(Progress(4 * f, f, f)).items()}
               for f in (0, .25, .5, 1)]
    assert [w['mri'] for w in weights] == pytest.approx([.6] * 4) and {w['sup'] for w in weights} == {.1}
    assert [w['ct'] for w in weights] == pytest.approx([.3, .15, 0, 0])


@pytest.mark.slow
@pytest.mark.parametrize('spec, stages, tested', [
    ('configs/cpkd_ct_mri.py:masked,smoke', 'pretrain,tuned,tuned_ct', 'tuned'),
    ('configs/cpkd_ct_mri.py:hidden_modality,smoke', 'pretrain,tuned,sees_ct,sees_ct_tuned', 'tuned'),
    ('configs/mmpkd_mammo.py:styles,smoke', 'pretrain,image_only,tuned', ''),
    ('configs/mmpkd_mammo.py:transfer,smoke', 'source,source_pretrain,staged', '')])
def test_a_stage_starts_from_one_that_was_pretrained_without_labels(spec, stages, tested, tmp_path):
    assert main.main(['--config', spec, '--workdir', str(tmp_path), '--config.tensorboard=false',
                      f'--config.stages={stages}']) == 0
    found = json.loads((tmp_path / 'summary.json').read_text())['stages']
    last = stages.split(',')[-1]
    assert all(entry['finished'] for entry in found.values()) and found[last]['test']['best']
    assert not found[stages.split(',')[0]].get('test', {}).get('best') or 'source' in stages
    if tested:
        subsets = {f'modalities/accuracy@inputs={of}' for of in ('ct', 't2', 'ct+t2')}
        assert subsets <= set(found[tested]['test']['best'])


@pytest.mark.slow
def test_grad_cam_of_a_convolutional_student_on_harmonised_images_runs_to_its_report(tmp_path):
    assert main.main(['--config', 'configs/mmpkd_cxr.py:convolutions,smoke', '--workdir', str(tmp_path),
                      '--config.stages=image_only,focal', '--config.tensorboard=false',
                      '--config.data.transforms=image,harmonise,text,labels']) == 0
    found = json.loads((tmp_path / 'summary.json').read_text())['stages']['image_only']['test']['best']
    for map in ('grad_cam', 'mean_map', 'untrained', 'uniform'):
        assert {f'localisation/{map}/{metric}' for metric in ('hit', 'iou_top10', 'mass_in_roi')} <= set(found)
    assert not any('last_mean' in name for name in found)
    assert 'grad_cam' in (tmp_path / 'report.html').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('spec', ['configs/mmpkd_cxr.py:losses,smoke', 'configs/cpkd_ct_mri.py:losses,smoke'])
def test_every_loss_trains(spec, tmp_path):
    assert main.main(['--config', spec, '--workdir', str(tmp_path), '--config.tensorboard=false']) == 0
    finished = json.loads((tmp_path / 'summary.json').read_text())['stages']
    assert len(finished) >= 16 and all(entry['finished'] for entry in finished.values())


@pytest.mark.slow
@pytest.mark.parametrize('spec, stage, term', [
    ('configs/cpkd_ct_mri.py:meta,smoke', 'smil', 'fused2'), ('configs/cpkd_ct_mri.py:mind,smoke', 'mind', 'heads'),
    ('configs/mmpkd_mammo.py:healnet,smoke', 'healnet_student', 'kd'),
    ('configs/cpkd_ct_mri.py:several,smoke', 'weighed', 'ct'),
    ('configs/mmpkd_mammo.py:trimmed,smoke', 'student_trimmed', 'trimmed'),
    ('configs/mmpkd_cxr.py:bottleneck,smoke', 'fused_student', 'kd')])
def test_variants_of_further_methods_and_teachers_run_to_their_report(spec, stage, term, tmp_path):
    assert main.main(['--config', spec, '--workdir', str(tmp_path), '--config.tensorboard=false']) == 0
    stages_of = json.loads((tmp_path / 'summary.json').read_text())['stages']
    assert all(entry['finished'] for entry in stages_of.values())
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    found = [line[term] for line in lines if line['stage'] == stage and term in line]
    assert found and np.isfinite(found).all()


@pytest.mark.slow
def test_the_controls_of_cpkd_are_what_they_are_called(tmp_path):
    arms = ('ct_only', 'kd', 'kd_shuffled', 'ct_only_seed1000', 'kd_same_modality', 'label_smoothing')
    assert main.main(['--config', 'configs/cpkd_ct_mri.py:controls,smoke', '--workdir', str(tmp_path),
                      f'--config.stages={",".join(("mri", *arms))}', '--config.tensorboard=false']) == 0
    run = run_folder.read(tmp_path)
    assert {arm: comparison.kind(run, arm) for arm in arms} == dict.fromkeys(arms, 'no_teacher') | dict(
        kd='privileged', kd_shuffled='shuffled', kd_same_modality='same_modality')
    assert next(sorted(group) for group in comparison.arms(run) if 'kd' in group) == sorted(arms)


@pytest.mark.slow
def test_cpkd_runs_to_its_report(tmp_path):
    """Four arms and their teacher, a few steps each, as a user would run them."""
    done = main.main(['--config', 'configs/cpkd_ct_mri.py:smoke', '--workdir', str(tmp_path / 'run'),
                      '--config.stages=mri,kd,cpkd', '--config.tensorboard=false'])
    assert done == 0
    summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    for name in ('mri', 'kd', 'cpkd'):
        assert summary['stages'][name]['finished']
        assert {'multiclass/accuracy',
                'multiclass/accuracy@subgroup=challenging'} <= set(summary['stages'][name]['test']['best'])
    page = (tmp_path / 'run' / 'report.html').read_text()
    assert 'Our choice' in page and 'challenging' in page  # what is reconstructed stays visible
    with np.load(tmp_path / 'run' / 'predictions' / 'cpkd_slices.npz', allow_pickle=False) as found:
        assert found['image'].shape[1] == 3 and found['has_cam'].all()


@pytest.mark.slow
def test_mmpkd_on_mammograms_runs_to_its_report_and_knows_its_controls(tmp_path):
    small = [f'--config.{name}.{k}' for name in ('image_only', 'student', 'kd_shuffled', 'image_only_seed1000',
                                                 'kd_same_modality')
             for k in ('length=2 steps', 'eval_every=2 steps', 'model.width=16', 'model.heads=2')]
    assert main.main(['--config', 'configs/mmpkd_mammo.py:smoke', '--workdir', str(tmp_path / 'run'),
                      '--config.tensorboard=false',
                      *small]) == 0
    run = run_folder.read(tmp_path / 'run')
    kinds = {s: comparison.kind(run, s) for s in run.stages}
    assert kinds == dict(teacher='no_teacher', image_only='no_teacher', student='privileged', kd_shuffled='shuffled',
                         image_only_seed1000='no_teacher', kd_same_modality='same_modality')
    arms = next(arms for arms in comparison.arms(run) if 'student' in arms)
    assert arms == ['image_only', 'image_only_seed1000', 'kd_shuffled', 'kd_same_modality', 'student']
    assert {'classification/auroc', 'localisation/last_mean/hit'} <= set(run.stages['student']['test']['best'])
    page = (tmp_path / 'run' / 'report.html').read_text()
    assert 'shuffled' in page and 'a phantom' in page


@pytest.mark.slow
@pytest.mark.parametrize('variant, layout, stages', [('cbis', 'cbis_ddsm', 'teacher,image_only,kd_shuffled'),
                                                     ('mias', 'mini_mias', 'teacher,student')])
def test_mmpkd_on_an_archive_of_mammograms(variant, layout, stages, tmp_path):
    plugins.load('phantoms/layouts', layout).write(tmp_path / 'data', 24, size=64, kind='mass')
    small = [f'--config.{name}.{k}' for name in ('image_only', 'student', 'kd_shuffled')
             for k in ('model.width=16', 'model.depth=1', 'model.heads=2', 'length=1 steps', 'eval_every=1 steps',
                       'batch=8')]
    data = [f'source.root={tmp_path / "data"}', 'image.size=32',
            *(['split.fractions=(0.7,0.3,0.0)'] if variant == 'cbis' else [])]
    assert main.main(['--config', f'configs/mmpkd_mammo.py:{variant}', '--workdir', str(tmp_path / 'run'),
                      f'--config.stages={stages}',
                      *TINY[:2], '--config.teacher.length=2 steps', '--config.teacher.eval_every=2 steps',
                      '--config.teacher.batch=8',
                      *[f'--config.data.{d}' for d in data], *small]) == 0
    found = json.loads((tmp_path / 'run' / 'summary.json').read_text())['stages']
    assert {'classification/auroc',
            'localisation/last_mean/iou_50'} <= set(found[stages.split(',')[-1]]['test']['best'])
    assert found['teacher']['inputs'] == ['row']


@pytest.mark.slow
def test_a_folder_of_volumes_is_prepared_and_trained_on(tmp_path):
    """The phantom, written as a user's folder; then prepare, and a run from the prepared cases."""
    from jaxkd.data import prepare
    paired.write(tmp_path / 'data', 16, size=32, depth=14, field=(66, 66, 60))
    spec = ['--config', 'configs/cpkd_ct_mri.py:folder']
    small = [f'--config.data.source.root={tmp_path / "data"}', '--config.data.volume.size=(16,16,8)',
             '--config.data.volume.margin=(2,2,2)', '--config.data.volume.spacing=(3.0,3.0,6.0)',
             '--config.data.crop.size=(16,16,8)', '--config.data.split.given=False',
             '--config.data.split.fractions=(0.5,0.25,0.25)',
             '--config.data.split.stratify=']
    assert prepare.main([*spec, '--out', str(tmp_path / 'fast'), *small]) == 0
    net = [f'--config.ct_only.model.{k}' for k in ('name=resnet', 'stem=small', 'width=0.125')]
    run = ['--config.stages=ct_only', '--config.ct_only.length=2 steps', '--config.bootstrap=0', *net]
    ram, disk = tmp_path / 'ram', tmp_path / 'disk'
    assert main.main([*spec, '--workdir', str(ram), *small, *run]) == 0
    assert main.main([*spec, '--workdir', str(disk), *small, *run, '--config.data.cache=disk',
                      f'--config.data.folder={tmp_path / "fast"}']) == 0
    ours, theirs = ((w / 'predictions' / 'ct_only_test.csv').read_text() for w in (ram, disk))
    assert ours == theirs


@pytest.mark.slow
def test_sikd_runs_to_its_report(tmp_path):
    """Teacher, plain network and student, tested on their own domain and on another one."""
    done = main.main(['--config', 'configs/sikd_acdc.py:smoke', '--workdir', str(tmp_path / 'run'),
                      '--config.stages=teacher,unet,sikd',
                      '--config.tensorboard=false', '--config.data.source.size=32', '--config.data.image.size=32'])
    assert done == 0
    stages = json.loads((tmp_path / 'run' / 'summary.json').read_text())['stages']
    assert all(stages[name]['finished'] for name in ('teacher', 'unet', 'sikd'))
    assert {'segmentation/dice', 'segmentation/dice/RV', 'segmentation/hd95_mm/LV',
            'shifted/dice'} <= set(stages['sikd']['test']['best'])
    assert 'shifted/dice' not in stages['teacher']['test']['best']
    page = (tmp_path / 'run' / 'report.html').read_text()
    assert 'shifted' in page and 'Our choice' in page
    with np.load(tmp_path / 'run' / 'predictions' / 'sikd_segments.npz', allow_pickle=False) as found:
        assert found['image'].shape == found['truth'].shape == found['predicted'].shape == found['energy'].shape
        assert {'worst', 'best'} <= set(found['rank'].tolist())
    assert (tmp_path / 'run' / 'predictions' / 'sikd_shifted.csv').exists()


def test_the_data_of_volumes_can_be_built():
    conf = config.load('configs/sikd_acdc.py:volumes', ['data.source.patients=20'])
    for name in ('sikd', 'boundary'):
        data = pool.build(config.stage_data(conf, name))
        record = next(loader.train_loader(data, 2, 0))
        assert (record['image'].shape == (2, 8, 48, 48, 1) and record['label'].shape == (2, 8, 48, 48)
                and external.external_dataset(data, 'shifted'))


@pytest.mark.slow
def test_cpmn_runs_to_its_report(tmp_path):
    small = [f'--config.{name}model.{k}' for name in ('nct.', 'joint.', 'joint.networks.ctpa.', 'cpmn.',
                                                      'cpmn.networks.ctpa.')
             for k in ('channels=(4,8)', 'blocks=(1,)', 'deep=0')]
    small += [f'--config.data.{k}' for k in ('source.size=32', 'source.depth=16', 'source.spacing=(5.0,5.0,5.0)',
                                             'patch.size=(16,16,8)')]
    done = main.main(['--config', 'configs/cpmn_pe.py:smoke', '--workdir', str(tmp_path / 'run'),
                      '--config.stages=nct,joint,cpmn',
                      '--config.tensorboard=false', '--config.cpmn.method.ifa_tap=dec0', *small])
    assert done == 0
    stages = json.loads((tmp_path / 'run' / 'summary.json').read_text())['stages']
    assert {'segmentation/dice', 'segmentation/lesion_recall', 'segmentation/sensitivity', 'segmentation/specificity',
            'segmentation/auroc', 'segmentation/t_cls'} <= set(
        stages['cpmn']['test']['best'])
    # Losses alone couple the pathways: without them the NCT pathway is that of the single one, to the last bit.
    alone, joint = ((tmp_path / 'run' / 'predictions' / f'{name}_test.csv').read_text() for name in ('nct', 'joint'))
    assert alone == joint
    with np.load(tmp_path / 'run' / 'predictions' / 'cpmn_segments.npz', allow_pickle=False) as found:
        assert found['cam'].shape == found['image'].shape and (found['cam'] >= 0).all()


# The variants of archives, on trees that the phantoms write in the archives' own layouts.

TINY = ['--config.bootstrap=20', '--config.tensorboard=false', '--config.data.split.stratify=']


@pytest.mark.slow
def test_mmpkd_on_an_archive_of_radiographs(tmp_path):
    """Labels of all kinds, reports and boxes in the layout of MIMIC-CXR, in its own split; tested in two other archives
    as well.
    """
    for layout, *more in (('mimic_cxr', '--patients=40', '--seed=5'), ('nih_cxr14', '--patients=30'),
                          ('chexpert', '--patients=2', '--localize=5')):
        assert phantoms.main(['write', '--layout', layout, '--out', str(tmp_path / 'data'), *more]) == 0
    small = [f'--config.{name}.{k}' for name in ('teacher', 'student')
             for k in ('model.width=16', 'model.depth=1', 'model.heads=2', 'length=2 steps', 'eval_every=2 steps',
                       'batch=8')]
    small += ['--config.teacher.model.length=32']
    data = [f'source.{key}={tmp_path / "data" / folder}' for key, folder in (
        ('root', 'mimic-cxr-jpg'), ('reports', 'mimic-cxr'), ('ms_cxr', 'ms-cxr'))]
    data += [f'external.{key}' for key in (f'nih.source.root={tmp_path / "data"}', 'nih.source.resized=True',
                                            f'chexlocalize.source.localize={tmp_path / "data"}')]
    assert main.main(['--config', 'configs/mmpkd_cxr.py:external', '--workdir', str(tmp_path / 'run'), *TINY[:2],
                      *small,
                      '--config.stages=teacher,student', *[f'--config.data.{d}' for d in (
                          *data, 'image.size=32', 'image.resize=36', 'text.length=32')]]) == 0
    summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    assert {'classification/auroc', 'localisation/last_mean/hit'} <= set(summary['stages']['student']['test']['best'])
    assert ('MS-CXR patients are left out' in summary['stages']['student']['source']['note']
            and 'close to 1' in summary['note'])
    assert summary['stages']['teacher']['inputs'] == ['tokens']
    found = summary['stages']['student']['test']['best']
    assert {f'{archive}/auroc/Edema' for archive in ('nih', 'chexlocalize')} <= set(found)
    assert all(found[f'{archive}_localisation/last_mean/hit']['n_rois'] > 3 for archive in ('nih', 'chexlocalize'))
    # not told
    assert [found[f'{archive}/auroc/Lung Opacity']['n_negative'] > 0 for archive in ('nih', 'chexlocalize')] == [False,
                                                                                                                 True]


@pytest.mark.slow
def test_mmpkd_with_teachers_of_two_vocabularies(tmp_path):
    pytest.importorskip('tokenizers')
    words = minilm_numbers.VOCABULARY
    (tmp_path / 'vocab.txt').write_text('\n'.join(words) + '\n')
    bert = [f'--config.{name}.model.{k}' for name in ('bert', 'frozen')
            for k in ('width=16', 'depth=1', 'heads=2', f'vocab={len(words)}')]
    small = [f'--config.{name}.{k}' for name in ('teacher', 'bert', 'frozen', 'student', 'bert_student')
             for k in ('length=1 steps', 'eval_every=1 steps', 'batch=8')]
    small += [f'--config.{name}.model.{k}' for name in ('teacher', 'student', 'bert_student')
              for k in ('width=16', 'depth=1', 'heads=2')]
    assert main.main(['--config', 'configs/mmpkd_cxr.py:encoders', '--workdir', str(tmp_path / 'run'), *TINY[:2], *bert,
                      *small,
                      '--config.data.source.patients=40', '--config.data.source.size=32', '--config.data.image.size=32',
                      f'--config.data.wordpiece.file={tmp_path / "vocab.txt"}',
                      '--config.stages=teacher,bert,frozen,student,bert_student',
                      ]) == 0
    stages = json.loads((tmp_path / 'run' / 'summary.json').read_text())['stages']
    assert stages['bert_student']['teachers']['report']['folder'].endswith('bert') and stages['frozen']['finished']
    assert stages['student']['method'] == stages['bert_student']['method']
    conf = config.load(tmp_path / 'run' / 'config.json')
    assert conf.data.wordpiece.mask_terms == conf.data.text.mask_terms == labeller.TERMS


@pytest.mark.slow
@pytest.mark.parametrize('variant, layout, options, more', [
    ('nih', 'nih_cxr14', ['--patients=40'], ['source.resized=True']),
    ('chexpert', 'chexpert', ['--patients=30', '--localize=10'], ['source.localize={}']),
    ('openi', 'openi', ['--patients=30', '--reports=tgz'], []), ('openi_images', 'openi', ['--patients=30'], []),
])
def test_archives_of_radiographs_with_what_they_have(variant, layout, options, more, tmp_path):
    """Boxes and no reports, reports and no images, both."""
    assert phantoms.main(['write', '--layout', layout, '--out', str(tmp_path / 'data'), *options]) == 0
    data = [f'source.root={tmp_path / "data"}', *(m.format(tmp_path / 'data') for m in more), 'image.size=32',
            'image.resize=36',
            'text.length=32', f'source.labels={",".join(ms_cxr.FINDINGS)}']  # equal shapes are compiled once
    small = [f'--config.{name}.{k}' for name in ('teacher', 'image_only', 'student')
             for k in ('model.width=16', 'model.depth=1', 'model.heads=2', 'length=2 steps', 'eval_every=2 steps',
                       'batch=8')]
    assert main.main(['--config', f'configs/mmpkd_cxr.py:{variant}', '--workdir', str(tmp_path / 'run'), *TINY[:2],
                      *small,
                      '--config.teacher.model.length=32', *[f'--config.data.{d}' for d in data]]) == 0
    stages = json.loads((tmp_path / 'run' / 'summary.json').read_text())['stages']
    assert [*stages] == dict(openi=['teacher'], openi_images=['teacher', 'image_only', 'student']).get(variant,
                                                                                                       ['image_only'])
    for stage in stages.values():
        assert ('classification/auroc' in stage['test']['best']
                and ('localisation/last_mean/hit' in stage['test']['best']) == (layout != 'openi'))


@pytest.mark.slow
@pytest.mark.parametrize('variant, layout, more', [
    ('acdc_mnms', 'acdc', []), ('slices', 'slices', []),
    ('masks', 'masks', ['source.patient=(p[0-9]+)_']),
])
def test_sikd_on_a_native_layout(variant, layout, more, tmp_path):
    plugins.load('phantoms/layouts', layout).write(tmp_path / 'data', 10, size=32)
    if variant == 'acdc_mnms':
        mnms.write(tmp_path / 'mnms', 5, domain='B', size=32)
        more = [f'external.mnms.source.root={tmp_path / "mnms"}']
    given = [f'--config.data.{m}' for m in [f'source.root={tmp_path / "data"}', 'image.size=32',
                                            'split.fractions=(0.6,0.2,0.2)', *more]]
    small = [f'--config.{name}.{k}' for name in ('teacher', 'sikd')
             for k in ('model.channels=(4,8)', 'length=2 steps', 'eval_every=2 steps', 'batch=4')]
    assert main.main(['--config', f'configs/sikd_acdc.py:{variant}', '--workdir', str(tmp_path / 'run'),
                      '--config.stages=teacher,sikd',
                      *TINY, *given, *small]) == 0
    found = json.loads((tmp_path / 'run' / 'summary.json').read_text())['stages']['sikd']['test']['best']
    assert ('mnms/dice' if variant == 'acdc_mnms' else 'shifted/dice') in found


@pytest.mark.slow
@pytest.mark.parametrize('variant, layout', [('folder', 'dualphase'), ('fumpe', 'fumpe'), ('cad_pe', 'cad_pe'),
                                             ('read', 'read')])
def test_cpmn_on_a_native_layout(variant, layout, tmp_path):
    plugins.load('phantoms/layouts', layout).write(tmp_path / 'data', 8, pe=0.9, size=32, depth=16,
                                                   spacing=(5.0, 5.0, 5.0))
    small = [f'--config.cpmn.{k}' for k in ('length=1 steps', 'eval_every=1 steps', 'method.ifa_tap=dec0')]
    small += [f'--config.cpmn.{n}model.{k}' for n in ('', 'networks.ctpa.') for k in (
        'channels=(4,8)', 'blocks=(1,)', 'strides=(2,)', 'deep=0')]
    data = [f'source.root={tmp_path / "data"}', 'scan.spacing=(0.0,0.0,0.0)', 'scan.lungs=False',
            'patch.size=(16,16,8)',
            'split.fractions=(0.5,0.25,0.25)', 'split.given=False']
    assert main.main(['--config', f'configs/cpmn_pe.py:{variant}', '--workdir', str(tmp_path / 'run'),
                      '--config.stages=cpmn', *TINY,
                      *[f'--config.data.{d}' for d in data], *small]) == 0
    assert 'segmentation/dice' in json.loads((tmp_path / 'run'
                                              / 'summary.json').read_text())['stages']['cpmn']['test']['best']
