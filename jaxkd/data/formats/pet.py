"""Standardised uptake values (SUV) by body weight of PET in DICOM.

    SUV [g/ml] = activity [Bq/ml] * weight [g] / dose [Bq]

DecayCorrection START: voxels count at the start of the scan, and so does the dose: dose * 2^(-t / half-life), t from
the injection to SeriesTime, or to the first AcquisitionTime where that is earlier, as in a series that was made later
[published: the vendor-neutral procedure of QIBA]. ADMIN: voxels count at the injection, and the dose as it was then.
An injection after the scan is one of the day before where only its time is given. More than ten half-lives count as a
wrong time [our choice]. Units GML are SUV already, unless SUVType says that they are not by body weight.
"""
import datetime
import re
from collections.abc import Sequence
from typing import Any

from jaxkd import errors
from jaxkd.data.formats import checks

UNITS = ('', 'suv')  # as stored, or SUV by body weight
SCAN_TAGS = ('Units', 'SUVType', 'DecayCorrection', 'PatientWeight', 'SeriesDate', 'SeriesTime',
             'TimezoneOffsetFromUTC')
ACQUISITION_TAGS = ('AcquisitionDate', 'AcquisitionTime')
_DOSES = 'RadiopharmaceuticalInformationSequence'
TAGS = (*SCAN_TAGS, *ACQUISITION_TAGS, _DOSES)
_DOSE_TAGS = ('RadionuclideTotalDose', 'RadionuclideHalfLife', 'RadiopharmaceuticalStartTime',
              'RadiopharmaceuticalStartDateTime')
_LIMITS = {'PatientWeight': (1, 500), 'RadionuclideTotalDose': (1e5, 1e11), 'RadionuclideHalfLife': (60, 1e7)}
_MEANT = {'PatientWeight': 'kg', 'RadionuclideTotalDose': 'Bq', 'RadionuclideHalfLife': 's'}
_HALF_LIVES = 10
_DAY = datetime.timedelta(days=1)
_TIME = re.compile(r'([01]\d|2[0-3]):?([0-5]\d):?(\d\d(?:\.\d{1,6})?)?')


def facts(dataset: Any) -> dict[str, str]:
    """{tag: text, '' where it is absent} of one slice, for `suv_factor`."""
    doses = dataset.get('RadiopharmaceuticalInformationSequence') or [{}]
    return {**{key: _text(dataset, key) for key in (*SCAN_TAGS, *ACQUISITION_TAGS)},
            **{key: _text(doses[0], key) for key in _DOSE_TAGS}, _DOSES: f'{len(doses)} items'}


def suv_factor(slices: Sequence[dict[str, str]], path: str) -> float:
    """What turns the values of a series into SUV by body weight. BadData names the tag that is missing or wrong.

    slices: `facts` of each.
    """
    first = slices[0]
    for key in first:
        if key not in ACQUISITION_TAGS and any(other[key] != first[key] for other in slices):
            raise _bad(path, f'{key} differs between its slices')
    if first['Units'] == 'GML' and first['SUVType'] in ('', 'BW'):
        return 1.0
    for key, choices in (('Units', ('BQML',)), (_DOSES, ('1 items',)), ('DecayCorrection', ('START', 'ADMIN'))):
        if first[key] not in choices:
            raise _bad(path, f'{key} is "{first[key][:32]}", not {" or ".join(choices)}' if first['Units'] != 'GML' else
                       f'SUVType is "{first["SUVType"][:32]}", not BW')
    weight, dose = (_number(first, key, path) for key in ('PatientWeight', 'RadionuclideTotalDose'))
    if first['DecayCorrection'] == 'START':
        half_life = _number(first, 'RadionuclideHalfLife', path)
        dose *= 2 ** -(_uptake(slices, half_life, path) / half_life)
    return 1000 * weight / dose


def _uptake(slices: Sequence[dict[str, str]], half_life: float, path: str) -> float:
    """Seconds from the injection to the time that the voxels count at."""
    first = slices[0]
    day = first['SeriesDate'] or first['AcquisitionDate'] or '20000101'
    starts = [_moment(day, first['SeriesTime'], 'SeriesTime', path)] if first['SeriesTime'] else []
    starts += [_moment(s['AcquisitionDate'] or day, s['AcquisitionTime'], 'AcquisitionTime', path) for s in slices
               if s['AcquisitionTime']]
    if not starts:
        raise _bad(path, 'SeriesTime and AcquisitionTime are missing')
    key = 'RadiopharmaceuticalStartDateTime'
    if text := first[key]:
        match = re.fullmatch(r'(\d{8})(\d{4}(?:\d\d(?:\.\d{1,6})?)?)([+-]\d{4})?', text)
        if not match:
            raise _bad(path, f'{key} is "{text[:32]}", no date and time')
        uptake = min(starts) - _moment(match[1], match[2], key, path)
        if match[3] and first['TimezoneOffsetFromUTC']:
            uptake += _offset(match[3]) - _offset(first['TimezoneOffsetFromUTC'])
    else:
        key = 'RadiopharmaceuticalStartTime'
        uptake = min(starts) - _moment(f'{min(starts):%Y%m%d}', first[key], key, path)
        uptake += _DAY if uptake < datetime.timedelta(0) else datetime.timedelta(0)
    seconds = uptake.total_seconds()
    if not 0 <= seconds <= _HALF_LIVES * half_life:
        raise _bad(path, f'{key} is "{first[key][:32]}", {seconds / 60:,.0f} minutes before the scan began, which is '
                         f'not between 0 and {_HALF_LIVES} half-lives')
    return seconds


def _moment(date: str, time: str, key: str, path: str) -> datetime.datetime:
    day, clock = re.fullmatch(r'(\d{4})\.?(\d\d)\.?(\d\d)', date), _TIME.fullmatch(time)
    try:
        if day and clock:
            return datetime.datetime(*map(int, day.groups())) + datetime.timedelta(  # type: ignore[arg-type]
                hours=int(clock[1]), minutes=int(clock[2]), seconds=float(clock[3] or 0))
    except ValueError:
        pass
    raise _bad(path, f'{key} is "{time[:32]}" of the day "{date[:16]}"' if time else f'{key} is missing')


def _offset(text: str) -> datetime.timedelta:
    hours = int(text[:-2] or 0)
    return datetime.timedelta(hours=hours, minutes=int(text[-2:]) * (-1 if text.startswith('-') else 1))


def _number(slice_facts: dict[str, str], key: str, path: str) -> float:
    text, (low, high) = slice_facts[key], _LIMITS[key]
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not low <= value <= high:  # also nan
        raise _bad(path, f'{key} is missing' if not text else
                   f'{key} is {text[:32]}, not {low:g} to {high:g} {_MEANT[key]}')
    return value


def _text(dataset: Any, key: str) -> str:
    value = dataset.get(key)
    return '' if value is None else str(value).strip()


def _bad(path: str, problem: str) -> errors.BadData:
    return checks.bad(path, f'SUV cannot be computed: {problem}',
                      'Complete its header, or set data.source.pet_units="" for values as they are stored')
