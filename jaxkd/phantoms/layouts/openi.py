"""Open-i: reports of the thorax phantom as XML, radiographs as PNG.

    ecgen-radiology/1.xml ..., or NLMCXR_reports.tgz; images/CXR1_IM-0001-1001.png ...; nlmcxr_tsne_pa.csv

A report is a study of the phantom; as in the archive, it does not name its patient. Codes are the stated findings;
heart size at the limit is coded as borderline, and other uncertain findings are not coded.
"""
import io
import os
import tarfile
from xml.sax.saxutils import escape, quoteattr

from jaxkd import errors
from jaxkd.data.sources import openi
from jaxkd.phantoms import encode
from jaxkd.phantoms.thorax import archive, labeller
from jaxkd.runtime import files, log

CODES = {'Atelectasis': 'Pulmonary Atelectasis/base', 'Consolidation': 'Consolidation/lung', 'Edema': 'Pulmonary Edema',
         'Lung Opacity': 'Opacity/lung'}  # other findings: their names
IMAGES = 'images'


def write(folder: str | os.PathLike, patients: int, size: int = 64, seed: int = 0, difficulty: float = 0.5,
          reports: str = 'xml') -> None:
    """Write all reports and images of the patients.

    size: pixels of the square images, 32..1024. difficulty: 0 plain .. 1 faint findings and noise. reports: 'xml' for a
    file each, 'tgz' for one archive. Raises ConfigError, CannotWrite.
    """
    if reports not in ('xml', 'tgz'):
        raise errors.ConfigError(f'openi: reports = "{reports}" is none of xml, tgz.')
    source = archive.build(patients, size, seed, difficulty)
    studies: dict[str, tuple[int, dict, list[str]]] = {}
    views = ['imageid,tsne-view']
    for i, case in enumerate(log.progress(source.cases, 'writing openi')):
        record = source[i]
        number, _, images = studies.setdefault(case.study, (len(studies) + 1, record, []))
        images.append(f'CXR{number}_IM-{number:04d}-{1001 + len(images)}')
        views.append(f'{images[-1]},{case.groups["view"]}')
        files.write(os.path.join(folder, IMAGES, f'{images[-1]}.png'), encode.picture(record['image'], 'png'))
    texts = {f'{openi.REPORTS[0]}/{number}.xml': xml(number, record, images)
             for number, record, images in studies.values()}
    files.write(os.path.join(folder, str(openi.DEFAULTS['views'])), '\n'.join(views) + '\n')
    if reports == 'xml':
        for name, report in texts.items():
            files.write(os.path.join(folder, name), report)
    else:
        files.write(os.path.join(folder, openi.REPORTS[1]), tgz(texts))


def xml(number: int, record: dict, images: list[str]) -> str:
    """One report of the archive; images: the names of its pictures."""
    paragraphs = labeller.sections(record['text'])
    values = dict(zip(labeller.LABELS, record['label']))
    codes = [CODES.get(label, label) for label, value in values.items() if value == 1]
    codes += ['Cardiomegaly/borderline'] if values['Cardiomegaly'] == -1 else []
    sections = ''.join(f'<AbstractText Label="{name}">{escape(paragraphs.get(name.lower(), ""))}</AbstractText>\n'
                       for name in ('COMPARISON', 'INDICATION', 'FINDINGS', 'IMPRESSION'))
    return (f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation>\n<uId id="CXR{number}"/>\n'
            f'<MedlineCitation><Article><Abstract>\n{sections}</Abstract></Article></MedlineCitation>\n'
            f'<MeSH>\n{"".join(f"<major>{escape(code)}</major>" for code in codes or ["normal"])}\n</MeSH>\n'
            f'{"".join(f"<parentImage id={quoteattr(name)}/>" for name in images)}\n</eCitation>\n')


def tgz(texts: dict[str, str]) -> bytes:
    """The bytes of a .tgz of texts by their names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
        for name, text in texts.items():
            content = text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
