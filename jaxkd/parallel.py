"""Devices, hosts and compilation; no other file handles them.

A train step is written for the rows of one device and names the axis over which devices are summed. Two mappers run it:
'mesh' (jit of a shard_map over all devices, the default) and 'pmap'. Both execute the same per-device program.
"""
import functools
import glob
import importlib.util
import json
import os
import pathlib
import platform
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PRNGKeyArray

from jaxkd import errors
from jaxkd.runtime import accelerators, versions

AXIS = 'batch'
FSDP = 'fsdp'  # the second axis of a mesh whose devices divide the state, see jaxkd/training/fsdp.py
MONTH = 30 * 86400  # seconds
SMALL = 1024  # elements; a smaller array stays whole: a collective for it costs more than it saves [our choice]

_described: list[Any] = []  # devices of `compile_for`: programs can be compiled for them, and not run


def psum(tree: Any) -> Any:
    """Sum over devices inside a mapped step; the identity outside."""
    return jax.lax.psum(tree, axes()) if is_mapped() else tree


def pmean(tree: Any) -> Any:
    """Mean over devices inside a mapped step; the identity outside."""
    return jax.lax.pmean(tree, axes()) if is_mapped() else tree


def gather(tree: Any) -> Any:
    """The global batch from the rows of each device, [b,...] -> [B,...], differentiable; the identity outside.

    For a relational term let each device sum over its rows against all columns: the sums then add up to the global
    term, and the gradient that flows back through `gather` adds up as well.
    """
    return jax.tree.map(lambda a: jax.lax.all_gather(a, axes(), tiled=True), tree) if is_mapped() else tree


def first_row(rows: int) -> Any:
    """The place of the first of this device's rows in what `gather` gives of `rows` a device; 0 outside."""
    return jax.lax.axis_index(axes()) * rows if is_mapped() else 0


def fold_device(key: PRNGKeyArray) -> PRNGKeyArray:
    """A different random key on every device: dropout differs between devices."""
    return jax.random.fold_in(key, jax.lax.axis_index(axes())) if is_mapped() else key


def axes() -> tuple[str, ...]:
    """The axes of devices over which the step that is being traced is mapped, () outside."""
    return tuple(axis for axis in (AXIS, FSDP) if is_mapped(axis))


def is_mapped(axis: str = AXIS) -> bool:
    """Whether a step that is mapped over an axis of devices is being traced."""
    try:
        jax.lax.axis_index(axis)
    except NameError:
        return False
    return True


@functools.cache
def mesh(fsdp: int = 1) -> jax.sharding.Mesh:
    """All devices along the one axis of the batch, or those of `compile_for`; in groups of neighbours where `fsdp` of
    them divide the state among them. The order of the devices is that of the rows of a batch in either.
    """
    if fsdp > 1:
        return jax.sharding.Mesh(mesh().devices.reshape(-1, fsdp), (AXIS, FSDP))
    devices = _described or jax.devices()
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """jax.jit, with LLVM's second level of optimisation on CPUs.

    The third level unrolls loops over small arrays fully: the initial weights of a small 3D U-Net take ten times as
    long to compile, a train step up to twice as long, and neither runs faster. A level in XLA_FLAGS takes precedence.
    """
    chosen = 'xla_backend_optimization_level' in os.environ.get('XLA_FLAGS', '')
    plain = chosen or _described or jax.default_backend() != 'cpu'
    level = None if plain else {'xla_backend_optimization_level': 2}
    return jax.jit(function, compiler_options=level, **options)


def run(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), compiled once for a function; part of the outer program where that is being traced."""
    traced = any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(args))
    return function(*args) if traced else _program(function)(*args)


@functools.lru_cache(maxsize=256)
def _program(function: Callable[..., Any]) -> Callable[..., Any]:
    return jit(function)


def compile_step(step: Callable[..., Any], mode: str = 'mesh', fsdp: int = 1) -> Callable[..., Any]:
    """`step(state, frozen, batch) -> (state, metrics)` over all devices; state is donated under 'mesh'.

    fsdp: how many devices divide the state among them, see jaxkd/training/fsdp.py.
    """
    check_mode(mode, fsdp)
    mapped = (_over_mesh(step, fsdp) if mode == 'mesh' else
              jax.pmap(step, axis_name=AXIS, in_axes=(None, None, 0), out_axes=(None, None)))
    if jax.default_backend() == 'cpu' and jax.device_count() > 1:
        # Virtual CPU devices share one small thread pool: two steps in flight can deadlock in their all-reduce.
        return lambda *args: jax.block_until_ready(mapped(*args))
    return mapped


def check_mode(mode: str, fsdp: int = 1) -> None:
    """ConfigError for a mode of `compile_step` that does not exist or cannot run here, and for groups of devices that
    do not come out even.
    """
    errors.check_choice('parallel', mode, ('mesh', 'pmap'))
    if mode == 'pmap' and jax.process_count() > 1:
        raise errors.ConfigError('parallel = "pmap" is for one process. On several hosts use "mesh", the default: it '
                                 'runs the same step.')
    if mode == 'pmap' and fsdp > 1:
        raise errors.ConfigError(f'parallel = "pmap" keeps the state whole on each device, so it does not go with fsdp '
                                 f'= {fsdp}. Use "mesh", the default.')
    if mesh().size % fsdp:
        fits = [n for n in range(1, mesh().size + 1) if mesh().size % n == 0]
        raise errors.ConfigError(f'fsdp = {fsdp}: {mesh().size} devices cannot be grouped so. What fits: '
                                 f'{", ".join(map(str, fits))}.')


def compiled_step(step: Callable[..., Any], state: Any, frozen: Any, batch: Any, fsdp: int = 1) -> jax.stages.Compiled:
    """The program of a step for each device, under 'mesh'. Arguments are ShapeDtypeStructs, or arrays."""
    def shapes(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)
    arguments = map(shapes, (state, frozen, batch), _shardings(state, frozen, batch, fsdp))
    return _over_mesh(step, fsdp).lower(*arguments).compile()


def _shardings(state: Any, frozen: Any, batch: Any, fsdp: int) -> tuple[Any, Any, Any]:
    """Where the arguments of a step lie."""
    def everywhere(tree: Any, spec: P) -> Any:
        return jax.tree.map(lambda a: NamedSharding(mesh(), spec), tree)
    return _state_shardings(state, fsdp), everywhere(frozen, P()), everywhere(batch, P(AXIS))


def step_flops(step: Callable[..., Any], state: Any, frozen: Any, batch: Any) -> float:
    """Floating-point operations of a step on a device's rows of a batch, as it is written: counted in the program for
    a CPU, without compiling it.
    """
    rows = jax.tree.map(lambda a: jax.ShapeDtypeStruct((a.shape[0] // mesh().size, *a.shape[1:]), a.dtype), batch)
    return flops(step, state, frozen, rows)


def flops(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of function(*args) on one device, as it is written: counted in the program for a CPU,
    without compiling it. args: arrays or their shapes.
    """
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args)
    with jax.default_device(jax.devices('cpu')[0]):
        return float((jax.jit(function).lower(*shapes).cost_analysis() or {})['flops'])


def step_seconds(compiled: jax.stages.Compiled, state: Any, frozen: Any, batch: Any, steps: int = 10,
                 fsdp: int = 1) -> float:
    """Seconds of a compiled step on these devices, the median of `steps`, on arrays of zeros of these shapes."""
    def zeros(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(lambda a, s: jax.device_put(np.zeros(a.shape, a.dtype), s), tree, shardings)
    state, frozen, batch = map(zeros, (state, frozen, batch), _shardings(state, frozen, batch, fsdp))
    seconds = []
    for _ in range(steps + 1):  # the first is not counted
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, frozen, batch))
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))


def compile_for(topology: str) -> accelerators.Accelerator:
    """From now on, compile steps for the devices of a topology that are not here, see runtime/accelerators.py.

    ConfigError for a topology that is not known, or without the package that compiles for it.
    """
    family, kind, sides, accelerator = accelerators.parse(topology)
    from jax.experimental import topologies
    for variable, value in (('TPU_SKIP_MDS_QUERY', '1'), ('TPU_WORKER_HOSTNAMES', 'localhost'), ('TPU_WORKER_ID', '0'),
                            ('TPU_ACCELERATOR_TYPE', kind), ('TPU_STDERR_LOG_LEVEL', '3')):
        os.environ.setdefault(variable, value)  # libtpu looks for no TPU of this machine, and does not say so
    grid = 'x'.join(map(str, sides))
    try:
        if family == 'tpu':
            described = topologies.get_topology_desc(platform='tpu', topology_name=f'{kind}:{grid}')
        else:
            described = topologies.get_topology_desc(kind, 'cuda', target_config=accelerators.cuda_target(accelerator),
                                                     topology=f'1x{grid}')
    except (RuntimeError, ValueError, NotImplementedError) as e:
        reason = ' '.join(str(e).split())[:200]
        remedy = ('pip install libtpu' if family == 'tpu' else 'pip install jax-cuda12-plugin jax-cuda12-pjrt '
                  'nvidia-cuda-nvcc-cu12 nvidia-cudnn-cu12 in the version of jax, and set '
                  'JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1')
        raise errors.ConfigError(f'--topology {topology}: JAX cannot compile for it here ({reason}). {remedy}; '
                                 'and the grid must be one that exists.') from e
    _described[:] = described.devices
    mesh.cache_clear()
    _over_mesh.cache_clear()
    return accelerator


def local_accelerator() -> accelerators.Accelerator | None:
    """What is known of the devices that JAX uses; None for a CPU or a kind that is not listed."""
    return accelerators.of_device(jax.devices()[0].device_kind)


@functools.lru_cache(maxsize=64)
def _over_mesh(step: Callable[..., Any], fsdp: int = 1) -> Any:
    def mapped(state: Any, frozen: Any, batch: Any) -> Any:
        specs, rows = (P(), P(AXIS)) if fsdp == 1 else (state_specs(state, fsdp), P((AXIS, FSDP)))
        return jax.shard_map(step, mesh=mesh(fsdp), in_specs=(specs, P(), rows), out_specs=(specs, P()),
                             check_vma=False)(state, frozen, batch)  # gradients are summed once, in both mappers
    if mesh().devices.flat[0].platform == 'gpu':  # one all-reduce of all gradients, not one for each 30 MB of them
        return jax.jit(mapped, donate_argnums=0, compiler_options={'xla_gpu_all_reduce_combine_threshold_bytes': 2**31})
    return jit(mapped, donate_argnums=0)


def axis_of(shape: tuple[int, ...], n: int) -> int | None:
    """The axis along which an array is divided among n devices, its largest that n divides; None: it stays whole."""
    if n == 1 or np.prod(shape) < SMALL:
        return None
    return max((i for i, size in enumerate(shape) if size % n == 0), key=lambda i: shape[i], default=None)


def state_specs(state: Any, fsdp: int) -> Any:
    """The PartitionSpec of every leaf of a TrainState: parameters, optimiser and smoothed weights are divided by their
    shapes alone, so that they agree; all else is whole.
    """
    def spec(a: Any) -> P:
        axis = axis_of(a.shape, fsdp)
        return P() if axis is None else P(*[None] * axis, FSDP)
    divided = {part: jax.tree.map(spec, getattr(state, part)) for part in ('params', 'opt_state', 'ema')}
    return jax.tree.map(lambda a: P(), state).replace(**divided)


def _state_shardings(state: Any, fsdp: int) -> Any:
    return jax.tree.map(lambda spec: NamedSharding(mesh(fsdp), spec), state_specs(state, fsdp) if fsdp > 1 else
                        jax.tree.map(lambda a: P(), state), is_leaf=lambda spec: isinstance(spec, P))


def place_state(state: Any, fsdp: int = 1) -> Any:
    """A copy of a TrainState on the devices, divided among groups of `fsdp`."""
    return replicate(state) if fsdp == 1 else _copy(state, _state_shardings(state, fsdp))


def init_state(init: Callable[..., Any], key: PRNGKeyArray, fsdp: int = 1) -> Any:
    """init(key), a TrainState; with `fsdp` as one program, so that no device ever holds it whole."""
    if fsdp == 1:
        return init(key)
    return jit(init, out_shardings=_state_shardings(jax.eval_shape(init, key), fsdp))(key)


def shard_batch(batch: Any, mode: str = 'mesh') -> Any:
    """Put this host's rows of a batch on its devices."""
    if mode == 'pmap':
        return jax.tree.map(lambda a: np.reshape(a, (jax.local_device_count(), -1, *a.shape[1:])), batch)
    sharding = NamedSharding(mesh(), P(AXIS))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), batch)


def replicate(tree: Any) -> Any:
    """A copy of every array on every device (a copy: the step may donate it)."""
    return _copy_to_all()(tree)


def _copy(tree: Any, shardings: Any) -> Any:
    return jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)(tree)


@functools.cache
def _copy_to_all() -> Callable[[Any], Any]:  # one function, so that trees of equal shapes share a program
    return jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=NamedSharding(mesh(), P()))


def on_devices(tree: Any) -> Any:
    """Every array on every device, once: a program that is given arrays of the host moves them at each call."""
    return jax.device_put(tree, NamedSharding(mesh(), P()))


def split_members(tree: Any) -> Any:
    """Arrays [members, ...], the members divided among all devices."""
    return jax.device_put(tree, NamedSharding(mesh(), P(AXIS)))


def check_members(n: int) -> None:
    """ConfigError for a number of members that the devices do not divide."""
    if n % jax.device_count():
        raise errors.ConfigError(f'{n} seeds do not divide among {jax.device_count()} devices. The nearest number that '
                                 f'does: {max(1, round(n / jax.device_count())) * jax.device_count()}.')


def allgather_hosts(tree: Any) -> Any:
    """The rows of all hosts, [b,...] -> [B,...] numpy, in host order, in numpy's precision."""
    tree = jax.tree.map(np.asarray, tree)
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    def gather(a: np.ndarray) -> np.ndarray:  # JAX would round 64-bit numbers to 32 bits
        words = np.ascontiguousarray(a).view(np.uint32) if a.dtype.itemsize == 8 else a
        return np.asarray(multihost_utils.process_allgather(words, tiled=True)).view(a.dtype)
    return jax.tree.map(gather, tree)


def allgather_rows(rows: list[dict]) -> list[dict]:
    """The rows of all hosts in host order; each host may have another number of them. rows: dicts of plain numbers and
    strings.
    """
    if jax.process_count() == 1:
        return rows
    text = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    sizes = allgather_hosts(np.array([len(text)]))
    texts = allgather_hosts(np.pad(text, (0, sizes.max() - len(text)))[None])
    return [row for text, size in zip(texts, sizes) for row in json.loads(text[:size].tobytes())]


def to_host(tree: Any) -> Any:
    """numpy of arrays that are sharded over the batch (this host's rows) or replicated."""
    def rows(a):
        if not isinstance(a, jax.Array) or a.is_fully_addressable:
            return np.asarray(a)
        if a.is_fully_replicated:
            return np.asarray(a.addressable_shards[0].data)
        shards = sorted(a.addressable_shards, key=lambda s: s.index[0].start or 0)
        return np.concatenate([s.data for s in shards])
    return jax.tree.map(rows, tree)


def whole(a: Any) -> np.ndarray:
    """numpy of an array that devices, of any host, hold whole or in parts. All hosts have to ask."""
    if not isinstance(a, jax.Array) or a.is_fully_addressable or a.is_fully_replicated:
        return to_host(a)
    from jax.experimental import multihost_utils
    return np.asarray(multihost_utils.process_allgather(a, tiled=True))


def check_batch(batch: int, accumulate: int) -> None:
    """ConfigError for a global batch that devices and microbatches do not divide."""
    divisor = mesh().size * accumulate
    if batch % divisor:
        raise errors.ConfigError(f'batch = {batch} does not divide into {mesh().size} devices x {accumulate} '
                                 f'microbatches. The nearest that does: {max(divisor, batch // divisor * divisor)}.')


def rows(batch: int) -> int:
    """Rows of an evaluation batch on one host: `batch` over the hosts, rounded up to a multiple of its devices."""
    return local_rows(-(-batch // process()[1]))


def jit_sharded(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """jit of a function whose outputs are sharded like the rows of its batch: each host keeps its rows."""
    return jit(function, out_shardings=NamedSharding(mesh(), P(AXIS)), **options)


def jit_local(function: Callable[..., Any]) -> Callable[..., Any]:
    """jit of `function(variables, inputs)` over the devices of this host, the rows of inputs [B,...] split among them.

    Hosts call it independently of each other, on different cases. B must be a multiple of `local_rows(1)`.
    """
    devices = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
    replicated, split = NamedSharding(devices, P()), NamedSharding(devices, P(AXIS))
    return jit(function, in_shardings=(replicated, split), out_shardings=split)


def local_rows(n: int) -> int:
    """n, rounded up to a multiple of this host's devices."""
    return -(-n // jax.local_device_count()) * jax.local_device_count()


def all_hosts_agree(flag: bool) -> bool:
    """Whether the flag is set on every host."""
    return bool(allgather_hosts(np.array([bool(flag)])).all())


def reached_sync_point(place: int) -> bool:
    """Whether all hosts stop at this place after a signal that one of them was sent: the next one that none has passed.

    To be asked at each place, on all hosts, with numbers that grow. Without a signal it waits for no other host. False
    where jax_enable_preemption_service is off.
    """
    from jax.experimental import multihost_utils
    on = jax.config.jax_enable_preemption_service  # type: ignore[attr-defined]
    return on and multihost_utils.reached_preemption_sync_point(place)


def process() -> tuple[int, int]:
    """(this host, number of hosts)."""
    return jax.process_index(), jax.process_count()


@functools.cache
def initialize() -> None:
    """Join the other processes of a multi-host run that the environment describes, once; nothing for a single process.

    JAX recognises SLURM, Open MPI and TPU pods. Otherwise set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES
    and JAX_PROCESS_ID for each process. JAXKD_HEARTBEAT: seconds without a sign of a process after which the others end
    (100). JAXKD_JOIN: seconds in which all have to come (300); JAX ends the process if one does not.
    """
    get = os.environ.get
    limits: dict[str, Any] = dict(heartbeat_timeout_seconds=int(get('JAXKD_HEARTBEAT') or 100),
                                  initialization_timeout=int(get('JAXKD_JOIN') or 300))
    if address := get('JAX_COORDINATOR_ADDRESS'):
        jax.distributed.initialize(address, int(get('JAX_NUM_PROCESSES', 1)), int(get('JAX_PROCESS_ID', 0)), **limits)
    elif (max(int(get(k) or 1) for k in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')) > 1
          or ',' in get('TPU_WORKER_HOSTNAMES', '')):
        jax.distributed.initialize(**limits)
    check_devices()


def check_devices() -> None:
    """ConfigError if JAX cannot use the kind of device that JAX_PLATFORMS asks for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as e:  # an AssertionError without text, where jaxlib is the build for CPUs
        asked, reason = os.environ.get('JAX_PLATFORMS', ''), ' '.join(str(e).split())[:160]
        raise errors.ConfigError(f'JAX_PLATFORMS={asked}, but JAX finds no such device here'
                                 f'{f" ({reason})" if reason else ""}. For a GPU: {versions.install("cuda12")} and a '
                                 f'driver that nvidia-smi shows; for a TPU: {versions.install("tpu")}; for this CPU: '
                                 'unset JAX_PLATFORMS.') from e


def backend() -> str:
    """The kind of device that JAX uses: cpu, gpu or tpu."""
    return jax.default_backend()


def has_cuda() -> bool:
    """Whether JAX's plugin for NVIDIA GPUs is installed, with which programs for them can hold kernels of cuDNN, and
    `compile_for` chose no other devices.
    """
    return all(device.platform == 'gpu' for device in _described) and _has_cuda_plugin()


@functools.cache
def _has_cuda_plugin() -> bool:
    return any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13))


def local_gpus() -> list[str]:
    """The NVIDIA GPUs that JAX would use here, by number or identifier; found without touching any."""
    if 'cpu' in os.environ.get('JAX_PLATFORMS', '').split(','):
        return []
    if 'CUDA_VISIBLE_DEVICES' in os.environ:
        return [name for name in os.environ['CUDA_VISIBLE_DEVICES'].split(',') if name]
    return sorted(path.removeprefix('/dev/nvidia') for path in glob.glob('/dev/nvidia[0-9]*'))


def gpu_share(gpus: Sequence[str], i: int, count: int) -> dict[str, str]:
    """Environment of process i of `count` that divide these GPUs: which one it uses and, where several use one, which
    share of its memory; {} without GPUs. A share that the environment sets already stays.
    """
    if not gpus:
        return {}
    together = -(-count // len(gpus))
    environment = {'CUDA_VISIBLE_DEVICES': gpus[i % len(gpus)]}
    if together > 1 and 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in os.environ:
        environment['XLA_PYTHON_CLIENT_MEM_FRACTION'] = f'{0.9 / together:.3f}'
    return environment


def leave_accelerators() -> None:
    """For a process that only waits: it takes no memory of a device, and no TPU."""
    jax.config.update('jax_platforms', 'cpu')


def unused_accelerator() -> str:
    """A line that names a device of this machine that JAX does not use though nobody asked for the CPU; '' without."""
    if jax.default_backend() != 'cpu' or 'cpu' in os.environ.get('JAX_PLATFORMS', '').split(','):
        return ''
    kinds = {'/dev/nvidia0': ('an NVIDIA GPU', 'cuda12'), '/dev/accel0': ('a TPU', 'tpu')}
    return ''.join(f'warning: this machine has {kind}, but JAX runs on the CPU. {versions.install(extra)}, or set '
                   'JAX_PLATFORMS=cpu' for path, (kind, extra) in kinds.items() if os.path.exists(path))


def enable_compilation_cache() -> str:
    """Keep compiled programs for later processes; -> the folder, '' where it cannot be made and nothing is kept.

    JAX_COMPILATION_CACHE_DIR, or jaxkd/compiled in XDG_CACHE_HOME (~/.cache), there a folder for each kind of CPU,
    because JAX does not compare the instruction sets of machines. Programs older than 30 days are removed. Processes
    may share the folder: one that ends while it writes leaves a program that JAX reports and compiles again.
    """
    if chosen := os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        return chosen
    folder = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 'jaxkd' / 'compiled'
    if jax.default_backend() == 'cpu':
        folder /= f'{platform.machine()}-{zlib.crc32(_instruction_sets().encode()):08x}'
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for program in folder.iterdir():
            if time.time() - program.stat().st_mtime > MONTH:
                program.unlink(missing_ok=True)
    except OSError:
        return ''
    jax.config.update('jax_compilation_cache_dir', str(folder))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
    return str(folder)


def _instruction_sets() -> str:
    """What tells machines apart: the flags of the CPU, or the name of the host."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.node()
    return next((line for line in lines if line.lower().startswith(('flags', 'features'))), platform.node())


def describe() -> str:
    """One line for the head of a log: number and kind of devices, backend, processes."""
    kinds = ', '.join(sorted({d.device_kind for d in jax.devices()}))
    return f'{jax.device_count()} x {kinds} ({jax.default_backend()}), {jax.process_count()} process(es)'


def peak_memory() -> int | None:
    """Bytes that the first device of this host held at most since the process began; None where it does not say, such
    as a CPU.
    """
    peak = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    return None if peak is None else int(peak)


def device_memory() -> str:
    """Memory in use and in all of the first device of this host, '' where it does not say, such as a CPU."""
    used = jax.local_devices()[0].memory_stats() or {}
    if 'bytes_limit' not in used:
        return ''
    return f'{used.get("bytes_in_use", 0) / 2**30:.1f} of {used["bytes_limit"] / 2**30:.1f} GiB in use on each device'
