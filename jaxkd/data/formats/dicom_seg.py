"""DICOM segmentation objects (SEG), of the series that was predicted. Written with highdicom, the extra `seg`.

A SEG belongs to the patient, the study and the frame of reference of its series, whose identifiers it repeats: that is
how an archive finds it. Each class but the background is a binary segment; frames without any are left out.
"""
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd import errors
from jaxkd.data.formats import checks, dicom
from jaxkd.runtime import files, versions

MAY_BE_EMPTY = ('PatientName', 'PatientID', 'PatientBirthDate', 'PatientSex', 'StudyDate', 'StudyTime', 'StudyID',
                'AccessionNumber', 'ReferringPhysicianName', 'PositionReferenceIndicator')  # of type 2
REMEDY = f'{versions.install("seg")}, or write NIfTI: --masks nifti'


def require() -> None:
    """ConfigError without highdicom."""
    try:
        import highdicom  # noqa: F401
    except ImportError as e:
        raise errors.ConfigError(f'DICOM SEG needs the library highdicom, which cannot be imported ({e}). '
                                 f'{REMEDY}.') from e


def write(path: str | os.PathLike, label: np.ndarray, series: str, labels: Sequence[str], algorithm: str) -> None:
    """Write a label map uint8 [column,row,slice], in the order of the series' voxels, whole or not at all.

    series: the folder or the enhanced file that it was predicted for; labels: the classes, background first.
    """
    require()
    import highdicom as hd
    from pydicom.sr.codedict import codes
    sources, order = dicom.sources(series)
    for source in sources:  # elements that may be empty and must be there; those that remove identifiers may drop them
        for keyword in MAY_BE_EMPTY:
            if keyword not in source:
                setattr(source, keyword, '')
    frames = np.ascontiguousarray(label.T[np.argsort(order)])
    identification = hd.AlgorithmIdentificationSequence(
        name=algorithm[:64] or 'jaxkd', family=codes.DCM.ArtificialIntelligence, version='1')
    segments = [_segment(hd, number, name, identification) for number, name in enumerate(labels[1:], 1)]
    with checks.reading(series):
        content = hd.seg.Segmentation(
            source_images=sources, pixel_array=frames, segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments, series_instance_uid=hd.UID(), series_number=9000, sop_instance_uid=hd.UID(),
            instance_number=1, manufacturer='jaxkd', manufacturer_model_name='jaxkd', software_versions='1',
            device_serial_number='1', omit_empty_frames=bool(frames.any()))
        out = io.BytesIO()
        content.save_as(out)
    files.write(path, out.getvalue())


def _segment(hd: Any, number: int, name: str, identification: Any) -> Any:
    """The description of a class: its name as free text, since codes of a data set's classes are not known."""
    from pydicom.sr.codedict import codes
    return hd.seg.SegmentDescription(
        segment_number=number, segment_label=name[:64], segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=codes.SCT.Tissue, algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=identification)


