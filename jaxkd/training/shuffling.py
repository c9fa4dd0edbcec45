"""A control: a teacher tells a case of another patient. What a student gains from it is not knowledge of its cases.

Outputs that are computed once are permuted among the training cases (`permuted`). A teacher that runs in every step
reads the inputs that the student lacks, or all where it lacks none, from another case of the batch (`exchanged`): that
of SIKD sees an image averaged over the shapes of another patient.

Cases of equal label are exchanged, whose outputs differ in what the label does not tell. Where labels are hidden that
would tell them, and labels of places are never equal: there all cases count as equal, though a case with labels of
places is given one that has them, too.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from jaxkd import errors, parallel
from jaxkd.data import dataset
from jaxkd.runtime import log


def check_batch(key: str, batch: int, accumulate: int) -> None:
    """ConfigError where a step sees one case alone, which would be its own partner. key: 'stage.method.shuffled'."""
    if batch < 2 * accumulate:
        stage = key.partition('.')[0]
        less = f' or lower {stage}.optim.accumulate = {accumulate}' if accumulate > 1 else ''
        raise errors.ConfigError(f'{key}: it reads from another case of the batch, which needs two. Raise '
                                 f'{stage}.batch = {batch}{less}.')


def by_label(data: dataset.Dataset, dense: bool) -> bool:
    """Whether cases of equal label are exchanged: not where labels are hidden or, `dense`, of places."""
    return not dense and data.label_mask is None


def label_groups(data: dataset.Dataset, dense: bool) -> Int[np.ndarray, ' cases']:
    """Equal numbers for training cases that are exchanged among each other; 0 for the rest. dense: labels of places."""
    groups, numbers = np.zeros(len(data.source.cases), np.int32), dict[bytes, int]()
    if not by_label(data, dense):
        return data.label_mask.hidden.astype(np.int32) if dense and data.label_mask is not None else groups
    for i in data.partition.indices('train'):
        label = np.asarray(data.text_only.prepared(i)['label']).tobytes()
        groups[i] = numbers.setdefault(label, len(numbers))
    return groups


def patient_numbers(data: dataset.Dataset) -> Int[np.ndarray, ' cases']:
    """Equal numbers for cases of a patient."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(case.patient, len(numbers)) for case in data.source.cases], np.int32)


def permuted(outputs: dict[str, np.ndarray], data: dataset.Dataset, seed: int, label: str,
             dense: bool = False) -> dict[str, np.ndarray]:
    """Outputs {name: [cases,...]} with those of training cases permuted among cases of a group.

    A case gets the output of another patient's case if no patient has half or more of the cases of its group; the
    number of these cases is logged.
    """
    part, cases, group = data.partition.indices('train'), data.source.cases, label_groups(data, dense)
    groups: dict[int, dict[str, list[int]]] = {}
    for i in part:
        groups.setdefault(int(group[i]), {}).setdefault(cases[i].patient, []).append(i)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, 5))))
    order, unmoved = np.arange(len(cases)), 0
    for key in sorted(groups):
        patients = list(groups[key].values())
        members = np.array([i for p in rng.permutation(len(patients)) for i in patients[p]])
        order[members] = np.roll(members, -max(map(len, patients)))  # beyond the cases of the same patient
        unmoved += sum(cases[i].patient == cases[order[i]].patient for i in members)
    log.info(f'{label}: outputs of {len(part) - unmoved} of {len(part)} training cases come from another patient'
             + (' with equal labels' if by_label(data, dense) else ', whatever the labels'))
    return {k: v[order] for k, v in outputs.items()}


def exchanged(batch: Mapping[str, Any], keys: Sequence[str], teacher: str) -> dict[str, Any]:
    """The batch with the inputs `keys` of other cases, of all devices, as `teacher` reads it.

    batch['exchange'][teacher]: {'patient': [b], 'group': [b]}, see `partners`.
    """
    inputs = {k: batch[k] for k in keys}
    given = batch.get('present', {})
    flags = {k: given[k] for k in keys if k in given}
    rows = {**batch['exchange'][teacher], 'present': jnp.stack(list(flags.values()), 1) if flags else
            jnp.ones((len(batch['mask']), 1))}
    all_rows, all_inputs, all_flags = parallel.gather((rows, inputs, flags))
    number = jnp.arange(len(batch['mask'])) + parallel.first_row(len(batch['mask']))
    order = partners(rows, all_rows, number)
    inputs, flags = jax.tree.map(lambda a: a[order], (all_inputs, all_flags))
    return {**batch, **inputs, **({'present': {**given, **flags}} if flags else {})}


def next_cases(tree: Any) -> Any:
    """Rows [b,...] of the next case of the batch, of all devices, for those of each; differentiable."""
    rows = len(jax.tree.leaves(tree)[0])
    number = jnp.arange(rows) + parallel.first_row(rows) + 1
    return jax.tree.map(lambda a: a[number % len(a)], parallel.gather(tree))


def partners(rows: Mapping[str, Array], others: Mapping[str, Array], number: Int[Array, ' b']) -> Shaped[Array, ' b']:
    """The next row of the batch, in a circle, of another patient, with the same inputs present and of the same group.

    rows, others: {'patient': [b], 'group': [b], 'present': [b,k]} of this device and of all, whose rows `number` are
    this device's. Where there is no such row another group is taken first, then other inputs, then the same patient.
    """
    count = len(others['patient'])
    cost = jnp.mod(jnp.arange(count)[None] - number[:, None] - 1, count)
    for weight, key in ((1, 'group'), (2, 'present'), (4, 'patient')):
        a, b = (jnp.reshape(r[key], (len(r[key]), -1)) for r in (rows, others))
        same = jnp.all(a[:, None] == b[None], -1)
        cost += weight * count * (same if key == 'patient' else ~same)
    return jnp.argmin(cost, 1)
