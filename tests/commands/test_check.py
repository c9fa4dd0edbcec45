"""`jaxkd check`: counts, labels, forms, equal files and pictures of folders of every layout."""
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxkd import __main__ as command
from jaxkd.commands import check
from jaxkd.data import inspection
from jaxkd.data.source import Case, Source
from jaxkd.data.volume import Volume
from jaxkd.phantoms import __main__ as phantoms


@pytest.fixture
def images(tmp_path):
    """40 images of 20 patients: half have Edema, a third are uncertain of Pneumonia, the first one comes twice."""
    root, rng, rows = tmp_path / 'data', np.random.default_rng(0), ['patient_id,image,text,Edema,Pneumonia,split']
    (root / 'images').mkdir(parents=True)
    for i in range(40):
        pixels = rng.integers(0, 4000 if i % 2 else 255, (20 + i % 2, 16)).astype(np.uint16 if i % 2 else np.uint8)
        Image.fromarray(pixels).save(root / 'images' / f'{i}.png')
        part = 'test' if i >= 30 else 'val' if i >= 26 else 'train'
        rows.append(f'p{i // 2},images/{i}.png,A report.,{i % 2},{-1 if i % 3 == 0 else 0},{part}')
    (root / 'cases.csv').write_text('\n'.join(rows) + '\n')
    return root


def test_a_folder_of_images(images, tmp_path, capsys):
    shutil.copy(images / 'images/0.png', images / 'images/38.png')
    out = tmp_path / 'check.html'
    assert command.main(['check', str(images), '--out', str(out)]) == 0
    said = capsys.readouterr().out
    assert '40 cases of 20 patients' in said and 'preset: tiny' in said
    assert re.search(r'^  train  13 +26 +26$', said, re.M) and re.search(r'^  test   5 +10 +10$', said, re.M)
    assert re.search(r'Edema +13 of 26 \(50%\) +2 of 4 \(50%\) +5 of 10 \(50%\)', said)
    assert re.search(r'Pneumonia +17 absent, 9 uncertain', said)
    assert 'image: 20x16 to 21x16 in 40 cases; uint8, uint16, values' in said.replace('uint16, uint8', 'uint8, uint16')
    assert '16-bit grey with up to 12 bits in use' in said and 'text: 9 characters' in said
    assert '1 files come several times, 1 under several patients, 1 in several parts: WARNING' in said
    assert 'images/0.png (train), images/38.png (test)' in said
    assert f'--config jaxkd:mmpkd_cxr:folder --config.data.source.root={images}' in said
    page = out.read_text()
    assert page.count('<img ') == 8 + 4 + 8 and 'images/0.png' in page and not re.search('src="(?!data:)', page)


@pytest.mark.parametrize('layout, options, source, words', [
    ('masks', '--patients 4 --size 32', 'masks', 'background'),
    ('folder', '--patients 8 --size 32', 'folder', 'Effusion'),
    ('paired', '--patients 12 --size 32 --depth 8 --field 60 60 60', 'paired', 'spacing'),
    ('dualphase', '--patients 8 --size 32 --depth 16 --spacing 5 5 5', 'dualphase', 'nct:')])
def test_layouts_are_recognised(layout, options, source, words, tmp_path, capsys):
    root, out = tmp_path / 'data', tmp_path / 'check.html'
    assert phantoms.main(['write', '--layout', layout, '--out', str(root), *options.split()]) == 0
    assert check.layout(str(root)) == source
    assert command.main(['check', str(root), '--out', str(out)]) == 0
    said = capsys.readouterr().out
    assert words in said and check.LAYOUTS[source] in said and out.read_text().count('<img ') >= 4


def test_a_table_of_volumes_without_tasks_is_recognised(tmp_path):
    for columns, expected in (('cls', 'paired without tasks'), ('cls,duct', 'paired'), ('split', 'dualphase')):
        (tmp_path / 'cases.csv').write_text(f'case_id,patient_id,{columns}\n')
        assert check.layout(str(tmp_path)) == expected


def test_another_config_reads_an_archive(tmp_path, capsys):
    phantoms.main(['write', '--layout', 'nih_cxr14', '--out', str(tmp_path / 'nih'), '--patients', '12'])
    assert command.main(['check', str(tmp_path / 'nih'), '--config', 'jaxkd:mmpkd_cxr:nih',
                         '--config.data.source.resized=True']) == 0
    assert 'Effusion' in capsys.readouterr().out


def test_what_a_run_refuses_is_refused(images, tmp_path, capsys):
    assert command.main(['check', str(tmp_path / 'nothing')]) == 66
    (tmp_path / 'empty').mkdir()
    assert command.main(['check', str(tmp_path / 'empty')]) == 66
    assert 'jaxkd list configs' in capsys.readouterr().err
    assert command.main(['check', str(images), '--out', 'x.png']) == 2
    table = images / 'cases.csv'
    table.write_text(table.read_text().replace('A report.,1', 'A report.,maybe', 1))
    assert command.main(['check', str(images)]) == 65
    assert 'row 3: column "Edema"' in capsys.readouterr().err


class Few(Source):
    name, labels = 'few', ('a', 'b')

    def __init__(self, paths):
        self.files, self.cases = paths, tuple(Case(f'c{i}', f'p{i}') for i in range(len(paths)))

    def paths(self, i):
        return (self.files[i],)


def test_equal_files_are_grouped(tmp_path):
    contents = [b'one', b'two', b'one', b'2wo', b'one', b'', b'']
    for i, content in enumerate(contents):
        (tmp_path / str(i)).write_bytes(content)
    source = Few([str(tmp_path / str(i)) for i in range(len(contents))])
    assert inspection.equal_files(source) == [[0, 2, 4]]  # empty files say nothing
    assert inspection.equal_files(Few(['', ''])) == []


def test_forms_tell_shapes_values_and_shares():
    label = np.zeros((4, 4), np.uint8)
    label[0], label[1, :2] = 1, 255
    volume = Volume(np.full((2, 3, 4), -5, np.int16), np.diag([1.5, 2, 3, 1.0]))
    forms = inspection.forms([{'ct': volume, 'label': label, 'text': '', 'id': 3}, {'text': 'abc'}], ('no', 'yes'))
    assert forms == {'ct': ['2x3x4 in 1 cases', 'int16, values -5 to -5', 'spacing 1.5 x 2 x 3 mm'],
                     'label': ['4x4 in 1 cases', 'no 62.50%, yes 25.00%, ignored 12.50%'],
                     'text': ['0 to 3 characters in 2 cases, 1 empty']}


def test_cases_are_chosen_evenly_out_of_each_part():
    source = Few([''] * 20)
    split = {f'c{i}': 'test' if i >= 16 else 'train' for i in range(20)}
    assert inspection.chosen(source, split, 6) == [0, 7, 15, 16, 17, 19]
    assert inspection.chosen(source, split, 100) == list(range(20))
