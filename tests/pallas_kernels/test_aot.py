"""Kernels compiled in full for devices that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.perturbed_matmul.config import tpu_blocks, vmem_bytes
from pallas_kernels.perturbed_update import perturbed_update
from tests.benchmarks.kernels_compile import PROBLEMS, TARGETS
from tests.pallas_kernels.test_perturbed_update import fusions_over
from zojax.planning import missing, target_device

pytestmark = pytest.mark.aot

_ROOT = Path(__file__).parents[2]


def test_tpu_kernels_compile_within_vector_memory():
    if reason := missing("v5e"):
        pytest.skip(reason)
    # a process of its own, in which libtpu is loaded before jax is used
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.kernels_compile", *PROBLEMS],
        capture_output=True, text=True, timeout=900, cwd=_ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(PROBLEMS) * len(TARGETS)
    for result in found:
        assert result["kernels"] == 1
        assert 0 < result["vmem"] < 24 * 2**20, result
        args = PROBLEMS[result["problem"]][1]
        if result["problem"].startswith(("rademacher", "8 directions")):
            (p, s, m, k), n = args[0].shape, args[1].shape[1]
            # the heuristic's estimate is on the safe side, and not by much
            estimate = vmem_bytes(tpu_blocks(p, s, m, k, n, 2, 2), s, 2, 2)
            assert estimate / 3 < result["vmem"] < estimate, result


@pytest.mark.parametrize("count", [1, 16])
def test_an_update_is_one_fusion_in_place_on_an_h200(count):
    if reason := missing("h200"):
        pytest.skip(reason)
    sharding = jax.sharding.SingleDeviceSharding(target_device("h200"))
    args = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for shape, dtype in (
            ((4096, 11008), jnp.bfloat16), ((count, 2), jnp.uint32), ((count,), jnp.float32),
            ((2,), jnp.uint32),
        )
    ]  # fmt: skip

    def update(w, words, c, key):
        return perturbed_update(w, words, c, distribution="rademacher", rounding_key=key)

    compiled = jax.jit(update, donate_argnums=0).lower(*args).compile()
    text = compiled.as_text()
    assert "input_output_alias={ {}: (0, {}, may-alias) }" in text
    assert fusions_over(text, "bf16[4096,11008]") == 1
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20
