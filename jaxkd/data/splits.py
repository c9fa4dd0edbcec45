"""Which case belongs to which part. Always by patient, written once, checked whenever it is used.

A split is a dict case id -> part ('train', 'val', 'test', or a name of your own in a file). Errors name
cases, never a patient; where patients must be compared between runs, short digests of their ids are.
"""
import collections
import hashlib
import json
import math
import os
import pathlib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.source import Case
from jaxkd.runtime import files

NAMES = ('train', 'val', 'test')
FRACTIONS = types.MappingProxyType({'train': 0.7, 'val': 0.1, 'test': 0.2})


def of(cases: Sequence[Case], hp: ConfigDict, workdir: str | pathlib.Path | None = None) -> dict[str, str]:
    """The split of a run. hp: fractions (train, val, test), seed, given, file, stratify, folds, fold, leave_out.

    From hp.file if set; else from <workdir>/split.json if it exists; else drawn, and written there.
    Multi-host runs may all call this: each draws the same split.
    """
    if len(hp.fractions) != len(NAMES):
        raise errors.ConfigError(f'split.fractions = {tuple(hp.fractions)} must be three, for {NAMES}.')
    fractions = dict(zip(NAMES, hp.fractions))
    options: dict[str, Any] = dict(stratify=tuple(hp.stratify), folds=hp.folds, fold=hp.fold,
                                   leave_out=hp.leave_out, reserve=tuple(hp.reserve))
    if hp.file:
        if hp.folds or hp.leave_out:
            raise errors.ConfigError(f'data.split.file = {hp.file} already says which cases are tested, so folds and '
                                     'leave_out have nothing to draw. Unset the file or them.')
        split = read(hp.file)
        check(cases, split, hp.file)
        if workdir:  # kept with the results
            write(os.path.join(workdir, 'split.json'), split, fractions, hp.seed)
        return split
    path = os.path.join(workdir, 'split.json') if workdir else ''
    if path and os.path.exists(path):
        split = read(path)
        check(cases, split, path)
        if split != make(cases, fractions, hp.seed, hp.given, **options):
            raise errors.ConfigError(f'{path} was drawn with other settings than data.split now says. Choose another '
                                     '--workdir, restore the settings, or name the file in data.split.file.')
        return split
    split = make(cases, fractions, hp.seed, hp.given, **options)
    if path:
        write(path, split, fractions, hp.seed, options)
    return split


def make(cases: Sequence[Case], fractions: Mapping[str, float] = FRACTIONS, seed: int = 0, given: bool = True,
         stratify: Sequence[str] = (), folds: int = 0, fold: int = 0, leave_out: str = '',
         reserve: Sequence = ()) -> dict[str, str]:
    """Draw a split by patient: {case id: part}.

    Patients are put in the order of a hash of (seed, id) and cut at the cumulative fractions, so neither the
    order of cases nor a library's random generator matters. given=True keeps the parts that the archive gives
    (all cases of such a patient follow) and draws the rest; fractions count the patients that are drawn.

    stratify    names of Case.groups. A stratum is the patients whose first case (by id) has the same values of them;
                every part gets its fraction of every stratum to less than one patient, and of all patients likewise.
    folds=k     k-fold cross-validation: the test part is fold `fold`, 0 to k-1, of patients dealt evenly, also
                within each stratum. Over the k folds each patient is tested exactly once.
    leave_out   'center=A': the test part is every patient whose cases have groups['center'] == 'A'.

    reserve     ('clean', 0.1): afterwards that fraction of the training patients becomes a part of its own, also within
                each stratum; whatever drew the parts, the others stay as they are.

    With folds or leave_out the parts that the archive gives are ignored, whatever `given` says, and so is the test
    fraction: the patients who are not tested are divided in the ratio of the train and val fractions, which for
    every fold draws other validation patients. Raises ConfigError for options that contradict one another or
    the source, BadData for a part that would be empty or a patient who would be in two.
    """
    if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) < 0:
        raise errors.ConfigError(f'split fractions {dict(fractions)} must not be negative and must sum to 1.')
    _possible(folds, fold, leave_out)
    stratum = _strata(cases, stratify)
    if folds or leave_out:
        left = {name: fractions.get(name, 0.0) for name in ('train', 'val')}
        if not left['train']:
            raise errors.ConfigError('split.fractions leave nothing to train on: with folds or leave_out the patients '
                                     'who are not tested are divided by the train and val fractions.')
        drawn = {name: fraction / sum(left.values()) for name, fraction in left.items()}
        test = _group(cases, leave_out) if leave_out else _fold(stratum, seed, folds, fold)
        part = dict.fromkeys(test, 'test')
        salt = f'{seed}:{leave_out or fold}'
    else:
        drawn, part, salt = dict(fractions), archive(cases) if given else {}, f'{seed}'
    free = stratum.keys() - part.keys()
    if stratify:
        part |= _deal({p: stratum[p] for p in free}, drawn, salt)
    else:
        part |= _cut(free, drawn, salt)
    for name, fraction in drawn.items():
        if fraction > 0 and name not in part.values():
            remedy = ('are not tested. Change split.fractions, folds or leave_out.' if folds or leave_out else
                      'are too few, or the given splits leave none to draw. Change split.fractions or set '
                      'split.given=False.')
            raise errors.BadData(f'The "{name}" part of the split is empty: {len(free)} patients {remedy}')
    if reserve:
        name, fraction = _reservation(reserve)
        part |= _reserve({p: stratum[p] for p in stratum if part[p] == 'train'}, name, fraction, f'{salt}:{name}')
    return {case.id: part[case.patient] for case in cases}


def _reservation(reserve):
    name, fraction = reserve if len(reserve) == 2 else ('', 0)
    if not (isinstance(name, str) and name.isidentifier() and name not in NAMES and isinstance(fraction, float)
            and 0 < fraction < 1):
        raise errors.ConfigError(f'split.reserve = {tuple(reserve)} must name a part other than {", ".join(NAMES)} and '
                                 'a fraction of the training patients, as in ("clean", 0.1).')
    return name, fraction


def _reserve(stratum, name, fraction, salt):
    """{patient: name} of the fraction of these patients that is set aside. BadData when that is nobody or everybody."""
    dealt = _deal(stratum, {name: fraction, 'train': 1 - fraction}, salt)
    chosen = {p: name for p, part in dealt.items() if part == name}
    if not chosen or len(chosen) == len(stratum):
        raise errors.BadData(f'split.reserve: {fraction:g} of {len(stratum)} training patients is {len(chosen)}. '
                             'Change the fraction.')
    return chosen


def group_values(cases: Sequence[Case], name: str) -> dict[str, str]:
    """{patient: value of Case.groups[name]}, '' where cases do not say.

    ConfigError when no case has such a group, BadData when cases of one patient differ in it.
    """
    _known(cases, name, 'leave_out')
    first: dict[str, Case] = {}
    for case in cases:
        other = first.setdefault(case.patient, case)
        values = [c.groups.get(name, '') for c in (other, case)]
        if values[0] != values[1]:
            raise errors.BadData(f'Cases {other.id} ({name} "{values[0]}") and {case.id} ({name} "{values[1]}") belong '
                                 f'to one patient, who can be left out with one {name} only. Correct the group of one '
                                 'of them, or leave the patient out of the data.')
    return {patient: case.groups.get(name, '') for patient, case in first.items()}


def archive(cases: Sequence[Case]) -> dict[str, str]:
    """{patient: part} as the archive gives it. BadData when a patient is in two parts."""
    first: dict[str, Case] = {}
    for case in cases:
        if case.split:
            other = first.setdefault(case.patient, case)
            if other.split != case.split:
                raise _torn(other.id, other.split, case.id, case.split)
    return {patient: case.split for patient, case in first.items()}


def write(path: str | pathlib.Path, split: dict[str, str], fractions: Mapping[str, float], seed: int,
          options: Mapping[str, Any] | None = None) -> None:
    """Write a split once. Writing the same again changes nothing; another one is refused with CannotWrite.

    options: further options that it was drawn with, kept for the reader of the file.
    """
    if os.path.exists(path):
        if read(path) != split:
            raise errors.CannotWrite(f'{path} holds another split, which earlier results rest on. Choose '
                                     'another path, or delete it if nothing rests on it.')
        return
    files.write_json(path, dict(fractions=dict(fractions), seed=seed, **(options or {}), fingerprint=fingerprint(split),
                                split=dict(sorted(split.items()))))


def read(path: str | pathlib.Path) -> dict[str, str]:
    """{case id: part} from a file that `write` made, or from one by hand: {"split": {case id: part}}."""
    found = files.read_json(path, 'Split file')
    split = found.get('split') if isinstance(found, dict) else None
    if not isinstance(split, dict) or not split or not all(isinstance(v, str) and v for v in split.values()):
        raise errors.BadData(f'{path} is not a split file: it needs {{"split": {{case id: part}}}}.')
    if found.get('fingerprint', fingerprint(split)) != fingerprint(split):
        raise errors.BadData(f'{path} was changed after it was written. Restore it, or remove its '
                             '"fingerprint" if the change is meant.')
    return split


def fingerprint(split: Mapping[str, str]) -> str:
    """sha256 over all (case id, part), in no matter what order."""
    return _sha(json.dumps(sorted(split.items())))


def check(cases: Sequence[Case], split: Mapping[str, str], path: str | pathlib.Path = 'The split') -> None:
    """BadData unless the split covers exactly these cases and keeps each patient in one part."""
    ids = {case.id for case in cases}
    for missing, what in ((ids - split.keys(), 'of the source are not in it'),
                          (split.keys() - ids, 'in it are not in the source')):
        if missing:
            raise errors.BadData(f'{path} does not match the source: {len(missing)} cases {what} (first: '
                                 f'{min(missing)}). Restore the data or the options of the source, or draw a '
                                 'new split for a new run.')
    first: dict[str, Case] = {}
    for case in cases:
        other = first.setdefault(case.patient, case)
        if split[other.id] != split[case.id]:
            raise _torn(other.id, split[other.id], case.id, split[case.id])


def parts(role: str) -> tuple[str, ...]:
    """('train', 'clean') of 'train+clean': a role may be played by several parts together."""
    return tuple(role.split('+'))


def share(patient: str, shares: int, seed: int = 0) -> int:
    """Which of so many shares of patients one is in, by a hash of (seed, id): 0 to shares - 1."""
    return int(_sha(f'{seed}:share:{patient}')[:16], 16) % shares


def patient_digests(cases: Iterable[Case]) -> list[str]:
    """Sorted short sha256 digests of the patients of these cases, to be kept with the network trained on them."""
    return sorted({_sha(case.patient)[:16] for case in cases})


def refuse_overlap(teacher_digests: Iterable[str], cases: Sequence[Case], split: Mapping[str, str],
                   names: Sequence[str] = ('val', 'test')) -> None:
    """BadData when a patient that a teacher was trained on is evaluated here."""
    seen = set(teacher_digests)
    held_out = [case for case in cases if split[case.id] in {part for name in names for part in parts(name)}]
    leaked = {case.patient: case.id for case in held_out if _sha(case.patient)[:16] in seen}
    if leaked:
        raise errors.BadData(f'The teacher was trained on {len(leaked)} patients that are in this run\'s '
                             f'{"/".join(names)} part (first case: {min(leaked.values())}). Train it on this '
                             'run\'s split (data.split.file), or choose another teacher.')


def _possible(folds, fold, leave_out):
    if folds and leave_out:
        raise errors.ConfigError(f'data.split asks for {folds} folds and for leave_out = "{leave_out}". Set one of '
                                 'them.')
    if folds < 0 or folds == 1 or not 0 <= fold < max(folds, 1):
        raise errors.ConfigError(f'data.split: fold {fold} of {folds} folds is not possible. Set folds to 2 or more '
                                 'and fold to 0 ... folds-1, or both to 0 for no cross-validation.')


def _known(cases, name, option):
    known = sorted({key for case in cases for key in case.groups})
    if name not in known:
        there = errors.nearest(name, known) if known else ' It has no groups at all.'
        there += f' Known: {", ".join(known)}.' if there.endswith('?') else ''
        raise errors.ConfigError(f'data.split.{option}: cases of this source have no group "{name}".{there}')


def _strata(cases, names):
    """{patient: the values of these groups in the patient's first case}."""
    for name in names:
        _known(cases, name, 'stratify')
    first: dict[str, Case] = {}
    for case in cases:
        if case.patient not in first or case.id < first[case.patient].id:
            first[case.patient] = case
    return {patient: tuple(str(case.groups.get(name, '')) for name in names) for patient, case in first.items()}


def _shuffled(names, salt):
    return sorted(names, key=lambda name: (_sha(f'{salt}:{name}'), name))


def _by_stratum(stratum, salt):
    """Lists of the shuffled patients of each stratum, the strata shuffled too: none is always dealt first."""
    members = collections.defaultdict(list)
    for patient in _shuffled(stratum, salt):
        members[stratum[patient]].append(patient)
    return [members[key] for key in sorted(members, key=lambda key: _sha(f'{salt}:{json.dumps(key)}'))]


def _cut(patients, fractions, salt):
    """{patient: part}: all patients in one order, cut at the cumulative fractions."""
    order, part, start, total = _shuffled(patients, salt), {}, 0, 0
    for name, fraction in fractions.items():
        total += fraction
        stop = round(total * len(order))
        part.update(dict.fromkeys(order[start:stop], name))
        start = stop
    return part


def _deal(stratum, fractions, salt):
    """{patient: part}, each stratum divided for itself.

    A part gets the whole number of patients below its fraction of a stratum; those left over go to the parts that
    so far have received least of what is due to them. So a part is never one patient or more away from
    its fraction, neither of a stratum nor of all patients [our choice].
    """
    part: dict[str, str] = {}
    due = dict.fromkeys(fractions, 0.0)
    for patients in _by_stratum(stratum, salt):
        exact = {name: fraction * len(patients) for name, fraction in fractions.items()}
        count = {name: math.floor(x + 1e-9) for name, x in exact.items()}
        for name in due:
            due[name] += exact[name] - count[name]
        broken = [name for name in fractions if exact[name] - count[name] > 1e-9]
        left = len(patients) - sum(count.values())
        for name in sorted(broken, key=lambda name: -round(due[name], 9))[:left]:
            count[name] += 1
            due[name] -= 1
        order = iter(patients)
        for name in fractions:
            part.update((next(order), name) for _ in range(count[name]))
    return part


def _fold(stratum, seed, folds, fold):
    """The patients of one fold: all are dealt in turn, one stratum after the other."""
    order = [patient for patients in _by_stratum(stratum, f'{seed}') for patient in patients]
    if len(order) < folds:
        raise errors.BadData(f'{len(order)} patients are too few for {folds} folds. Set split.folds to at most that.')
    return order[fold::folds]


def _group(cases, leave_out):
    """The patients of the group that 'name=value' names."""
    name, equals, value = leave_out.partition('=')
    if not (name and equals and value):
        raise errors.ConfigError(f'data.split.leave_out = "{leave_out}" must name a group and its value, as in '
                                 '"center=A".')
    found = group_values(cases, name)
    if value not in found.values():
        raise errors.ConfigError(f'data.split.leave_out: no case has the {name} "{value}".'
                                 f'{errors.nearest(value, set(found.values()) - {""})}')
    return [patient for patient, of in found.items() if of == value]


def _torn(a, part_a, b, part_b):
    return errors.BadData(f'Cases {a} ({part_a}) and {b} ({part_b}) belong to one patient, who must be in '
                          'one part of the split. Correct the split of one of them.')


def _sha(text):
    return hashlib.sha256(text.encode()).hexdigest()
