"""Splits of cases into parts: by patient, written once, checked at every use.

A split is a dict case id -> part ('train', 'val', 'test', or any name in a file). Errors name cases, never a patient;
between runs, patients are compared by short digests of their ids.
"""
import collections
import hashlib
import json
import math
import os
import pathlib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.source import Case
from jaxkd.runtime import files

NAMES = ('train', 'val', 'test')
FRACTIONS = types.MappingProxyType({'train': 0.7, 'val': 0.1, 'test': 0.2})

Strata = dict[str, tuple[str, ...]]  # patient -> values of the groups of a stratum


def load_or_draw(cases: Sequence[Case], hp: ConfigDict, workdir: str | pathlib.Path | None = None) -> dict[str, str]:
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
    split = make(cases, fractions, hp.seed, hp.given, **options)
    path = os.path.join(workdir, 'split.json') if workdir else ''
    if path and os.path.exists(path):
        stored = read(path)
        check(cases, stored, path)
        if stored != split:
            raise errors.ConfigError(f'{path} was drawn with other settings than data.split now has. Choose another '
                                     '--workdir, restore the settings, or name the file in data.split.file.')
    elif path:
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
    _check_folds(folds, fold, leave_out)
    stratum = _strata(cases, stratify)
    if folds or leave_out:
        remaining = {name: fractions.get(name, 0.0) for name in ('train', 'val')}
        if not remaining['train']:
            raise errors.ConfigError('split.fractions leave nothing to train on: with folds or leave_out the patients '
                                     'who are not tested are divided by the train and val fractions.')
        drawn = {name: fraction / sum(remaining.values()) for name, fraction in remaining.items()}
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


def _reservation(reserve: Sequence) -> tuple[str, float]:
    name, fraction = reserve if len(reserve) == 2 else ('', 0)
    if not (isinstance(name, str) and name.isidentifier() and name not in NAMES and isinstance(fraction, float)
            and 0 < fraction < 1):
        raise errors.ConfigError(f'split.reserve = {tuple(reserve)} must name a part other than {", ".join(NAMES)} and '
                                 'a fraction of the training patients, as in ("clean", 0.1).')
    return name, fraction


def _reserve(stratum: Strata, name: str, fraction: float, salt: str) -> dict[str, str]:
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
    _check_group(cases, name, 'leave_out')
    values: dict[str, str] = {}
    for first, case in _with_first(cases):
        value = values.setdefault(case.patient, first.groups.get(name, ''))
        if value != case.groups.get(name, ''):
            raise errors.BadData(f'Cases {first.id} ({name} "{value}") and {case.id} ({name} '
                                 f'"{case.groups.get(name, "")}") belong to one patient, who can be left out with one '
                                 f'{name} only. Correct the group of one of them, or exclude the patient.')
    return values


def archive(cases: Sequence[Case]) -> dict[str, str]:
    """{patient: part} as the archive gives it. BadData when a patient is in two parts."""
    first: dict[str, Case] = {}
    for case in cases:  # one pass: a table may have a million rows
        if case.split and (other := first.setdefault(case.patient, case)).split != case.split:
            raise _torn_patient(other.id, other.split, case.id, case.split)
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


def write_labelled(workdir: str | pathlib.Path, choice: str, cases: Sequence[str]) -> None:
    """Add the ids of cases whose labels training and selection may use to split.json: {'labelled': {choice: [id]}}.

    ConfigError where other cases stand there for that choice, such as 'share=0.05'.
    """
    path = os.path.join(workdir, 'split.json')
    content = files.read_json(path, 'Split file')
    labelled = content.get('labelled', {})
    if (stored := labelled.get(choice, sorted(cases))) != sorted(cases):
        changed = min({*stored} ^ {*cases})
        raise errors.ConfigError(f'{path}: with {choice} other cases had labels when it was written (first that '
                                 f'differs: {changed}). The labels of the source changed, or data.labels.stratify. '
                                 'Restore them, or choose another --workdir.')
    if choice not in labelled:
        files.write_json(path, content | dict(labelled=labelled | {choice: sorted(cases)}))


def read(path: str | pathlib.Path) -> dict[str, str]:
    """{case id: part} from a file that `write` made, or from one by hand: {"split": {case id: part}}."""
    content = files.read_json(path, 'Split file')
    split = content.get('split') if isinstance(content, dict) else None
    if not isinstance(split, dict) or not split or not all(isinstance(v, str) and v for v in split.values()):
        raise errors.BadData(f'{path} is not a split file: it needs {{"split": {{case id: part}}}}.')
    if content.get('fingerprint', fingerprint(split)) != fingerprint(split):
        raise errors.BadData(f'{path} was changed after it was written. Restore it, or remove its '
                             '"fingerprint" if the change is meant.')
    return split


def fingerprint(split: Mapping[str, str]) -> str:
    """sha256 over all (case id, part), in no matter what order."""
    return _sha(json.dumps(sorted(split.items())))


def check(cases: Sequence[Case], split: Mapping[str, str], path: str | pathlib.Path = 'The split') -> None:
    """BadData unless the split covers exactly these cases and keeps each patient in one part."""
    ids = {case.id for case in cases}
    for missing, problem in ((ids - split.keys(), 'of the source are not in it'),
                          (split.keys() - ids, 'in it are not in the source')):
        if missing:
            raise errors.BadData(f'{path} does not match the source: {len(missing)} cases {problem} (first: '
                                 f'{min(missing)}). Restore the data or the options of the source, or draw a '
                                 'new split for a new run.')
    _check_patients(cases, split)


def parts(role: str) -> tuple[str, ...]:
    """('train', 'clean') of 'train+clean': a role may be played by several parts together."""
    return tuple(role.split('+'))


def fold_of(patient: str, n_folds: int, seed: int = 0) -> int:
    """The fold of a patient, 0 to n_folds - 1, by a hash of (seed, id)."""
    return int(_sha(f'{seed}:share:{patient}')[:16], 16) % n_folds


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


def _check_folds(folds: int, fold: int, leave_out: str) -> None:
    if folds and leave_out:
        raise errors.ConfigError(f'data.split asks for {folds} folds and for leave_out = "{leave_out}". Set one of '
                                 'them.')
    if folds < 0 or folds == 1 or not 0 <= fold < max(folds, 1):
        raise errors.ConfigError(f'data.split: fold {fold} of {folds} folds is not possible. Set folds to 2 or more '
                                 'and fold to 0 ... folds-1, or both to 0 for no cross-validation.')


def _check_group(cases: Sequence[Case], name: str, option: str) -> None:
    """ConfigError where no case has such a group."""
    names = sorted({key for case in cases for key in case.groups})
    if name not in names:
        suggestion = errors.nearest(name, names) if names else ' It has no groups at all.'
        suggestion += f' Known: {", ".join(names)}.' if suggestion.endswith('?') else ''
        raise errors.ConfigError(f'data.split.{option}: cases of this source have no group "{name}".{suggestion}')


def _strata(cases: Sequence[Case], names: Sequence[str]) -> Strata:
    """{patient: the values of these groups in the patient's first case}."""
    for name in names:
        _check_group(cases, name, 'stratify')
    first: dict[str, Case] = {}
    for case in cases:
        if case.patient not in first or case.id < first[case.patient].id:
            first[case.patient] = case
    return {patient: tuple(str(case.groups.get(name, '')) for name in names) for patient, case in first.items()}


def _shuffled(names: Iterable[str], salt: str) -> list[str]:
    return sorted(names, key=lambda name: (_sha(f'{salt}:{name}'), name))


def _by_stratum(stratum: Strata, salt: str) -> list[list[str]]:
    """Lists of the shuffled patients of each stratum, the strata shuffled too: none is always dealt first."""
    members = collections.defaultdict(list)
    for patient in _shuffled(stratum, salt):
        members[stratum[patient]].append(patient)
    return [members[key] for key in sorted(members, key=lambda key: _sha(f'{salt}:{json.dumps(key)}'))]


def _cut(patients: Iterable[str], fractions: Mapping[str, float], salt: str) -> dict[str, str]:
    """{patient: part}: all patients in one order, cut at the cumulative fractions."""
    order, start, total = _shuffled(patients, salt), 0, 0.0
    part: dict[str, str] = {}
    for name, fraction in fractions.items():
        total += fraction
        stop = round(total * len(order))
        part.update(dict.fromkeys(order[start:stop], name))
        start = stop
    return part


def _deal(stratum: Strata, fractions: Mapping[str, float], salt: str) -> dict[str, str]:
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
        remaining = len(patients) - sum(count.values())
        for name in sorted(broken, key=lambda name: -round(due[name], 9))[:remaining]:
            count[name] += 1
            due[name] -= 1
        order = iter(patients)
        for name in fractions:
            part.update((next(order), name) for _ in range(count[name]))
    return part


def _fold(stratum: Strata, seed: int, folds: int, fold: int) -> list[str]:
    """The patients of one fold: all are dealt in turn, one stratum after the other."""
    order = [patient for patients in _by_stratum(stratum, f'{seed}') for patient in patients]
    if len(order) < folds:
        raise errors.BadData(f'{len(order)} patients are too few for {folds} folds. Set split.folds to at most that.')
    return order[fold::folds]


def _group(cases: Sequence[Case], leave_out: str) -> list[str]:
    """The patients of the group that 'name=value' names."""
    name, equals, value = leave_out.partition('=')
    if not (name and equals and value):
        raise errors.ConfigError(f'data.split.leave_out = "{leave_out}" must name a group and its value, as in '
                                 '"center=A".')
    values = group_values(cases, name)
    if value not in values.values():
        raise errors.ConfigError(f'data.split.leave_out: no case has the {name} "{value}".'
                                 f'{errors.nearest(value, {*values.values()} - {""})}')
    return [patient for patient, group in values.items() if group == value]


def _with_first(cases: Iterable[Case]) -> Iterator[tuple[Case, Case]]:
    """Yields (the first case of its patient, the case)."""
    first: dict[str, Case] = {}
    for case in cases:
        yield first.setdefault(case.patient, case), case


def _check_patients(cases: Iterable[Case], split: Mapping[str, str]) -> None:
    """BadData where a patient is in two parts."""
    for first, case in _with_first(cases):
        if split[first.id] != split[case.id]:
            raise _torn_patient(first.id, split[first.id], case.id, split[case.id])


def _torn_patient(case: str, part: str, other_case: str, other_part: str) -> errors.BadData:
    return errors.BadData(f'Cases {case} ({part}) and {other_case} ({other_part}) belong to one patient, who must be '
                          'in one part of the split. Correct the split of one of them.')


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
