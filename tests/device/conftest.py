"""Tests on a GPU against the CPU of the same process: run them with JAX_PLATFORMS=cuda,cpu."""

import jax
import pytest


@pytest.fixture(scope="session")
def gpu() -> jax.Device:
    """The first GPU, the default device."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        pytest.skip(
            f"no GPU here: the first device is {device}; on a machine with one, set "
            "JAX_PLATFORMS=cuda,cpu"
        )
    return device


@pytest.fixture(scope="session")
def cpu(gpu) -> jax.Device:
    """The CPU beside it, whose results are the reference."""
    del gpu
    return jax.devices("cpu")[0]
