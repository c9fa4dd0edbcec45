"""A worker that trains the same networks in plain PyTorch, eager: what a good implementation without jaxkd costs.

    python benchmarks/torch_twins.py CASE [--mode step|loop|input] [--threads N] [--compile]

Each twin has the layers, shapes, number of parameters, loss terms and optimiser of benchmarks/training.py's CASE;
numbers are random. It needs torch, numpy and Pillow alone and runs in an environment of its own.
"""
import argparse
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from resident import serve  # beside this script

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from PIL import Image
    from torch import Tensor, nn
except ImportError as e:
    serve(lambda _: None, left_out=f'PyTorch cannot be imported here ({e})')
    raise SystemExit(0) from e


ACCELERATOR = ('vit_b',)  # cases that would take minutes a step on a CPU


class Twin(NamedTuple):
    """What one case trains."""

    networks: Sequence[nn.Module]  # trained
    loss: Callable[..., Tensor]  # of the inputs
    inputs: tuple[Tensor, ...]
    clip: float = 1.0
    adamw: bool = True


# Networks. Convolutions read [B,C,...], as is usual in PyTorch.

class Block(nn.Module):
    """A pre-LN transformer block."""

    def __init__(self, width: int, heads: int, ratio: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """A vision transformer whose CLS state is read."""

    def __init__(self, width: int, depth: int, heads: int, ratio: int, patch: int, side: int, channels: int, std: float,
                 outputs: int = 8):
        super().__init__()
        self.channels, self.std = channels, std
        self.patch = nn.Conv2d(channels, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*[Block(width, heads, ratio) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, outputs)

    def forward(self, image: Tensor) -> Tensor:
        x = (image.expand(-1, self.channels, -1, -1) - 0.5) / self.std
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x)[:, 0]))


class Style(NamedTuple):
    """What all layers of a convolutional network share."""

    dims: int
    batch_norm: bool = False  # else groups
    relu: bool = False  # else leaky
    standardise: bool = False  # the kernels
    bias: bool = False

    def activate(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=True) if self.relu else F.leaky_relu(x, 0.01, inplace=True)


class Unit(nn.Module):
    """Convolution, norm and, unless linear, the activation."""

    def __init__(self, style: Style, inputs: int, outputs: int, kernel: int = 3, stride: int | Sequence[int] = 1,
                 linear: bool = False):
        super().__init__()
        self.style, self.linear = style, linear
        conv = (nn.Conv2d, nn.Conv3d)[style.dims - 2]
        self.conv = conv(inputs, outputs, kernel, stride, kernel // 2, bias=style.bias)
        groups = next(g for g in range(min(8, outputs), 0, -1) if outputs % g == 0)
        batch = (nn.BatchNorm2d, nn.BatchNorm3d)[style.dims - 2]
        self.norm = batch(outputs) if style.batch_norm else nn.GroupNorm(groups, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.convolve(x) if self.style.standardise else self.conv(x))
        return x if self.linear else self.style.activate(x)

    def convolve(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        variance, mean = torch.var_mean(w, tuple(range(1, w.ndim)), correction=0, keepdim=True)
        return self.conv._conv_forward(x, (w - mean) * torch.rsqrt(variance + 1e-10), self.conv.bias)


class Residual(nn.Module):
    """A basic block."""

    def __init__(self, style: Style, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.style = style
        self.unit1 = Unit(style, inputs, outputs, 3, stride)
        self.unit2 = Unit(style, outputs, outputs, 3, linear=True)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else Unit(style, inputs, outputs, 1, stride, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.style.activate(self.unit2(self.unit1(x)) + self.shortcut(x))


class Resnet18(nn.Module):
    """-> (logits, pooled features)."""

    def __init__(self, style: Style, outputs: int, channels: Sequence[int] = (64, 128, 256, 512), stem: int = 7,
                 stride: int | Sequence[int] = 2, project: int = 0, pooled: bool = True, channels_in: int = 1):
        super().__init__()
        self.pool = (F.max_pool2d, F.max_pool3d)[style.dims - 2] if pooled else None
        self.channels_in = channels_in
        self.stem = Unit(style, channels_in, channels[0], stem, stride)
        blocks, last = [], channels[0]
        for stage, c in enumerate(channels):
            blocks += [Residual(style, last, c, 1 if stage == 0 else 2), Residual(style, c, c)]
            last = c
        self.blocks = nn.Sequential(*blocks, *([Unit(style, last, project, 1)] if project else []))
        self.head = nn.Linear(project or last, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.channels_in == 3:
            x = (x.expand(-1, 3, -1, -1) - 0.45) / 0.225
        x = self.stem(x)
        x = self.pool(x, 3, 2, 1) if self.pool else x
        features = self.blocks(x).flatten(2).mean(2)
        return self.head(features), features


class Unet(nn.Module):
    """-> ([logits of each depth], class logits or None, features of the finest level)."""

    def __init__(self, style: Style, outputs: int, channels: Sequence[int], blocks: Sequence[int], residual: bool,
                 deep: int = 0, classify: int = 0, skips: bool = True):
        super().__init__()
        self.residual, self.skips, levels = residual, skips, range(len(channels) - 1)
        self.style = style

        def stage(inputs, c, n, stride=1):
            pair = (lambda i, s: Residual(style, i, c, s)) if residual else (
                lambda i, s: nn.Sequential(Unit(style, i, c, 3, s), Unit(style, c, c)))
            return nn.Sequential(*[pair(inputs if j == 0 else c, stride if j == 0 else 1) for j in range(n)])
        strides = (1, *[2 if residual else 1 for _ in levels])  # a residual one strides, the other one pools
        self.down = nn.ModuleList([stage(i, c, n, s) for i, c, n, s in zip((1, *channels), channels, blocks, strides)])
        transpose = (nn.ConvTranspose2d, nn.ConvTranspose3d)[style.dims - 2]
        self.up = nn.ModuleList([transpose(channels[i + 1], channels[i], 2, 2, bias=style.bias) if residual else
                                 Unit(style, channels[i + 1], channels[i]) for i in levels])
        self.decode = nn.ModuleList([stage((1 + skips) * channels[i], channels[i], 1) for i in levels])
        head = (nn.Conv2d, nn.Conv3d)[style.dims - 2]
        self.heads = nn.ModuleList([head(channels[i], outputs, 1) for i in range(deep + 1)])
        self.class_head = nn.Linear(channels[-1], classify) if classify else None

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor | None, Tensor]:
        encoded: list[Tensor] = []
        for down in self.down:
            x = F.max_pool2d(x, 2) if encoded and not self.residual else x
            x = down(x)
            encoded.append(x)
        label = self.class_head(x.flatten(2).mean(2)) if self.class_head else None
        logits = []
        for i in reversed(range(len(self.up))):
            x = x if self.residual else F.interpolate(x, scale_factor=2, mode='bilinear')
            x = self.up[i](x)
            x = self.decode[i](torch.cat([encoded[i], x], 1) if self.skips else x)
            logits += [self.heads[i](x)] if i < len(self.heads) else []
        return logits[::-1], label, x


# Losses.

def bernoulli_kl(teacher: Tensor, student: Tensor, temperature: float = 2.0) -> Tensor:
    t, s = teacher / temperature, student / temperature
    p = torch.sigmoid(t)
    gap = p * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature ** 2 * gap.mean()


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """-> [B]."""
    p = teacher.detach().log_softmax(-1)
    return (p.exp() * (p - student.log_softmax(-1))).sum(-1)


def mmpkd(network: nn.Module, alpha: float, image: Tensor, label: Tensor, weight: Tensor, teacher: Tensor) -> Tensor:
    logits = network(image)
    loss = (F.binary_cross_entropy_with_logits(logits, label, reduction='none') * weight).sum() / weight.sum()
    return (1 - alpha) * loss + alpha * bernoulli_kl(teacher, logits) if alpha else loss


def classes(network: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(network(image)[0], label)


def findings(network: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    out = network(image)
    return F.binary_cross_entropy_with_logits(out[0] if isinstance(out, tuple) else out, label)


class Cpkd:
    """The loss of CPKD with both calibrations; the hardness of each training case is kept here."""

    def __init__(self, student: nn.Module, mri: Sequence[nn.Module], align: Sequence[nn.Module],
                 logits: Sequence[nn.Module], cases: int = 600):
        self.student, self.mri, self.align, self.logits = student, mri, align, logits
        self.hard, self.seen = torch.zeros(cases), torch.zeros(cases, dtype=torch.bool)

    def __call__(self, ct: Tensor, t2: Tensor, label: Tensor, tasks: Tensor, table: Tensor, index: Tensor) -> Tensor:
        z, features = self.student(ct)
        own = F.cross_entropy(z, label, reduction='none')
        outs = [network(t2) for network in self.mri]
        aux = [F.cross_entropy(v, tasks[:, a], reduction='none') for a, (v, _) in enumerate(outs)]
        w = self.weights(own.detach(), index)
        aligned = [layer(features) for layer in self.align]
        feature = w * sum(kl(m, r) for (_, m), r in zip(outs, aligned)) / 2
        prediction = w * sum(kl(v, layer(r)) for (v, _), layer, r in zip(outs, self.logits, aligned)) / 2
        loss = own.mean() + 0.1 * sum(a.mean() for a in aux) + 1.5 * feature.mean() + 0.5 * prediction.mean()
        return loss + self.clinical(z, own, label, [v.detach() for v, _ in outs], tasks, table)

    def weights(self, loss: Tensor, index: Tensor) -> Tensor:
        moved = torch.where(self.seen[index], 0.9 * self.hard[index] + 0.1 * loss, loss)
        self.hard[index], self.seen[index] = moved, True
        mean = self.hard.sum() / self.seen.sum()
        return (moved / mean).clamp(0.5, 2.0)

    @staticmethod
    def clinical(z: Tensor, own: Tensor, label: Tensor, logits: Sequence[Tensor], tasks: Tensor,
                 table: Tensor) -> Tensor:
        p = z.softmax(-1)
        prior = torch.einsum('bt,bd,btdc->bc', logits[0].softmax(-1), logits[1].softmax(-1), table)
        q = p.detach() * prior
        q = q / q.sum(-1, keepdim=True).clamp_min(1e-12)
        gate = (logits[0].argmax(-1) == tasks[:, 0]) & (logits[1].argmax(-1) == tasks[:, 1])
        chosen = p.argmax(-1)
        implausible = prior.gather(1, chosen[:, None])[:, 0] < 0.1
        return (own * (implausible & (chosen != label))).mean() + (gate * (p - q).square().mean(-1)).mean()


def dense(logits: Iterable[Tensor], label: Tensor, dice: float) -> Tensor:
    """Cross-entropy and soft Dice of the batch, with deep supervision: each level counts half of the finer one."""
    total, weight = torch.zeros(()), 0.0
    for depth, z in enumerate(logits):
        y = label if depth == 0 else F.interpolate(label[:, None].float(), z.shape[2:]).long()[:, 0]
        loss = F.cross_entropy(z, y)
        if dice:
            p, axes = z.softmax(1)[:, 1:], (0, *range(2, z.ndim))
            t = F.one_hot(y, z.shape[1]).movedim(-1, 1)[:, 1:].float()
            overlap = (2 * (p * t).sum(axes) + 1e-5) / ((p + t).sum(axes) + 1e-5)
            loss = loss + dice * (1 - overlap).mean()
        total, weight = total + 0.5 ** depth * loss, weight + 0.5 ** depth
    return total / weight


def pathway(network: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    logits, present, _ = network(image)
    found = (label.flatten(1).sum(1, keepdim=True) > 0).float()
    return dense(logits, label, 1.0) + 0.5 * F.binary_cross_entropy_with_logits(present, found)


def sikd(network: nn.Module, teacher: nn.Module | None, image: Tensor, label: Tensor) -> Tensor:
    logits, _, features = network(image)
    loss = dense(logits, label, 0.0)
    if teacher is None:
        return loss
    with torch.no_grad():
        one_hot = F.one_hot(label, 4).movedim(-1, 1).float()
        means = torch.einsum('bkhw,bchw->bkc', one_hot, image) / (one_hot.sum((2, 3)) + 1e-8)[..., None]
        taught = teacher(torch.einsum('bkhw,bkc->bchw', one_hot, means))[2]
    return loss + 2.0 * F.mse_loss(features, taught)


# Cases.

def images(batch: int, side: int) -> tuple[Tensor, Tensor]:
    return torch.rand(batch, 1, side, side), (torch.rand(batch, 8) > 0.8).float()


def small_vit(alpha: float) -> Twin:
    network = Vit(96, 3, 4, 2, 8, 64, 1, 0.5)
    loss = functools.partial(mmpkd, network, alpha)
    return Twin([network], loss, (*images(32, 64), torch.ones(32, 8), torch.randn(32, 8)))


def vit(width: int, heads: int, batch: int = 8) -> Twin:
    network = Vit(width, 12, heads, 4, 16, 224, 3, 0.25)
    return Twin([network], functools.partial(findings, network), images(batch, 224))


def vit_b() -> Twin:
    network, batch = Vit(768, 12, 12, 4, 16, 224, 3, 0.25), 64
    loss = functools.partial(mmpkd, network, 0.5)
    return Twin([network], loss, (*images(batch, 224), torch.ones(batch, 8), torch.randn(batch, 8)))


def resnet18_2d() -> Twin:
    network = Resnet18(Style(2, batch_norm=True, relu=True), 8, channels_in=3)
    return Twin([network], functools.partial(findings, network), images(8, 224))


def resnet18_3d() -> Twin:
    network = Resnet18(Style(3, standardise=True), 3)
    inputs = torch.randn(2, 1, 64, 64, 64), torch.randint(0, 3, (2,))
    return Twin([network], functools.partial(classes, network), inputs)


def thin_resnet() -> Resnet18:
    return Resnet18(Style(3, standardise=True), 3, (8, 16, 32, 64), 3, (1, 2, 2), 256, False)


def crops() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 1, 10, 24, 24), torch.randint(0, 3, (16,))


def ct_only() -> Twin:
    network = thin_resnet()
    return Twin([network], functools.partial(classes, network), crops())


def cpkd() -> Twin:
    student, *mri = (thin_resnet() for _ in range(3))
    heads = [nn.Linear(256, 256), nn.Linear(256, 256), nn.Linear(256, 3), nn.Linear(256, 3)]
    (ct, label), (t2, _) = crops(), crops()
    inputs = (ct, t2, label, torch.randint(0, 3, (16, 2)), torch.rand(16, 3, 3, 3).softmax(-1), torch.arange(16))
    return Twin([student, *mri, *heads], Cpkd(student, mri, heads[:2], heads[2:]), inputs)


def nct() -> Twin:
    network = Unet(Style(3, batch_norm=True), 2, (8, 16, 32), (1, 2, 2), True, deep=1, classify=1)
    inputs = torch.randn(4, 1, 16, 24, 24), (torch.rand(4, 16, 24, 24) > 0.97).long()
    return Twin([network], functools.partial(pathway, network), inputs, 12.0, False)


def unet_2d(taught: bool) -> Twin:
    make = functools.partial(Unet, Style(2, batch_norm=True, relu=True, bias=True), 4, (8, 16, 32), (1, 1, 1), False)
    network, teacher = make(), make(skips=False).eval() if taught else None
    inputs = torch.rand(16, 1, 64, 64), torch.randint(0, 4, (16, 64, 64))
    return Twin([network], functools.partial(sikd, network, teacher), inputs, 0.0, False)


CASES: dict[str, Callable[[], Twin]] = {
    'mmpkd': functools.partial(small_vit, 0.5), 'image_only': functools.partial(small_vit, 0.0),
    'vit_ti': functools.partial(vit, 192, 3), 'vit_s': functools.partial(vit, 384, 6), 'vit_b': vit_b,
    'resnet18_2d': resnet18_2d, 'resnet18_3d': resnet18_3d, 'ct_only': ct_only, 'cpkd': cpkd, 'nct': nct,
    'unet_2d': functools.partial(unet_2d, False), 'sikd': functools.partial(unet_2d, True)}


# Input: what data.augment of configs/mmpkd_cxr.py does, in a Dataset.

class Radiographs(torch.utils.data.Dataset):
    """Images [64,64] in memory, rotated, scaled, shifted and of another contrast at each access."""

    def __init__(self, count: int = 240):
        self.images = np.random.default_rng(0).random((count, 64, 64), np.float32)
        self.rest = torch.zeros(count, 8), torch.ones(count, 8), torch.zeros(count, 8)
        self.rng = np.random.default_rng(1)

    def __len__(self) -> int:
        return 10 ** 9

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        i, rng = i % len(self.images), self.rng
        angle, size = rng.uniform(-math.radians(10), math.radians(10)), rng.uniform(0.9, 1.1)
        cos, sin = math.cos(angle) / size, math.sin(angle) / size
        x, y = 32 + 64 * rng.uniform(-0.05, 0.05, 2)
        numbers = (cos, sin, 32 - cos * x - sin * y, -sin, cos, 32 + sin * x - cos * y)
        picture = Image.fromarray(self.images[i]).transform((64, 64), Image.Transform.AFFINE, numbers,
                                                            Image.Resampling.BILINEAR)
        image = torch.from_numpy(np.array(picture))
        mean = image.mean()
        image = (mean + rng.uniform(0.9, 1.1) * (image - mean)).clamp_(0, 1)
        return image[None], *(a[i] for a in self.rest)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('case', choices=[*CASES, 'matmul'])
    parser.add_argument('--mode', choices=('step', 'loop', 'input'), default='step')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--compile', action='store_true', help='torch.compile, in bfloat16 where there is a GPU')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if args.case in ACCELERATOR and device == 'cpu':
        return serve(lambda _: None, left_out='needs an accelerator')
    if args.case == 'matmul':
        return matmul(device)
    torch.set_default_device(device)
    twin = CASES[args.case]()
    step = train_step(twin, args.compile, device)
    loader = torch.utils.data.DataLoader(Radiographs(), len(twin.inputs[0]), sampler=range(10 ** 9))
    batches = iter(loader) if args.mode != 'step' else None

    def run(repetitions):
        for _ in range(repetitions):
            inputs = tuple(a.to(device) for a in next(batches)) if batches else twin.inputs
            if args.mode != 'input':
                step(*inputs)
        if device == 'cuda':
            torch.cuda.synchronize()
    count = sum(p.numel() for network in twin.networks for p in network.parameters())
    serve(run, parameters=count, batch=len(twin.inputs[0]), torch=torch.__version__, threads=torch.get_num_threads(),
          backend=device)


def train_step(twin: Twin, compiled: bool, device: str) -> Callable[..., None]:
    parameters = [p for network in twin.networks for p in network.parameters()]
    if twin.adamw:
        decayed = [p for p in parameters if p.ndim > 1]
        groups = [dict(params=decayed), dict(params=[p for p in parameters if p.ndim <= 1], weight_decay=0.0)]
        optimizer = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.95), weight_decay=0.05, foreach=True)
    else:
        optimizer = torch.optim.Adam(parameters, 1e-3, foreach=True)
    loss = torch.compile(twin.loss) if compiled else twin.loss

    def step(*inputs: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=compiled and device == 'cuda'):
            value = loss(*inputs)
        value.backward()
        if twin.clip:
            for network in twin.networks:
                nn.utils.clip_grad_norm_(network.parameters(), twin.clip, foreach=True)
        optimizer.step()
    return step


def matmul(device: str) -> None:
    """See benchmarks/training.py."""
    tokens, width = 8 * 197, 192
    x, w = torch.randn(tokens, width, device=device), torch.randn(width, 4 * width, device=device)

    def run(repetitions):
        for _ in range(repetitions):
            y = x @ w
            y.T @ x, y @ w.T
        if device == 'cuda':
            torch.cuda.synchronize()
    serve(run, torch=torch.__version__, backend=device)


if __name__ == '__main__':
    main()
