"""The kernels' benchmark times what it names: the same products, and the loop of a listing."""

import jax.numpy as jnp
import numpy as np

from tests.benchmarks import kernels, kernels_compile


def test_kernels_and_plain_jax_are_timed_on_the_same_products():
    shape, rows = (128, 128), 8
    programs = kernels.product_programs(shape, 2, rows)
    names = ("xla", "fused rademacher", "bare", "sweep", "int4 xla", "int4 kernel")
    compiled = kernels.compile_all({name: programs[name] for name in names}, threads=1)
    assert set(compiled) == set(names)
    ws, x = [kernels.draw(shape, i) for i in range(2)], kernels.draw((2, rows, 128), 99)
    key = jnp.array([1, 2], jnp.uint32)
    plain, fused = compiled["xla"](ws, x, key), compiled["fused rademacher"](ws, x, key)
    # one rounding to bfloat16 apart, of sums made in another order
    np.testing.assert_allclose(*(jnp.asarray(f, jnp.float32) for f in (plain, fused)), rtol=2**-8)
    packed = [
        (kernels.draw((64, 128), i, jnp.uint8), jnp.ones((2, 128), jnp.bfloat16)) for i in range(2)
    ]
    found = [
        jnp.asarray(compiled[f"int4 {how}"](packed, x), jnp.float32) for how in ("xla", "kernel")
    ]
    np.testing.assert_allclose(*found, rtol=2**-8, atol=2**-20)
    # the first sign is where MeZO's first sweep goes
    moved = compiled["sweep"](ws, key, jnp.float32(kernels.MU))
    first = compiled["bare"](moved, x)
    for a, b in zip(first, plain, strict=True):
        np.testing.assert_allclose(
            jnp.asarray(a, jnp.float32), jnp.asarray(b[0, 0], jnp.float32), rtol=2**-8, atol=2**-20
        )


def test_a_loop_is_from_its_header_to_its_exit(tmp_path):
    path = tmp_path / "1-final_bundles.txt"
    path.write_text(
        "LB: loop body\n  0x1   :  { x }\n  0x10 LB: > { y }\n  0x11   : > { z }\n"
        "  0x2f   : > { p = scmp /* loop exit test */ }\n  0x30   :  { end }\n"
    )
    assert kernels_compile._loop(path) == 0x2F - 0x10
