"""Reports of Open-i: XML files in a folder or in a .tgz, of which nothing is unpacked to disk.

    <uId id="CXR1"/>   <AbstractText Label="FINDINGS">...</AbstractText>   <MeSH><major>Cardiomegaly/mild</major></MeSH>
    <parentImage id="CXR1_1_IM-0001-3001">

A document type, and with it every entity that could expand or lead elsewhere, is refused. Sizes are bounded.
"""
import dataclasses
import os
import re
import tarfile
from collections.abc import Iterator
from xml.parsers import expat

from jaxkd import errors
from jaxkd.data.formats import checks, image, inflate

MAX_BYTES, MAX_ARCHIVE_BYTES = 2**20, 2**28  # bytes of a report, and of an unpacked archive
_ID = re.compile(r'[\w.-]{1,100}')  # becomes the name of a file


@dataclasses.dataclass(frozen=True)
class Report:
    """One report of the archive."""

    id: str
    sections: dict  # label in capitals -> text
    codes: tuple  # of MeSH, major
    images: tuple  # ids


def read(path: str) -> Iterator[tuple[str, Report | errors.BadData]]:
    """Iterator of (where, Report, or the BadData of that file) over a folder or .tgz. Raises what makes all of it
    unreadable.
    """
    for location, data in _folder(path) if os.path.isdir(path) else _tar(path):
        try:
            report = parse(data, location) if isinstance(data, bytes) else data
        except errors.BadData as e:
            report = e
        yield location, report


def parse(data: bytes, location: str) -> Report:
    """The Report of the bytes of an XML file. Raises BadData."""
    path: list[tuple[str, dict[str, str]]] = []
    codes: list[str] = []
    fragments: list[str] = []
    images: list[str] = []
    sections: dict[str, str] = {}
    ids: list[str] = []

    def doctype(*_) -> None:
        raise checks.bad(location, 'it has a document type, as no report of the archive does')

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append((name, attributes))
        fragments.clear()
        if name in ('uId', 'parentImage'):
            (ids if name == 'uId' else images).append(attributes.get('id', ''))

    def end(_: str) -> None:
        name, attributes = path.pop()
        content = ' '.join(''.join(fragments).split())
        fragments.clear()
        if name == 'AbstractText' and content:
            label = attributes.get('Label', '').upper()
            sections[label] = f'{sections.get(label, "")} {content}'.strip()
        elif name == 'major':
            codes.append(content)
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler, parser.StartElementHandler, parser.EndElementHandler = doctype, start, end
    parser.CharacterDataHandler = fragments.append
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as e:  # the latter two: an encoding that is not known
        raise checks.damaged(location, e) from e
    if len(ids) != 1 or not all(_ID.fullmatch(name) for name in (*ids, *images)):
        raise checks.bad(location, 'it has not one <uId id="...">, or an id that names no file')
    return Report(ids[0], sections, tuple(codes), tuple(dict.fromkeys(images)))


def _folder(path: str) -> Iterator[tuple[str, bytes | errors.BadData]]:
    for name in sorted(os.listdir(path)):
        if name.lower().endswith('.xml'):
            location = os.path.join(path, name)
            try:
                data: bytes | errors.BadData = image.read_bytes(location, MAX_BYTES)
            except errors.BadData as e:
                data = e
            yield location, data


def _tar(path: str) -> Iterator[tuple[str, bytes | errors.BadData]]:
    with checks.reading(path), open(path, 'rb') as f:
        with tarfile.open(fileobj=inflate.open_any(f, MAX_ARCHIVE_BYTES), mode='r|') as tar:
            for member in tar:
                location = f'{path}, {member.name}'
                if member.isreg() and member.name.lower().endswith('.xml'):
                    yield location, _member(tar, member, location)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, location: str) -> bytes | errors.BadData:
    file = tar.extractfile(member)
    if member.size > MAX_BYTES or file is None:
        return checks.bad(location, f'it has more than {MAX_BYTES:,} bytes, which is no report', 'Remove it')
    return file.read()
