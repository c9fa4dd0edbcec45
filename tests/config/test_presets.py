"""Presets: a size that fits the number of cases and the device, chosen once, said, and written down."""
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import config, errors, parallel, runner
from jaxkd.config import loading, plugins, presets
from jaxkd.phantoms.layouts import dualphase, masks, paired

LEAST = dict(tiny=0, small=200, base=2_000, large=20_000)
FILES = dict(mmpkd_cxr='folder', sikd_acdc='masks', cpmn_pe='folder', cpkd_ct_mri='folder')


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 30_000), st.sampled_from(('cpu', 'gpu', 'tpu')))
def test_the_preset_is_that_of_its_rule(cases, backend):
    with pytest.MonkeyPatch.context() as patch:
        plugin = SimpleNamespace(case_count=lambda hp, most: min(cases, most))
        patch.setattr(plugins, 'contract', lambda kind, name: plugin)
        patch.setattr(parallel, 'backend', lambda: backend)
        said = []
        patch.setattr('jaxkd.runtime.log.info', said.append)
        c = ConfigDict(dict(data=dict(source=dict(name='folder', root='.'))))
        name = presets.choose(c, LEAST)
        assert presets.choose(c, LEAST, smoke=True) == 'tiny'
    wanted = 'large' if cases >= 20_000 else 'base' if cases >= 2_000 else 'small' if cases >= 200 else 'tiny'
    assert name == ('small' if backend == 'cpu' and wanted in ('base', 'large') else wanted)
    line, _ = said
    assert f'preset: {name}, for {min(cases, 20_000):,}' in line
    assert f'on {backend} (by cases tiny, small from 200, base from 2,000' in line


@pytest.fixture
def root(tmp_path):
    rows = ['patient_id,image,text,Mass']
    for i in range(12):
        Image.fromarray(np.full((40, 30), i, np.uint8)).save(tmp_path / f'{i}.png')
        rows.append(f'p{i},{i}.png,"FINDINGS: a\nb",{i % 2}')
    (tmp_path / 'cases.csv').write_text('\n'.join(rows))
    return tmp_path


FOLDER = 'configs/mmpkd_cxr.py:folder'


def test_a_preset_is_chosen_said_and_written_down(root, tmp_path, capsys):
    options = [f'data.source.root={root}']
    chosen = config.load(FOLDER, options)
    assert 'preset: tiny, for 12 cases on cpu' in capsys.readouterr().out
    assert chosen.preset == 'tiny' and chosen == config.load(f'{FOLDER},tiny', options)
    assert config.load(FOLDER, [*options, 'preset=small']) == config.load(f'{FOLDER},small', options)
    assert config.load(f'{FOLDER},tiny', [*options, 'preset=base']) == config.load(f'{FOLDER},base', options)
    (tmp_path / 'config.json').write_text(config.dump(chosen))
    assert config.load(tmp_path / 'config.json') == chosen and 'preset' not in capsys.readouterr().out


def test_other_variants_and_options_stand_above_a_preset(root):
    options = [f'data.source.root={root}', 'student.model.width=48', 'data.image.size=32']
    c = config.load(f'{FOLDER},controls,smoke', options)
    assert config.load(f'{FOLDER},smoke', options).preset == 'tiny'
    assert c.preset == 'tiny' and c.student.length == '8 steps' and c.kd_shuffled.model.width == 96
    assert c.student.model.width == 48 and c.data.image.size == 32


def test_without_a_folder_nothing_is_chosen_and_unknown_presets_are_refused(root, capsys):
    assert config.load(FOLDER).preset == 'auto' and not capsys.readouterr().out
    with pytest.raises(errors.ConfigError, match='preset = "smal". Did you mean "small"'):
        config.load(FOLDER, ['preset=smal'])
    for spec in ('configs/mmpkd_cxr.py', 'configs/mmpkd_mammo.py', 'configs/cpkd_ct_mri.py:sts'):
        with pytest.raises(errors.ConfigError, match='preset'):
            config.load(spec, ['preset=small'])
    saved = root / 'config.json'
    saved.write_text(config.dump(config.load(FOLDER, [f'data.source.root={root}'])))
    with pytest.raises(errors.ConfigError, match='preset'):
        config.load(saved, ['preset=small'])


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """{config: root of data of one's own}."""
    roots = {name: tmp_path_factory.mktemp(name) for name in FILES}
    masks.write(roots['sikd_acdc'], 10, size=32)
    dualphase.write(roots['cpmn_pe'], 10, size=32, depth=16, spacing=(5.0, 5.0, 5.0))
    paired.write(roots['cpkd_ct_mri'], 10, size=32, depth=14, field=(66, 66, 60))
    return roots


@pytest.mark.parametrize('name', FILES)
def test_all_presets_of_a_config_exist(name):
    assert [*loading.import_file(loading.existing(f'configs/{name}.py')).PRESETS] == [*LEAST]
    assert [config.load(f'configs/{name}.py:{FILES[name]},{preset}').preset for preset in LEAST] == [*LEAST]


@pytest.mark.parametrize('preset', ['tiny', pytest.param('small', marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', FILES)
def test_what_is_chosen_for_a_few_cases_can_be_built(name, preset, data, root, tmp_path):
    c = config.load(f'configs/{name}.py:{FILES[name]},{preset}',
                    [f'data.source.root={root if name == "mmpkd_cxr" else data[name]}'])
    c.stages = c.stages[-1:]
    runner.dry_run(c, tmp_path / 'run')


def test_a_table_without_texture_and_duct_names_the_options_and_the_variant_that_read_it(data, tmp_path):
    header, *rows = [line.split(',') for line in (data['cpkd_ct_mri'] / 'cases.csv').read_text().split()]
    kept = [j for j, name in enumerate(header) if name not in ('texture', 'duct')]
    (tmp_path / 'mine.csv').write_text('\n'.join(','.join(cells[j] for j in kept) for cells in (header, *rows)))
    options = [f'data.source.root={data["cpkd_ct_mri"]}', f'data.source.table={tmp_path / "mine.csv"}']
    c = config.load('configs/cpkd_ct_mri.py:folder,tiny', options)
    with pytest.raises(errors.BadData, match='mine.csv has no column "texture", which tasks') as refused:
        runner.dry_run(c, tmp_path / 'run')
    named = re.findall(r'--config\.(\S+?=)', str(refused.value))
    assert named == ['data.source.tasks=', 'data.source.classes=']
    variant = re.search(r'configs/cpkd_ct_mri.py the variant :(\S+)\.', str(refused.value))[1]
    c = config.load(f'configs/cpkd_ct_mri.py:{variant},tiny', options)
    assert not c.data.source.tasks and not c.data.source.classes
    assert tuple(c.stages) == ('mri', 'ct_only', 'kd', 'dpk') and c.dpk.networks.scans.inputs == ('t1', 't2')
    runner.dry_run(c, tmp_path / 'run')
    named += ['data.transforms=volume', 'stages=ct_only']
    c = config.load('configs/cpkd_ct_mri.py:folder,tiny', [*options, *named])
    runner.dry_run(c, tmp_path / 'run')
