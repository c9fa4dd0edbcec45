"""The pages in a real browser: no error, nothing wider than a phone, pictures there, and the script does its work."""
import pytest

from jaxkd.multirun import gain_page
from jaxkd.multirun.html_page import page as repeated_page
from jaxkd.report import html_page, run_folder, several_runs
from jaxkd.runtime import files
from tests.fixtures import browser
from tests.multirun import test_gains
from tests.report import test_report, test_segmentation, test_several_runs

pytestmark = pytest.mark.skipif(not (browser.DRIVER and browser.CHROMIUM), reason=(
    'no Chromium with its chromedriver here (Debian: apt-get install chromium chromium-driver)'))
PAGES = ('images', 'volumes', 'heart', 'seeds', 'gains', 'runs')


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in PAGES}
    test_report.make(folders['images'], test_report.FULL, localisation=dict(alone=0.2, student=0.6))
    test_report.make_volumes(folders['volumes'])
    test_segmentation.make(folders['heart'], n=12)
    pages = {name: html_page.write(folder) for name, folder in folders.items() if name in PAGES[:3]}
    arms = {s: (*v[:3], (), {}, *v[5:]) for s, v in test_segmentation.HEART.items()}
    found = test_segmentation.members_of(folders['seeds'], arms, seeds=2, n=6)
    files.write(folders['seeds'] / 'report.html', repeated_page(found, folders['seeds']))
    varied = {'data.labels.share': test_gains.SHARES, 'student.optim.learning_rate': (0.03, 0.01, 0.003, 0.001)}
    members, repeated = test_gains.made_up(folders['gains'], varied, n=60)
    gain_page.write(folders['gains'], members, repeated, varied, test_gains.ARMS, failed={'seed9': 'the loss is nan'})
    pages['runs'] = several_runs.write(test_several_runs.make(folders['runs']))
    return pages | {name: folders[name] / 'report.html' for name in ('seeds', 'gains')}


@pytest.fixture(scope='module')
def chromium():
    with browser.running() as window:
        yield window


@pytest.mark.parametrize('width, dark', [(390, False), (1280, True)])
@pytest.mark.parametrize('name', PAGES)
def test_a_page_fits_and_is_without_errors(pages, chromium, name, width, dark):
    chromium.open(pages[name], width, dark=dark)
    inner, whole, background, ink = chromium.script(
        'const s = getComputedStyle(document.body);'
        'return [innerWidth, document.documentElement.scrollWidth, s.backgroundColor, s.color]')
    assert (inner, whole) == (width, width), 'no horizontal scrolling'
    assert (sum(map(int, background[4:-1].split(','))) < sum(map(int, ink[4:-1].split(',')))) == dark
    chromium.script('document.querySelectorAll("details").forEach(d => d.open = true)')
    assert chromium.script('return document.documentElement.scrollWidth') == width, 'with everything unfolded'
    assert chromium.log() == []


@pytest.mark.parametrize('name', PAGES[:3])
def test_pictures_are_there(pages, chromium, name):
    chromium.open(pages[name], 1280)
    tiles, widths, decoded = chromium.script('''
        document.querySelectorAll("details").forEach(d => d.open = true);
        const images = [...document.querySelectorAll("svg image")];
        const tiles = [...document.querySelectorAll("svg.tile")];
        return Promise.all(images.map(i => new Promise(done => {
            const copy = new Image();
            copy.onload = () => done(copy.naturalWidth > 0); copy.onerror = () => done(false);
            copy.src = i.getAttribute("href");
        }))).then(decoded => [tiles.length, tiles.map(t => t.getBoundingClientRect().width), decoded])''')
    assert tiles > 8 and all(decoded) and min(widths) > 112
    lost = chromium.script('return [...document.querySelectorAll("use")].filter(u => '
                           '!document.querySelector(u.getAttribute("href"))).length')
    assert lost == 0


def test_a_click_sorts_a_table(pages, chromium):
    chromium.open(pages['images'], 1280)
    column = '''const table = document.querySelector("#worst-cases table");
        const cells = () => [...table.tBodies[0].rows].map(r => parseFloat(r.cells[3].innerText));
        const head = table.tHead.rows[0].cells[3];'''
    up, rising, down, falling = chromium.script(column + '''
        head.click(); const up = cells(), rising = head.getAttribute("aria-sort");
        head.click(); return [up, rising, cells(), head.getAttribute("aria-sort")];''')
    assert up == sorted(up) and up[0] < up[-1] and rising == 'ascending'
    assert down == up[::-1] and falling == 'descending'


def test_a_sorted_row_keeps_the_name_of_its_group(pages, chromium):
    chromium.open(pages['images'], 1280)
    before, after = chromium.script('''
        const table = [...document.querySelectorAll("#localisation table")][0], rows = () => {
            let name = ""; return [...table.tBodies[0].rows].map(r => [name = r.cells[0].innerText || name,
                                                                       r.cells[1].innerText, r.cells[2].innerText]); };
        const before = rows(); table.tHead.rows[0].cells[2].click(); return [before, rows()];''')
    assert sorted(before) == sorted(after) and before != after


def test_a_picture_is_enlarged_and_put_away(pages, chromium):
    chromium.open(pages['images'], 390)
    small, large, opened, closed = chromium.script('''
        const tile = document.querySelector("svg.tile"), dialog = document.querySelector("dialog");
        const small = tile.getBoundingClientRect().width;
        tile.dispatchEvent(new MouseEvent("click", {bubbles: true}));
        const large = dialog.querySelector("svg.tile").getBoundingClientRect().width, opened = dialog.open;
        dialog.click(); return [small, large, opened, dialog.open];''')
    assert large > 2 * small and large <= 390 and opened and not closed


def test_a_slider_steps_through_the_slices_of_a_case(pages, chromium):
    chromium.open(pages['volumes'], 1280)
    boxes, first = chromium.script('''
        const slider = document.querySelector("input[type=range]"), row = slider.closest("tr");
        slider.value = 0; slider.dispatchEvent(new Event("input"));
        return [[...row.querySelectorAll("svg.tile")].map(t => t.getAttribute("viewBox")), slider.offsetWidth > 0]''')
    assert first and len(boxes) >= 2 and all(box.startswith('0 0 ') for box in boxes)


def test_the_switch_of_colours(pages, chromium):
    chromium.open(pages['heart'], 1280)
    colours = chromium.script('''
        const button = document.getElementById("theme"), found = [];
        for (let i = 0; i < 3; i++) {
            button.click(); found.push([button.textContent, getComputedStyle(document.body).backgroundColor]); }
        return found;''')
    by_theme = dict(colours)
    assert set(by_theme) == {'auto', 'light', 'dark'} and by_theme['auto'] == by_theme['light'] != by_theme['dark']


def test_links_lead_to_files_and_sections(pages, chromium):
    chromium.open(pages['images'], 1280)
    links = chromium.script('return [...document.querySelectorAll("a")].map(a => a.getAttribute("href"))')
    assert len(links) > 15
    for link in links:
        if link.startswith('#'):
            assert chromium.script('return document.getElementById(arguments[0]) !== null', link[1:]), link
        else:
            assert (pages['images'].parent / link).is_file(), link


def test_nothing_of_a_hostile_file_runs(pages, chromium, tmp_path):
    folder = test_report.make(tmp_path, test_report.FULL)
    files.write(folder / 'report.html', html_page.page(run_folder.read(folder)).replace(
        '</h1>', '</h1><script>document.title = "taken"</script>', 1))
    chromium.open(folder / 'report.html', 1280)
    assert chromium.script('return document.title') != 'taken', 'only the own script may run'
    assert any('Content Security Policy' in message for message in chromium.log())
