"""Shapes in signatures are checked as the functions run: in a process of its own, for jaxtyping rewrites what is
imported.
"""
import os
import subprocess
import sys

CHECKED = ('jaxkd.losses', 'jaxkd.metrics', 'jaxkd.steps', 'jaxkd.state', 'jaxkd.models.layers', 'jaxkd.models.resnet',
           'jaxkd.models.vit')  # modules and packages whose annotations are enforced
IMPORTS = '''
import jaxtyping
with jaxtyping.install_import_hook({modules!r}, 'beartype.beartype'):
    import jax, jax.numpy as jnp, numpy as np, flax.linen as nn
    from ml_collections import ConfigDict
    from jaxkd import losses, networks, optim, state, steps
    from jaxkd.metrics import attention, bootstrap, calibration, classification, decision, localisation, multiclass
    from jaxkd.metrics import pooled, segmentation, shortcut
    from jaxkd.models import resnet, vit
    from jaxkd.models.layers import operations
'''
SPINE = '''
z, y = jnp.ones((4, 3)), jnp.zeros((4, 3))
places, label = jnp.ones((2, 4, 4, 3)), jnp.zeros((2, 4, 4), int)

def shape(call):  # of what it returns, which is not computed
    return jax.eval_shape(call).shape

assert shape(lambda: losses.binary_cross_entropy(z, y)) == shape(lambda: losses.bernoulli_kl(z, y)) == (4, 3)
assert shape(lambda: losses.cross_entropy(z, jnp.zeros(4, int))) == shape(lambda: losses.kl(z, y)) == (4,)
assert shape(lambda: losses.cosine_distance(z, y)) == shape(lambda: losses.squared_error(z, y)) == (4,)
assert shape(lambda: losses.cross_entropy(places, label)) == (2, 4, 4)
assert shape(lambda: losses.attention(places)) == (2, 16)
assert shape(lambda: losses.affinity(losses.pool(places, 4), losses.pool(places, 4))) == (2,)
assert shape(lambda: losses.dice(*losses.dice_sums(places, label, label == 0))) == (2,)
assert shape(lambda: state.Mean.of(z).value) == ()
assert shape(lambda: state.valid_mask({'mask': y[:, 0]}, ('image',))) == (4,)


class Net(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=False):
        return {'logits': nn.Dense(3)(inputs['row'])}


def terms(student, teachers, heads, batch, hp, memory):
    gap = losses.squared_error(heads['head'](student['logits']), teachers['old']['logits'])
    label = losses.cross_entropy(student['logits'], batch['label'])
    return {'label': label, 'gap': state.Mean.of(gap, state.valid_mask(batch, ('row',)))}, memory


network, key = networks.Network(Net(), ('row',)), jax.random.key(0)
batch = dict(row=z, label=jnp.zeros(4, int), mask=jnp.ones(4), index=jnp.arange(4))
frozen = {'old': network.init(key, batch)}
rule = optim.build(ConfigDict(dict(optim.DEFAULTS, schedule='plateau', ema=0.9, skip_nonfinite=1)), 8, 4.0, 4)
context = state.Context({'student': network}, {'old': network}, frozen, batch, rule, 4, 4.0, 8, 0, accumulate=2)
method = steps.make_method(terms, lambda hp, progress: dict(label=1.0, gap=progress.fraction),
                           ConfigDict(dict(name='toy')), context,
                           heads=lambda hp, shapes: dict(head=nn.Dense(shapes['old']['logits'].shape[-1])),
                           memory=lambda hp, context: dict(count=jnp.zeros(context.cases)))
before = method.init(key)
after, metrics = jax.jit(method.train_step)(before, frozen, batch)
assert int(after.step) == 1 and metrics['loss'].value.shape == () and method.teacher_terms() == ['gap']
assert int(method.after_validation(after, 0.5).plateau['waited']) == 0
assert steps.privileged_inputs(network, context) == () and set(state.inference_variables(after)) == {'params'}
for wrong in (lambda: losses.unit(y.astype(int)), lambda: state.valid_mask({'mask': z}, ()),
              lambda: steps.Recipe(*[None] * 7).mean('x', z, z), lambda: steps.init_networks(context, 0)):
    try:
        wrong()
    except jaxtyping.TypeCheckError:
        continue
    raise AssertionError('not refused')
print('refused')
'''
MODELS = '''
def shapes(model, given, image, **options):
    net = model.build(ConfigDict(dict(model.DEFAULTS, **given)), 2)
    run = lambda x: net.init_with_output(jax.random.key(0), {'image': x}, **options)[0]
    return {k: v.shape for k, v in jax.eval_shape(run, image).items()}

out = shapes(vit, dict(size='tiny', width=32, patch=8, depth=1), jnp.ones((4, 32, 32, 1)), capture=('attention',))
assert out['logits'] == (4, 2) and out['attention'] == (4, 1, 4, 17, 17)
for given, image in (dict(), (2, 8, 32, 32, 1)), (resnet.TORCHVISION, (2, 64, 64, 1)):
    assert shapes(resnet, dict(given, stem='full', width=0.125), jnp.ones(image))['logits'] == (2, 2)
try:
    operations.convolve(jnp.ones((1, 4, 4, 2), int), jnp.ones((3, 3, 2, 2)))
except jaxtyping.TypeCheckError:
    print('refused')
'''
METRICS = '''
rng, names, patients = np.random.default_rng(0), ('a', 'b', 'c'), list('ppqqrs')
logits, one, mark = rng.normal(size=(6, 3)), np.arange(6) % 3, np.arange(6) % 2
label = np.eye(3)[one]
for table in (classification.table(logits, label, label + 1, patients, names, 9),
              classification.paired_table(logits, -logits, label, label + 1, patients, names, 9),
              multiclass.table(logits, one, patients, names, 9),
              multiclass.paired_table(logits, -logits, one, patients, names, 9),
              multiclass.subgroups(logits, one, patients, names, dict(view=np.array(list('xxyyyz'))), 9)):
    assert all('low' in entry for entry in table.values())
classification.scores(logits, label, label + 1, names), classification.curves(logits, label, label + 1, names)
multiclass.scores(logits, one, names), multiclass.implausible(np.ones((2, 3)) / 3, mark[None], one)
assert calibration.brier(logits[:, 0], mark, np.ones((5, 6))).shape == (5,)
assert calibration.ece(logits[:, 0], mark).shape == (1,)
assert bootstrap.interval(bootstrap.mean(logits[:, 0]), patients, 9)['n_patients'] == 4
attended = np.full((2, 3, 4, 5, 5), 0.2)
for map in (attention.last_mean(attended), attention.last_head(attended, 1), attention.rollout(attended)):
    assert attention.upsample(map, 8).shape == (2, 8, 8)
attention.from_gradient(attended[:, -1], attended[:, -1])
box = localisation.roi_mask((1.0, 1.0, 3.0, 2.0), 8)
maps = list(localisation.control_maps(8).values())
rows = localisation.measure(maps, [box, box], localisation.best_threshold(maps, [box, box]), ('r', 's'))
localisation.table(rows, list('pq'), 9), localisation.paired_table(rows, rows[::-1], list('pq'), 9)
assert decision.operating_point(logits[:, 0], logits[:, 1] ** 2, mark)[0] > -9 and decision.positive(0.7, 1.0, 0.5, 2.0)
decision.combine(np.array([0.2, 0.4]), 'noisy_or'), decision.clopper_pearson(1, 3)
truth = (rng.integers(3, size=(4, 5, 6)) * (np.arange(6) > 2)).astype(np.uint8)
for measured in (segmentation.measure(truth[::-1], truth, names, (1.0, 2.0, 2.0)),
                 segmentation.dices(truth[::-1], truth, names), segmentation.lesions(truth[::-1], truth)):
    columns = {name: np.array([v, v]) for name, v in measured.items()}
    segmentation.table(columns, list('pq'), 9), segmentation.paired_table(columns, columns, list('pq'), 9)
shortcut.statistics(mark, one // 2, mark)(np.ones((3, 6))), shortcut.floor(logits, mark)
votes = np.stack([shortcut.votes(logits, one, logits, 3)] * 2, 1)
share = shortcut.histogram(shortcut.depths(votes, one), 2)
assert share.shape == (3,) and shortcut.located(share, share)[0] == 0
pooled.mean(logits.T), pooled.difference(logits.T), pooled.spread(logits[0])
try:
    calibration.brier(logits, mark)
except jaxtyping.TypeCheckError:
    print('refused')
'''


def test_annotated_shapes_hold():
    program = IMPORTS.format(modules=CHECKED) + SPINE + METRICS + MODELS
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and done.stdout.split() == 3 * ['refused'], done.stderr
