"""Numbers computed in float64 by others' code or by hand, to 1e-5; the fixtures are channels-last."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import log_softmax, softmax

from jaxkd import losses
from jaxkd.contracts import Cases
from jaxkd.distillation import (
    at,
    barlow,
    cc,
    crd,
    curvature,
    dist,
    dkd,
    ensemble,
    gd,
    hint,
    infonce,
    kd,
    kd_bce,
    lskd,
    mad,
    ntxent,
    pkt,
    pmkl,
    pmkl_contrast,
    probabilities,
    prototype,
    reviewkd,
    rkd,
    shaspec_domain,
    shaspec_ring,
    sp,
    vid,
)
from jaxkd.methods import segmentation
from tests.fixtures import distillation


def chw(*cases):
    """[B,C,H,W] -> float32 [B,H,W,C]."""
    return np.moveaxis(np.float32(cases), 1, -1)


ZS, ZT = np.float32([[2, .5, -1], [0, 1, .5], [.2, -.3, 1]]), np.float32([[3, 0, -2], [-.5, 2, 0], [0, 1, 1.5]])
FS, FT = np.float32([[1, 0], [.6, .8], [0, 2]]), np.float32([[1, 1], [0, 1], [-1, 2]])
GS, GT = np.float32([[1, 0], [0, 3], [-2, .5]]), np.float32([[1, 1], [0, 1], [-1, -2]])
AS = chw([[[1, 2], [3, 4]], [[0, 1], [0, -1]]], [[[1, 0], [0, 1]], [[2, 0], [0, 1]]])
AT = chw([[[2, 2], [2, 4]], [[1, 0], [1, 0]], [[0, 1], [1, 1]]], [[[0, 1], [1, 0]], [[1, 1], [1, 1]], [[0, 0], [1, 2]]])
VS, VT = np.float32([[[1, -1], [.2, .3], [-.5, .5], [0, 1]]]), np.float32([[[2, -2], [-.5, .5], [-1.5, 1.5], [.8, .2]]])
VOXELS = np.int32([[0, 1, 1, 1]])
WORKED = {
    'kd, T = 4': .323024, 'kd without T^2': .020189, '0.1 CE + 0.9 kd': .336801, 'kd of voxels': .160135,
    'kd of voxels, T = 4': .324929, 'kd of a bottleneck': .090238, 'kd of ProtoKD': .001750, 'kd_bce': .064441,
    'gd': .643156, 'gd of the scripts': 1.881438, 'dkd, target': .316626, 'dkd, others': .014830, 'dkd': .435262,
    'dkd, target, T = 1': .158869, 'dkd, others, T = 1': .007442, 'dist, rows': .110844, 'dist, columns': .047259,
    'dist, rows, T = 4': 2.901761, 'dist, columns, T = 4': 1.542373, 'lskd': .016922, 'hint': .4, 'at': .146510,
    'at of the paper': .652918, 'sp': .025974, 'sp of maps': .011947, 'cc': .005128, 'cc of torchdistill': .023871,
    'cc of repdistiller': .4, 'vid': .885969, 'rkd, distance': .067323, 'rkd, angle': .036064,
    'rkd, distance, nearly alike': .000610, 'rkd, angle, nearly alike': .003688, 'pkt': .069099,
    'pkt, nearly alike': .001365, 'crd of scores': 1.137839, 'crd of a memory': 3.470046, 'infonce, one way': 1.145605,
    'infonce': 1.419217, 'jsd': 1.347593, 'reviewkd of a ramp': .286133, 'reviewkd': .567708, 'mad': .048106,
    'mad by columns': .102779, 'pmkl, T = 10': .688432, 'pmkl, T = 1': .476126, 'pmkl_contrast': .032500,
    'pmkl_contrast, margin 1.5': .066472, 'probabilities': .060924, 'prototype': .137895, 'barlow': .010199,
    'ensemble': .044728, 'ensemble of logits': .076982, 'shaspec_ring': 3.5, 'shaspec_domain': .652481,
    'ntxent of equal views': .551445, 'ntxent': 1.680693, 'curvature': -1., 'curvature of the others': 2.080880,
    'curvature, gap': .908596, 'kd, T = 1': .159268, 'kd, T = 2': .279507, 'kd of mutual learning, back': .205789,
    'soft cross-entropy, T = 4': 1.034759, 'entropy of the teacher, T = 4': 1.014570, 'kd_bce, T = 1': .042889,
    'dkd, T = 1': .218405, 'dist': .158103, 'dist, T = 4': 4.444134, 'hint, sum': 2.4, 'rkd': 3.486252,
    'rkd of torchdistill': .139450, 'pkt of rows': .207298, 'kd of a bottleneck, back': .104877,
    'pmkl, unmasked': .688540, 'pmkl, cross-entropy': .103232, 'pmkl, Dice': .133693, 'pmkl, total': .597391,
    'acn, Dice': .088217, 'Dice': .221708, 'protokd, 10 kd': .017501, 'shaspec, total': 1.063050, 'vid, variance': 5.,
    'focal': .016577}


@functools.cache
def found():
    """All of them, as one program."""
    @jax.jit
    def run(zs, zt, fs, ft, gs, gt, maps, maps_t, vs, vt):
        two, ones, y = (zs[:2], zt[:2]), jnp.ones(3), jnp.array([0, 1])
        ce, soft = losses.cross_entropy(two[0], y).mean(), kd.softened(*two).mean()
        target, others = (x.mean() for x in dkd.parts(*two, y))
        target1, others1 = (x.mean() for x in dkd.parts(*two, y, 1.0))
        raw = crd.scores(jnp.array([[.6, .8]]), jnp.array([[[1, 0], [0, 1], [-.6, .8]]]))
        alike, near, far = infonce.cosines(fs, ft), rkd.relations(fs, ft, ones), rkd.relations(gs, gt, ones)
        ramp, w = jnp.arange(16.).reshape(1, 4, 4, 1) / 16, pmkl.advantage(vs, vt, VOXELS)
        masked = {t: jnp.sum(w * pmkl.soft_cross_entropy(vs, vt, t)) / w.sum() for t in (10., 1.)}
        pair = jnp.array([[1., 0], [0, 1]]), jnp.array([[.8, .2], [.1, 1.2]]), jnp.ones(2)
        several, own = jnp.array([[[2., 0], [0, 1]], [[1, 1], [-1, 2]]]), jnp.array([[.5, .2], [.1, .9]])
        channels = [jnp.array([x]).mT for x in ([[1., 0, .2, 1], [0, 1, .9, .3]], [[2., 0, -.5, 1.5], [0, 1.5, 1, 0]])]
        views = (jnp.array([[1, 0], [.6, .8], [0, 2], [1, 1]]), jnp.array([[1, .2], [.5, 1], [-.2, 1.8], [.9, .7]]))
        rows, columns = dist.correlations(zs, zt, ones)
        kappa = curvature.curvature(jnp.array([[0., 0], [1, 0], [0, 1], [-1, 0]]), jnp.ones(4), 3)
        ring = jnp.array([[[1., 2], [1.5, 1], [0, 2], [1, 1]]]), jnp.ones((1, 4))
        told = jnp.diag(jnp.array([2., 1, 0, 3]))[None], jnp.ones((1, 4))
        rows4, columns4 = dist.correlations(zs, zt, ones, 4.0)
        return {
            'kd, T = 4': soft, 'kd without T^2': kd.softened(*two, t2=False), '0.1 CE + 0.9 kd': .1 * ce + .9 * soft,
            'kd of voxels': kd.softened(vs, vt, 1.0), 'kd of voxels, T = 4': kd.softened(vs, vt),
            'kd of a bottleneck': kd.softened(jnp.array([[1, .5, 0, -.5]]), jnp.array([[1.5, 0, .5, -1]]), 1.0),
            'kd of ProtoKD': kd.softened(vs, vt, 10.0, t2=False, every=True), 'kd_bce': kd_bce.softened(*two),
            'gd': .5 * ce + .5 * gd.soft_cross_entropy(*two).mean(),
            'gd of the scripts': .5 * ce + .5 * gd.soft_cross_entropy(*two, t2=True).mean(),
            'dkd, target': target, 'dkd, others': others, 'dkd': target + 8 * others,
            'dkd, target, T = 1': target1, 'dkd, others, T = 1': others1, 'dist, rows': rows, 'dist, columns': columns,
            'dist, rows, T = 4': rows4, 'dist, columns, T = 4': columns4, 'lskd': lskd.softened(*two),
            'hint': hint.squared(fs, ft), 'at': at.gap(maps, maps_t),
            'at of the paper': at.gap(maps, maps_t, form='paper'),
            'sp': sp.gap(fs, ft, ones), 'sp of maps': sp.gap(maps, maps_t, ones[:2]),
            **{f'cc{of}': cc.gap(fs, ft, ones, form) for of, form in (
                ('', 'paper'), (' of torchdistill', 'torchdistill'), (' of repdistiller', 'repdistiller'))},
            'vid': vid.likelihood(maps, jnp.full(2, np.log(np.expm1(5 - 1e-5))), maps_t[..., :2]),
            'rkd, distance': far[0], 'rkd, angle': far[1], 'rkd, distance, nearly alike': near[0],
            'rkd, angle, nearly alike': near[1], 'pkt': pkt.divergence(gs, gt, ones),
            'pkt, nearly alike': pkt.divergence(fs, ft, ones),
            'crd of scores': crd.contrast(jnp.array([[.5, .02, .01]]), 100),
            'crd of a memory': crd.contrast(raw / (raw.mean() * 100), 100),
            'infonce, one way': infonce.infonce(alike, ones, symmetric=False),
            'infonce': infonce.infonce(alike, ones), 'jsd': infonce.jensen_shannon(alike, ones),
            'reviewkd of a ramp': reviewkd.hierarchical(ramp, 0 * ramp),
            'reviewkd': reviewkd.hierarchical(maps, maps_t[..., :2]), 'mad': mad.gap(fs, ft, zt, ones),
            'mad by columns': mad.gap(fs, ft, zt, ones, 'column'), 'pmkl, T = 10': masked[10.],
            'pmkl, T = 1': masked[1.], 'pmkl_contrast': pmkl_contrast.contrast(*pair),
            'pmkl_contrast, margin 1.5': pmkl_contrast.contrast(*pair, 1.5), 'probabilities': probabilities.gap(vs, vt),
            'prototype': prototype.gap(*channels, jnp.array([[0, 1, 1, 0]]), 2),
            'barlow': barlow.redundancy(*views, jnp.ones(4)),
            **{f'ensemble{of}': kd.softened(own, ensemble.joint(several, 1.0, mean), 1.0)
               for of, mean in (('', 'probabilities'), (' of logits', 'logits'))},
            'shaspec_ring': shaspec_ring.ring(*ring), 'shaspec_domain': shaspec_domain.domain(*told),
            'ntxent of equal views': ntxent.nt_xent(jnp.eye(2), jnp.eye(2), jnp.ones(2), 1.0),
            'ntxent': ntxent.nt_xent(fs, ft, ones), 'curvature': kappa[0], 'curvature of the others': kappa[1:],
            'curvature, gap': curvature.gap(fs, gt, ones, 2),
            'kd, T = 1': kd.softened(*two, 1.0), 'kd, T = 2': kd.softened(*two, 2.0),
            'kd of mutual learning, back': kd.softened(*two[::-1], 1.0),
            'soft cross-entropy, T = 4': gd.soft_cross_entropy(two[0] / 4, two[1], 4.0),
            'entropy of the teacher, T = 4': gd.soft_cross_entropy(two[1] / 4, two[1], 4.0),
            'kd_bce, T = 1': kd_bce.softened(*two, 1.0), 'dkd, T = 1': target1 + 8 * others1,
            'dist': _of('dist')(zs, zt), 'dist, T = 4': _of('dist', temperature=4.0)(zs, zt),
            'hint, sum': hint.squared(fs, ft).sum() * fs.shape[1], 'rkd': _of('rkd')(gs, gt),
            'rkd of torchdistill': _of('rkd', distance=1.0, angle=2.0)(gs, gt),
            'pkt of rows': 3 * pkt.divergence(gs, gt, ones),
            'kd of a bottleneck, back': kd.softened(jnp.array([[1.5, 0, .5, -1]]), jnp.array([[1, .5, 0, -.5]]), 1.0),
            'pmkl, unmasked': pmkl.soft_cross_entropy(vs, vt), **_segmentation(vs),
            'pmkl, total': sum(_segmentation(vs)[f'pmkl, {n}'] for n in ('cross-entropy', 'Dice')) + .5 * (
                masked[10.] + pmkl_contrast.contrast(*pair)),
            'protokd, 10 kd': 10 * kd.softened(vs, vt, 10.0, t2=False, every=True),
            'shaspec, total': .3 + .4 + .1 * shaspec_ring.ring(*ring) + .02 * shaspec_domain.domain(*told),
            'vid, variance': jax.nn.softplus(vid.Gaussian(2, 5.0).init(jax.random.key(0), maps)['params']['variance']
                                             ) + vid.EPS,
            'focal': losses.focal(-jnp.log(jnp.array([.9, .7])), 2.0),
            # more than one number
            'dkd of a case': dkd.parts(*two, y, 1.0), 'kd of a case': kd.softened(*two, 1.0),
            'gradient': jax.grad(lambda z: kd.softened(z, two[1]).mean())(two[0]), 'advantage': w,
            'z': raw.mean() * 100,
            'uncertainty': mad.uncertainty(zt, ones),
            'uncertainty of places': mad.uncertainty(jnp.stack([zt, zt], 1), ones),
            'one loss of both': jax.grad(lambda z: jnp.mean(
                losses.kl(two[1], z) + losses.kl(z, two[1], stop=False)))(two[0])}
    return jax.tree.map(np.asarray, run(ZS, ZT, FS, FT, GS, GT, AS, AT, VS, VT))


def _of(name, **options):
    """(student, teacher) -> the loss of a file without heads, as a config builds it."""
    loss = distillation.built(name, **options)
    return lambda s, t: loss.values(s, t, Cases(jnp.zeros(len(s), int), jnp.ones(len(s)), jnp.arange(len(s)), {}))


def _segmentation(vs):
    """Cross-entropy and Dice of labels beside PMKL and ACN: classes weigh 1 - their frequency, predictions are squared.
    """
    hp = ConfigDict(segmentation.DEFAULTS | dict(dice=1.0, class_weights=(.75, .25), dice_squared=True))

    def parts(logits, label, **changes):
        return segmentation.supervised_terms({'logits': logits}, label, jnp.ones(1), ConfigDict(hp.to_dict() | changes))
    places, label = vs[:, None], VOXELS[:, None]  # [1,1,4,2] and [1,1,4]
    found, other = parts(places, label), parts(places[..., ::-1], 1 - label)  # of either class as the foreground
    # ours is divided by the sum of the weights, PMKL's by the number of places
    return {'pmkl, cross-entropy': found['ce'].total / 4,
            'pmkl, Dice': (found['dice'].value + other['dice'].value) / 2, 'acn, Dice': found['dice'].value,
            'Dice': parts(places, label, dice_squared=False)['dice'].value}


@pytest.mark.parametrize('name', WORKED)
def test_worked_value(name):
    np.testing.assert_allclose(found()[name].mean(), WORKED[name], rtol=1e-5, atol=6e-7)  # they have six decimals


def test_the_parts_of_dkd_make_up_kd_at_temperature_1():
    target, others = found()['dkd of a case']
    p = np.exp(ZT[:2]) / np.exp(ZT[:2]).sum(1, keepdims=True)
    np.testing.assert_allclose(target + (1 - p[[0, 1], [0, 1]]) * others, found()['kd of a case'], rtol=1e-5)
    np.testing.assert_allclose(found()['kd of a case'], (.102886, .215649), atol=1e-6)


def test_gradient_weights_and_constants():
    np.testing.assert_allclose(found()['gradient'][0], (-.211019, .099356, .111664), atol=1e-6)
    np.testing.assert_allclose(found()['advantage'][0], (.108778, .331135, .264674, 0), atol=1e-6)  # it errs last
    np.testing.assert_allclose(found()['uncertainty'], (.129047, .332242, .538711), atol=1e-6)
    np.testing.assert_allclose(found()['uncertainty of places'], found()['uncertainty'], rtol=1e-6)
    entropy = -(softmax(ZT, 1) * log_softmax(ZT, 1)).sum(1)
    np.testing.assert_allclose(entropy, (.228243, .587629, .952808), atol=1e-6)
    # what mutual learning would do without its stop-gradients: see tests/methods/test_distil.py for what it does
    np.testing.assert_allclose(found()['one loss of both'][0], (-.214458, .165650, .048808), atol=1e-6)
    assert found()['z'] == pytest.approx(3241461.455, rel=1e-5)
