"""report.html of a working folder: what was run, the results, and the conclusions that they allow.

Everything is read from the folder, so the report can be written again at any time: python -m jaxkd.report WORKDIR. The
page needs no other file: its style and its script stand in it, and the script only adds comfort (sorting, large
pictures, slices). It links to the files with the numbers beside it. A missing part of a run is left out or named as
missing.
"""
import base64
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from jaxkd.runtime import files

if TYPE_CHECKING:
    from jaxkd.report.run_folder import Run
    from jaxkd.runtime.deidentify import Pseudonyms

HERE = pathlib.Path(__file__).parent


def write(workdir: str | pathlib.Path) -> pathlib.Path:
    """Write workdir/report.html whole or not at all -> its path.

    Raises MissingInput when the folder holds no run, Damaged when a file of it cannot be read, CannotWrite.
    """
    from jaxkd.report import run_folder
    run = run_folder.read(workdir)
    path = run.folder / 'report.html'
    files.write(path, page(run))
    return path


def hand_on(workdir: str | pathlib.Path, folder: str | pathlib.Path,
            pseudonyms: 'Pseudonyms | None' = None) -> pathlib.Path:
    """Write into a folder of its own what can be handed on: report.html and the tables behind it -> the page's path.

    pseudonyms: what stands for the ids of cases, patients and studies; None: the ids. Raises as `write`.
    """
    from jaxkd.evaluators.predictions import schema
    from jaxkd.report import run_folder
    run, folder = run_folder.read(workdir, pseudonyms), pathlib.Path(folder)
    text = page(run)
    for link in map(unquote, dict.fromkeys(re.findall('<a href="([^#"]+)"', text))):
        source = run.folder / link
        if link.endswith('.csv') and pseudonyms:
            files.write(folder / link, schema.with_pseudonyms(source, pseudonyms))
        else:
            files.write(folder / link, source.read_bytes())
    files.write(folder / 'report.html', text)
    return folder / 'report.html'


def page(run: 'Run') -> str:
    """HTML text of a run."""
    from jaxkd.report import (
        classes,
        comparison,
        decisions,
        figures,
        pictures,
        reporting,
        segmentation,
        shortcuts,
        tables,
        verdict,
    )
    from jaxkd.report.markup import Html, details, flow, sources, tag

    def part(title: str, *content: Any, absent: str = '') -> Html:
        shown = list(filter(None, content)) or ([tag('p', absent, class_='dim')] if absent else [])
        return section(title, *shown) if shown else Html('')

    comparisons = comparison.comparisons(run)
    curves, reliable = figures.roc(run), figures.reliability(run)
    drawn: set[str] = set()
    kinds = ('last_mean', 'rollout', 'grad_attn', 'grad_cam')
    overlaid = [(m, shown) for m in kinds if (shown := pictures.attention(run, m, drawn))]
    maps = [x for m, shown in overlaid[:1] for x in (tag('h3', f'Maps over test images, {m}'), tag('p', MAPS_NOTE),
                                                     shown)]
    maps += [details(f'Maps over test images, {m}', shown) for m, shown in overlaid[1:]]
    sliced = pictures.slices(run)
    exclusive = any(run.exclusive(s) for s in run.stages)
    segmented = any(p.segmented for p in run.predictions.values())
    overlays = [p for e in ('', *run.external) for p in pictures.segments(run, e)]
    missing = [s for s in run.stages if s not in run.predictions]
    summary, shortcut = shortcuts.of_run(run)
    body = [
        *_head(run),
        tag('div', tag('div', summary or verdict.paragraphs(run, comparisons)),
            tag('div', figures.forest(run, comparisons), tables.still_rising(run)), class_='lead'),
        part('Stages', tables.stages(run), classes.by_class(run), classes.implausible(run), tables.labels(run)),
        part('Segmentation', segmentation.by_class(run), segmentation.empty(run), figures.scans(run),
             segmentation.patients(run)) if segmented else '',
        part('Shortcuts', shortcut),
        part('Other data', segmentation.external(run)),
        part('Scans', *overlays),
        part('Method', tables.provenance(run)),
        part('Paired differences', tables.differences(run, comparisons), classes.grouped(run, comparisons),
             absent='No two finished stages can be compared: they differ in inputs, model or data, and none is the '
             'teacher of another.'),
        part('Learning', figures.learning(run), tables.throughput(run), absent='metrics.jsonl is missing or empty.'),
        part('Confusion', classes.confusion(run)),
        part('ROC curves', tag('p', ONE_VS_REST, class_='dim') if exclusive and curves else '', curves,
             f'There are no test predictions of {", ".join(missing)}.' if missing and curves else '',
             absent='There are no test predictions.') if curves or not segmented else '',
        part('Precision and recall', figures.precision_recall(run)),
        part('Calibration', reliable and tag('p', RELIABILITY_NOTE, class_='dim'), reliable,
             absent='There are no test predictions.') if reliable or not segmented else '',
        part('Operating points', decisions.operating_points(run)),
        part('Slices', sliced and tag('p', pictures.SLICES_NOTE), sliced),
        part('Localisation', tables.localisation(run), tables.localisation_differences(run, comparisons),
             sources(run.tables('test_rois')), *maps,
             absent='No stage was asked where its attention points, or no test case has a box or a region.')
        if run.regions or not segmented else '',
        part('Subgroups', tables.subgroups(run), absent='The source gives no groups, or none has ten test patients' +
             ('.' if segmented else ' with both classes of a label.')),
        part('Worst cases', decisions.worst(run)),
        part('Further metrics', tables.others(run)),
        part('Cases', flow(tables.parts(run), tables.cohort(run), *tables.composition(run)), tables.skipped(run)),
        part('Reporting', reporting.section(run)),
        part('To repeat it', *_repeat(run)),
    ]
    return document(f'Report of {run.folder.resolve().name}', body, closed=True)


def section(title: str, *content: Any) -> Any:
    """A part of a page, which its navigation leads to."""
    from jaxkd.report.markup import tag
    return tag('section', tag('h2', title), *content, id=re.sub(r'\W+', '-', title.lower()).strip('-'))


def document(title: str, body: Iterable[Any], closed: bool = False) -> str:
    """A complete HTML text from the parts of its body; its sections and terms are found in them.

    closed: the browser loads no other file and runs no other script, whatever the parts hold.
    """
    from jaxkd.report import glossary
    from jaxkd.report.markup import Html, join, tag
    content = join(body)
    links = [tag('a', Html(name), href=f'#{anchor}') for anchor, name in
             re.findall('<section id="([^"]*)"><h2>([^<]*)</h2>', content)]
    style, script = ((HERE / name).read_text() for name in ('page.css', 'page.js'))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    rule = f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>' if closed else ''
    theme = tag('button', 'auto', id='theme', hidden='hidden', type='button', title='colours')
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
            f'{rule}<meta name="viewport" content="width=device-width, initial-scale=1"/>{tag("title", title)}'
            f'<style>{style}</style></head>\n'
            f'<body>{tag("nav", *links, theme) if links else ""}{content}'
            f'{glossary.section(content)}<script>{script}</script></body></html>\n')


MAPS_NOTE = ('The box is the true one, or the frame of the true region. Each map is scaled by itself, from its '
             'smallest to its largest value: compare places, not brightness. Point at a picture to see it without the '
             'map, click to enlarge it.')
ONE_VS_REST = 'A case has one class: each panel tells that class from all others, by its probability.'
RELIABILITY_NOTE = ('Reliability diagrams, 10 bins of equal width; a large point holds many cases, a small one few and '
                    'may lie anywhere.')


def _head(run):
    """Title, when and on what it was made, and what warns of the data."""
    from jaxkd.report import facts
    from jaxkd.report.markup import join, tag
    versions, machine = run.summary.get('versions', {}), facts.hardware(run)
    known = {'trained': ' to '.join(facts.dates(run)), 'data': ', '.join(dict.fromkeys(
        name for s in run.stages if (name := facts.source(run, s).get('name')))), 'seed': run.summary.get('seed'),
        'jaxkd': ' '.join(filter(None, (versions.get('jaxkd'), versions.get('commit')))),
        'devices': machine.get('devices'), 'machine': ', '.join(
            f'{v} cores' if k == 'cores' else v for k, v in machine.items() if k != 'devices')}
    notes = dict.fromkeys(join([data.get('name', ''), ': ', data['note']]) for s in run.stages
                          if (data := facts.source(run, s)).get('note'))
    return [tag('h1', f'Report of {run.folder.resolve().name}'),
            tag('p', *(tag('span', f'{k} {v}') for k, v in known.items() if v not in ('', None)), class_='facts'),
            tag('p', run.summary['note'], class_='dim') if run.summary.get('note') else '',
            *(tag('p', n, class_='note') for n in notes)]


def _repeat(run):
    from jaxkd.report import facts
    from jaxkd.report.markup import details, flow, table, tag
    known = {'seed': run.summary.get('seed'), **facts.hardware(run),
             'resamples behind an interval': run.config.get('bootstrap'), **facts.software(run)}
    facts_table = table(('', ''), [fact for fact in known.items() if fact[1] is not None])
    if not run.config:
        return [tag('p', 'There is no config.json.'), flow(facts_table)]
    config = json.dumps(facts.without_paths(run.config), indent=1, sort_keys=True)
    return [tag('pre', 'python -m jaxkd.main --config config.json --workdir NEW'),
            tag('p', 'In the folder of the run, whose config.json also holds the paths that are left out here.',
                class_='dim'), facts_table, details('Config of the run', tag('pre', config))]
