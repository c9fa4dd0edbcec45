"""Accelerators that a step can be compiled for without having one: what their makers publish, for each device.

A topology is written tpu:v5e:4x4 (kind and grid of chips) or gpu:h100:2x8 (hosts x GPUs of each).
"""
import math
from typing import NamedTuple

from jaxkd import errors


class Accelerator(NamedTuple):
    """One device. Rates are peaks, dense, and of one direction."""

    device_kind: str  # as JAX calls it
    memory: int  # bytes
    bandwidth: float  # bytes of memory a second
    bfloat16: float  # FLOP/s of matrix products
    float32: float  # FLOP/s of matrix products of float32 arrays at JAX's default precision (TPU: one bfloat16 pass;
    # NVIDIA: TF32)
    interconnect: float  # bytes a second to the other devices
    cuda: dict[str, int | float] | None = None  # of a GPU: what XLA's compiler asks of the device

    def rate(self, dtype: str) -> float:
        """FLOP/s of matrix products in a stage of this dtype."""
        return self.bfloat16 if dtype == 'bfloat16' else self.float32


GIB = 2**30
TPUS = {
    'v4': Accelerator('TPU v4', 32 * GIB, 1.228e12, 275e12, 275e12, 3 * 45e9),
    'v5e': Accelerator('TPU v5 lite', 16 * GIB, 0.819e12, 197e12, 197e12, 2 * 45e9),
    'v5p': Accelerator('TPU v5p', 95 * GIB, 2.765e12, 459e12, 459e12, 3 * 90e9),
    'v6e': Accelerator('TPU v6 lite', 32 * GIB, 1.64e12, 918e12, 918e12, 2 * 90e9)}
_HOPPER = dict(core_count=132, l2_cache_size=50 * 2**20, clock_rate_ghz=1.98, shared_memory_per_core=233472,
               shared_memory_per_block_optin=232448, compute_capability=9)
GPUS = {
    'a100': Accelerator('NVIDIA A100-SXM4-80GB', 80 * GIB, 2.039e12, 312e12, 156e12, 300e9, dict(
        core_count=108, l2_cache_size=40 * 2**20, clock_rate_ghz=1.41, shared_memory_per_core=167936,
        shared_memory_per_block_optin=166912, compute_capability=8, fpus_per_core=64)),
    'h100': Accelerator('NVIDIA H100 80GB HBM3', 80 * GIB, 3.352e12, 989e12, 494e12, 450e9, _HOPPER),
    'h200': Accelerator('NVIDIA H200', 141 * 10**9, 4.8e12, 989e12, 494e12, 450e9, _HOPPER)}


def parse(topology: str) -> tuple[str, str, tuple[int, ...], Accelerator]:
    """'tpu:v5e:4x4' -> ('tpu', 'v5e', (4, 4), Accelerator). ConfigError for what is not known."""
    family, _, rest = topology.partition(':')
    kind, _, grid = rest.partition(':')
    known = {'tpu': TPUS, 'gpu': GPUS}.get(family, {})
    sides = tuple(int(n) if n.isdecimal() else 0 for n in grid.split('x'))
    if kind not in known or not all(0 < n <= 4096 for n in sides) or (family == 'gpu' and len(sides) != 2):
        raise errors.ConfigError(f'--topology {topology}: write tpu:KIND:GRID with a kind of {", ".join(TPUS)}, such '
                                 f'as tpu:v5e:4x4, or gpu:KIND:HOSTSxGPUS with a kind of {", ".join(GPUS)}, such as '
                                 'gpu:h100:1x8.')
    return family, kind, sides, known[kind]


def of_device(device_kind: str) -> Accelerator | None:
    """The Accelerator that JAX calls so; None for one that is not listed here, such as a CPU."""
    return next((a for a in (*TPUS.values(), *GPUS.values()) if a.device_kind == device_kind), None)


def cuda_target(accelerator: Accelerator) -> str:
    """What XLA's CUDA compiler has to know of a GPU that is not here: a text proto of its GpuTargetConfig."""
    device = dict(accelerator.cuda or {})
    capability = f'cuda_compute_capability {{ major: {device.pop("compute_capability")} }}'
    fields = dict(
        threads_per_block_limit=1024, threads_per_warp=32, shared_memory_per_block=49152, threads_per_core_limit=2048,
        fpus_per_core=128, block_dim_limit_x=2**31 - 1, block_dim_limit_y=65535, block_dim_limit_z=65535,
        registers_per_core_limit=65536, registers_per_block_limit=65536,
        memory_bandwidth=math.floor(accelerator.bandwidth), device_memory_size=accelerator.memory) | device
    described = ' '.join(f'{k}: {v}' for k, v in fields.items())
    return (f'gpu_device_info {{ {described} {capability} }} platform_name: "CUDA" '
            'dnn_version_info { major: 9 minor: 8 patch: 0 } '
            f'device_description_str: "{accelerator.device_kind}"')
