"""SIKD: shape-intensity knowledge distillation for segmentation. The teacher reads the label, painted with the grey
values of the image.

Dong, Du, Xu. Frontiers of Computer Science 19(9), 199705 (2025). doi 10.1007/s11704-024-40462-2, arXiv 2409.17503

    M(x,y)[u] = mean of x over { u' : y[u'] = y[u] }          the class-averaged image, for each image and channel
    Stage teacher   L_T = CE(T(M(x,y)), y)                    its input_fn is jaxkd.methods.sikd.class_mean
    Stage student   L_S = CE(z_S, y) + 2.0 mean (F_S(x) - sg F_T(M(x,y)))^2

F is the penultimate feature, the input of the last 1x1 convolution: 64 channels at full resolution in the U-Net of the
public code. The teacher is frozen and in evaluation mode; its U-Net has no skip connections, so that the label which
its input shows has to pass the bottleneck. M is made on the device of the augmented, resized image and label: what
rotation moved in counts as background. At test the student sees the image alone, and costs what the plain network
costs.

Any host network will do: the same network as teacher, F the input of its last linear layer (output `feature`), skips
removed in the teacher where there are some [our choice]. 2D and 3D alike.

The loss is the method `distil` with a hint and without a regressor; its relatives (pixel KD, FitNets, attention, CWD,
SKDS, IFVD, EMKD, born-again) are other losses of `distil`, see configs/sikd_acdc.py. This file holds the input
functions, options and provenance of SIKD.
"""
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxkd import config
from jaxkd.contracts import Method
from jaxkd.methods import distil, segmentation
from jaxkd.models.layers.backbone import decode
from jaxkd.state import Context

DEFAULTS = dict(
    segmentation.SUPERVISED,
    tap='feature',  # output of student and teacher whose squared difference is taken
    weight=2.0,  # of this squared difference; 0: labels alone
)
PROVENANCE = (
    'Published: a teacher on class-averaged training images, its knowledge given to a student on raw images. From the '
    'public code (ACDC alone): the averaging formula and that it comes after augmentation, plain cross-entropy, mean '
    'squared error on the 64-channel penultimate feature with weight 2.0, no skips in the teacher\'s U-Net, teacher '
    'frozen in evaluation mode. Our choice: hosts other than the U-Net, three dimensions, selection by Dice of whole '
    'volumes.')


def build(hp: ConfigDict, context: Context) -> Method:
    hint = dict(distil=dict(name='hint', student=hp.tap, weight=hp.weight, regressor=False))
    chosen = dict({key: hp[key] for key in segmentation.SUPERVISED}, name='distil', losses=hint if hp.weight else {})
    _, options = config.options('methods', chosen, f'{context.stage}.method')
    options.name = hp.name  # in messages
    return distil.build(options, context)._replace(provenance=PROVENANCE)


def class_mean(inputs: dict, classes: int) -> dict:
    """An input_fn: {'image': [B,*places,c], 'label': int [B,*places]} -> {'image': M(x,y)}, float32.

    A pixel whose label is not one of 0..classes-1 (255: ignored) keeps its value. The sum over an image is unchanged.
    """
    image, one_hot = decode(inputs['image']), jax.nn.one_hot(inputs['label'], classes)
    means = _class_means(image, one_hot)
    painted = jnp.einsum('b...k,bkc->b...c', one_hot, means)
    return {**_without(inputs), 'image': jnp.where(one_hot.sum(-1, keepdims=True) > 0, painted, image)}


def one_hot(inputs: dict, classes: int) -> dict:
    """An input_fn for the ablation 'shape alone': the label as an image of one channel for each class."""
    return {**_without(inputs), 'image': jax.nn.one_hot(inputs['label'], classes)}


def _class_means(image, one_hot):
    total = jnp.einsum('b...k,b...c->bkc', one_hot, image, precision='highest')
    count = one_hot.sum(tuple(range(1, one_hot.ndim - 1)))
    return total / (count + 1e-8)[..., None]


def _without(inputs):
    return {k: v for k, v in inputs.items() if k not in ('image', 'label')}
