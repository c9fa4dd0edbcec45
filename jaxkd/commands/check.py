"""Look at a folder of your own data as a run would read it, in seconds. Nothing is trained, the folder stays as it is.

    jaxkd check DIR                                          images, masks or paired volumes, recognised by the layout
    jaxkd check DIR --config jaxkd:mmpkd_cxr:nih             what another config reads, such as an archive
    jaxkd check DIR --config.data.source.empty_text=ok       options of the config, as in training

Prints the cases, studies and patients of each part of the split that a run would draw, how often each label occurs in
it, sizes, types and grey values of a sample of the cases, files that are equal byte for byte, and the command that
trains. --out FILE.html is a page with the same and with pictures. Whatever a run would refuse ends with its message.
"""
import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jaxkd.runtime.cli import EXIT_CODES, columns, guarded, leave, parse

SAMPLE, PICTURES = 60, 24  # cases that are read, cases with a picture
LAYOUTS = {'folder': 'jaxkd:mmpkd_cxr:folder', 'paired': 'jaxkd:cpkd_ct_mri:folder',
           'paired without tasks': 'jaxkd:cpkd_ct_mri:folder,no_tasks', 'dualphase': 'jaxkd:cpmn_pe:folder',
           'masks': 'jaxkd:sikd_acdc:masks'}  # source: the config that reads it
NAMED = 5  # groups of equal files that are named


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser('jaxkd check', usage='jaxkd check DIR [--config FILE] [--config.KEY=VALUE ...]',
                                     description=__doc__, epilog=EXIT_CODES, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', metavar='DIR', help='the folder of the data')
    parser.add_argument('--config', metavar='FILE', help='what reads it, with variants (default: by its layout)')
    parser.add_argument('--out', metavar='FILE', help='a page with pictures, check.html')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    return guarded(_run, *parse(build_parser(), argv))


def _run(args: argparse.Namespace, overrides: list[str]) -> int:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from jaxkd import config, errors
    from jaxkd.data import inspection, splits
    from jaxkd.data import source as sources
    from jaxkd.runtime import files
    if not os.path.isdir(args.folder):
        raise errors.MissingInput(f'There is no folder {args.folder}. Give the folder of the data.')
    if args.out and not args.out.endswith('.html'):
        raise errors.ConfigError(f'--out {args.out}: its name must end in .html.')
    spec = args.config or LAYOUTS[layout(args.folder)]
    run_config = config.load(spec, [f'data.source.root={args.folder}', *overrides])
    source = sources.build(run_config.data.source, 'data.source')
    if not source.cases:
        raise errors.BadData(f'{args.folder}: the source {run_config.data.source.name} finds no case in it.')
    split = splits.load_or_draw(source.cases, run_config.data.split)
    indices = inspection.chosen(source, split, SAMPLE)
    records = {i: source[i] for i in indices}
    sections = facts(source, split, records)
    print('\n'.join(line for title, lines in sections.items() for line in (f'\n{title}', *(f'  {x}' for x in lines))))
    command = ['python -m jaxkd.main --config', spec, f'--config.data.source.root={shlex.quote(args.folder)}',
               *(shlex.quote(f'--config.{o}') for o in overrides)]
    print(f'\nTrain with it: {" ".join(command)}')
    if args.out:
        from jaxkd.report import contact_sheet
        shown = {i: records.get(i) or source[i] for i in inspection.chosen(source, split, PICTURES)}
        title = f'{os.path.basename(os.path.abspath(args.folder))}: {len(source.cases)} cases'
        files.write(args.out, contact_sheet.page(title, source, split, sections, shown))
        print(f'Pictures: {args.out}')
    return 0


def layout(folder: str) -> str:
    """The key of LAYOUTS for a folder of one's own, by what lies in it. MissingInput where nothing tells."""
    from jaxkd import errors
    from jaxkd.data.formats import csv_table
    names = {name.lower() for name in os.listdir(folder)}
    if {'images', 'masks'} <= names:
        return 'masks'
    if 'cases.csv' in names:
        columns = {c.lower() for c in csv_table.read(csv_table.find_file(folder, 'cases.csv'), ())[0]}
        if 'image' in columns:
            return 'folder'
        if 'case_id' in columns:
            return ('dualphase' if 'cls' not in columns else
                    'paired' if {'texture', 'duct'} & columns else 'paired without tasks')
    raise errors.MissingInput(f'{folder} has no cases.csv with a column image or case_id, and no folders images and '
                              'masks. Lay it out as `jaxkd options folder`, `paired`, `dualphase` or `masks` describe, '
                              'or name what reads it: --config jaxkd:mmpkd_cxr:nih (all: jaxkd list configs).')


def facts(source: Any, split: Mapping[str, str], records: Mapping[int, Any]) -> dict[str, list[str]]:
    """{heading: lines} of everything that is told of a source."""
    from jaxkd.data import inspection
    from jaxkd.data import source as sources
    cohort = sources.cohort(source)
    skipped = [f'{n} left out: {reason}' for reason, n in cohort['skipped'].items()]
    counts = inspection.parts(source, split)
    sections = {'Cases': [f'{len(source.cases)} cases of {len({c.patient for c in source.cases})} patients', *skipped,
                          *columns([['part', *next(iter(counts.values()))],
                                     *([part, *row.values()] for part, row in counts.items())])]}
    if labels := inspection.labels(source, split):
        sections['Labels'] = columns([['label', *counts], *(
            [name, *(_shares(by_part.get(part, {})) for part in counts)] for name, by_part in labels.items())])
    places = () if labels else source.labels
    forms = inspection.forms(records.values(), places)
    sections[f'Content of {len(records)} cases'] = [f'{key}: {"; ".join(lines)}' for key, lines in forms.items()]
    sections['Equal files'] = _equal(source, split, inspection.equal_files(source))
    return sections


def _shares(values: Mapping[str, int]) -> str:
    total = sum(values.values())
    if {*values} <= {'present', 'absent'} and total:
        return f'{values.get("present", 0)} of {total} ({values.get("present", 0) / total:.0%})'
    return ', '.join(f'{n} {name}' for name, n in values.items()) or '-'


def _equal(source: Any, split: Mapping[str, str], groups: Sequence[Sequence[int]]) -> list[str]:
    """A line, then a line for each of the first groups, those that lie in several parts or patients first."""
    if not groups:
        return ['none: the first files of all cases differ']
    parts = [{split[source.cases[i].id] for i in group} for group in groups]
    patients = [{source.cases[i].patient for i in group} for group in groups]
    across, between = (sum(len(s) > 1 for s in sets) for sets in (parts, patients))
    order = sorted(range(len(groups)), key=lambda g: (-len(parts[g]), -len(patients[g])))[:NAMED]
    named = [', '.join(f'{source.cases[i].id} ({split[source.cases[i].id]})' for i in groups[g]) for g in order]
    return [f'{len(groups)} files come several times, {between} under several patients, {across} in several parts'
            + (': WARNING, test cases are trained on. Remove copies, or give them one patient' if across else ''),
            *named]


if __name__ == '__main__':
    leave(main())
