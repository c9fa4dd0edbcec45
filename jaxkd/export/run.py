"""Predict new cases with the network in this folder: probabilities and decisions as a table, masks as files.

    python run.py --input FILE ... | FOLDER | cases.csv | KEY=FILE ... --output OUT

Needs Python 3.11, numpy and onnxruntime, and as the inputs demand Pillow (PNG, JPEG, TIFF, BMP), pydicom (DICOM),
nibabel (volumes) or tokenizers (reports of a network with WordPiece); neither jaxkd nor JAX. All files of this folder
are compared with SHA256SUMS and the network with its golden case before the first case. Out: OUT/predictions.csv,
OUT/errors.csv, OUT/masks/. Exit code 65: some cases could not be used, all others are predicted; 74: this folder is
damaged.

What it computes is what `python -m jaxkd.predict --model FOLDER` computes, to rounding. A network for research: its
predictions are no diagnosis.
"""
import argparse
import csv
import functools
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
PICTURES, SLICES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp', '.dcm'), ('.nii', '.nii.gz')
VOLUMES = (*SLICES, '.nrrd')
FIXED, LIMIT = 4096, 7.9
CENTRE = ('centre_x', 'centre_y', 'centre_z')
MOST_PIXELS, MOST_VOXELS, MOST_TEXT = 100_000_000, 2**30, 2**20
AIR, STEP, PIECE, LEAST = -500, 2.0, 0.1, 0.02  # HU, mm, share of the largest piece, share of the scan
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # to RAS, and back
NRRD = {name: code for code, names in {
    'i1': 'signed char, int8, int8_t', 'u1': 'uchar, unsigned char, uint8, uint8_t',
    'i2': 'short, short int, signed short, signed short int, int16, int16_t',
    'u2': 'ushort, unsigned short, unsigned short int, uint16, uint16_t', 'f4': 'float', 'f8': 'double',
    'i4': 'int, signed int, int32, int32_t', 'u4': 'uint, unsigned int, uint32, uint32_t'}.items()
    for name in names.split(', ')}  # its names of types


Json = dict[str, Any]
Files = dict[str, Any]  # of a case: {input: path, Report, or the rows of a table}
Record = dict[str, Any]  # of a case: {input: array or Volume}, 'present'
Step = tuple[Record, Any]  # what a transform made, and the way back of a label map or None


class Refused(Exception):
    """A case, or this folder, cannot be used; the message names it."""


class Report(str):
    """A report itself, not its file."""


# The folder

def verify(folder: str) -> None:
    """Compare all files with SHA256SUMS. Refused names the one that differs."""
    with open(os.path.join(folder, 'SHA256SUMS'), 'rb') as f:
        lines = f.read().split(b'\n')
    listed = {}
    for line in lines[:-1]:
        match = re.fullmatch(r'([0-9a-f]{64})  ([\w-][\w.-]*(?:/[\w-][\w.-]*)?)', line.decode('ascii', 'replace'))
        if not match:
            raise Refused(f'SHA256SUMS is damaged: {line[:80]!r}')
        listed[match[2]] = match[1]
    if lines[-1]:
        raise Refused('SHA256SUMS is damaged: it ends early')
    for name, digest in listed.items():
        try:
            with open(os.path.join(folder, name), 'rb') as f:
                found = hashlib.file_digest(f, 'sha256').hexdigest()
        except OSError as e:
            raise Refused(f'{name} cannot be read ({e.strerror})') from e
        if found != digest:
            raise Refused(f'{name} is not what was exported: its sha256 differs. Copy the folder again')
    for name in ('model.onnx', 'preprocessing.json', 'decision.json', 'metadata.json', 'golden.npz'):
        if name not in listed:
            raise Refused(f'SHA256SUMS does not name {name}')
    with open(os.path.join(folder, 'metadata.json'), encoding='utf-8') as f:
        metadata = json.load(f)
    own = json.dumps({key: value for key, value in metadata.items() if key != 'digest'}, sort_keys=True).encode()
    for name, digest in {**metadata['digests'], '': metadata['digest']}.items():
        if (listed.get(name) if name else hashlib.sha256(own).hexdigest()) != digest:
            raise Refused(f'{name or "metadata.json"} is not what was exported: its sha256 in metadata.json differs')


class Model:
    """The network: flat inputs {name: [rows, ...]} -> outputs by name."""

    def __init__(self, folder: str) -> None:
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        with open(os.path.join(folder, 'model.onnx'), 'rb') as f:
            self.session = onnxruntime.InferenceSession(f.read(), options, providers=['CPUExecutionProvider'])
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.sides = {o.name: o.shape for o in self.session.get_outputs()}['logits'][1:-1]  # of a window

    def __call__(self, inputs: Record) -> Record:
        return dict(zip(self.outputs, self.session.run(self.outputs, {name: inputs[name] for name in self.inputs})))


def check_golden(folder: str, model: 'Model', tolerance: float) -> None:
    """Refused where the network does not give its golden output."""
    with zipfile.ZipFile(os.path.join(folder, 'golden.npz')) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise Refused('golden.npz is damaged')
    with np.load(os.path.join(folder, 'golden.npz'), allow_pickle=False) as arrays:
        found = model({name: arrays[f'input/{name}'] for name in model.inputs})
        for name in model.outputs:
            expected = arrays[f'output/{name}']
            off = np.abs(found[name] - expected).max() / max(1.0, np.abs(expected).max())
            if found[name].shape != expected.shape or not off <= tolerance:
                raise Refused(f'model.onnx gives another {name} for the golden case than it did when it was exported')


# Cases

def find_cases(arguments: list[str], kinds: dict[str, str], columns: list[str]) -> list[tuple[str, Files]]:
    """[(name, {key: path or list of rows})] of the arguments of --input."""
    pairs = [(a.partition('=')[0], a.partition('=')[2]) if '=' in a and not os.path.exists(a) else ('', a)
             for a in arguments]
    if any(key for key, _ in pairs):
        given = dict(pairs)
        if given.keys() != kinds.keys():
            raise Refused(f'--input: the network reads {", ".join(kinds)} alone. Give KEY=FILE for each of them')
        return [(os.path.basename(next(iter(given.values()))), {key: given[key] for key in kinds})]
    cases = []
    for _, path in pairs:
        if path.lower().endswith('.csv'):
            cases += of_table(path, kinds, columns)
        elif len(kinds) > 1 or 'table' in kinds.values():
            raise Refused(f'--input {path}: the network reads {", ".join(kinds)}. Give a table cases.csv, or KEY=FILE')
        else:
            key, kind = next(iter(kinds.items()))
            cases += [(name, {key: file}) for name, file in files_below(path, kind)]
    if not cases:
        raise Refused('--input: there is nothing to predict in it')
    if len({name for name, _ in cases}) < len(cases):
        raise Refused('--input: two cases have one name. Give the folder above them, or a table with a column "case"')
    return cases


def files_below(path: str, kind: str) -> Iterator[tuple[str, str]]:
    """(name, path) of the pictures and volumes that a path is, or that lie below it; of volumes a folder with slices in
    DICOM is one.
    """
    if os.path.isfile(path):
        yield os.path.basename(path), path
        return
    if not os.path.isdir(path):
        raise Refused(f'--input {path} does not exist')
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(n for n in folders if not n.startswith('.'))
        names = sorted(n for n in names if not n.startswith('.') and n != 'DICOMDIR')
        if kind == 'volume' and any(is_dicom(os.path.join(folder, n)) for n in names[:3]):
            below = os.path.relpath(folder, path).replace(os.sep, '/')
            yield os.path.basename(os.path.abspath(path)) if below == '.' else below, folder
        endings = dict(volume=VOLUMES, text=('.txt',)).get(kind, (*PICTURES, *SLICES))
        for name in (n for n in names if n.lower().endswith(endings)):
            file = os.path.join(folder, name)
            yield os.path.relpath(file, path).replace(os.sep, '/'), file


def of_table(path: str, kinds: dict[str, str], columns: list[str]) -> list[tuple[str, Files]]:
    """The cases of a table: a column for each input, with a report itself, or those of a table of findings."""
    table = next((key for key, kind in kinds.items() if kind == 'table'), '')
    files = [key for key, kind in kinds.items() if kind != 'table']
    cases: dict[str, dict] = {}
    with open(path, newline='', encoding='utf-8-sig') as f:
        for number, row in enumerate(csv.DictReader(f), 2):
            first = files[0] if files and kinds[files[0]] != 'text' else ''
            name = row.get('case') or row.get(first) or f'row {number}'
            if name in cases and not table:
                raise Refused(f'{path}, row {number}: a case "{name}" stands there twice')
            case = cases.setdefault(name, {})
            for key in files:
                if row.get(key):
                    case[key] = (Report(row[key]) if kinds[key] == 'text' else
                                 os.path.join(os.path.dirname(path), row[key]))
            if any(row.get(column) for column in CENTRE):
                case['centre'] = [float(row[column]) for column in CENTRE]  # a crop's, mm (RAS)
            if table:
                case.setdefault(table, []).append({c: v or '' for c, v in row.items() if c in columns})
    return list(cases.items())


# Files

def read_picture(path: str, stored_alone: bool) -> np.ndarray:
    """uint8 [H,W] or [H,W,3]; grey of more bits float32 in [0,1] where the file declares how many, else uint16."""
    with open(path, 'rb') as f:
        data = f.read(132)
    if data[128:] == b'DICM':
        return read_dicom(path, stored_alone)
    if not data.startswith((b'\x89PNG\r\n\x1a\n', b'\xff\xd8', b'BM', b'II*\0', b'MM\0*')):
        raise Refused(f'{path} is none of PNG, JPEG, TIFF, BMP and DICOM')
    from PIL import Image
    with Image.open(path, formats=('PNG', 'JPEG', 'TIFF', 'BMP')) as image:
        if image.width * image.height > MOST_PIXELS:
            raise Refused(f'{path} has more than {MOST_PIXELS:,} pixels')
        if image.format != 'TIFF' and image.getexif().get(274, 1) != 1:
            raise Refused(f'{path}: its EXIF tag requests a rotation. Save it upright')
        if getattr(image, 'n_frames', 1) > 1:
            raise Refused(f'{path} holds several frames. Save the one that is meant')
        if image.format == 'BMP' and {'1': 1, 'L': 8}.get(image.mode, data[28]) != data[28]:
            raise Refused(f'{path} has {data[28]} bits for few greys, which Pillow reads wrongly. Save it as PNG')
        if image.mode in ('1', 'L'):
            return np.array(image.convert('L'))
        if image.mode in ('I;16', 'I;16B') and image.format == 'TIFF':
            return deep_tiff(image, path)
        if image.mode == 'I;16':
            return declared(np.array(image), significant_bits(path), path)
        if image.mode in ('LA', 'RGBA') and image.getchannel('A').getextrema()[0] == 255:
            return np.array(image.convert(image.mode[:-1]))
        if image.mode == 'RGB' or image.mode == 'P' and 'transparency' not in image.info:
            return np.array(image.convert('RGB'))
        raise Refused(f'{path}: its pixels are of mode {image.mode}. Save it as 8- or 16-bit grey or 8-bit RGB')


def read_text(path: str) -> str:
    """A report: a text in UTF-8."""
    with open(path, 'rb') as f:
        data = f.read(MOST_TEXT + 1)
    if len(data) > MOST_TEXT:
        raise Refused(f'{path} has more than {MOST_TEXT:,} bytes: it is no report')
    return '\n'.join(data.decode('utf-8-sig').splitlines()).strip()


def deep_tiff(image: Any, path: str) -> np.ndarray:
    """Grey of 16 bits; float32 in [0,1] where the tags or OME's description declare fewer."""
    if image.tag_v2.get(262) == 0:
        raise Refused(f'{path}: its grey is 0 for white. Save it with 0 for black')
    pixels, stored = np.array(image).astype(np.uint16), image.tag_v2.get(258, (16,))[0]
    significant = re.search(r'SignificantBits="(\d+)"', str(image.tag_v2.get(270, '')))
    highest = int(np.ravel(image.tag_v2.get(281, 0))[0]) + 1
    bits = int(significant[1]) if significant else highest.bit_length() - 1 if highest & highest - 1 == 0 else 0
    bits = min(stored, bits or 16) % 16
    if not 8 <= bits < 16:
        return pixels
    if pixels.max() > 2**bits - 1:
        raise Refused(f'{path} has grey values up to {pixels.max()}, more than {bits} bits can hold')
    return pixels.astype(np.float32) / (2**bits - 1)


def significant_bits(path: str) -> int:
    """The bits of a grey value by the chunk sBIT of a PNG; 0 without one."""
    with open(path, 'rb') as f:
        data = f.read()
    start = 8
    while start + 12 <= len(data):
        size = int.from_bytes(data[start:start + 4], 'big')
        if data[start + 4:start + 8] == b'sBIT':
            return data[start + 8]
        start += size + 12
    return 0


def declared(pixels: np.ndarray, bits: int, path: str) -> np.ndarray:
    """uint16, or float32 in [0,1] where fewer than 16 bits are declared."""
    if not 8 <= bits < 16:
        return pixels
    low = pixels & (2**(16 - bits) - 1)
    if int(pixels.max()) >= 2**bits or not (low != pixels >> bits).any() or not low.any():
        return pixels.astype(np.float32) / 65535  # shifted to the upper end
    return pixels.astype(np.float32) / (2**bits - 1)


def read_dicom(path: str, stored_alone: bool) -> np.ndarray:
    """The one picture of a DICOM file; MONOCHROME1 is inverted."""
    import pydicom
    dataset = pydicom.dcmread(path)
    if dataset.get('NumberOfFrames') not in (None, 1) or not dataset.get('Rows') or (
            dataset.Rows * dataset.Columns > MOST_PIXELS):
        raise Refused(f'{path} is no single picture')
    pixels, bits = dataset.pixel_array, int(dataset.BitsStored)
    if dataset.SamplesPerPixel == 3 and dataset.BitsAllocated == 8:
        return pydicom.pixels.convert_color_space(pixels, dataset.PhotometricInterpretation, 'RGB')
    if dataset.PhotometricInterpretation not in ('MONOCHROME1', 'MONOCHROME2') or dataset.BitsAllocated not in (8, 16):
        raise Refused(f'{path}: its pixels are neither grey of 8 or 16 bits nor RGB of 8')
    pixels = pixels.astype(np.int32) + (2**(bits - 1) if dataset.PixelRepresentation else 0)
    pixels = 2**bits - 1 - pixels if dataset.PhotometricInterpretation == 'MONOCHROME1' else pixels
    if dataset.BitsAllocated == 8 or stored_alone or not 8 <= bits < 16:
        return pixels.astype(np.uint8 if dataset.BitsAllocated == 8 else np.uint16)
    if pixels.max() > 2**bits - 1:
        raise Refused(f'{path} has grey values up to {pixels.max()}, more than {bits} bits can hold')
    return pixels.astype(np.float32) / (2**bits - 1)


def read_nifti(path: str, form: str = 'auto') -> tuple[np.ndarray, np.ndarray]:
    """(voxels [X,Y,Z] in the order of the file, affine)."""
    import nibabel
    image: Any = nibabel.load(path)
    shape = [n for n in image.shape]
    if len(shape) < 3 or math.prod(shape[3:]) > 1 or math.prod(shape) > MOST_VOXELS:
        raise Refused(f'{path} is no single volume, its shape is {tuple(shape)}')
    voxels = np.asanyarray(image.dataobj.get_unscaled()).reshape(shape[:3])
    slope, inter = image.dataobj.slope, image.dataobj.inter
    if (slope, inter) != (1, 0):
        voxels = voxels.astype(np.float32)
        voxels *= slope
        voxels += inter
    if not np.isfinite(voxels).all():
        raise Refused(f'{path}: some voxels are NaN or infinite')
    affine = image.get_sform() if form == 'sform' else image.get_qform() if form == 'qform' else image.affine
    return voxels, np.asarray(affine, float)


def read_nrrd(path: str) -> tuple[np.ndarray, np.ndarray]:
    """As read_nifti, of an NRRD in one piece, raw or gzip."""
    with open(path, 'rb') as f:
        head, _, body = f.read().replace(b'\r\n\r\n', b'\n\n', 1).partition(b'\n\n')
    fields = {key.strip().lower(): value.strip() for key, _, value in (
        line.partition(':') for line in head.decode('ascii', 'replace').splitlines()[1:] if not line.startswith('#'))}

    def values(key):
        return [float(number) for number in re.findall(r'[-+\w.]+', fields.get(key, ''))]
    frame = {'left-posterior-superior': LPS, 'lps': LPS, 'right-anterior-superior': np.eye(4), 'ras': np.eye(4)}.get(
        fields.get('space', '').lower())
    shape, code, packed = [int(n) for n in values('sizes')], NRRD.get(fields.get('type', '')), fields.get('encoding')
    if (not head.startswith(b'NRRD') or frame is None or code is None or packed not in ('raw', 'gzip', 'gz')
            or len(shape) != 3 or not 0 < math.prod(shape) <= MOST_VOXELS or 'data file' in fields
            or not {*re.findall(r'\w+', fields.get('space units', ''))} <= {'mm'} or any(
                value for key in ('byte skip', 'line skip') for value in values(key))):
        raise Refused(f'{path} is no NRRD of one volume in one piece, raw or gzip, with a space and in mm')
    affine, dtype = np.eye(4), np.dtype(code).newbyteorder('>' if fields.get('endian') == 'big' else '<')
    affine[:3, :3] = np.reshape(values('space directions'), (3, 3)).T
    affine[:3, 3] = values('space origin')
    size = math.prod(shape) * dtype.itemsize
    member = zlib.decompressobj(31)  # whose end holds a checksum
    body = body if packed == 'raw' else member.decompress(body, size + 1)
    if len(body) != size or packed != 'raw' and not member.eof:
        raise Refused(f'{path}: its header claims {size:,} bytes of voxels, which it does not hold')
    voxels = np.frombuffer(body, dtype).astype(dtype.newbyteorder('=')).reshape(shape, order='F')
    if not np.isfinite(voxels).all():
        raise Refused(f'{path}: some voxels are NaN or infinite')
    return voxels, frame @ affine


def is_dicom(path: str) -> bool:
    """Whether a file begins as DICOM does."""
    with open(path, 'rb') as f:
        return f.read(132)[128:] == b'DICM'


def read_series(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """(voxels [column,row,slice], affine to RAS) of the one series of even slices in a folder."""
    import pydicom
    paths = [os.path.join(folder, n) for n in sorted(os.listdir(folder)) if not n.startswith('.') and n != 'DICOMDIR']
    slices = [pydicom.dcmread(path) for path in paths if os.path.isfile(path) and is_dicom(path)]
    alike = {(s.SeriesInstanceUID, s.Rows, s.Columns, tuple(s.ImageOrientationPatient), tuple(s.PixelSpacing),
              (s.get('NumberOfFrames') or 1, s.SamplesPerPixel)) for s in slices}
    if len(slices) < 2 or len(alike) > 1 or next(iter(alike))[-1] != (1, 1):
        raise Refused(f'{folder} does not hold one series of grey slices, a file each')
    if len(slices) * slices[0].Rows * slices[0].Columns > MOST_VOXELS:
        raise Refused(f'{folder} holds too many voxels')
    rows, columns = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(rows, columns)
    slices.sort(key=lambda s: float(np.dot(normal, np.array(s.ImagePositionPatient, float))))
    places = np.array([s.ImagePositionPatient for s in slices], float)
    step = (places[-1] - places[0]) / (len(slices) - 1)
    uneven = np.linalg.norm(places - places[0] - np.arange(len(slices))[:, None] * step, axis=1).max()
    if np.diff(places @ normal).min() < 1e-3 or uneven > 0.1 * np.linalg.norm(step):
        raise Refused(f'{folder}: its slices are not evenly spaced, or two are of one place')
    down, across = (float(mm) for mm in slices[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.column_stack([rows * across, columns * down, step, places[0]])
    scales = [(float(s.get('RescaleSlope') or 1), float(s.get('RescaleIntercept') or 0)) for s in slices]
    planes = [s.pixel_array.T for s in slices]
    if any(scale != (1, 0) for scale in scales):
        planes = [plane.astype(np.float32) * np.float32(a) + np.float32(b) for plane, (a, b) in zip(planes, scales)]
    return np.stack(planes, -1), LPS @ affine


class Volume:
    """Voxels [X,Y,Z], their axes turned to RAS, and where they are."""

    def __init__(self, voxels: np.ndarray, affine: np.ndarray, turn: Any = None, stored: Any = None) -> None:
        self.voxels, self.affine, self.turn, self.stored = voxels, affine, turn, stored


def turned(voxels: np.ndarray, affine: np.ndarray) -> Volume:
    """A Volume of voxels in the order of a file."""
    import nibabel
    turn = nibabel.io_orientation(affine)
    return Volume(nibabel.apply_orientation(voxels, turn),
                  affine @ nibabel.orientations.inv_ornt_aff(turn, voxels.shape), turn, affine)


def write_nrrd(path: str, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Voxels uint8 in the order of a file."""
    *directions, origin = (f'({",".join(map(repr, column))})' for column in (LPS @ affine)[:3].T.tolist())
    head = (f'NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: '
            f'{" ".join(map(str, voxels.shape))}\nspace directions: {" ".join(directions)}\nkinds: domain domain domain'
            f'\nencoding: gzip\nspace origin: {origin}\n\n')
    with open(path, 'wb') as f:
        f.write(head.encode() + gzip.compress(voxels.tobytes('F'), 3))


def write_nifti(path: str, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Voxels in the order of a file; a sheared grid has an sform alone."""
    import nibabel
    image = nibabel.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    image.header.set_xyzt_units('mm')
    image.header.set_sform(affine, 'scanner')
    image.header.set_qform(affine, 'scanner')
    if sheared(affine, voxels.shape):
        image.header['qform_code'] = 0
    nibabel.save(image, path)


# Grids

def spacing(affine: np.ndarray) -> np.ndarray:
    """mm from voxel to voxel along each axis."""
    return np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)


def corners(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """World mm [8,3] of the outermost voxel centres."""
    return np.array(list(itertools.product(*((0, n - 1) for n in shape)))) @ affine[:3, :3].T + affine[:3, 3]


def sheared(affine: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether the axes of a grid are not at right angles (a tilted gantry), which quaternions cannot say."""
    straight, sides = np.array(affine), spacing(affine)
    left, _, right = np.linalg.svd(affine[:3, :3] / sides)
    straight[:3, :3] = left @ right * sides
    return bool(np.linalg.norm(corners(affine, shape) - corners(straight, shape), axis=1).max() > 0.01 * sides.min())


def check_overlap(part: Volume, part_name: str, scan: Volume, scan_name: str) -> None:
    """Refused where a face of the box of either grid separates it from the other: they share no place."""
    for a, b in ((part, scan), (scan, part)):
        across = np.linalg.inv(b.affine) @ a.affine
        ends, half = corners(across, a.voxels.shape), np.abs(across[:3, :3]).sum(axis=1) / 2 - 1e-6
        if ((ends.max(0) + half <= -0.5) | (ends.min(0) - half >= np.array(b.voxels.shape) - 0.5)).any():
            raise Refused(f'{part_name} lies wholly outside of {scan_name}: one of them is in another frame of '
                          'reference. Correct the affine of its header, or leave the file out')


def upright(volume: Volume, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(affine, shape) of a grid along the world's axes, as wide as a volume."""
    reach = np.ptp(corners(volume.affine, volume.voxels.shape), axis=0) + spacing(volume.affine)
    shape = np.maximum(np.rint(reach / sides), 1).astype(int)
    return grid(middle(volume), sides, shape), shape


def middle(volume: Volume) -> np.ndarray:
    """World mm of the middle of a volume."""
    return (np.array(volume.voxels.shape) - 1) / 2 @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def grid(centre: np.ndarray, sides: Any, shape: Sequence[int]) -> np.ndarray:
    """Affine of a grid along the world's axes."""
    affine = np.diag(np.append(sides, 1.0))
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def moved(affine: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """The affine of a grid whose voxel 0 is the voxel `start`."""
    out = np.array(affine)
    out[:3, 3] += affine[:3, :3] @ np.asarray(start)
    return out


def on_grid(volume: Volume, affine: np.ndarray, shape: Sequence[int], linear: bool, fill: float) -> np.ndarray:
    """float32 [shape] of a volume on another grid, 16 slices at a time; exact where the grids agree."""
    across = np.linalg.inv(volume.affine) @ affine
    shifted = np.eye(4)
    shifted[:3, 3] = np.rint(across[:3, 3])
    exact = np.linalg.norm(corners(across, shape) - corners(shifted, shape), axis=1).max() < 0.01
    out = np.empty(shape, np.float32)
    for z in range(0, shape[2], 16):
        depth = min(16, shape[2] - z)
        if exact:
            out[:, :, z:z + depth] = cut_out(volume.voxels, shifted[:3, 3].astype(int) + (0, 0, z),
                                             (*shape[:2], depth), fill)
        else:
            out[:, :, z:z + depth] = resample(volume, moved(affine, (0, 0, z)), (*shape[:2], depth), linear, fill)
    return out


def cut_out(voxels: np.ndarray, start: np.ndarray, shape: Sequence[int], fill: float) -> np.ndarray:
    """float32 [shape] of the voxels from `start` on, `fill` where there are none."""
    low, high = np.maximum(start, 0), np.minimum(np.add(start, shape), voxels.shape)
    out = np.full(shape, fill, np.float32)
    if (low < high).all():
        out[tuple(map(slice, low - start, high - start))] = voxels[tuple(map(slice, low, high))]
    return out


def resample(volume: Volume, affine: np.ndarray, shape: Sequence[int], linear: bool, fill: float) -> np.ndarray:
    """float32 [shape], linearly after smoothing where the grid is coarser, or the nearest voxel."""
    across = np.linalg.inv(volume.affine) @ affine
    across[np.abs(across) < 1e-12] = 0
    sigma = np.sqrt(np.maximum(np.sum(across[:3, :3]**2, axis=1) - 1, 0) / (8 * math.log(2))) * linear
    margin, reach = np.ceil(4 * sigma) + 2, corners(across, shape)
    low = np.maximum(np.floor(reach.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(reach.max(axis=0) + margin) + 1, volume.voxels.shape).astype(int)
    if (low >= high).any():
        return np.full(shape, fill, np.float32)
    source = volume.voxels[tuple(map(slice, low, high))].astype(np.float32)
    for axis in np.flatnonzero(sigma > 0.05):
        source = smoothed(source, sigma[axis], int(axis))
    index = np.indices(shape, np.float64).reshape(3, -1)
    places = across[:3, :3] @ index + (across[:3, 3] - low)[:, None]
    sides = np.array(source.shape)[:, None]

    def values(at):
        inside = ((at >= 0) & (at < sides)).all(0)
        return np.where(inside, source[tuple(np.clip(at, 0, sides - 1))], np.float64(fill))
    if not linear:
        return values(np.floor(places + 0.5).astype(int)).astype(np.float32).reshape(shape)
    first = np.floor(places).astype(int)
    fraction, total = places - first, np.zeros(index.shape[1])
    for step in itertools.product((0, 1), repeat=3):
        weight = np.prod([f if s else 1 - f for f, s in zip(fraction, step)], axis=0)
        total += weight * values(first + np.array(step)[:, None])
    return total.astype(np.float32).reshape(shape)


def smoothed(source: np.ndarray, sigma: float, axis: int) -> np.ndarray:
    """A Gaussian along an axis, cut off at 4 sigma; the border voxels go on outside."""
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma)**2)
    padded = np.moveaxis(np.pad(source, [(radius, radius) if a == axis else (0, 0) for a in range(3)], 'edge'), axis, 0)
    out = sum(w * padded[i:i + source.shape[axis]].astype(np.float64) for i, w in enumerate(weights / weights.sum()))
    return np.moveaxis(out, 0, axis).astype(np.float32)


def to_grid(values: np.ndarray, affine: np.ndarray, like: Volume) -> np.ndarray:
    """Label map [Z,Y,X] on the grid `affine` -> [X,Y,Z] on that of a volume, 0 outside."""
    return on_grid(Volume(values.T, affine), like.affine, like.voxels.shape, False, 0.0).astype(values.dtype)


# Transforms: each takes a record and gives (record, the way back of a label map or None)

def image(record: Record, o: Json, fitted: Any) -> Step:
    """Pictures to [S,S,channels] in [0,1]."""
    pixels, size = record['image'], o['size']
    height, width = pixels.shape[:2]
    window = window_of(width, height, o)
    if pixels.dtype == np.uint16:
        bits = o['bits'] or (fitted or {}).get('bits', 0)
        if not bits and pixels.max() < 2**15:
            raise Refused(f'its grey has 16 bits up to {pixels.max()}, and the file does not say how many count')
        if pixels.max() > 2**(bits or 16) - 1:
            raise Refused(f'its grey values reach {pixels.max()}, more than {bits} bits can hold')
        pixels = pixels.astype(np.float32) / (2**(bits or 16) - 1)
    from PIL import Image
    if pixels.ndim == 3 and o['channels'] == 1 and pixels.dtype == np.uint8:
        pixels = np.asarray(Image.fromarray(pixels).convert('L'))
    planes = [pixels] if pixels.ndim == 2 else [pixels[..., c] for c in range(3)]

    def resized(plane):
        made = np.asarray(cut(plane, window, size, Image.Resampling.BILINEAR), np.float32)
        return made / 255 if plane.dtype == np.uint8 else np.clip(made, 0, 1)
    made = np.stack([resized(plane) for plane in planes], axis=-1)
    if len(planes) < o['channels']:
        made = np.repeat(made, o['channels'], axis=-1)
    elif len(planes) > o['channels']:
        made = np.clip(made @ np.array([[0.299], [0.587], [0.114]], np.float32), 0, 1)
    return {**record, 'image': made}, lambda label: to_image(label, (height, width), window)


def window_of(width: int, height: int, o: Json) -> tuple[float, float, float, float]:
    """(left, top, width, height), in pixels of the picture, of what becomes the input."""
    size, short = o['size'], o['resize'] or o['size'] * 256 // 224
    if o['fit'] == 'squash':
        return 0, 0, width, height
    if o['fit'] == 'letterbox':
        side = max(width, height)
        return -((side - width) // 2), -((side - height) // 2), side, side
    scale = short / min(width, height)
    left, top = (round((round(n * scale) - size) / 2) / scale for n in (width, height))
    return left, top, size / scale, size / scale


def cut(plane: np.ndarray, window: tuple[float, float, float, float], size: int, resampling: Any) -> Any:
    """The window of a picture in size x size pixels."""
    from PIL import Image
    left, top, width, height = window
    if (left, top, width, height) == (0, 0, size, size) == (0, 0, *plane.shape[::-1]):
        return plane
    picture = Image.fromarray(np.ascontiguousarray(plane))
    if left < 0 or top < 0 or max(left + width - picture.width, top + height - picture.height) > 0.5:
        square = Image.new(picture.mode, (int(width), int(height)))
        square.paste(picture, (-int(left), -int(top)))
        picture, left, top = square, 0, 0
    right, bottom = min(left + width, picture.width), min(top + height, picture.height)
    return picture.resize((size, size), resampling, box=(left, top, right, bottom))


def to_image(values: np.ndarray, shape: tuple[int, int], window: tuple[float, float, float, float]) -> np.ndarray:
    """Label map [S,S] -> [H,W], the nearest pixel, 0 outside of the window."""
    left, top, *sides = window
    size = values.shape[0]
    x, y = ((np.arange(n) + 0.5 - start) * size / side + 1e-9
            for n, start, side in zip(shape[::-1], (left, top), sides))
    inside = (0 <= y[:, None]) & (y[:, None] < size) & (0 <= x) & (x < size)
    rows, columns = (np.clip(np.floor(places).astype(int), 0, size - 1) for places in (y, x))
    return np.where(inside, values[rows[:, None], columns], 0).astype(values.dtype)


def breast(record: Record, o: Json, fitted: Any) -> Step:
    """Mammograms to the breast alone, its chest wall at the left, its tissue over the whole range."""
    pixels = record['image']
    if pixels.ndim != 2:
        raise Refused('it is coloured; a mammogram is grey')
    step = -(-max(pixels.shape) // o['coarse'])
    small = region_of_breast(pixels[::step, ::step].astype(np.float32))
    rows, columns = (np.flatnonzero(small.any(axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0] * step, (rows[-1] + 1) * step, columns[0] * step, (columns[-1] + 1) * step
    part = small[:, columns[0]:columns[-1] + 1]
    k = max(1, part.shape[1] // 5)
    mirror = bool(o['orient'] and part[:, -k:].sum() > part[:, :k].sum())
    height, width = pixels.shape
    inside = np.repeat(np.repeat(small, step, 0), step, 1)[:height, :width]
    pad = round(o['margin'] * max(bottom - top, right - left))
    top, bottom, left, right = ((max(0, top - pad), min(height, bottom + pad), max(0, left - pad),
                                 min(width, right + pad)) if o['crop'] else (0, height, 0, width))
    low, high = np.percentile(pixels[inside], o['percentiles'])
    grey = pixels[top:bottom, left:right]
    grey = np.ascontiguousarray(grey[:, ::-1] if mirror else grey)
    grey = (grey.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-6))

    def back(label):
        out = np.zeros((height, width), label.dtype)
        out[top:bottom, left:right] = label[:, ::-1] if mirror else label
        return out
    return {**record, 'image': np.clip(grey, 0, 1)}, back


def region_of_breast(small: np.ndarray) -> np.ndarray:
    """bool [h,w]: the largest bright part of a coarse mammogram, without holes."""
    small = small - small.min()
    bright = np.log1p(small * np.float32(255 / max(small.max(), 1e-9)))
    low, high = bright.min(), bright.max()
    grey = np.rint(255 * ((bright - low) / (high - low) if high > low else np.zeros(bright.shape))).astype(np.uint8)
    count = np.bincount(grey.ravel(), minlength=256).astype(float)
    below, total_below = np.cumsum(count), np.cumsum(count * np.arange(256))
    bottom = below * (below[-1] - below)
    between = np.divide(np.square(total_below[-1] * below - below[-1] * total_below), bottom,
                        out=np.full(256, -1.0), where=bottom != 0)
    above = grey > np.argmax(np.nan_to_num(between, nan=-1))

    def around(mask, outside, combine):
        padded = np.pad(mask, 1, constant_values=outside)
        views = [padded[i:i + mask.shape[0], j:j + mask.shape[1]] for i in range(3) for j in range(3)]
        return combine.reduce(views)
    parts = connected(around(around(above, False, np.logical_and), False, np.logical_or))
    if not parts.any():
        raise Refused('no breast stands out from the background')
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    holes = connected(~largest)
    edge = {*holes[0], *holes[-1], *holes[:, 0], *holes[:, -1]}
    return largest | (~largest & ~np.isin(holes, list(edge)))


def connected(mask: np.ndarray) -> np.ndarray:
    """int [h,w]: the number of the part (neighbours share a side) that a place is in, from 1; 0 outside."""
    parent, parts = [0], np.zeros(mask.shape, int)
    for i, line in enumerate(mask):
        change = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
        for start, stop in zip(change[::2], change[1::2]):
            above = sorted({root(parent, n) for n in parts[i - 1, start:stop] if n}) if i else []
            if not above:
                parent.append(len(parent))
                above = [len(parent) - 1]
            for other in above[1:]:
                parent[other] = above[0]
            parts[i, start:stop] = above[0]
    roots = np.array([root(parent, n) for n in range(len(parent))])
    return np.unique(roots[parts], return_inverse=True)[1].reshape(mask.shape) if not mask.all() else np.ones(
        mask.shape, int)


def root(parent: list[int], n: int) -> int:
    """The number that all joined ones share."""
    while parent[n] != n:
        parent[n] = parent[parent[n]]
        n = parent[n]
    return n


def volume(record: Record, o: Json, fitted: Any) -> Step:
    """Each modality on a grid of its own, [Z,Y,X,1] in fixed point."""
    shape = tuple(a + b for a, b in zip(o['size'], o['margin']))
    out, way_back, first = dict(record), None, None
    for key in o['keys']:
        scan = record.get(key)
        out['present'] = {**out.get('present', {}), key: float(scan is not None)}
        if scan is None:
            out[key] = np.zeros((*shape[::-1], 1), np.int16)
            continue
        sides = [side or own for side, own in zip(o['spacing'], spacing(scan.affine).tolist())]
        other = next((k for k in o['hu'][:1] if record.get(k) is not None), key) if key not in o['hu'] else key
        affine = grid(record.get('centre', middle(record[other])), sides, shape)
        check_overlap(Volume(np.broadcast_to(np.uint8(0), shape), affine), f'the crop of {key}', scan, 'the scan')
        voxels = resample(scan, affine, shape, True, o['window'][0] if key in o['hu'] else 0.0)
        values = (unit(voxels, *o['window']) if key in o['hu'] else extremes(voxels) if key in o['minmax'] else
                  standard(voxels, *o['percentiles']))
        out[key] = np.ascontiguousarray(np.rint(values * FIXED).astype(np.int16).T)[..., None]
        if first is None:
            first, way_back = key, lambda label, a=affine, like=scan: to_grid(label, a, like)
    return out, way_back


def scan(record: Record, o: Json, fitted: Any) -> Step:
    """All modalities on the grid of the first key, [Z,Y,X,1] in fixed point."""
    first = record.get(o['keys'][0])
    if first is None:
        raise Refused(f'it has no {o["keys"][0]}, whose grid all scans are brought to')
    for key in o['keys'][1:]:
        if record.get(key) is not None:
            check_overlap(record[key], key, first, f'its {o["keys"][0]}')
    affine, full = upright(first, np.where(np.array(o['spacing']) > 0, o['spacing'], spacing(first.affine)))
    low, sizes = BOXES['lungs'](first, affine, full, o['margin']) if o['lungs'] else (np.zeros(3, int), full)
    start = [a + (n - s) // 2 if s else a for a, n, s in zip(low, sizes, o['size'])]
    shape = tuple(int(s or n) for n, s in zip(sizes, o['size']))
    affine = moved(affine, start)
    out = dict(record)
    for key, window in zip(o['keys'], o['windows']):
        given = record.get(key)
        out['present'] = {**out.get('present', {}), key: float(given is not None)}
        out[key] = np.zeros((*shape[::-1], 1), np.int16)
        if given is not None:
            voxels = on_grid(given, affine, shape, True, window[0] if window else 0.0)
            values = unit(voxels, *window) if window else standard(voxels, *o['percentiles'])
            out[key][..., 0] = np.rint(values * np.float32(FIXED)).T
    return out, lambda label: to_grid(label, affine.astype(np.float32).astype(float), first)


def box_of_lungs(scan: Volume, affine: np.ndarray, full: np.ndarray, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """(start, shape) within a grid: air that no slice joins to the scan's edge, its large pieces; all without lungs."""
    step = np.maximum(1, STEP / spacing(scan.affine)).astype(int)
    air = scan.voxels[tuple(slice(None, None, s) for s in step)] < AIR
    pieces, parent = np.zeros(air.shape, int), [0]
    for z in range(air.shape[2]):
        parts = connected(air[:, :, z])
        edge = {0, *parts[0].tolist(), *parts[-1].tolist(), *parts[:, 0].tolist(), *parts[:, -1].tolist()}
        pieces[:, :, z] = np.where(np.isin(parts, list(edge)), 0, parts + len(parent) - 1)
        parent += range(len(parent), len(parent) + parts.max())
        above = pieces[:, :, z - 1] if z else np.zeros_like(parts)
        both = (above > 0) & (pieces[:, :, z] > 0)
        for a, b in {*zip(above[both].tolist(), pieces[:, :, z][both].tolist())}:
            parent[root(parent, a)] = root(parent, b)
    pieces = np.array([root(parent, n) for n in range(len(parent))])[pieces]
    sizes = np.bincount(pieces.ravel(), minlength=len(parent))[1:]
    large = np.flatnonzero(sizes >= PIECE * sizes.max(initial=1)) + 1
    if sizes[large - 1].sum() < max(1, LEAST * air.size):
        return np.zeros(3, int), full
    inside = [np.flatnonzero(np.isin(pieces, large).any(axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    low = np.maximum((np.array([i[0] for i in inside]) - 1) * step, 0)
    high = np.minimum((np.array([i[-1] for i in inside]) + 1) * step, np.array(scan.voxels.shape) - 1)
    ends = np.array(list(itertools.product(*zip(low, high))))
    reach = (ends @ scan.affine[:3, :3].T + scan.affine[:3, 3] - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    start = np.maximum(np.floor(reach.min(0) + 0.01).astype(int) - margin, 0)
    return start, np.minimum(np.ceil(reach.max(0) - 0.01).astype(int) + 1 + margin, full) - start


def unit(voxels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Clipped to [low, high], then [0,1]."""
    return (np.clip(voxels, low, high) - np.float32(low)) / np.float32(high - low)


def extremes(voxels: np.ndarray) -> np.ndarray:
    """From the least, -0.5, to the greatest, 0.5."""
    low, high = voxels.min(), voxels.max()
    return (voxels - low) / (high - low) - np.float32(0.5) if high > low else np.zeros(voxels.shape, np.float32)


def standard(voxels: np.ndarray, low: float, high: float) -> np.ndarray:
    """The non-zero voxels clipped to their percentiles, then of mean 0 and deviation 1."""
    inside, out = voxels != 0, np.zeros(voxels.shape, np.float32)
    if inside.any():
        values = voxels[inside].astype(np.float32)
        values = np.clip(values, *np.percentile(values, (low, high)).astype(np.float32))
        mean, deviation = values.mean(dtype=np.float64), values.std(dtype=np.float64)
        if deviation > 1e-6 * abs(mean):
            out[inside] = np.clip((values - mean) / deviation, -LIMIT, LIMIT)
    return out


def table(record: Record, o: Json, fitted: Any) -> Step:
    """A table of findings to one row of numbers."""
    rows, merge = record[o['key']], dict(pair.split('=', 1) for pair in o['merge'])

    def largest(column):
        cells = [c for row in rows if (c := row.get(column, '')) not in ('', 'NA')]
        try:
            values = [float(c) for c in cells]
        except ValueError:
            values = [math.nan]
        if not all(map(math.isfinite, values)):
            raise Refused(f'its column "{column}" must hold numbers')
        return max(values, default=None)

    def words(column):
        return {merge.get(word, word) for row in rows for word in row.get(column, '').split('-') if word}
    out = []
    for column, (mean, spread) in fitted['numbers'].items():
        out.append(0.0 if largest(column) is None else (largest(column) - mean) / spread)
    for column, levels in fitted['levels'].items():
        out += [float(largest(column) == level) for level in levels]
    for column, known in fitted['sets'].items():
        out += [float(word in words(column)) for word in known]
    return {**record, o['out']: np.array(out, np.float32)}, None


def text(record: Record, o: Json, fitted: Any) -> Step:
    """A report to ids of words: [CLS] = 1, hidden and unknown ones 2, [PAD] = 0."""
    import report_sections  # beside this file
    ids = {report_sections.HIDDEN: 2} | {word: i for i, word in enumerate(fitted['words'], 3)}
    words = report_sections.words(record[o['key']], o['section'], report_sections.hider(o['mask_terms']))
    return with_tokens(record, o, [1] + [ids.get(word, 2) for word in words[:o['length'] - 1]], bool(words)), None


def wordpiece(record: Record, o: Json, fitted: Any) -> Step:
    """A report to ids of BERT's pieces: [CLS] pieces [SEP] [PAD]; hidden words are [UNK]."""
    import report_sections  # beside this file
    vocabulary, normalizer, encoder = tokenizer(o['file'], o['lower'])
    hide = report_sections.hider([*map(normalizer.normalize_str, o['mask_terms'])])
    ids: list[int] = []
    for _, body in report_sections.chosen(record[o['key']], o['section']):
        for part, hidden in report_sections.shown(normalizer.normalize_str(body), hide):
            ids += ([vocabulary['[UNK]']] * len(report_sections.WORD.findall(part)) if hidden else
                    encoder.encode(part, add_special_tokens=False).ids)
    return with_tokens(record, o, [vocabulary['[CLS]'], *ids[:o['length'] - 2], vocabulary['[SEP]']], bool(ids)), None


@functools.cache
def tokenizer(name: str, lower: bool) -> tuple[dict[str, int], Any, Any]:
    """(ids, normaliser, encoder) of the vocabulary in this folder."""
    import tokenizers
    with open(os.path.join(HERE, name), encoding='utf-8-sig', newline='') as f:
        content = f.read()
    if name.endswith('.json'):
        stored = json.loads(content)['model']
        ids, longest = stored['vocab'], stored['max_input_chars_per_word']
    else:
        pieces = content.replace('\r\n', '\n').removesuffix('\n').split('\n')
        ids, longest = {piece: i for i, piece in enumerate(pieces)}, 100
    model = tokenizers.models.WordPiece(ids, unk_token='[UNK]', max_input_chars_per_word=longest)
    encoder = tokenizers.Tokenizer(model)
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return ids, tokenizers.normalizers.BertNormalizer(lowercase=lower), encoder


def with_tokens(record: Record, o: Json, ids: list[int], present: bool) -> Record:
    """The record with the ids, filled up with 0 to their length, and whether there was a word."""
    tokens = np.zeros(o['length'], np.int32)
    tokens[:len(ids)] = ids
    return {**record, o['out']: tokens, 'present': {**record.get('present', {}), o['out']: float(present)}}


def harmonise(record: Record, o: Json, fitted: Any) -> Step:
    """The grey values of training: by mean and deviation, or by quantiles."""
    out = dict(record)
    for key in o['keys']:
        if not record.get('present', {}).get(key, 1):
            continue
        fixed, reference = record[key].dtype == np.int16, fitted[key]
        values = record[key].astype(np.float32) / FIXED if fixed else record[key]
        body = values > o['background']
        inside = values[body].astype(np.float64)
        new = values.astype(np.float64)
        if inside.size and inside.min() < inside.max():
            if o['kind'] == 'zscore':
                new[body] = reference['mean'] + reference['deviation'] * (inside - inside.mean()) / inside.std()
            else:
                target = np.array(reference['quantiles'])
                own, place = np.unique(np.quantile(inside, np.linspace(0, 1, len(target))), return_inverse=True)
                new[body] = np.interp(inside, own, np.bincount(place, target) / np.bincount(place))
        new = np.clip(new, *o['limits']) if o['limits'] else new
        out[key] = np.clip(np.rint(new * FIXED), -32768, 32767).astype(np.int16) if fixed else new.astype(np.float32)
    return out, None


def crop(record: Record, o: Json, fitted: Any) -> Step:
    """Volumes cut about their middle, as a network takes whole that was trained on crops or patches."""
    out = dict(record)
    for key in o['keys']:
        size, start = o['size'][::-1], (np.subtract(record[key].shape[2::-1], o['size']) // 2)[::-1]
        low, high = np.maximum(start, 0), np.minimum(start + size, record[key].shape[:3])
        out[key] = np.zeros((*size, record[key].shape[3]), record[key].dtype)
        out[key][tuple(map(slice, low - start, high - start))] = record[key][tuple(map(slice, low, high))]
    return out, None


# Prediction

def of_rows(rows: list, reading: Json) -> tuple[Any, Any]:
    """The rows of a table of findings."""
    return rows, None


def of_report(report: str, reading: Json) -> tuple[Any, Any]:
    """A report, or that of a file."""
    return report if isinstance(report, Report) else read_text(report), None


def of_picture(path: str, reading: Json) -> tuple[Any, Any]:
    """(pixels, their grid)"""
    return read_picture(path, reading['source'] == 'cbis_ddsm'), ('picture', None)


def of_volume(path: str, reading: Json) -> tuple[Any, Any]:
    """(a Volume, its grid) of NIfTI, NRRD or a folder with a series in DICOM."""
    series, nrrd = os.path.isdir(path), path.lower().endswith('.nrrd')
    if not series and not path.lower().endswith(VOLUMES):
        raise Refused(f'{path} is neither NIfTI, NRRD nor a folder of DICOM, which run.py reads alone')
    if series and reading['volume'].get('pet_units'):
        raise Refused(f'{path}: run.py makes no SUV of PET in DICOM. Save it in SUV as NIfTI')
    voxels, affine = (read_series(path) if series else read_nrrd(path) if nrrd else
                      read_nifti(path, reading['volume'].get('nifti_form', 'auto')))
    volume = turned(scaled(voxels) if reading['source'] == 'acdc' else voxels, affine)
    return volume, ('nrrd' if nrrd else 'volume', volume)


def prepared(files: Files, preprocessing: Json) -> tuple[Record, list, Any]:
    """({input: array}, ways back of a label map, grid of the file) of one case."""
    kinds, file_grid = preprocessing['files']['kinds'], None
    if 'slices' in READERS and any(kind == 'picture' and files.get(key, '').lower().endswith(SLICES)
                                   for key, kind in kinds.items()):
        return READERS['slices'](files, preprocessing)
    record: Record = {'centre': np.array(files['centre'])} if 'centre' in files else {}
    for key, kind in kinds.items():
        if key in files:
            record[key], place = READERS[kind](files[key], preprocessing['reading'])
            file_grid = file_grid or place
        elif kind != 'volume':
            raise Refused(f'it has no {key}')
    return *transformed(record, preprocessing), file_grid


def transformed(record: Record, preprocessing: Json) -> tuple[Record, list]:
    """(the record behind the transforms, their ways back)."""
    ways = []
    for step in preprocessing['transforms']:
        if step['name'] in STEPS:
            record, way = STEPS[step['name']](record, step['options'], step['fitted'])
            ways += [way] if way else []
    return record, ways


def of_slices(files: Files, preprocessing: Json) -> tuple[Record, list, Any]:
    """A NIfTI file as a stack of pictures along its third axis."""
    stacks, affine = {}, None
    for key, path in files.items():
        voxels, affine = read_nifti(path, preprocessing['reading']['volume'].get('nifti_form', 'auto'))
        stacks[key] = scaled(voxels).T
    planes = [transformed({key: a[z] for key, a in stacks.items()}, preprocessing)
              for z in range(len(next(iter(stacks.values()))))]
    record = {key: np.stack([r[key] for r, _ in planes]) for key in preprocessing['inputs']}
    return record, [w for _, w in planes], ('slices', affine)


def scaled(voxels: np.ndarray) -> np.ndarray:
    """float32 in [0,1]: clipped to the 2nd and 98th percentile."""
    values: Any = voxels.astype(np.float64 if voxels.dtype.itemsize == 8 else np.float32)
    low, high = np.percentile(values, (2, 98)).astype(values.dtype)
    return ((np.clip(values, low, high) - low) / (high - low)).astype(np.float32) if high > low else np.zeros(
        values.shape, np.float32)


def flags(model: Model, record: Record, rows: int) -> Record:
    """The flags that the network reads: which of several inputs there are."""
    present = record.get('present', {})
    return {name: np.full(rows, present.get(name.partition('/')[2], 1.0), np.float32) for name in model.inputs
            if name.startswith('present/')}


def segment(model: Model, record: Record, preprocessing: Json) -> tuple[np.ndarray, np.ndarray | None]:
    """(label uint8 [D,H,W], probability of each window or None) of one scan, by overlapping windows."""
    plan, keys, rows = preprocessing['windows'], preprocessing['inputs'], max(1, preprocessing['batch'])
    shape, sides = record[keys[0]].shape[:3], model.sides
    size = (1,) * (3 - len(sides)) + tuple(sides)
    places = list(itertools.product(*(starts(n, w, plan['overlap']) for n, w in zip(shape, size))))
    profiles, sums = zip(*(profile(n, w, plan) for n, w in zip(shape, size)))
    inside = [min(n, w) for n, w in zip(shape, size)]
    weight: Any = np.float32(1)
    for p, n in zip(profiles, inside):
        weight = weight[..., None] * p[:n]
    total, windows = None, []
    for group in (places[i:i + rows] for i in range(0, len(places), rows)):
        out = mirrored(model, {key: windows_at(record[key], group, size, sides) for key in keys}, record, plan, sides)
        windows += list(out.get('class_logits', ()))
        for place, logits in zip(group, out['logits']):
            logits = logits.reshape(*size, -1)[tuple(map(slice, inside))]
            total = np.zeros((*shape, logits.shape[-1]), np.float32) if total is None else total
            total[tuple(slice(a, a + n) for a, n in zip(place, inside))] += logits * weight[..., None]
    total /= (sums[1][:, None] * sums[2])[None, ..., None]
    total /= sums[0][:, None, None, None]
    if not np.isfinite(total).all():
        raise Refused('the network gives logits that are not finite')
    return total.argmax(-1).astype(np.uint8), sigmoid(np.array(windows, float)[:, 0]) if windows else None


def windows_at(array: np.ndarray, group: list, size: Sequence[int], sides: Sequence[int]) -> np.ndarray:
    """[rows, *sides, ...] of the windows that start at `group`, zeros outside."""
    out = np.zeros((len(group), *size, *array.shape[3:]), array.dtype)
    for row, start in zip(out, group):
        part = array[tuple(slice(a, a + n) for a, n in zip(start, size))]
        row[tuple(map(slice, part.shape))] = part
    return out.reshape(len(group), *sides, *array.shape[3:])


def mirrored(model: Model, inputs: Record, record: Record, plan: Json, sides: Sequence[int]) -> Record:
    """Outputs of windows, the mean over their mirrored ones."""
    axes, rows = [1 + axis for axis in plan['mirror'] if axis < len(sides)], len(next(iter(inputs.values())))
    outs = []
    for flip in (f for n in range(len(axes) + 1) for f in itertools.combinations(axes, n)):
        out = model({**{key: np.ascontiguousarray(np.flip(a, flip)) for key, a in inputs.items()},
                     **flags(model, record, rows)})
        outs.append({key: np.flip(a, flip) if a.ndim == out['logits'].ndim else a for key, a in out.items()})
    return {key: sum(out[key] for out in outs) / np.float32(len(outs)) for key in outs[0]}


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Starts of the windows along an axis."""
    spare, step = max(length - side, 0), max(1, math.floor(side * (1 - overlap) + 1e-6))
    count = -(-spare // step) + 1
    return [i * spare // max(count - 1, 1) for i in range(count)]


def profile(length: int, side: int, plan: Json) -> tuple[np.ndarray, np.ndarray]:
    """(weight of a window along an axis, their sum over its windows)."""
    places, weights = starts(length, side, plan['overlap']), np.ones(side)
    if plan['weights'] == 'gaussian' and len(places) > 1:
        weights = np.exp(-((np.arange(side) - (side - 1) / 2) / (side / 8))**2 / 2)
    total = np.zeros(max(length, side))
    for place in places:
        total[place:place + side] += weights
    return weights.astype(np.float32), total[:length].astype(np.float32)


# Output

def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numbers(prefix: str, names: Sequence[str], values: np.ndarray) -> dict[str, str]:
    """Columns of the table."""
    return {f'{prefix}/{name}': f'{float(value):.7g}' for name, value in zip(names, values)}


def of_labels(labels: Sequence[str], logits: np.ndarray, probability: np.ndarray, fitted: Any) -> dict[str, str]:
    """Columns of labels that do not exclude each other."""
    row = numbers('probability', labels, probability)
    if fitted:
        slopes, intercepts = ([entry[key] for entry in fitted.values()] for key in ('slope', 'intercept'))
        row |= numbers('calibrated', labels, sigmoid(np.array(slopes) * logits + np.array(intercepts)))
        for z, name in zip(logits, labels):
            for point in ('youden', 'sensitivity_95', 'specificity_95'):
                if point in fitted[name]['points']:
                    row[f'{point}/{name}'] = str(int(z - fitted[name]['points'][point]['threshold'] >= 0))
    return row


def of_logits(logits: np.ndarray, decision: Json) -> dict[str, str]:
    """The row of a classified case."""
    labels, fitted, values = decision['labels'], decision['decision'] or {}, np.asarray(logits, float)
    row = {f'logit/{name}': f'{z:.9g}' for name, z in zip(labels, values)}
    if not decision['exclusive']:
        return row | of_labels(labels, values, sigmoid(values), fitted.get('labels'))
    row |= numbers('probability', labels, softmax(values))
    if fitted.get('temperature') is not None:
        row |= numbers('calibrated', labels, softmax(values / fitted['temperature']))
    return row | {'class': labels[int(values.argmax())]}


def of_scan(label: np.ndarray, size: float, unit_name: str, windows: np.ndarray | None, decision: Json
            ) -> dict[str, str]:
    """The row of a segmented scan."""
    labels, fitted = decision['labels'], decision['decision'] or {}
    volumes = np.bincount(label.ravel(), minlength=len(labels)) * size
    row = numbers(unit_name, labels[1:], volumes[1:])
    if windows is None:
        return row
    rule = fitted.get('scan') or dict(combine='top', topk=3)
    rules: dict[str, Any] = {'top': lambda q: np.sort(q)[-rule['topk']:].mean(), 'max': np.max, 'mean': np.mean,
                             'noisy_or': lambda q: 1 - np.prod(1 - q)}
    score = rules[rule['combine']](windows)
    name, clipped = next(iter(fitted.get('labels') or {'scan': 0})), np.clip(score, 1e-6, 1 - 1e-6)
    row |= of_labels((name,), np.log(clipped / (1 - clipped))[None], np.array([score]), fitted.get('labels'))
    if 't_cls' in rule:
        enough = np.inf if rule['v_min'] is None else rule['v_min']
        volume_ml = volumes[1] if unit_name == 'volume_ml' else np.nan
        row[f'patient/{name}'] = str(int(score >= rule['t_cls'] or volume_ml >= enough))
    return row


def went_back(label: np.ndarray, ways: list) -> np.ndarray:
    """A label map of the network's grid on that of its file."""
    for way in reversed(ways):
        label = way(label)
    return label


def write_mask(out: str, name: str, label: np.ndarray, ways: list, file_grid: Any
               ) -> tuple[dict[str, str], np.ndarray, float, str]:
    """Write a label map on the grid of its file -> (columns that name it, the map on that grid, size of a voxel, unit).
    """
    stem = re.sub(r'\.(nii\.gz|nii|nrrd|png|jpe?g|tiff?|bmp|dcm)$', '', name, flags=re.I)
    path = f'masks/{"/".join(re.sub(r"[^a-zA-Z0-9_.() -]", "_", p) for p in stem.split("/") if p.strip("."))}'
    os.makedirs(os.path.dirname(os.path.join(out, path)), exist_ok=True)
    return MASKS[file_grid[0]](out, path, label, ways, file_grid[1])


def mask_of_slices(out: str, path: str, label: np.ndarray, ways: list, place: np.ndarray
                   ) -> tuple[dict[str, str], np.ndarray, float, str]:
    """As write_mask, of a stack of slices."""
    on_file = np.stack([went_back(plane, way) for way, plane in zip(ways, label, strict=True)])
    write_nifti(os.path.join(out, path + '.nii.gz'), on_file.T, place)
    row = {'mask': path + '.nii.gz'} | straightened(out, path, turned(on_file.T, place))
    return row, on_file, abs(np.linalg.det(place[:3, :3])) / 1000, 'volume_ml'


def mask_of_picture(out: str, path: str, label: np.ndarray, ways: list, place: None
                    ) -> tuple[dict[str, str], np.ndarray, float, str]:
    """As write_mask, of a picture."""
    from PIL import Image
    on_file = went_back(label[0], ways)
    Image.fromarray(on_file).save(os.path.join(out, path + '.png'))
    return {'mask': path + '.png'}, on_file, 1.0, 'pixels'


def mask_of_volume(out: str, path: str, label: np.ndarray, ways: list, place: Volume, ending: str = '.nii.gz',
                   write: Callable = write_nifti) -> tuple[dict[str, str], np.ndarray, float, str]:
    """As write_mask, of a volume."""
    import nibabel
    on_file = went_back(label, ways)
    back = nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], place.turn)
    write(os.path.join(out, path + ending), nibabel.apply_orientation(on_file, back), place.stored)
    row = {'mask': path + ending} | straightened(out, path, Volume(on_file, place.affine))
    return row, on_file, abs(np.linalg.det(place.affine[:3, :3])) / 1000, 'volume_ml'


def mask_of_nrrd(out: str, path: str, label: np.ndarray, ways: list, place: Volume
                 ) -> tuple[dict[str, str], np.ndarray, float, str]:
    """As write_mask, of a volume in NRRD."""
    return mask_of_volume(out, path, label, ways, place, '.nrrd', write_nrrd)


def straightened(out: str, path: str, label: Volume) -> dict[str, str]:
    """Write a copy of a mask on a straight grid, where its own is sheared, which programs built on ITK refuse."""
    if not sheared(label.affine, label.voxels.shape):
        return {}
    affine, shape = upright(label, spacing(label.affine))
    copy = on_grid(label, affine, shape.tolist(), False, 0.0).astype(np.uint8)
    write_nifti(os.path.join(out, path + '_straight.nii.gz'), copy, affine)
    print(f'{path}: its grid is sheared (a tilted gantry) and kept so; {path}_straight.nii.gz is not')
    return {'mask_straight': path + '_straight.nii.gz'}


def classified(model: Model, name: str, files: Files, preprocessing: Json, decision: Json, out: str
               ) -> dict[str, str]:
    """The row of one case."""
    case = prepared(files, preprocessing)[0]
    inputs = {**{key: case[key][None] for key in preprocessing['inputs']}, **flags(model, case, 1)}
    logits = model(inputs)['logits'][0]
    if not np.isfinite(logits).all():
        raise Refused('the network gives logits that are not finite')
    return of_logits(logits, decision)


def segmented(model: Model, name: str, files: Files, preprocessing: Json, decision: Json, out: str) -> dict[str, str]:
    """The row of one case, whose mask is written."""
    record, ways, file_grid = prepared(files, preprocessing)
    if file_grid[0] == 'picture':
        record = {key: record[key][None] for key in preprocessing['inputs']}
    label, windows = segment(model, record, preprocessing)
    masks, on_file, size, unit_name = write_mask(out, name, label, ways, file_grid)
    return of_scan(on_file, size, unit_name, windows, decision) | masks


# What this network needs of the above

STEPS: dict[str, Callable] = dict(image=image, breast=breast, volume=volume, crop=crop, scan=scan, patch=crop,
                                  table=table, text=text, wordpiece=wordpiece, harmonise=harmonise)
READERS: dict[str, Callable] = dict(picture=of_picture, slices=of_slices, volume=of_volume, table=of_rows,
                                    text=of_report)
BOXES: dict[str, Callable] = dict(lungs=box_of_lungs)
MASKS: dict[str, Callable] = dict(picture=mask_of_picture, slices=mask_of_slices, volume=mask_of_volume,
                                  nrrd=mask_of_nrrd)
TASKS: dict[str, Callable] = dict(classification=classified, segmentation=segmented)


# The command

def write_table(path: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A CSV, written whole."""
    with open(path + '.part', 'w', newline='', encoding='utf-8') as f:
        csv.writer(f, lineterminator='\n').writerows([columns, *rows])
    os.replace(path + '.part', path)


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--input', nargs='+', required=True, metavar='PATH')
    parser.add_argument('--output', required=True, metavar='OUT', help='a folder')
    args = parser.parse_args(argv)
    try:
        verify(HERE)
        preprocessing, decision, metadata = (json.load(open(os.path.join(HERE, name), encoding='utf-8')) for name in (
            'preprocessing.json', 'decision.json', 'metadata.json'))
        model = Model(HERE)
        check_golden(HERE, model, max(1e-4, metadata['tolerance']))
    except Exception as e:
        print(f'error: {HERE}: {e}', file=sys.stderr)
        return 74
    try:
        cases = find_cases(args.input, preprocessing['files']['kinds'], preprocessing['files']['columns'])
    except (Refused, OSError, ValueError) as e:
        print(f'error: {e}', file=sys.stderr)
        return 66
    rows, failed, predict = [], [], TASKS[metadata['task']]
    os.makedirs(args.output, exist_ok=True)
    for number, (name, files) in enumerate(cases, 1):
        try:
            rows.append({'case': name, **predict(model, name, files, preprocessing, decision, args.output)})
        except Exception as e:  # of this case; the others go on
            failed.append((name, f'{"" if isinstance(e, Refused) else type(e).__name__ + ": "}{e}'))
            print(f'not predicted: {name}: {failed[-1][1]}', file=sys.stderr)
        if number % 50 == 0:
            print(f'{number} of {len(cases)}')
    columns = list(dict.fromkeys(column for row in rows for column in row)) or ['case']
    write_table(os.path.join(args.output, 'predictions.csv'), columns, [[r.get(c, '') for c in columns] for r in rows])
    if failed:
        write_table(os.path.join(args.output, 'errors.csv'), ['case', 'error'], failed)
    print(f'{os.path.join(args.output, "predictions.csv")}: {len(rows)} of {len(cases)} cases')
    return 65 if failed else 0


if __name__ == '__main__':
    sys.path.insert(0, HERE)
    sys.dont_write_bytecode = True  # the folder stays as it is
    sys.exit(main())
