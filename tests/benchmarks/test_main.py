"""`python -m benchmarks`: rows, protocol, JSON and table, on things that take no time."""
import json
import math
import pathlib
import subprocess
import sys

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import resident, rows, table

ROOT = pathlib.Path(__file__).parents[2]
KEYS = {'name', 'title', 'quantity', 'at_least', 'at_most', 'sides'}
COUNTS = 'import sys; sys.path.insert(0, "benchmarks"); from resident import serve; serve(print_nothing := lambda n: '


def check(data: dict) -> None:
    """The schema of the JSON file: every entry has a finite ratio, or says why it was left out."""
    assert set(data) == {'schema', 'machine', 'rows'} and data['schema'] == benchmarks.SCHEMA
    assert {'cpu', 'cores', 'used_cores', 'versions'} <= set(data['machine'])
    for row in data['rows']:
        assert KEYS <= set(row) and row['name'] in rows.ROWS
        if 'left_out' in row:
            assert row['left_out'] and 'ratio' not in row
            continue
        assert all(math.isfinite(row['ratio'][k]) and row['ratio'][k] > 0 for k in ('median', 'min', 'max'))
        assert row['ratio']['min'] <= row['ratio']['median'] <= row['ratio']['max']
        for side in row['sides']:
            assert side['peak_mb'] > 0 and {'label', 'seconds', 'cpu'} <= set(side)


@pytest.fixture
def run(tmp_path, capfd):
    def run(*options):
        """(JSON, what was printed) of a run in the setting for tests."""
        out = tmp_path / 'speed.json'
        command = [sys.executable, '-m', 'benchmarks', '--smoke', '--rounds', '1', '--seconds', '0.01', '--out', out]
        subprocess.run([*command, *options], cwd=ROOT, check=True)
        data = json.loads(out.read_text())
        check(data)
        return data, capfd.readouterr().out
    return run


def test_a_run_measures_what_it_can_and_says_what_is_left_out(run):
    data, said = run('--only', 'matmul,bootstrap,vit_b', '--against', str(ROOT), '--torch', sys.executable)
    found = {row['name']: row for row in data['rows']}
    assert set(found) == {'matmul', 'bootstrap', 'vit_b', 'memory'} and all(name in said for name in found if name
                                                                            != 'memory')
    assert 'ratio' in found['bootstrap'] and 'accelerator' in found['vit_b']['left_out']
    assert [side['label'] for side in found['matmul']['sides']][-1] == 'jaxkd matmul'  # with and without PyTorch
    again, _ = run('--only', 'bootstrap')  # rows of the file that are not measured again stay
    assert {row['name'] for row in again['rows']} == set(found)
    assert '--against' in next(row for row in again['rows'] if row['name'] == 'bootstrap')['left_out']


@pytest.mark.slow
def test_every_row_runs_in_the_setting_for_tests(run):
    data, _ = run('--against', str(ROOT))
    assert {row['name'] for row in data['rows']} == set(rows.ROWS)
    here = {row.name for row in (*rows.DISTILLATION, *rows.METRICS, *rows.INPUTS, *rows.COMMANDS)}
    assert {row['name']: row['left_out'] for row in data['rows'] if row['name'] in here and 'left_out' in row} == {}


def test_workers_are_asked_in_turn_and_answer_for_one_repetition():
    def worker(body):
        return resident.Worker((sys.executable, '-c', COUNTS + body + ', parameters=3)'))
    workers = {'slow': worker('__import__("time").sleep(0.002 * n)'), 'ends': worker('sys.exit(3)'),
               'missing': resident.Worker((sys.executable, '-c', COUNTS + 'None, left_out="no such library")'))}
    answers, facts, left_out = resident.in_turn({'slow': workers['slow'], 'missing': workers['missing']}, 2, 0.01)
    assert facts['slow']['parameters'] == 3 and left_out == {'missing': 'no such library'}
    assert len(answers['slow']) == 2 and all(a['seconds'] >= 0.002 and a['cpu'] >= 0 for a in answers['slow'])
    with pytest.raises(RuntimeError, match='ended with 3'):
        resident.in_turn({'ends': workers['ends']}, 1, 0.01)


def test_what_a_worker_had_read_ahead_does_not_decide_how_often_it_is_asked():
    """Eight repetitions are there for nothing, the others take 0.1 s: some 20 in two seconds, not millions."""
    class Ahead:
        left = 8

        def ask(self, count):
            free = min(self.left, count)
            self.left -= free
            return dict(seconds=((count - free) * 0.1 + free * 1e-6) / count)
    assert 20 <= resident._repetitions(Ahead(), 2.0) <= 30


def test_rows_that_share_a_side_are_measured_together():
    groups = [{row.name for row in group} for group in benchmarks.groups(rows.chosen([]))]
    assert {'cpkd', 'ct_only', 'cpkd_overhead'} in groups and {'smoke_cold'} in groups
    assert sorted(name for group in groups for name in group) == sorted(r.name for r in rows.ROWS.values() if not r.of)
    with pytest.raises(SystemExit, match='no such row'):
        rows.chosen(['vit_x'])


@pytest.mark.parametrize('name, reached, missed', [('vit_ti', 0.9, 0.89), ('cpkd_overhead', 2.1, 2.11)])
def test_a_target_is_reached_on_its_own_side(name, reached, missed):
    assert rows.ROWS[name].reached(reached) and not rows.ROWS[name].reached(missed)
    assert rows.ROWS['matmul'].reached(1.0) is None


def test_results_differ_by_the_largest_difference_and_nan_equals_nan_alone():
    nan, inf = float('nan'), float('inf')
    assert benchmarks.difference([1.0, nan, 3.0], [1.0, nan, 3.5]) == 0.5
    assert benchmarks.difference([nan], [1.0]) == inf == benchmarks.difference([1.0], [1.0, 2.0])


def test_the_largest_peak_of_memory_counts():
    def entry(name, first, second):
        return dict(name=name, ratio={}, sides=[dict(peak_mb=first), dict(peak_mb=second)])
    row = benchmarks.derived(rows.ROWS['memory'], [entry('vit_ti', 100, 140), entry('cpkd', 100, 160),
                                                   entry('matmul', 1, 9)])
    assert row['ratio'] == dict(median=1.6, min=1.4, max=1.6) and row['reached'] is False


def test_the_table_is_put_between_its_marks(tmp_path):
    side = dict(label='torch x', seconds=dict(median=0.02), cpu=dict(median=0.01), peak_mb=300.0, torch='2.0')
    measured = dict(commit='abc', against=None, rounds=3, seconds=1.0, measured='2026-01-01', at_most=None,
                    quantity='seconds', sides=[side, side | dict(label='jaxkd x', mfu=0.5)])
    data = dict(machine=dict(cpu='C', cores=2, memory_gib=8.0, system='S', python='3.11', used_cores=[0],
                             versions={'jax': '1'}),
                rows=[dict(measured, name='a', title='A', at_least=1.1, ratio=dict(median=1.0, min=0.9, max=1.2),
                           reached=False),
                      dict(measured, name='b', title='B', at_least=None, left_out='no GPU', sides=[])])
    page = tmp_path / 'page.md'
    other = f'{table.BEGIN["prediction"]}another table\n{table.END}{table.BEGIN["earlier"]}third\n{table.END}'
    page.write_text(f'before\n{table.BEGIN["training"]}old\n{table.END}\nafter\n{other}')
    table.write(data, page)
    table.write(data, page)  # twice is once
    text = page.read_text()
    assert text.startswith('before\n') and text.endswith(f'{table.END}\nafter\n{other}') and 'old' not in text
    assert text.count('| A | 1.00 [0.90 to 1.20] | >= 1.1 | **missed** |') == 1
    assert '| W |' not in text
    table.write(data | dict(rows=[dict(data['rows'][0], name='windows', title='W')]), page)
    assert '| W | 1.00' in page.read_text() and '| A | 1.00' in page.read_text() and 'another' not in page.read_text()
    assert 'third' in page.read_text()
    table.write(data | dict(rows=[dict(data['rows'][0], name='dry_run', title='D')]), page)
    assert 'third' not in page.read_text() and all(f'| {t} | 1.00' in page.read_text() for t in 'AWD')
    name, title = 'vit_ti', rows.ROWS['vit_ti'].title
    table.write(data | dict(rows=[dict(data['rows'][0], name=name, title=title)]), page)
    assert f'| {title} | 1.00' in page.read_text()
    left_out, part = dict(data['rows'][1], name=name, title=title), dict(data['rows'][0], name='memory')
    title_of_all = part['title'] = rows.ROWS['memory'].title
    before = f'| {title_of_all} | 3.9 | kept'
    assert table.earlier(before, data | dict(rows=[part, left_out])) == {title_of_all: before}, 'of one row of many'
    every = [dict(left_out, name=name) for name in rows.ROWS['memory'].of]
    assert table.earlier(before, data | dict(rows=[part, *every])) == {}
    table.write(data | dict(rows=[left_out, data['rows'][0]]), page)
    later = dict(data, rows=[dict(row, commit='later') if 'commit' in row else row for row in data['rows']])
    for _ in range(2):  # twice is once
        table.write(later, page)
        found = page.read_text()
        assert found.count(f'| {title} ° | 1.00') == 1 and '| A | 1.00' in found, 'measured earlier, not now'
        assert found.count('Rows with °: Machine') == 1
    table.write(dict(later, rows=[dict(later['rows'][0], name='vit_s', title=rows.ROWS['vit_s'].title)]), page)
    found = page.read_text()
    assert f'| {title} ° | 1.00' in found, 'the same run'
    table.write(data, page)
    found = page.read_text()
    assert f'| {title} °° | 1.00' in found and f'| {rows.ROWS["vit_s"].title} ° | 1.00' in found
    assert found.count('Rows with °: Machine') == found.count('Rows with °°: Machine') == 1
    assert 'MFU 50.0 %' in text and '| B | left out | none | | no GPU' in text and 'torch 2.0' in text
