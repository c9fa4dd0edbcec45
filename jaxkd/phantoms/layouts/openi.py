"""The thorax phantom on disk in the layout of Open-i, to try what reads it.

    ecgen-radiology/1.xml ..., or NLMCXR_reports.tgz with `reports` = tgz; images/CXR1_IM-0001-1001.png ...; nlmcxr_tsne_pa.csv

A report is a study of the phantom; as in the archive, nobody can tell whose it is. Codes are the findings that it states, heart size
at the limit is coded as borderline, and other doubts are not coded.
"""
import io
import os
import tarfile
from xml.sax.saxutils import escape, quoteattr

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.sources import openi
from jaxkd.phantoms import picture, thorax
from jaxkd.phantoms.thorax import labeller
from jaxkd.runtime import files, log

CODES = {'Atelectasis': 'Pulmonary Atelectasis/base', 'Consolidation': 'Consolidation/lung', 'Edema': 'Pulmonary Edema',
         'Lung Opacity': 'Opacity/lung'}  # the others are as they are called
IMAGES = 'images'


def write(folder, patients, size=64, seed=0, difficulty=0.5, reports='xml'):
    """Write all reports and images of `patients` patients under `folder`, images as PNG."""
    if reports not in ('xml', 'tgz'):
        raise errors.ConfigError(f'openi: reports = "{reports}" is none of xml, tgz.')
    source = thorax.build(ConfigDict({**thorax.DEFAULTS, 'patients': patients, 'size': size, 'seed': seed, 'difficulty': difficulty}))
    studies, views = {}, ['imageid,tsne-view']
    for i, case in enumerate(log.progress(source.cases, 'writing openi')):
        record = source[i]
        number, report, images = studies.setdefault(case.study, (len(studies) + 1, record, []))
        images.append(f'CXR{number}_IM-{number:04d}-{1001 + len(images)}')
        views.append(f'{images[-1]},{case.groups["view"]}')
        files.write(os.path.join(folder, IMAGES, f'{images[-1]}.png'), picture.encode(record['image'], 'png'))
    texts = {f'{openi.REPORTS[0]}/{number}.xml': xml(number, record, images) for number, record, images in studies.values()}
    files.write(os.path.join(folder, openi.DEFAULTS['views']), '\n'.join(views) + '\n')
    if reports == 'xml':
        for name, text in texts.items():
            files.write(os.path.join(folder, name), text)
    else:
        files.write(os.path.join(folder, openi.REPORTS[1]), packed(texts))


def xml(number, record, images):
    """One report of the archive."""
    said = labeller.sections(record['text'])
    values = dict(zip(labeller.LABELS, record['label']))
    codes = [CODES.get(label, label) for label, value in values.items() if value == 1]
    codes += ['Cardiomegaly/borderline'] if values['Cardiomegaly'] == -1 else []
    sections = ''.join(f'<AbstractText Label="{name}">{escape(said.get(name.lower(), ""))}</AbstractText>\n'
                       for name in ('COMPARISON', 'INDICATION', 'FINDINGS', 'IMPRESSION'))
    return (f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation>\n<uId id="CXR{number}"/>\n'
            f'<MedlineCitation><Article><Abstract>\n{sections}</Abstract></Article></MedlineCitation>\n'
            f'<MeSH>\n{"".join(f"<major>{escape(code)}</major>" for code in codes or ["normal"])}\n</MeSH>\n'
            f'{"".join(f"<parentImage id={quoteattr(name)}/>" for name in images)}\n</eCitation>\n')


def packed(texts):
    """The bytes of a .tgz of texts."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
        for name, text in texts.items():
            content = text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
