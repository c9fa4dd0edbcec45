"""Open-i, the chest X-ray collection of Indiana University: 3,955 reports of 7,470 radiographs, with findings that
librarians and physicians coded by hand (Demner-Fushman et al., JAMIA 2016).

    root    ecgen-radiology/1.xml ..., or NLMCXR_reports.tgz, which is read as it is; or the folder of XML files itself
            nlmcxr_tsne_pa.csv, also .csv.gz, optional: imageid and the view that a look at the image gave (`views`)
    images  a folder below root of PNG files named by the reports' parentImage id: CXR1_1_IM-0001-3001.png

With images a case is an image, and its report its study: with frontal=True those that the table of views calls PA or
AP, and all where there is no such table. Without images a case is a report, and its record has no image: data for a
text teacher alone. Names are found in any letter case, and the log says what lies unused.

Patients are not identified: each report counts as one patient, so parts may share patients and intervals may be too
narrow.

Text: "FINDINGS: ..." and "IMPRESSION: ...", a line each. XXXX replaces de-identified words. Indication and comparison
are dropped.

Labels [our choice] are read from <MeSH><major>, as in "Opacity/lung/base/left", see FINDINGS: 1 where a rule fits, 0
elsewhere; "borderline" makes Cardiomegaly uncertain (-1), and of reports that were not indexed all is uncertain.
"normal" is 0 for all labels. The first eight have the names of MS-CXR and CheXpert, but other definitions.
"""
import os
import re
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import SourcePlugin
from jaxkd.data import report_sections
from jaxkd.data.formats import csv_table, image, openi_xml
from jaxkd.data.source import Case, Source
from jaxkd.data.sources.shared import case_files, image_archive, loading_errors

FINDINGS = {  # what the beginning of a code must be, up to a "/"
    'Atelectasis': 'pulmonary atelectasis',
    'Cardiomegaly': 'cardiomegaly|cardiac shadow/(enlarged|borderline)',
    'Consolidation': 'consolidation/lung',
    'Edema': 'pulmonary edema',
    'Lung Opacity': '(opacity|airspace disease|infiltrate|density)/lung',
    'Pleural Effusion': 'pleural effusion|hydropneumothorax|hemothorax|hemopneumothorax',
    'Pneumonia': 'pneumonia',
    'Pneumothorax': 'pneumothorax|hydropneumothorax|hemopneumothorax',
    'Nodule': 'nodule/lung',
    'Emphysema': '((pulmonary|bullous) )?emphysema',
    'Pleural Thickening': 'thickening/pleura',
    'Hernia': 'hernia, (hiatal|diaphragmatic)',
    'Fracture': 'fractures, bone',
    'Support Devices': 'catheters, indwelling|(implanted )?medical device|tube, inserted',
    'Calcified Granuloma': 'calcified granuloma',
}
LABELS = tuple(FINDINGS)
REPORTS = 'ecgen-radiology', 'NLMCXR_reports.tgz'
VIEWS = {'PA': 'PA', 'AP': 'AP', 'L': 'lateral', 'LL': 'lateral', 'RL': 'lateral', 'LATERAL': 'lateral',
         'LARGE LATERAL': 'lateral'}
NOTE = 'patients are not known: each report counts as one, so intervals may be too narrow'
DEFAULTS = dict(
    root='',  # the folder of the reports
    images='',  # the folder of images below root; '': reports alone
    views='nlmcxr_tsne_pa.csv',  # table of views, which may be absent under this name; '': none
    labels=LABELS,  # findings that are labels; some of these
    frontal=True,  # PA and AP images alone; False: laterals and images of unknown view, too
    require_text=True,  # False: also reports without findings and impression
    on_error='fail',  # at bad reports or images: fail (stop) or skip (read all at the start and leave the bad ones out)
    max_pixels=image.MAX_PIXELS,  # most pixels of an image; a larger one is refused
)


def build(hp: ConfigDict) -> Source:
    loading_errors.check_options('openi', hp)
    image_archive.check_labels('openi', hp.labels, LABELS)
    problems = loading_errors.Problems(hp.on_error)
    reports: dict[str, openi_xml.Report] = {}
    for location, report in openi_xml.read(_reports(hp.root)):
        if isinstance(report, openi_xml.Report) and report.id in reports:
            report = errors.BadData(f'{location}: report {report.id} stands there a second time. Keep one of '
                                    'the files.')
        if isinstance(report, openi_xml.Report):
            reports[report.id] = report
        else:
            problems(location, report)
    ordered = sorted(reports.values(), key=lambda r: [(p.isdigit(), int(p) if p.isdigit() else p)
                                                      for p in re.findall(r'\d+|\D+', r.id)])
    used = [(report, text) for report in ordered if (text := report_text(report)) or not hp.require_text]
    views = _views(hp)
    if hp.images:
        chosen = [(report, text, name) for report, text in used for name in report.images
                  if not (hp.frontal and views) or views.get(name) in ('PA', 'AP')]
        cases = [Case(name, report.id, report.id, groups={'view': views.get(name, '')}) for report, _, name in chosen]
    else:
        chosen = [(report, text, None) for report, text in used]
        cases = [Case(report.id, report.id, report.id) for report, _ in used]
    rows = [_values(report.codes, hp.labels) for report, *_ in chosen]
    values = np.array(rows, np.float32).reshape(-1, len(hp.labels))
    unsorted = hp.images and hp.frontal and not views
    laterals = '; without a table of views laterals are among the images' if unsorted else ''
    source = image_archive.Archive('openi', NOTE + laterals, tuple(hp.labels), tuple(cases), values, _files(hp, cases),
                     tuple(text for _, text, _ in chosen), max_pixels=hp.max_pixels, skipped=tuple(problems.skipped))
    if hp.images:
        source = _with_images(source, hp)
    if (reports_path := _reports(hp.root)) != hp.root:
        listed = [reports_path, csv_table.find_file(hp.root, hp.views), *map('/'.join, source.files)]
        case_files.report_unused('openi', hp.root, map(os.path.abspath, listed),
                                 f'{" or ".join(REPORTS)}, {hp.views}, {hp.images or "no images"}')
    return loading_errors.usable(source, hp.on_error, f'openi: {hp.root}', 'Set require_text, frontal or images '
                                 'otherwise.')


def report_text(report: openi_xml.Report) -> str:
    """The text of a report that is kept, '' where it has neither findings nor impression.

    A heading within a section, as of a report that was pasted into it, loses its colon: it is text of that section.
    """
    parts = {name: report_sections.without_headings(' '.join(report.sections.get(name, '').split()))
             for name in ('FINDINGS', 'IMPRESSION')}
    return '\n'.join(f'{name}: {words}' for name, words in parts.items() if words)


def _values(codes: Sequence[str], labels: Sequence[str]) -> list[int]:
    """1, 0 or -1 for each label."""
    codes = [' '.join(code.lower().split()) for code in codes]
    if not codes or 'no indexing' in codes:
        return [-1] * len(labels)
    fits = {label: {'borderline' not in code for code in codes if re.match(f'(?:{FINDINGS[label]})(?:/|$)', code)}
            for label in labels}
    return [1 if True in fit else -1 if fit else 0 for fit in fits.values()]


def _reports(root: str) -> str:
    """The path of the folder or archive of reports."""
    for path in (csv_table.in_any_case(root, name) for name in REPORTS):
        if os.path.lexists(path):
            return path
    if os.path.isdir(root) and any(name.lower().endswith('.xml') for name in os.listdir(root)):
        return root
    raise errors.MissingInput(f'openi: root "{root}" holds neither {REPORTS[0]} nor {REPORTS[1]}. Set it to the folder '
                              'that does.')


def _views(hp: ConfigDict) -> dict[str, str]:
    """{image id: 'PA', 'AP', 'lateral', or what else is said}; {} without the table."""
    path = csv_table.find_file(hp.root, hp.views)
    if not hp.views or hp.views == DEFAULTS['views'] and not os.path.lexists(path):
        return {}
    columns, rows = csv_table.read(path, ('imageid',))
    name, view = columns.index('imageid'), csv_table.column(path, columns, 'tsne-view' if 'tsne-view' in columns
                                                            else 'View Position')
    return {cells[name]: VIEWS.get(cells[view], cells[view]) for _, cells in rows}


def _files(hp: ConfigDict, cases: Sequence[Case]) -> tuple[tuple[str, str], ...]:
    """(folder, name of the image) of each case; () where there are reports alone."""
    if not hp.images:
        return ()
    folder = csv_table.in_any_case(hp.root, hp.images)
    names = {name.lower(): name for name in os.listdir(folder)} if os.path.isdir(folder) else {}
    return tuple((folder, names.get(f'{case.id}.png'.lower(), f'{case.id}.png')) for case in cases)


def _with_images(source: image_archive.Archive, hp: ConfigDict) -> image_archive.Archive:
    """The source less the cases whose image is not there; that is an error unless on_error='skip'."""
    folder = csv_table.in_any_case(hp.root, hp.images)
    if not os.path.isdir(folder):
        raise errors.MissingInput(f'openi: images "{folder}" is not a folder. Set images to that of the PNG files, or '
                                  'to "" for reports alone.')
    present = {*os.listdir(folder)}
    absent = {i: f'{name} is not in {folder}' for i, (_, name) in enumerate(source.files) if name not in present}
    if absent and hp.on_error == 'fail':
        raise errors.MissingInput(f'openi: {next(iter(absent.values()))} ({len(absent)} of {len(source)} are missing). '
                                  'Unpack all images, or set on_error="skip".')
    return source.without(absent) if absent else source


PLUGIN = SourcePlugin(paths=('root', 'images'))
