"""`python -m benchmarks growth`: the exponent, the drawing, and a small measurement."""
import json
import xml.etree.ElementTree as ET

import pytest

from benchmarks import growth


@pytest.mark.parametrize('power', [0.5, 1, 2])
def test_the_exponent_is_that_of_the_upper_half(power):
    work = [1.0, 10.0, 100.0, 1000.0, 10_000.0]
    cost = [1 + 3 * n ** power for n in work]  # a constant, which the start of a process is
    assert growth.exponent(work, cost) == pytest.approx(power, abs=0.03)
    assert growth.exponent([1.0], [2.0]) is None and growth.exponent([1.0, 2.0], [0.0, 1.0]) is None


def test_work_is_counted_in_what_networks_see():
    assert growth.SWEEPS['side'].work(64) == 64 and growth.SWEEPS['volume'].work(10) == 1000


def test_a_drawing_is_an_svg_of_its_own():
    points = [dict(n=10 ** k, seconds=0.1 * 10 ** k, peak_mb=0.0 if k == 1 else 2.0 ** k) for k in (1, 2, 3)]
    svg = growth.drawing(dict(label='rows', points=points, exponents=dict(seconds=1.0, peak_mb=0.3)))
    assert ET.fromstring(svg).tag == '{http://www.w3.org/2000/svg}svg' and 'log10 rows' in svg and 'exponent 0.3' in svg


@pytest.mark.slow
def test_the_start_is_measured_on_small_tables(tmp_path):
    growth.main(['--only', 'rows', '--smoke', '--out', str(tmp_path / 'growth.json')])
    found = json.loads((tmp_path / 'growth.json').read_text())['rows']
    assert [p['n'] for p in found['points']] == [1000, 10_000] and all(p['seconds'] > 0 for p in found['points'])
    assert found['exponents']['seconds'] < 2 and (tmp_path / 'growth_rows.svg').exists()
