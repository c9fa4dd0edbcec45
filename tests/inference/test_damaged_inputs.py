"""Files damaged at random: each gives a right form or one clear error, in little memory and time.

What predict reads is NIfTI, NRRD, DICOM (a picture and a series), PNG, JPEG, TIFF, BMP and tables. A damaged copy has
bytes changed, cut off, repeated, exchanged or set to extremes, more often in its header; the same seed gives the same
copies. The counts of the long run are in its output (pytest -s).
"""
import collections
import resource
import time

import nibabel
import nrrd
import numpy as np
import pytest
from PIL import Image

from jaxkd import errors
from jaxkd.contracts import Transform
from jaxkd.data.transform import Transforms
from jaxkd.inference import case_files, case_reader
from jaxkd.inference.case_files import CaseFiles, Inputs
from jaxkd.inference.deployed import Deployed, Reading, Windows
from jaxkd.phantoms import encode

SHAPE = (12, 10, 6)
CLEAR = (errors.BadData, errors.MissingInput)
SECONDS, MIB = 5.0, 400  # of the processor, of a case; more than the process had


def identity(record):
    return record


def deployed(kind):
    step = Transform(identity, reads=('x',), writes=('x',), takes=kind)
    as_array = Transform(lambda r: {'x': np.asarray(r['x'].voxels, np.float32)} if kind == 'volume' else r)
    return Deployed('fuzz', ('a',), ('x',), Inputs({'x': kind}, (), ()), Transforms((step, as_array), (), {}, {}), '',
                    Reading(), None, True, None, Windows(), 1, 1, '')


def slice_of(path, pixels, z):
    encode.write_dicom(path, pixels, 'CTImageStorage', Modality='CT', SeriesInstanceUID='1.2.3', RescaleSlope=1,
                       RescaleIntercept=-1024, SOPInstanceUID=f'1.2.3.{z}', ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                       ImagePositionPatient=[0, 0, 2.0 * z], PixelSpacing=[1.0, 1.0], StudyInstanceUID='1.2',
                       InstanceNumber=z)


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    """{name: (kind, path of the file that is damaged, path of the case)}"""
    root, rng = tmp_path_factory.mktemp('originals'), np.random.default_rng(0)
    voxels, picture = rng.integers(-1000, 1000, SHAPE).astype(np.int16), rng.integers(0, 255, (40, 36)).astype(np.uint8)
    for name in ('scan.nii', 'scan.nii.gz'):
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.5, 3.0, 1])), root / name)
    nrrd.write(str(root / 'scan.nrrd'), voxels, {'space': 'left-posterior-superior', 'space directions': np.eye(3),
                                                 'space origin': np.zeros(3)})
    for ending in ('png', 'jpg', 'tif', 'bmp'):
        Image.fromarray(picture).save(root / f'picture.{ending}')
    Image.fromarray(picture.astype(np.uint16) * 200).save(root / 'deep.png')
    encode.write_dicom(root / 'film.dcm', picture.astype(np.uint16) * 16, 'DigitalXRayImageStorageForPresentation',
                       Modality='DX', SOPInstanceUID='1.2.3.4', BitsStored=12, HighBit=11)
    (root / 'series').mkdir()
    for z in range(4):
        slice_of(root / 'series' / f'{z}.dcm', rng.integers(0, 2000, (10, 12)).astype(np.uint16), z)
    (root / 'cases.csv').write_text('case,x,note\n' + ''.join(f'c{i},picture.png,"n, {i}"\n' for i in range(20)))
    forms = {name: ('volume', root / name, root / name) for name in ('scan.nii', 'scan.nii.gz', 'scan.nrrd')}
    forms |= {name: ('picture', root / name, root / name) for name in (
        'picture.png', 'picture.jpg', 'picture.tif', 'picture.bmp', 'deep.png', 'film.dcm')}
    return forms | {'slices': ('picture', root / 'scan.nii', root / 'scan.nii'),
                    'series': ('volume', root / 'series' / '2.dcm', root / 'series'),
                    'cases.csv': ('picture', root / 'cases.csv', root / 'cases.csv')}


def damaged(data, rng):
    """A copy of the bytes with one to six faults."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 7))):
        if not data:
            break
        near = rng.random() < 0.6  # headers decide more than pixels
        at = int(rng.integers(0, min(len(data), 400) if near else len(data)))
        fault = int(rng.integers(0, 8))
        if fault == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif fault == 1:
            data[at] = int(rng.choice([0, 1, 127, 128, 255]))
        elif fault == 2:
            data[at:at + 4] = int(rng.choice([0, 2**31 - 1, 2**32 - 1, 2**16, 70000])).to_bytes(4, 'little')
        elif fault == 3:
            del data[at:]
        elif fault == 4:
            del data[at:at + int(rng.integers(1, 64))]
        elif fault == 5:
            data[at:at] = data[at:at + int(rng.integers(1, 64))]
        elif fault == 6:
            data[at:at + 8] = rng.bytes(8)
        else:
            other = int(rng.integers(0, len(data)))
            data[at:at + 16], data[other:other + 16] = data[other:other + 16], data[at:at + 16]
    return bytes(data)


def read(kind, case, table):
    network = deployed(kind)
    if table:
        cases = case_files.find(network.files, [str(case)])
        assert all(isinstance(c.name, str) and isinstance(c.values.get('x', ''), str) for c in cases)
        return
    case_reader_case = CaseFiles('c', {'x': str(case)})
    prepared = case_reader.read(network, case_reader_case)
    array = next(iter(prepared.scan.values()))
    assert array.size and np.isfinite(array).all() and array.ndim >= 3


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(originals, folder, count):
    """{original: {'read' or the type of the error: how many}}; fails at the first other outcome."""
    outcomes = collections.defaultdict(collections.Counter)
    contents = {name: path.read_bytes() for name, (_, path, _) in originals.items()}
    before = peak_mib()
    for n in range(count):
        name = [*originals][n % len(originals)]
        kind, path, case = originals[name]
        data = damaged(contents[name], np.random.default_rng([n, 7]))
        target = folder / path.name if path == case else path
        target.write_bytes(data)
        began = time.process_time()
        try:
            read(kind, target if path == case else case, name.endswith('.csv'))
            outcomes[name]['read'] += 1
        except CLEAR as e:
            outcomes[name][type(e).__name__] += 1
            assert len(str(e)) > 20 and '\n' not in str(e).strip() and len(str(e)) < 1500, (n, name, str(e))
        except errors.ConfigError as e:  # a decoder that is not installed, or a table that asks for another network
            outcomes[name]['ConfigError'] += 1
            assert 'pip install' in str(e) or '--input' in str(e) or 'column' in str(e), (n, name, str(e))
        except Exception as e:
            raise AssertionError(f'example {n} of {name}: {type(e).__name__}: {e}') from e
        finally:
            if path != case:
                path.write_bytes(contents[name])
        assert time.process_time() - began < SECONDS, (n, name)
    assert peak_mib() - before < MIB
    return outcomes


def test_originals_are_read(originals):
    for name, (kind, _, case) in originals.items():
        read(kind, case, name.endswith('.csv'))


def test_a_message_holds_no_pixels(originals, tmp_path):
    """This damage makes pixels the value of BitsAllocated, which the message about it quotes."""
    path = originals['film.dcm'][1]
    (tmp_path / 'film.dcm').write_bytes(damaged(path.read_bytes(), np.random.default_rng([3308, 7])))
    with pytest.raises(errors.BadData, match=r'its pixels are MONOCHROME2, 1 x \[16, 40, .*\.\.\. ') as caught:
        read('picture', tmp_path / 'film.dcm', table=False)
    assert len(str(caught.value)) < 1000


def test_damaged_files(originals, tmp_path):
    outcomes = fuzz(originals, tmp_path, 480)
    assert all(counts.total() == 40 for counts in outcomes.values())
    assert sum(counts['BadData'] for counts in outcomes.values()) > 120  # the damage is real


@pytest.mark.long
def test_many_damaged_files(originals, tmp_path):
    outcomes = fuzz(originals, tmp_path, 24_000)
    for name, counts in outcomes.items():
        print(name, dict(counts))
