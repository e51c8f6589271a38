"""Shared by all tests: eight CPU devices, and the folder of real data sets."""

import gc
import os
from pathlib import Path

# before jax is imported anywhere: sharding is tested on eight CPU devices, and machine code is made
# without effort, as most of the suite's time is compilation
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"

import pytest

# traced programs are many objects, few of them garbage
gc.set_threshold(100_000, 20, 50)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder that $ZOJAX_DATA names; skips where it is not set."""
    name = os.environ.get("ZOJAX_DATA")
    if not name:
        pytest.skip("needs real data sets: set ZOJAX_DATA to the folder that holds them")
    folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(f"ZOJAX_DATA names {folder}, which is no folder")
    return folder
