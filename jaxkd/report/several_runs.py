"""One page over all runs in a folder, index.html: their results in a table that sorts, and the options that differ.

Everything is read from the folders of the runs, so the page can be written again at any time, also while some train:
python -m jaxkd.report runs
"""
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from jaxkd import errors
from jaxkd.config.option_docs import dotted
from jaxkd.report import comparison, facts, html_page, run_folder, statistics
from jaxkd.report.markup import DASH, Html, cell, clock, join, table, tag
from jaxkd.report.run_folder import Run
from jaxkd.runtime import files

DEPTH = 2  # runs/a and runs/five_seeds/seed0; those of a sweep are `jaxkd collect`'s
DIFFERING = 12  # options: a table of more would say nothing

Found = Mapping[str, Run | errors.JaxkdError]


def write(folder: str | pathlib.Path) -> pathlib.Path:
    """Write folder/index.html whole or not at all -> its path. MissingInput where no run lies below it, CannotWrite."""
    folder = pathlib.Path(folder)
    found = read(folder)
    if not found:
        raise errors.MissingInput(f'{folder} holds no run and none lies below it. Give the --workdir of a run, or the '
                                  'folder of several.')
    files.write(folder / 'index.html', page(folder, found))
    return folder / 'index.html'


def read(folder: pathlib.Path) -> dict[str, Run | errors.JaxkdError]:
    """{path from the folder: the run, or why it cannot be read} of all runs at most DEPTH below a folder, by path."""
    found: dict[str, Run | errors.JaxkdError] = {}
    for path in _folders(folder, DEPTH):
        try:
            found[path.relative_to(folder).as_posix()] = run_folder.read(path)
        except errors.JaxkdError as e:
            found[path.relative_to(folder).as_posix()] = e
    return found


def page(folder: pathlib.Path, found: Found) -> str:
    """HTML text of the runs in a folder."""
    runs = {name: run for name, run in found.items() if isinstance(run, Run)}
    trained = {name: run for name, run in runs.items() if run.stages}
    others = [[_link(folder, name), 'no stage has finished'] for name in runs if name not in trained]
    others += [[name, facts.without_folders(str(e))] for name, e in found.items() if not isinstance(e, Run)]
    parts = {'Results': _results(folder, trained), 'Options that differ': _differing(folder, runs),
             'Without results': tag('div', table(['run', 'why'], others), class_='text') if others else ''}
    title = f'Runs in {folder.resolve().name}'
    return html_page.document(title, [
        tag('h1', title), tag('p', f'{len(found)} runs, {len(trained)} of them with results. Click a column to sort '
                                   'by it.', class_='facts'),
        *(html_page.section(head, part) for head, part in parts.items() if part)], closed=True)


def _folders(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
    """Folders of runs below a folder; nothing is looked for within a run."""
    children = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    for path in children:
        if any((path / name).is_file() for name in ('config.json', 'summary.json')):
            yield path
        elif depth > 1:
            yield from _folders(path, depth - 1)


def _results(folder: pathlib.Path, runs: Mapping[str, Run]) -> Html:
    """A row for each finished stage of each run, with the primary metrics that any of them has."""
    tables = {(name, stage): run.table(stage) for name, run in runs.items() for stage in run.stages}
    primary = {statistics.primary_metric(t) for t in tables.values() if t}
    metrics = [m for m in statistics.NAMES if m in primary]
    rows = [[_link(folder, name), stage, *_facts(runs[name], stage), *(cell(t.get(m)) for m in metrics),
             _patients(t)] for (name, stage), t in tables.items()]
    head = ['run', 'stage', 'trained', 'data', 'reads', 'model', 'method', 'teachers', 'steps', 'training time']
    return table([*head, *(statistics.display_name(m) for m in metrics), 'test patients'], rows, (
        'Test part at the best step, with intervals over patients. Runs are comparable only where data, split and '
        'labels are the same; differences paired by patient stand in the report of a run, seeds and folds are pooled '
        'by jaxkd multirun.'), firsts=2, dense=True)


def _facts(run: Run, stage: str) -> Sequence[Any]:
    entry = run.stages[stage]
    teachers = ', '.join(origin or t for t, origin in comparison.teachers(run, stage).items())
    return (entry.get('date', DASH), facts.source(run, stage).get('name', DASH), ', '.join(entry.get('inputs', ())),
            entry.get('model', DASH), entry.get('method', {}).get('name', DASH), teachers or 'none',
            f'{entry["steps"]:,}' if 'steps' in entry else DASH,
            clock(entry['seconds']) if 'seconds' in entry else DASH)


def _patients(entries: Mapping[str, Mapping[str, Any]]) -> str:
    n = entries.get(statistics.primary_metric(entries), {}).get('n_patients')
    return DASH if n is None else f'{n:,}'


def _differing(folder: pathlib.Path, runs: Mapping[str, Run]) -> Html:
    """Of runs with the same stages the options in which they differ, a row for each run."""
    alike: dict[tuple[str, ...], dict[str, Run]] = {}
    for name, run in runs.items():
        alike.setdefault(tuple(run.config.get('stages', ())), {})[name] = run
    return join(_options(folder, of) for of in alike.values() if len(of) > 1)


def _options(folder: pathlib.Path, runs: Mapping[str, Run]) -> Html:
    options = {name: dotted(facts.without_paths(run.config)) for name, run in runs.items()}
    keys = dict.fromkeys(key for of in options.values() for key in of)
    varied = [key for key in keys if len({repr(of.get(key)) for of in options.values()}) > 1]
    if len(varied) > DIFFERING:
        return tag('p', f'{", ".join(runs)} differ in {len(varied)} options: each report ends with its config.')
    rows = [[_link(folder, name), *(_value(of.get(key)) for key in varied)] for name, of in options.items()]
    return table(['run', *varied], rows) if varied else Html('')


def _value(value: Any) -> Html | str:
    return DASH if value is None else join([', '.join(map(str, value)) if isinstance(value, list) else value])


def _link(folder: pathlib.Path, name: str) -> Html | str:
    """The name of a run, which leads to its report where there is one."""
    return tag('a', name, href=quote(f'{name}/report.html')) if (folder / name / 'report.html').is_file() else name
