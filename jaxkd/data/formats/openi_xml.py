"""Reports of Open-i: XML files in a folder or in a .tgz, of which nothing is unpacked to disk.

    <uId id="CXR1"/>   <AbstractText Label="FINDINGS">...</AbstractText>   <MeSH><major>Cardiomegaly/mild</major></MeSH>
    <parentImage id="CXR1_1_IM-0001-3001">

A document type, and with it every entity that could expand or lead elsewhere, is refused. Sizes are bounded.
"""
import dataclasses
import os
import re
import tarfile
from xml.parsers import expat

from jaxkd import errors
from jaxkd.data.formats import checks, image, inflate

MOST, MOST_ALL = 2**20, 2**28  # bytes of a report, and of an unpacked archive
_ID = re.compile(r'[\w.-]{1,100}')  # becomes the name of a file


@dataclasses.dataclass(frozen=True)
class Report:
    id: str
    sections: dict  # label in capitals -> text
    codes: tuple  # of MeSH, major
    images: tuple  # ids


def read(path):
    """Iterator of (where, Report, or the BadData of that file) over a folder or .tgz. Raises what makes all of it unreadable."""
    for where, data in _folder(path) if os.path.isdir(path) else _tar(path):
        try:
            found = parse(data, where) if isinstance(data, bytes) else data
        except errors.BadData as e:
            found = e
        yield where, found


def parse(data, where):
    """The Report of the bytes of an XML file. Raises BadData."""
    ids, sections, codes, images, path, words = [], {}, [], [], [], []

    def doctype(*_):
        raise checks.bad(where, 'it has a document type, as no report of the archive does', 'Copy it again from where it came')

    def start(name, given):
        path.append((name, given))
        words.clear()
        if name in ('uId', 'parentImage'):
            (ids if name == 'uId' else images).append(given.get('id', ''))

    def end(_):
        name, given = path.pop()
        said = ' '.join(''.join(words).split())
        words.clear()
        if name == 'AbstractText' and said:
            label = given.get('Label', '').upper()
            sections[label] = f'{sections.get(label, "")} {said}'.strip()
        elif name == 'major':
            codes.append(said)
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler, parser.StartElementHandler, parser.EndElementHandler = doctype, start, end
    parser.CharacterDataHandler = words.append
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as e:  # the latter two: an encoding that is not known
        raise checks.damaged(where, e) from e
    if len(ids) != 1 or not all(_ID.fullmatch(name) for name in (*ids, *images)):
        raise checks.bad(where, 'it has not one <uId id="...">, or an id that names no file', 'Copy it again from where it came')
    return Report(ids[0], sections, tuple(codes), tuple(dict.fromkeys(images)))


def _folder(path):
    for name in sorted(os.listdir(path)):
        if name.endswith('.xml'):
            where = os.path.join(path, name)
            try:
                data = image.contents(where, MOST)
            except errors.BadData as e:
                data = e
            yield where, data


def _tar(path):
    with checks.reading(path), open(path, 'rb') as f:
        content = inflate.inflated(f, MOST_ALL) if f.peek(2)[:2] == b'\x1f\x8b' else f
        with tarfile.open(fileobj=content, mode='r|') as tar:
            for member in tar:
                where = f'{path}, {member.name}'
                if member.isreg() and member.name.endswith('.xml'):
                    yield where, tar.extractfile(member).read() if member.size <= MOST else checks.bad(
                        where, f'it has more than {MOST:,} bytes, which is no report', 'Remove it')
