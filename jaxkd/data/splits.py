"""Which case belongs to which part. Always by patient, written once, checked whenever it is used.

A split is a dict case id -> part ('train', 'val', 'test', or a name of your own in a file). Errors name
cases, never a patient; where patients must be compared between runs, short digests of their ids are.
"""
import hashlib
import json
import os
import types

from jaxkd import errors, files

NAMES = ('train', 'val', 'test')
FRACTIONS = types.MappingProxyType({'train': 0.7, 'val': 0.1, 'test': 0.2})


def of(cases, hp, workdir=None):
    """The split of a run. hp: fractions (train, val, test), seed, given, file.

    From hp.file if set; else from <workdir>/split.json if it exists; else drawn, and written there.
    Multi-host runs may all call this: each draws the same split.
    """
    if len(hp.fractions) != len(NAMES):
        raise errors.ConfigError(f'split.fractions = {tuple(hp.fractions)} must be three, for {NAMES}.')
    fractions = dict(zip(NAMES, hp.fractions))
    if hp.file:
        split = read(hp.file)
        check(cases, split, hp.file)
        if workdir:  # kept with the results
            write(os.path.join(workdir, 'split.json'), split, fractions, hp.seed)
        return split
    path = os.path.join(workdir, 'split.json') if workdir else ''
    if path and os.path.exists(path):
        split = read(path)
        check(cases, split, path)
        if split != make(cases, fractions, hp.seed, hp.given):
            raise errors.ConfigError(f'{path} was drawn with other settings than data.split now says. Choose '
                                     'another --workdir, restore the settings, or name the file in '
                                     'data.split.file.')
        return split
    split = make(cases, fractions, hp.seed, hp.given)
    if path:
        write(path, split, fractions, hp.seed)
    return split


def make(cases, fractions=FRACTIONS, seed=0, given=True):
    """Draw a split by patient: {case id: part}.

    Patients are put in the order of a hash of (seed, id) and cut at the cumulative fractions, so neither the
    order of cases nor a library's random generator matters. given=True keeps the parts that the archive gives
    (all cases of such a patient follow) and draws the rest; fractions count the patients that are drawn.
    """
    if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) < 0:
        raise errors.ConfigError(f'split fractions {dict(fractions)} must not be negative and must sum to 1.')
    part = archive(cases) if given else {}
    free = {case.patient for case in cases} - part.keys()
    free = sorted(free, key=lambda patient: (_sha(f'{seed}:{patient}'), patient))
    start = total = 0
    for name, fraction in fractions.items():
        total += fraction
        stop = round(total * len(free))
        part.update(dict.fromkeys(free[start:stop], name))
        start = stop
    for name, fraction in fractions.items():
        if fraction > 0 and name not in part.values():
            raise errors.BadData(f'The "{name}" part of the split is empty: {len(free)} patients are too '
                                 'few, or the given splits leave none to draw. Change split.fractions or set '
                                 'split.given=False.')
    return {case.id: part[case.patient] for case in cases}


def archive(cases):
    """{patient: part} as the archive gives it. BadData when a patient is in two parts."""
    first = {}
    for case in cases:
        if case.split:
            other = first.setdefault(case.patient, case)
            if other.split != case.split:
                raise _torn(other.id, other.split, case.id, case.split)
    return {patient: case.split for patient, case in first.items()}


def write(path, split, fractions, seed):
    """Write a split once. Writing the same again changes nothing; another one is refused with CannotWrite."""
    if os.path.exists(path):
        if read(path) != split:
            raise errors.CannotWrite(f'{path} holds another split, which earlier results rest on. Choose '
                                     'another path, or delete it if nothing rests on it.')
        return
    files.write_json(path, dict(fractions=dict(fractions), seed=seed, fingerprint=fingerprint(split),
                                split=dict(sorted(split.items()))))


def read(path):
    """{case id: part} from a file that `write` made, or from one by hand: {"split": {case id: part}}."""
    found = files.read_json(path, 'Split file')
    split = found.get('split') if isinstance(found, dict) else None
    if not isinstance(split, dict) or not split or not all(isinstance(v, str) and v for v in split.values()):
        raise errors.BadData(f'{path} is not a split file: it needs {{"split": {{case id: part}}}}.')
    if found.get('fingerprint', fingerprint(split)) != fingerprint(split):
        raise errors.BadData(f'{path} was changed after it was written. Restore it, or remove its '
                             '"fingerprint" if the change is meant.')
    return split


def fingerprint(split):
    """sha256 over all (case id, part), in no matter what order."""
    return _sha(json.dumps(sorted(split.items())))


def check(cases, split, path='The split'):
    """BadData unless the split covers exactly these cases and keeps each patient in one part."""
    here = {case.id for case in cases}
    for missing, what in ((here - split.keys(), 'of the source are not in it'), (split.keys() - here, 'in it '
                                                                                                      'are '
                                                                                                      'not '
                                                                                                      'in '
                                                                                'the source')):
        if missing:
            raise errors.BadData(f'{path} does not match the source: {len(missing)} cases {what} (first: '
                                 f'{min(missing)}). Restore the data or the options of the source, or draw a '
                                 'new split for a new run.')
    first = {}
    for case in cases:
        other = first.setdefault(case.patient, case)
        if split[other.id] != split[case.id]:
            raise _torn(other.id, split[other.id], case.id, split[case.id])


def patient_digests(cases, split, name):
    """Sorted short sha256 digests of the patients of one part, to be kept with the network trained on it."""
    return sorted({_sha(case.patient)[:16] for case in cases if split[case.id] == name})


def refuse_overlap(teacher_digests, cases, split, names=('val', 'test')):
    """BadData when a patient that a teacher was trained on is evaluated here."""
    seen = set(teacher_digests)
    held_out = [case for case in cases if split[case.id] in names]
    leaked = {case.patient: case.id for case in held_out if _sha(case.patient)[:16] in seen}
    if leaked:
        raise errors.BadData(f'The teacher was trained on {len(leaked)} patients that are in this run\'s '
                             f'{"/".join(names)} part (first case: {min(leaked.values())}). Train it on this '
                             'run\'s split (data.split.file), or choose another teacher.')


def _torn(a, part_a, b, part_b):
    return errors.BadData(f'Cases {a} ({part_a}) and {b} ({part_b}) belong to one patient, who must be in '
                          'one part of the split. Correct the split of one of them.')


def _sha(text):
    return hashlib.sha256(text.encode()).hexdigest()
