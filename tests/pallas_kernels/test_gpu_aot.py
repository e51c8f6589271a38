"""The kernels for Hopper GPUs, compiled down to machine code for an H200 that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.kernels_gpu import PROBLEMS, QUANTIZED, missing

pytestmark = pytest.mark.aot


def test_no_register_is_spilled_and_the_tensor_cores_do_not_wait_for_each_other():
    if reason := missing():
        pytest.skip(reason)
    # a process of its own: with one device
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.kernels_gpu", "--json"],
        capture_output=True, text=True, timeout=900, cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # the hash is 9 operations a number, a code of integers 3; a query multiplies, adds and rounds
    # in two more; levels of columns are 15 selections
    most = {"rademacher": 16, "nibble_sum": 23, "gaussian": 60}
    most |= {"int4": 6, "zeros": 6, "int8": 6.5, "nf4": 6, "table": 28}
    for problem in (*PROBLEMS, *QUANTIZED):
        name, kernel = str(problem), found[str(problem)]
        assert kernel["spilled"] == 0, name
        assert not kernel["serialised"], name
        limit = most[name.split()[0]] + 2 * min(4, problem.s)
        assert kernel["instructions"] < limit, name
        # 227 KiB are there
        assert kernel["shared"] is None or kernel["shared"] <= 227 * 1024, name
