"""A worker that computes metrics of an evaluation on generated data, with the jaxkd of PYTHONPATH.

    bootstrap     metrics.classification.table: AUROC, AUPRC, Brier score and two ECE of 8 labels in 1,000 resamples of
                  patients; of all labels, and where a fifth of them is missing and a patient has two images
    localisation  evaluators.localisation without its network: upsampling of patch maps (mean, rollout, gradient, four
                  heads, untrained), controls, thresholds on validation regions, all metrics of test regions
                  (iou_top10, which earlier versions lack, is computed and not compared)
"""
import functools
import sys

from resident import serve  # beside this script

LABELS = [f'label{c}' for c in range(8)]


def main() -> None:
    case = CASES[sys.argv[1]]()
    serve(lambda repetitions: [case() for _ in range(repetitions)] and None, numbers=[float(v) for v in case()])


def bootstrap(cases, images=1, missing=0.0):
    import numpy as np

    from jaxkd.metrics import classification
    rng = np.random.default_rng(0)
    label = (rng.random((cases, len(LABELS))) < 0.2).astype(float)
    logits = (rng.normal(size=label.shape) + label).astype(np.float32)
    weight = (rng.random(label.shape) >= missing).astype(float)
    table = functools.partial(classification.table, logits, label, weight)
    table = functools.partial(table, np.arange(cases) // images, LABELS)
    table(n=1)  # warm
    return lambda: [entry[key] for entry in table().values() for key in ('value', 'low', 'high', 'replicates')]


def localisation(size, images):
    """Of `images` test images, half as many validation images, and 1 to 5 regions (3 on average) in each."""
    import numpy as np

    from jaxkd.evaluators import localisation as evaluator
    from jaxkd.metrics import localisation as metrics
    rng, g = np.random.default_rng(0), 8
    wanted, heads = ('last_mean', 'rollout', 'grad_attn', 'heads'), [f'head{h}' for h in range(4)]

    def patch_maps(predict, indices, hp, names, labels):  # instead of a network
        names = ['last_mean', 'rollout', *heads] if 'heads' in names else ['last_mean']
        maps = {name: rng.dirichlet(np.full(g * g, 0.5), len(indices)).reshape(-1, g, g) for name in names}
        gradients = rng.dirichlet(np.full(g * g, 0.5), (len(indices), len(labels)))
        return dict(index=np.array(indices), **maps, grad_attn=gradients.reshape(*gradients.shape[:2], g, g))
    evaluator._patch_maps = patch_maps

    def region(index):
        box = np.concatenate([rng.uniform(0, 0.7, 2), rng.uniform(0.05, 0.3, 2)]) * size
        return evaluator.Region(index, f'case{index}', f'p{index}', int(rng.integers(len(LABELS))), box,
                                metrics.roi_mask(box, size))
    regions = {role: [region(i) for i in range(n) for _ in range(rng.integers(1, 6))]
               for role, n in (('test', images), ('val', images // 2))}
    controls = metrics.control_maps(size) | {'mean_map': rng.dirichlet(np.ones(size**2)).reshape(size, size)}

    def maps_of(role):
        initial = evaluator._maps(None, regions[role], None, size, ('last_mean',))['last_mean']
        constant = {name: functools.partial(evaluator._constant, m) for name, m in controls.items()}
        return evaluator._maps(None, regions[role], None, size, wanted) | {'untrained': initial} | constant
    maps = {role: maps_of(role) for role in regions}

    def numbers():
        rows = evaluator._measured(maps['test'], maps['val'], regions, LABELS)
        return [value for of_map in rows.values() for r in of_map for name, value in r.items() if name != 'iou_top10']
    return numbers


CASES = {
    'bootstrap': functools.partial(bootstrap, 20_000),
    'bootstrap_missing': functools.partial(bootstrap, 20_000, 2, 0.2),
    'bootstrap_450': functools.partial(bootstrap, 450),
    'localisation': functools.partial(localisation, 64, 100),
    'localisation_224': functools.partial(localisation, 224, 20),
    'bootstrap_smoke': functools.partial(bootstrap, 60),
    'localisation_smoke': functools.partial(localisation, 16, 2)}


if __name__ == '__main__':
    main()
