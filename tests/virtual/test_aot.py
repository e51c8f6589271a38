"""Llama 2 7B, compiled for an H200 without the GPU: a step in the memory of the forward pass."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zojax.planning import missing

pytestmark = pytest.mark.aot


def test_a_step_fits_in_the_memory_of_the_forward():
    if reason := missing():
        pytest.skip(reason)
    # a process of its own: the plugin must be loaded before jax is used, and for one device
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.aot", "--json", "--batches", "1"],
        capture_output=True, text=True, timeout=900, cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["1x256"]
    # 6.74e9 parameters of two bytes, and the tokens
    assert found["forward"]["arguments"] == pytest.approx(12.5513, abs=1e-4)
    # the least that a step written by hand for this model needs is 12.94
    assert found["low_rank"]["total"] <= 12.94
    # dense at one time are at most the matrices of one layer and the head, made before the loop
    layer, head = 4 * 4096**2 + 3 * 4096 * 11008, 4096 * 32000
    assert found["rademacher"]["total"] <= found["forward"]["total"] + 2 * (layer + head) / 2**30
    # the oracle: what writing params + mu * z costs
    assert found["plain_jax"]["total"] > 3 * found["forward"]["total"]
