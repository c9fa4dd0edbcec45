"""Figures that are drawn as SVG: ticks, places in pixels, and that no text becomes markup."""
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.report import plot
from jaxkd.report.plot import Panel

HOSTILE = '<script>alert("1")</script>&\'</text>'
finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.lists(st.one_of(st.floats(), st.sampled_from([math.nan, 0.5, 1e-310, -1e308])), max_size=8)


def drawn(*panels, **options):
    """(elements by tag, the text of the figure)."""
    root = ET.fromstring(plot.figure(panels, (100, 50), **options))
    places = ' '.join(v for e in root.iter() for v in e.attrib.values())
    assert not re.search(r'nan|inf|\.\d{3}', places)
    elements = {}
    for e in root.iter():
        elements.setdefault(e.tag, []).append(e)
    return elements, ' '.join(e.text for e in elements.get('text', ()))


@pytest.mark.parametrize('low, high, integer, expected', [
    (0, 1, False, '0.0 0.2 0.4 0.6 0.8 1.0'), (-0.02, 1.02, False, '0.0 0.2 0.4 0.6 0.8 1.0'),
    (0.57, 0.925, False, '0.6 0.7 0.8 0.9'), (-3, 7, False, '\u22122 0 2 4 6'), (0, 4.3, False, '0 1 2 3 4'),
    (1, 20000, True, '5000 10000 15000 20000'), (2.85, 4.15, True, '3 4'), (7.6, 8.4, True, '8'),
    (0, 2.4e6, False, '0 5e5 1e6 1.5e6 2e6'), (0, 3e-5, False, '0 1e\u22125 2e\u22125 3e\u22125'),
    (-1e-29, 1e-29, False, '\u22121e\u221229 \u22125e\u221230 0 5e\u221230 1e\u221229'),
    (0.70001, 0.70004, False, '0.70001 0.70002 0.70003 0.70004'),
    (-1e300, 1e300, False, '\u22121e300 \u22125e299 0 5e299 1e300')])
def test_ticks(low, high, integer, expected):
    at = plot.ticks(low, high, integer=integer)
    assert ' '.join(plot.numbers(at)) == expected


@pytest.mark.parametrize('given_values, expected', [
    ([], (0, 1)), ([math.nan, math.inf], (0, 1)), ([0, 10], (-0.5, 10.5)), ([4, math.nan], (3.8, 4.2)),
    ([0, 0], (-0.05, 0.05)), ([-2, -2], (-2.1, -1.9)), ([5e-324], (-0.05, 0.05)), ([1e30, 1], (-5e28, 1.05e30))])
def test_limits(given_values, expected):
    np.testing.assert_allclose(plot.limits(given_values), expected, rtol=1e-9)


@settings(max_examples=300, deadline=None)
@given(st.lists(finite, max_size=6), st.booleans())
def test_ticks_of_any_data(data, integer):
    low, high = plot.limits(data)
    at = plot.ticks(low, high, integer=integer)
    margin = 1e-8 * max(high - low, integer)
    assert low < high and len(at) <= 6 and all(low - margin <= t <= high + margin for t in at)
    assert integer or len(at) > 1
    texts = plot.numbers(at)
    assert len(set(texts)) == len(texts)
    for t, text in zip(at, texts):
        np.testing.assert_allclose(float(text.replace('\u2212', '-')), t, rtol=1e-5, atol=margin)


def test_a_line_in_pixels():
    panel = Panel(x=(0, 10), y=(0, 2))
    panel.line([0, 5, 10], [0, 2, 0.5], '#ff0000')
    elements, text = drawn(panel)
    line, = (e for e in elements['path'] if e.get('stroke') == '#ff0000')
    left, top = 4 + plot.TICK + 5 + 3 * 0.64 * plot.FONT, 6  # labels of y: 0.0, 0.5, ...
    expected = [left, top + 50, left + 50, top, left + 100, top + 37.5]
    assert line.get('d') == 'M' + ' '.join(f'{v:g}' for v in np.round(expected, 1)) and text.startswith('0 2 4 6 8 10')


def test_nan_breaks_a_line_and_a_point_alone_is_a_dot():
    panel = Panel(x=(0, 5), y=(0, 1))
    panel.line(range(6), [0, 1, math.nan, 1, math.nan, math.inf], '#ff0000', dash=plot.DOTTED)
    elements, _ = drawn(panel)
    line, = (e for e in elements['path'] if e.get('stroke') == '#ff0000')
    assert line.get('d').count('M') == 3 and line.get('stroke-dasharray') == '2 3'
    dots = [float(e.get('cy')) for e in elements['circle']]
    assert dots == [6, 6], 'infinity is the edge'


def test_dots_and_boxes():
    panel = Panel(x=(0, 10), y=(0, 1))
    panel.dots([1, math.nan, 3], [0.5, 0.5, 0.5], '#ff0000', [1, 2, 3])
    panel.dots([2], [1], '#00ff00', hollow=True)
    panel.box((4, 2), (0.2, 0.4), '#0000ff', 0.15)
    panel.box((math.nan, 2), (0.2, 0.4), '#0000ff')
    elements, _ = drawn(panel)
    assert [e.get('r') for e in elements['circle']] == ['1', '3', '2']
    filled, hollow = elements['g']
    assert filled.get('fill') == '#ff0000' and (hollow.get('fill'), hollow.get('stroke')) == ('none', '#00ff00')
    rectangle, = elements['rect']
    assert [rectangle.get(k) for k in ('y', 'width', 'height')] == ['36', '20', '10']


def test_bands_texts_and_ticks_of_ones_own():
    panel = Panel(x=(0, 4), y=(0, 1), x_ticks=[(0, 'few'), (4, 'all')], y_ticks=[(0.5, 'half')])
    panel.band(range(5), [0, 0, math.nan, 0, 0], [1, 1, 1, 0.5, 0.5], '#ff0000')
    panel.text(2, 0.5, '+0.1')
    elements, text = drawn(panel)
    bands = [e.get('d') for e in elements['path'] if e.get('fill') == '#ff0000']
    assert len(bands) == 2 and all(d.endswith('Z') and d.count(' ') == 7 for d in bands)
    assert text == '+0.1 few all half'


def test_neighbours_with_the_same_limits_share_labels():
    same = [Panel(x=(0, 1), y=(0, 1)) for _ in range(3)]
    assert drawn(*same)[1].count('0.4') == 3 + 1, 'three axes y, and the x of the lowest panel'
    other = [Panel(x=(0, 1), y=(0, 1)), Panel(x=(0, 2), y=(0, 1))]
    assert drawn(*other)[1].count('0.0') == 2 + 2, 'two axes y and two axes x'
    named = [Panel(y=(1.5, -0.5), y_names=names) for names in (['a', 'b'], ['a', 'c'])]
    assert drawn(*named)[1].split() == ['a', 'b', 'a', 'c']


def test_an_axis_on_the_right():
    panel = Panel(y_label='rate', x=(0, 1), y=(0, 100), right=Panel(y_label='share', y=(0, 1), colour='#c44e52'))
    panel.right.line([0, 1], [0, 0.5], '#c44e52')
    elements, text = drawn(panel, Panel(x=(0, 1), y=(0, 100)))
    line, = (e for e in elements['path'] if e.get('stroke') == '#c44e52')
    assert [float(v) for v in line.get('d')[1:].split()][1::2] == [56, 31] and text.count('share') == 1
    turned = {e.text: e.get('fill') for e in elements['text'] if e.get('transform')}
    assert turned == {'rate': plot.INK, 'share': '#c44e52'}


def test_long_lines_keep_their_peaks():
    y = np.zeros(20_000)
    y[[777, 15_001]], y[5_000:9_000] = (1, -1), math.nan
    panel = Panel(x=(0, 20_000), y=(-1, 1))
    panel.line(np.arange(20_000), y, '#ff0000')
    path = next(e.get('d') for e in drawn(panel)[0]['path'] if e.get('stroke') == '#ff0000')
    heights = [float(v.split()[1]) for part in path[1:].split('M') for v in re.findall(r'\S+ \S+', part)]
    assert (min(heights), max(heights)) == (6, 56) and len(heights) <= plot.VERTICES and path.count('M') == 2


def test_text_is_escaped_and_pressed_into_its_room():
    panel = Panel(HOSTILE, HOSTILE, y=(0.5, -0.5), y_names=[HOSTILE * 9])
    elements, text = drawn(panel, x_label=HOSTILE)
    assert text.count(HOSTILE) == 3 + 9 and 'script' not in elements
    assert [e.get('textLength') for e in elements['text']] == ['112', str(plot.NAME), None, None]


@settings(max_examples=200, deadline=None)
@given(values, values, st.text(max_size=30), st.booleans())
def test_any_data_is_valid_and_the_same_each_time(x, y, title, integer):
    x, y = x[:len(y)], y[:len(x)]
    title = ''.join(c for c in title if c.isprintable())

    def panel():
        p = Panel(title, integer=integer, right=Panel(y=(0, 1)))
        p.line(x, y)
        p.dots(x, y, '#ff0000')
        p.right.line(x, y)
        return p
    drawn(panel(), panel())
    assert plot.figure([panel()], (100, 50)) == plot.figure([panel()], (100, 50))


def test_no_panels_and_no_data():
    assert plot.figure([], (100, 50)) == ''
    assert drawn(Panel('empty'))[1] == 'empty'
