"""report.html of a working folder: what was run, the results, and the conclusions that they allow.

Everything is read from the folder, so the report can be written again at any time: python -m jaxkd.report WORKDIR. The
page refers to no other file: no script, font or image. A missing part of a run is left out or named as missing.
"""
import json
import pathlib
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from jaxkd.runtime import files

if TYPE_CHECKING:
    from jaxkd.report.run_folder import Run

CSS = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: .2em } h2 { font-size: 1.15em; margin-top: 2.2em } h3 { font-size: 1em }
.note { border-left: 4px solid #d9822b; padding: .4em .8em; font-weight: 600 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; margin: .6em 0 1.2em }
caption { caption-side: bottom; text-align: left; opacity: .75; padding-top: .4em }
th, td { padding: .25em .7em; text-align: right; vertical-align: top; border-bottom: 1px solid #8884 }
th { font-weight: 600 } tbody th, thead th:first-child { text-align: left } td { font-variant-numeric: tabular-nums }
small { display: block; opacity: .75; font-weight: 400; white-space: nowrap } tbody b { white-space: nowrap }
.dense table { font-size: 12px } .dense th, .dense td { padding: .25em .3em } .dense small { font-size: 10px }
.dense th small, small.wrap { white-space: normal } small.wrap { max-width: 26em; margin-left: auto }
figure { margin: .5em 0 } svg { max-width: 100%; height: auto } svg.tile { width: 112px; height: 112px; display: block }
svg.large { width: 168px; height: auto } .tiles td:has(svg.large) { vertical-align: top }
.tiles td, .tiles th { border: 0; padding: .15em .3em; text-align: left; vertical-align: middle }
.beside { display: inline-block; margin-right: 3em; vertical-align: top } .beside h3 { margin-bottom: 0 }
.beside td { min-width: 3em }
.legend { margin-bottom: 0 } .key { margin-right: 1.5em } pre, code { font-size: 12px } pre { white-space: pre-wrap }
summary { cursor: pointer } .dim { opacity: .75 }
@media print { .wide { overflow: visible } tr, figure { break-inside: avoid } }
"""


def write(workdir: str | pathlib.Path) -> pathlib.Path:
    """Write workdir/report.html whole or not at all -> its path.

    Raises MissingInput when the folder holds no run, Damaged when a file of it cannot be read, CannotWrite.
    """
    from jaxkd.report import run_folder
    run = run_folder.read(workdir)
    path = run.folder / 'report.html'
    files.write(path, page(run))
    return path


def page(run: 'Run') -> str:
    """HTML text of a run."""
    from jaxkd.report import classes, comparison, figures, pictures, segmentation, shortcuts, tables, verdict
    from jaxkd.report.markup import Html, details, join, tag

    def part(title: str, *content: Any, absent: str = '') -> Html:
        shown = list(filter(None, content)) or ([tag('p', absent, class_='dim')] if absent else [])
        return tag('section', tag('h2', title), *shown) if shown else Html('')

    comparisons = comparison.comparisons(run)
    title = f'Report of {run.folder.resolve().name}'
    notes = dict.fromkeys(join([e['source'].get('name', ''), ': ', e['source']['note']]) for e in run.stages.values()
                          if e.get('source', {}).get('note'))
    curves, reliable = figures.roc(run), figures.reliability(run)
    first, *others = [(m, pictures.attention(run, m)) for m in ('last_mean', 'rollout', 'grad_attn')]
    maps = [tag('h3', f'Attention over test images, {first[0]}'), tag('p', MAPS_NOTE), first[1]] if first[1] else []
    maps += [details(f'Attention over test images, {m}', shown) for m, shown in others if shown]
    sliced = pictures.slices(run)
    exclusive = any(run.exclusive(s) for s in run.stages)
    segmented = any(p.measures for p in run.predictions.values())
    overlays = [p for e in ('', *run.external) for p in pictures.segments(run, e)]
    missing = [s for s in run.stages if s not in run.predictions]
    summary, shortcut = shortcuts.of_run(run)
    body = [
        tag('h1', title), tag('p', run.summary['note'], class_='dim') if run.summary.get('note') else '',
        *(tag('p', n, class_='note') for n in notes),
        summary or verdict.paragraphs(run, comparisons),
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
        part('Calibration', reliable and tag('p', RELIABILITY_NOTE, class_='dim'), reliable,
             absent='There are no test predictions.') if reliable or not segmented else '',
        part('Slices', sliced and tag('p', pictures.SLICES_NOTE), sliced),
        part('Localisation', tables.localisation(run), tables.localisation_differences(run, comparisons), *maps,
             absent='No stage was asked where its attention points, or no test case has a box or a region.')
        if run.regions or not segmented else '',
        part('Subgroups', tables.subgroups(run), absent='The source gives no groups, or none has ten test patients' +
             ('.' if segmented else ' with both classes of a label.')),
        part('Further metrics', tables.others(run)),
        part('Cases', tables.parts(run), tables.cohort(run), tables.skipped(run)),
        part('To repeat it', *_repeat(run)),
    ]
    return document(title, body)


def document(title: str, body: Iterable[Any]) -> str:
    """A complete HTML text from the parts of its body."""
    from jaxkd.report.markup import join, tag
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
            f'<meta name="viewport" content="width=device-width"/>{tag("title", title)}<style>{CSS}</style></head>\n'
            f'<body>{join(body)}</body></html>\n')


MAPS_NOTE = ('The box is the true one, or the frame of the true region. Each map is scaled by itself, from its '
             'smallest to its largest value: compare places, not brightness.')
ONE_VS_REST = 'A case has one class: each panel tells that class from all others, by its probability.'
RELIABILITY_NOTE = ('Reliability diagrams, 10 bins of equal width; a large point holds many cases, a small one few and '
                    'may lie anywhere.')


def _repeat(run):
    from jaxkd.report.markup import details, table, tag
    command = f'python -m jaxkd.main --config {shlex.quote(str(pathlib.Path(run.folder, "config.json")))} --workdir NEW'
    facts = {'seed': run.summary.get('seed'), 'devices': run.summary.get('devices'),
             'resamples behind an interval': run.config.get('bootstrap'), **run.summary.get('versions', {})}
    facts_table = table(('', ''), [fact for fact in facts.items() if fact[1] is not None])
    if not run.config:
        return [tag('p', 'There is no config.json.'), facts_table]
    config = json.dumps(run.config, indent=1, sort_keys=True)
    return [tag('pre', command), facts_table, details('Config of the run', tag('pre', config))]
