"""Trained networks that a stage starts from: its teachers, and its own initial weights.

They come from an earlier stage of the run or from another run. Before they are used it is checked that they did not see
the patients that this stage is evaluated on, and that they read and predict what this data holds.
"""
import hashlib
import json
import pathlib

import jax
import numpy as np

from jaxkd import checkpoint, config, errors, parallel
from jaxkd.data import dataset, splits
from jaxkd.data.transform import file_digests
from jaxkd.inference import predictor
from jaxkd.runtime import files, log, trees


def stage_metadata(run, origin, workdir, dry):
    """(stage.json, folder of the checkpoints) of a teacher or of initial weights. A path goes before a stage."""
    folder = pathlib.Path(origin.path) if origin.path else workdir / 'checkpoints' / origin.stage
    if dry and not origin.path:
        return dict(config=run[origin.stage].to_dict(), data={}, labels=(), assets={}, trained_on=()), folder
    if not (folder / 'stage.json').exists():
        raise errors.MissingInput(f'No trained stage at {folder}. ' + (
            'Give a folder that holds stage.json.' if origin.path else f'List stage "{origin.stage}" before, in stages.'))
    return checkpoint.stage_metadata(folder), folder


def check_compatible(who, about, data, frozen):
    """What this stage learns from must not have seen its evaluation, must predict the same, and, frozen, read the same."""
    splits.refuse_overlap(about['trained_on'], data.source.cases, data.split, (data.hp.val, data.hp.test))
    if tuple(about['labels'] or data.source.labels) != tuple(data.source.labels):
        raise errors.ConfigError(f'{who} was trained for {", ".join(about["labels"])}; this data has '
                                 f'{", ".join(data.source.labels)}. Use the same labels in the same order.')
    for transform in data.hp.transforms if frozen else ():
        short = transform.rpartition('.')[2]
        now, then = data.hp[short].to_dict(), about['data'].get(short)
        if then is None or now.get('out', short) not in about['config']['inputs']:
            continue
        then = config.tuples(then)
        if digest := about.get('reads', {}).get(short):  # its file may lie elsewhere, what is in it counts
            then['file'], now['file'] = (f'a file of digest {d[:12]}' for d in (digest, file_digests(data.hp)[short]))
        keys = [k for k in sorted({*now, *then}) if now.get(k) != then.get(k)]
        if keys:
            raise errors.ConfigError(f'{who} was trained with data.{short}.{keys[0]} = {then.get(keys[0])!r}; here it is '
                                     f'{now.get(keys[0])!r}. It would read what it never learned to read: use the same.')


def cached_outputs(network, variables, data, batch, names, workdir, origin, rows=None):
    """What a frozen teacher says of training cases, {name: [cases,...]}: computed once, kept on disk under a name of all that matters.

    rows: indices of the cases it is asked about (None: all of the training part); elsewhere there are zeros. A teacher that
    reads nothing but what a study has once, such as its report, is asked once for each study, and known by what it reads:
    another word, vocabulary or order of the cases is another name. Of other teachers data, split and config count.
    """
    cases, rows = data.source.cases, data.part('train') if rows is None else rows
    shared = set(network.inputs) <= data.transforms.study_level_keys
    if shared:
        data = data.told()
        data.fill()
    studies = {}
    for i in rows:
        studies.setdefault((cases[i].patient, cases[i].study) if shared and cases[i].study else i, []).append(i)
    asked = [of[0] for of in studies.values()]
    reads = _read(network, data, asked) if shared else dataset.digest(data)
    key = json.dumps([origin['digest'], reads, [cases[i].id for i in asked], list(names), str(network)])
    path = workdir / 'teacher_outputs' / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz'
    if parallel.all_hosts_agree(path.exists()):
        try:
            with np.load(path, allow_pickle=False) as stored:
                kept = {k: stored[k] for k in (*names, 'of')}
        except (OSError, ValueError, KeyError) as e:
            raise errors.Damaged(f'Cached teacher outputs {path} cannot be read ({e}). Delete the file.') from e
    else:
        found = predictor.Predictor(network, data, batch, variables)('train', names, 'asking the teacher', keep=asked)
        kept = {**{k: found.outputs[k] for k in names}, 'of': np.searchsorted(asked, found.index)}  # rows of `asked`
        if parallel.process()[0] == 0:
            files.write_npz(path, kept)
    same = list(studies.values())
    place = [(row, i) for row, study in enumerate(kept['of'].tolist()) for i in same[study]]
    where, at = np.array(place, int).reshape(-1, 2).T
    out = {}
    for k in names:
        out[k] = np.zeros((len(cases), *kept[k].shape[1:]), kept[k].dtype)
        out[k][at] = kept[k][where]
    return out


def out_of_fold_outputs(network, variables, data, batch, names, workdir, origin):
    """As `outputs`, but each training case is told of by that network of its stage's folds that never saw the patient.

    Adds to origin the digest of each of them. Raises MissingInput where one is not trained, ConfigError where its share of
    the patients is not what this data would hold out.
    """
    if not origin['folds']:
        raise errors.ConfigError(f'out_of_fold: the stage in {origin["folder"]} was trained without folds. Set its folds, or unset it.')
    out, digests = None, []
    for j in range(origin['folds']):
        folder = pathlib.Path(f'{origin["folder"]}_fold{j}')
        about = checkpoint.stage_metadata(folder)
        then = config.tuples(about['data'])
        if then['holdout_fold'] != (j, origin['folds']) or then['split']['seed'] != data.hp.split.seed:
            raise errors.ConfigError(f'{folder} left out another share of the patients than data.split.seed = {data.hp.split.seed} '
                                     'gives here. Use the split that it was trained with.')
        own, _ = checkpoint.load_student(folder, variables, origin['which'])
        digests.append(checkpoint.digest(own))
        rows = data.held_out(j, origin['folds'])
        found = cached_outputs(network, own, data, batch, names, workdir, {'digest': digests[-1]}, rows)
        out = found if out is None else out
        for k in names:
            out[k][rows] = found[k][rows]
    origin['digest'] = hashlib.sha256(''.join([origin['digest'], *digests]).encode()).hexdigest()
    return out


def _read(network, data, rows):
    """A digest of what a network is handed of these cases."""
    seen = hashlib.sha256()
    for i in log.progress(rows, 'reading what the teacher reads', len(rows)):
        for path, a in jax.tree_util.tree_leaves_with_path(network.only(data.record(i))):
            seen.update(f'{trees.leaf_name(path)} {a.dtype} {a.shape}'.encode() + np.ascontiguousarray(a).tobytes())
    return seen.hexdigest()


def shuffle_within_label(found, data, seed, who):
    """Outputs {name: [cases,...]} with those of training cases permuted among cases of equal label, a control.

    A case gets what was said of one of another patient wherever less than half of the cases with its label are of one
    patient; how many keep their own is said. Labels are whole: all C of a case at once.
    """
    part, cases, groups, told = data.part('train'), data.source.cases, {}, data.told()
    for i in part:
        label = np.asarray(told.record(i)['label'])
        if label.ndim > 1:
            raise errors.ConfigError(f'{who}.shuffled: cases have a label for each place, of which no two are equal. Unset it.')
        groups.setdefault(label.tobytes(), {}).setdefault(cases[i].patient, []).append(i)
    rng, order, own = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, 5)))), np.arange(len(cases)), 0
    for key in sorted(groups):
        patients = list(groups[key].values())
        members = np.array([i for p in rng.permutation(len(patients)) for i in patients[p]])
        order[members] = np.roll(members, -max(map(len, patients)))  # beyond the patient's own
        own += sum(cases[i].patient == cases[order[i]].patient for i in members)
    log.info(f'{who}: outputs of {len(part) - own} of {len(part)} training cases come from another patient with equal labels')
    return {k: v[order] for k, v in found.items()}
