"""Devices to compile for that are not there."""

import functools
import importlib.util
import os
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
from jax.experimental import topologies


class Target(NamedTuple):
    """A device that can be compiled for from its description.

    Attributes:
        platform: of XLA.
        label: as its maker calls it.
        memory: bytes.
        description: of a GPU, an XLA `GpuTargetConfigProto` as text; of a TPU, a topology.
    """

    platform: Literal["cuda", "tpu"]
    label: str
    memory: int
    description: str


def _gpu(
    label: str,
    capability: tuple[int, int],
    *,
    memory: int,
    bandwidth: int,
    l2_cache: int,
    clock: float,
    cores: int,
    fpus: int,
    shared: int,
) -> Target:
    """Public figures of a GPU; `shared` is the largest shared memory of a block in bytes."""
    major, minor = capability
    feature = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    description = f"""
platform_name: "CUDA"
device_description_str: "{label}"
dnn_version_info {{ major: 9 minor: 8 }}
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor}{feature} }}
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2_cache}
  clock_rate_ghz: {clock}
  core_count: {cores}
  fpus_per_core: {fpus}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared}
  shared_memory_per_core: {shared + 1024}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""
    return Target("cuda", label, memory, description)


_HOPPER: dict[str, Any] = dict(clock=1.98, cores=132, fpus=128, shared=232448)

TARGETS: Mapping[str, Target] = {
    "h200": _gpu(
        "NVIDIA H200", (9, 0), memory=150_000_000_000, bandwidth=4_800_000_000_000,
        l2_cache=60 * 2**20, **_HOPPER,
    ),
    "h100": _gpu(
        "NVIDIA H100 80GB HBM3", (9, 0), memory=85_000_000_000, bandwidth=3_350_000_000_000,
        l2_cache=50 * 2**20, **_HOPPER,
    ),
    "a100-80": _gpu(
        "NVIDIA A100-SXM4-80GB", (8, 0), memory=85_000_000_000, bandwidth=2_039_000_000_000,
        l2_cache=40 * 2**20, clock=1.41, cores=108, fpus=64, shared=166912,
    ),
    "v5e": Target("tpu", "TPU v5e", 16 * 2**30, "v5e:2x2"),
    "v6e": Target("tpu", "TPU v6e", 32 * 2**30, "v6e:2x2"),
}  # fmt: skip


def missing(target: str = "h200") -> str:
    """Why nothing can be compiled for a target here.

    Args:
        target: one of `TARGETS`.

    Returns:
        The pip command that would help; empty if nothing is missing.

    Raises:
        ValueError: if there is no such target.
    """
    version = jax.__version__
    if find_target(target).platform == "tpu":
        if _installed("libtpu"):
            return ""
        return f"target {target} needs libtpu: pip install 'jax[tpu]=={version}'"
    if _installed("jax_plugins.xla_cuda13"):
        return ""
    return (
        f"target {target} needs the CUDA plugin of this version of jax, but no CUDA: "
        f"pip install --no-deps jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}"
    )


@functools.cache
def target_device(target: str) -> Any:
    """A device that is only described, to compile for; nothing can run on it.

    Args:
        target: one of `TARGETS`.

    Returns:
        A device of a topology, for `jax.sharding.SingleDeviceSharding`.

    Raises:
        ValueError: if there is no such target.
        ModuleNotFoundError: if its compiler is not installed; says which package it is in.
    """
    found = find_target(target)
    if reason := missing(target):
        raise ModuleNotFoundError(reason)
    if found.platform == "tpu":
        # libtpu would otherwise look for the machine's TPUs
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        topology = topologies.get_topology_desc(found.description, platform="tpu")
    else:
        # the plugin is loaded without the libraries that running on a GPU would need
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology="1x1x1", target_config=found.description
        )
    return topology.devices[0]


def find_target(target: str) -> Target:
    """A target by name; raises ValueError if there is none."""
    if target not in TARGETS:
        raise ValueError(f"target {target!r} is not known; known are {', '.join(TARGETS)}")
    return TARGETS[target]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
