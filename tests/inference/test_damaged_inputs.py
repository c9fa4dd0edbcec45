"""Files damaged at random: each gives a right form or one clear error, in little memory and time.

What predict reads is NIfTI, NRRD, DICOM (a picture and a series), PNG, JPEG, TIFF, BMP, tables and the files of a run
(those of a bundle: tests/export/test_bundle.py). A damaged copy has
bytes changed, cut off, repeated, exchanged or set to extremes, more often in its header; the same seed gives the same
copies. The counts of the long run are in its output (pytest -s).
"""
import collections
import pathlib
import re
import resource
import shutil
import time

import nibabel
import nrrd
import numpy as np
import pytest
from PIL import Image

from jaxkd import errors
from jaxkd.contracts import Transform
from jaxkd.data.transform import Transforms
from jaxkd.inference import case_files, case_reader, run_cases
from jaxkd.inference.case_files import CaseFiles, Inputs
from jaxkd.inference.deployed import Deployed, Reading, Windows, load
from jaxkd.phantoms import encode
from tests.export import students

SHAPE = (12, 10, 6)
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
    """'read' where it is so."""
    network = deployed(kind)
    if table:
        cases = case_files.find(network.files, [str(case)])
        assert all(isinstance(c.name, str) and isinstance(c.values.get('x', ''), str) for c in cases)
        return 'read'
    case_reader_case = CaseFiles('c', {'x': str(case)})
    prepared = case_reader.read(network, case_reader_case)
    array = next(iter(prepared.scan.values()))
    assert array.size and np.isfinite(array).all() and array.ndim >= 3
    return 'read'


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Tally:
    """Outcomes by kind of file; an error of no clear type, a message or a cost that is out of bounds is a failure."""

    def __init__(self):
        self.outcomes, self.failures = collections.defaultdict(collections.Counter), []
        self.before = peak_mib()

    def case(self, kind, name, work, remedy=''):
        """work() -> what is counted, or fails. remedy: what a ConfigError, no fault of the file, says."""
        began = time.process_time()
        try:
            self.outcomes[kind][work()] += 1
        except errors.JaxkdError as e:
            self.outcomes[kind][type(e).__name__] += 1
            if not (20 < len(str(e)) < 1500 and str(e).isprintable()):
                self.failures.append(f'{name}: {e!r}')
            if isinstance(e, errors.ConfigError) and not re.search(remedy, str(e)):
                self.failures.append(f'{name}: {e!r}')
        except Exception as e:
            self.failures.append(f'{name}: {type(e).__name__}: {e}')
        if (seconds := time.process_time() - began) > SECONDS:
            self.failures.append(f'{name} took {seconds:.1f} s')

    def close(self):
        """The outcomes, without a failure."""
        assert not self.failures, f'{len(self.failures)} failures: ' + '\n'.join(self.failures[:20])
        assert peak_mib() - self.before < MIB
        return self.outcomes


def fuzz(originals, folder, count):
    """{original: {'read' or the type of the error: how many}}."""
    contents, tally = {name: path.read_bytes() for name, (_, path, _) in originals.items()}, Tally()
    for n in range(count):
        name = [*originals][n % len(originals)]
        kind, path, case = originals[name]
        target = folder / path.name if path == case else path
        target.write_bytes(damaged(contents[name], np.random.default_rng([n, 7])))
        tally.case(name, f'example {n} of {name}',
                   lambda: read(kind, target if path == case else case, name.endswith('.csv')),  # noqa: B023
                   'pip install|--input|column')  # a decoder, or a table for another network
        if path != case:
            path.write_bytes(contents[name])
    return tally.close()


def fuzz_runs(folder, count):
    """Outcomes for the files of a run: a damaged one is refused, or what is predicted is what was saved."""
    contents = {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}
    texts = [name for name in contents if name.suffix == '.json']
    expected, tally = load_run(folder).digest, Tally()
    for n in range(count):
        names = texts if n % 3 else [*contents]
        name = names[n // 3 % len(names)]
        (folder / name).write_bytes(damaged(contents[name], np.random.default_rng([n, 11])))

        def work():
            assert load_run(folder).digest == expected, 'another network'
            return 'the same'
        tally.case(name.suffix or 'array', f'example {n} of {name}', work)
        (folder / name).write_bytes(contents[name])
    assert load_run(folder).digest == expected
    return tally.close()


def load_run(folder):
    loaded = load(str(folder))
    run_cases.check_members([loaded])
    return loaded


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


def test_damaged_runs(tmp_path):
    outcomes = fuzz_runs(pathlib.Path(shutil.copytree(students.run('image'), tmp_path / 'run')), 60)
    assert outcomes['.json']['Damaged'] > 20


@pytest.mark.long
def test_many_damaged_files(originals, tmp_path):
    shown(fuzz(originals, tmp_path, 24_000))


@pytest.mark.long
def test_many_damaged_runs(tmp_path):
    shown(fuzz_runs(pathlib.Path(shutil.copytree(students.run('image'), tmp_path / 'run')), 3_000))


def shown(outcomes):
    for name, counts in outcomes.items():
        print(name, dict(counts))
