"""Llama-2-7B over 4-bit weights, planned for an H200 that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zojax.planning import missing

pytestmark = pytest.mark.aot


@pytest.mark.parametrize(
    "flags, most", [((), 4.0), (("--quantize-embeddings",), 3.7)], ids=["bf16", "nf4"]
)
def test_a_sensitive_step_of_llama_2_7b_over_nf4_fits(flags, most):
    if reason := missing("h200"):
        pytest.skip(reason)
    command = (
        "plan --config llama-2-7b --base nf4 --method sensitive --density 1e-3 --batch 1 --seq 256 "
        "--target h200 --json"
    )
    # a process of its own: with one device, and code that is optimised
    done = subprocess.run(
        [sys.executable, "-m", "zojax", *command.split(), *flags],
        capture_output=True, text=True, timeout=900, cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["parameters"] == 6_738_415_616
    # codes of half a byte, scales of two bytes for 64 entries; what is dense, two bytes
    embeddings = 2 * 32000 * 4096
    norms = (2 * 32 + 1) * 4096
    packed = 6_738_415_616 - norms - (0 if flags else embeddings)
    stored = packed * (1 / 2 + 2 / 64) + 2 * (6_738_415_616 - packed)
    positions = 4 * found["trainable_parameters"]
    assert found["weights_gib"] == pytest.approx((stored + positions) / 2**30, abs=1e-3)
    assert found["total_gib"] < most
