"""README and docs: every command runs or is marked, every link leads somewhere, examples work as they stand, generated
pages are up to date.

The line before a block of commands says what stands for running it:
    <!-- run -->            it runs below, small
    <!-- tested-by: FILE::TEST -->    that test runs it, small; or FILE, where many do
    <!-- full-size -->      minutes or hours: it is parsed here, its config resolves, and tests run its config small
    <!-- needs-data -->     likewise, with data that are not ours to hand on
"""
import contextlib
import importlib
import importlib.util
import io
import json
import pathlib
import pickle
import re
import shlex
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import jaxkd
from jaxkd import __main__ as console
from jaxkd import config, errors, main
from jaxkd.phantoms import __main__ as phantoms
from jaxkd.runtime import files

ROOT = pathlib.Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text()
         for path in (ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md')))}
MARK = re.compile(r'(run|full-size|needs-data|tested-by: (\S+))')


def command_blocks() -> list[tuple[str, str, list[str]]]:
    """(page, mark, commands, one a line) of every block of commands."""
    found = []
    for page, text in PAGES.items():
        for mark, block in re.findall(r'(?:<!-- ([^\n]*) -->\n)?^```bash\n(.*?)^```', text, re.S | re.M):
            lines = [line for line in block.replace('\\\n', ' ').splitlines() if line and not line.startswith('#')]
            found.append((page, mark, lines))
    return found


BLOCKS = command_blocks()
COMMANDS = [(page, mark, command) for page, mark, commands in BLOCKS for command in commands]


def words(command: str) -> list[str]:
    """The words of the last command of a line, without what sets up an environment."""
    return shlex.split(command.split('&&')[-1])


def test_every_block_of_commands_is_run_or_marked():
    assert len(BLOCKS) > 20
    for page, mark, lines in BLOCKS:
        if page == 'README.md' and not mark:  # its two lines are what .ci/run runs
            assert (len(lines) == 1 and lines[0].startswith('python3 -m venv')
                    and re.search(r'pytest|jaxkd\.main', lines[0]))
            continue
        match = MARK.fullmatch(mark)
        assert match, f'{page}: no mark before the block that begins with "{lines[0]}"'
        if match[2]:
            file, _, name = match[2].partition('::')
            assert (ROOT / file).is_file(), f'{page}: {file}'
            assert not name or f'def {name}(' in (ROOT / file).read_text(), f'{page}: {match[2]}'


@pytest.fixture(scope='module')
def option_names():
    """module -> the options of its command line, as its own parser knows them."""
    known = {}

    def options(module):
        if module not in known:
            text = io.StringIO()
            with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
                importlib.import_module(module).main(['--help'])
            known[module] = set(re.findall(r'--\w+', text.getvalue()))
        return known[module]
    return options


@pytest.mark.parametrize('page, command', sorted({(page, c) for page, mark, c in COMMANDS if mark != 'run'}))
def test_a_command_names_a_config_options_and_files_that_exist(page, command, option_names):
    program, *rest = words(command)
    if program == 'jaxkd':
        program, rest = 'python', ['-m', console.MODULES[rest[0]][0], *rest[1:]]
    if program != 'python':
        assert program in ('pip', 'pytest', 'ruff', 'mypy', 'mkdocs', 'pre-commit', 'git'), command
        extras = re.findall(r'(?:\.|jaxkd-medical)\[([\w,]+)\]', command)
        declared = (ROOT / 'pyproject.toml').read_text()
        assert all(f'\n{extra} = [' in declared for names in extras for extra in names.split(',')), command
        return
    if rest[0] != '-m':  # a script of the repository, or the one of a bundle
        script = ROOT / ('jaxkd/export/run.py' if rest[0] == 'bundle/run.py' else rest[0])
        assert script.is_file(), command
        text = script.read_text()
        assert all(f"'{option}'" in text for option in rest[1:] if option.startswith('--')), command
        return
    module = {'jaxkd.phantoms': 'jaxkd.phantoms.__main__', 'jaxkd.multirun': 'jaxkd.multirun.__main__',
              'jaxkd.report': 'jaxkd.report.__main__', 'jaxkd.export': 'jaxkd.export.__main__'}.get(rest[1], rest[1])
    if module == 'benchmarks':
        module = f'benchmarks.{"__main__" if rest[2].startswith("--") else rest[2]}'
    overrides = [word.removeprefix('--config.') for word in rest if word.startswith('--config.')]
    for word in rest[2:]:
        if word.startswith('--') and not word.startswith('--config.'):
            assert word in option_names(module), f'{command}: {word}'
    if '--config' in rest and not (spec := rest[rest.index('--config') + 1]).startswith('stripes_config.py') \
            and not spec.endswith('.json'):
        assert config.load(spec, overrides).stages


@pytest.mark.parametrize('command', sorted({c for _, mark, c in COMMANDS if mark == 'run' and ' jaxkd.phantoms ' in c}))
def test_a_phantom_is_written_or_drawn(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = words(command)[3:]
    few = '8' if 'simba' in args else '2'
    args = [few if args[i - 1] == '--patients' else word for i, word in enumerate(args)]
    small = ['--size', '32', '--rows', '1', '--columns', '2'] if args[0] == 'sheet' else []
    assert phantoms.main([*args, *small]) == 0
    assert any(path.is_file() for path in tmp_path.rglob('*')) or args == ['list']


def test_variants_and_options_are_listed(capsys):
    shown = {'--list': 'configs/sikd_acdc.py', ':help': ':smoke', '--options': 'weight_decay'}
    for part, said in shown.items():
        command = next(c for _, mark, c in COMMANDS if mark == 'run' and part in c)
        assert main.main(words(command)[3:]) == 0
        assert said in capsys.readouterr().out


def test_every_command_that_runs_here_is_known_here():
    parts = (' jaxkd.phantoms ', '--list', ':help', '--options', 'stripes_config.py', ' jaxkd.report ')
    for page, mark, command in COMMANDS:
        if command.startswith(('jaxkd list', 'jaxkd options')):
            assert console.main(words(command)[1:]) == 0
            continue
        assert mark != 'run' or any(part in command for part in parts), (page, command)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder outside of the repository, from which modules are imported during the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition('.')[0] == 'my_package']:
        del sys.modules[name]


def test_own_plug_ins(outside):
    """The examples of docs/how_to/own_plugins.md, as they stand there, from outside the repository; then the page of
    that run anew.
    """
    text = PAGES['docs/how_to/own_plugins.md']
    named = re.findall(r'^`(my_package/\w+\.py|\w+_config\.py)`\n\n```python\n(.*?)^```', text, re.S | re.M)
    assert len(named) == len(re.findall('^```python', text, re.M)) >= 4
    (outside / 'my_package').mkdir()
    for name, code in named:
        (outside / name).write_text(code)
    short = ['--config.bootstrap=20', *(f'--config.{stage}.length=1 epochs' for stage in ('teacher', 'student'))]
    for spec, folder in (('stripes_config.py:alone', 'runs/alone'), ('stripes_config.py', 'runs/a')):
        assert main.main(['--config', spec, '--workdir', folder, *short]) == 0
    alone = files.read_json(outside / 'runs/alone/summary.json', '')['stages']
    assert list(alone) == ['student'] and alone['student']['finished']
    summary = files.read_json(outside / 'runs/a/summary.json', '')
    student = summary['stages']['student']
    assert student['finished'] and (outside / 'runs/a/report.html').exists()
    assert 0 <= student['test']['best']['specificity/specificity']['value'] <= 1
    logged = (outside / 'runs/a/metrics.jsonl').read_text()
    assert 'classification/auroc' in logged and 'NaN' not in logged  # each part holds both classes
    (outside / 'runs/a/report.html').unlink()
    assert importlib.import_module('jaxkd.report.__main__').main([str(outside / 'runs/a')]) == 0
    assert (outside / 'runs/a/report.html').exists()


def test_the_inverse_of_the_example_brings_a_label_map_back(tmp_path, monkeypatch):
    code = re.search(r'^`my_package/border.py`\n\n```python\n(.*?)^```', PAGES['docs/how_to/own_plugins.md'],
                     re.S | re.M)[1]
    (tmp_path / 'example_border.py').write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    border = importlib.import_module('example_border')
    hp = ConfigDict(dict(pixels=2, keys=('image', 'label')))
    transform = pickle.loads(pickle.dumps(border.build(border.PLUGIN.restrict(hp, ('image',)))))
    before = {'image': np.arange(80, dtype=np.uint8).reshape(8, 10), 'boxes': np.float32([[0, 4, 5, 1, 1]])}
    after = transform.apply(before)
    back = transform.inverse(before, after)(after['image'])
    assert after['image'].shape == (4, 6) and back.shape == (8, 10)
    np.testing.assert_array_equal(back[2:-2, 2:-2], before['image'][2:-2, 2:-2])
    assert not back[:2].any() and after['boxes'].tolist() == [[0, 2, 3, 1, 1]]
    assert transform.apply({'image': before['image']}).keys() == {'image'}  # as in deployment
    assert border.build(hp).apply({**before, 'label': before['image']})['label'].shape == (4, 6)


def test_own_folder(tmp_path, capsys):
    """The cases.csv of docs/how_to/own_images.md, with enough patients to train on."""
    head, first, second = re.search(r'```text\n(patient_id.*?)```', PAGES['docs/how_to/own_images.md'],
                                    re.S)[1].splitlines()
    (tmp_path / 'data' / 'images').mkdir(parents=True)
    rows = [head]
    rng = np.random.default_rng(0)
    for i in range(24):
        name = f'images/{i}.{"png" if i % 2 else "jpg"}'
        Image.fromarray(rng.integers(0, 255, (50, 40), np.uint8)).save(tmp_path / 'data' / name)
        line = (second if i % 2 else first).replace('p2' if i % 2 else 'p1', f'p{i}')
        rows.append(line.replace('images/b.jpg' if i % 2 else 'images/a.png', name).rsplit(',', 1)[0] + ',')
    (tmp_path / 'data' / 'cases.csv').write_text('\n'.join(rows))
    small = [f'--config.{stage}.model.depth=1' for stage in ('teacher', 'image_only', 'student')]
    assert main.main(['--config', 'configs/mmpkd_cxr.py:folder', f'--config.data.source.root={tmp_path / "data"}',
                      '--dry_run', *small]) == 0
    said = capsys.readouterr().out
    assert 'preset: tiny, for 24 cases on cpu' in said and '(16, 64, 64, 1)' in said and 'folder: train' in said


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r'[-\s]+', '-', re.sub(r'[^\w\s-]', '', heading.replace('`', '')).strip().lower())


def test_every_link_and_anchor_exists():
    for page, text in PAGES.items():
        text = re.sub(r'^```.*?^```', '', text, flags=re.S | re.M)
        for link in re.findall(r'\]\(([^)\s]+)\)', text):
            if link.startswith('https://'):
                continue
            file, _, anchor = link.partition('#')
            target = (ROOT / page).parent / file if file else ROOT / page
            assert target.exists(), f'{page}: {link}'
            if anchor:
                headings = re.findall(r'^#+ (.*)$', target.read_text(), re.M)
                assert anchor in map(slug, headings), f'{page}: {link}'


def test_every_file_that_is_named_exists():
    for page, text in PAGES.items():
        for file in re.findall(r'(?<![\w/.])((?:jaxkd|configs|tests|benchmarks|docs)/[\w/]+\.(?:py|png|md|json))\b',
                               text):
            assert (ROOT / file).exists(), f'{page}: {file}'
        for module in re.findall(r'`(jaxkd\.[\w.]+)`', text):
            path = module.replace('.', '/')
            candidates = (ROOT / f'{path}.py', ROOT / path, (ROOT / path).parent.with_suffix('.py'),
                          (ROOT / path).parent)
            assert any(c.exists() for c in candidates), f'{page}: {module}'


def test_the_exit_codes_are_all_there():
    codes = {cls.code for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.JaxkdError)}
    assert codes | {0, 76} <= set(map(int, re.findall(r'^\| (\d+) \|', PAGES['docs/reference/exit_codes.md'], re.M)))


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_bytes()) <= 8_000


def test_generated_pages_are_up_to_date():
    spec = importlib.util.spec_from_file_location('generate', ROOT / 'docs' / 'generate.py')
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for page, write in generate.PAGES.items():
        assert write() == (ROOT / 'docs' / page).read_text(), (
            f'docs/{page} is older than the code: run python docs/generate.py')


def test_differences_of_the_figure_stand_in_the_pages_of_results():
    rows = json.loads((ROOT / 'docs/results/differences.json').read_text())
    assert {row['page'] for row in rows} == {'mmpkd', 'cpkd', 'sikd', 'specialist', 'cpmn'}
    for row in rows:
        page = ' '.join(PAGES[f'docs/results/{row["page"]}.md'].split())
        interval = re.escape(f'{row["low"]:+.3f} to {row["high"]:+.3f}')
        assert row['low'] <= row['value'] <= row['high']
        assert re.search(f'{abs(row["value"]):.3f}.{{0,100}}{interval}', page), row['label']


def test_pre_commit_uses_the_pinned_ruff():
    pinned = re.search(r'^ruff==(\S+)', (ROOT / 'constraints.txt').read_text(), re.M)[1]
    assert f'rev: v{pinned} ' in (ROOT / '.pre-commit-config.yaml').read_text()
    version = jaxkd.__version__
    assert (f'version: {version}\n' in (ROOT / 'CITATION.cff').read_text()
            and f'## {version}\n' in (ROOT / 'CHANGELOG.md').read_text())
