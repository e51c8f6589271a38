"""What `load_params` holds at its peak, in a process of its own."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from zojax import models

LAYERS, WIDTH, HIDDEN = 6, 512, 1024

# anonymous memory while it loads: the weights are mapped from a file, which takes none; once before
# so that what is compiled counts for nothing
SCRIPT = """
import gc, json, sys, threading, time
import jax
from zojax import models
from zojax.virtual import is_virtual

def anonymous():
    with open("/proc/self/statm") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    return 4096 * (resident - shared)

def watch():
    while not done.is_set():
        seen.append(anonymous())
        time.sleep(1e-3)

for format in (None, "nf4"):
    models.load_params(sys.argv[1], format=format)
    gc.collect()
    before, seen, done = anonymous(), [], threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    params = jax.block_until_ready(models.load_params(sys.argv[1], format=format)[2])
    done.set()
    thread.join()
    sizes = [x.base.nbytes if is_virtual(x) else x.nbytes
             for x in jax.tree.leaves(params, is_leaf=is_virtual)]
    print(json.dumps({"above": max(seen) - before - sum(sizes), "largest": max(sizes)}))
    del params
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_the_peak_of_reading_is_a_leaf_twice_above_the_result(tmp_path):
    config = models.parse_config(
        {
            "model_type": "llama",
            "vocab_size": 64,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 8,
            "intermediate_size": HIDDEN,
            "max_position_embeddings": 64,
        }
    )
    _, shapes = models.functional(models.abstract(config))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: random.standard_normal(x.shape, np.float32), shapes)
    models.save_params(config, params, tmp_path / "model")
    # of more than 64 KiB is given back at once when it is freed
    env = os.environ | {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "model")],
        capture_output=True, text=True, timeout=300, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    dense, small = map(json.loads, done.stdout.splitlines())
    matrix = 4 * WIDTH * HIDDEN
    assert dense["largest"] == LAYERS * matrix and small["largest"] < dense["largest"] / 7
    # what is stacked and its copy on the device; of a matrix what quantising it needs
    assert dense["above"] <= 2 * dense["largest"] + matrix
    assert small["above"] <= 2 * small["largest"] + 4 * matrix
