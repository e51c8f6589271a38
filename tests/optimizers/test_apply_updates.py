"""bf16 learns: stochastic rounding keeps, in expectation, what rounding to nearest drops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zojax

KEY = jax.random.key(0)
COUNT = 100_000


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e-4])
def test_the_mean_step_points_where_the_intended_one_does(dtype, size):
    """Weights of size .02 with steps of 1e-6 to 1e-4: mean over keys, cosine at least .99.

    The rounding noise of n keys has cosine^2 = 1 / (1 + noise / (n step^2)): n from the bound.
    """
    draw = np.random.default_rng(0)
    params = jnp.asarray(0.02 * draw.standard_normal(64), dtype)
    step = jnp.asarray(size * draw.standard_normal(64), jnp.float32)
    # E rounding error^2 <= spacing |step|, with spacing <= 2 eps |w|
    spacing = 2 * float(jnp.finfo(dtype).eps) * np.abs(np.asarray(params, np.float64))
    noise = (spacing * np.abs(np.asarray(step))).sum() / float((step**2).sum())
    count = int(np.ceil(4 * noise / (1 / 0.99**2 - 1)))
    before = params.astype(jnp.float32)
    one = lambda k: zojax.apply_updates(params, step, key=k).astype(jnp.float32) - before  # noqa: E731
    mean = jax.jit(jax.vmap(one))(jax.random.split(KEY, count)).mean(0)
    cosine = float(mean @ step / jnp.linalg.norm(mean) / jnp.linalg.norm(step))
    assert cosine >= 0.99
    if size == 1e-6 and dtype == jnp.bfloat16:
        nearest = optax.apply_updates(params, step).astype(jnp.float32) - before
        assert np.count_nonzero(nearest) < 0.2 * 64


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    "dtype, value, delta",
    [
        (jnp.bfloat16, 1.0, 3e-4),
        (jnp.bfloat16, 1.0, -3e-4),  # the spacing halves below a power of two
        (jnp.bfloat16, 1.9921875, 5e-3),  # into the next binade
        (jnp.bfloat16, 0.0, 1.001e-20),
        (jnp.float16, 1.0, 1e-4),
        (jnp.float16, 1.0, -1e-4),
        (jnp.float16, 0.0, 1e-7),  # subnormal
        (jnp.float16, 2.0**-14, -2.2e-8),  # from the smallest normal number down
        (jnp.float16, 2.0**-14 - 2.0**-24, 4e-8),  # and up
        (jnp.float16, 1e-5, 3e-8),
    ],
)
def test_rounding_is_unbiased_between_the_two_neighbours(dtype, value, delta, sign):
    params = jnp.full(COUNT, sign * value, dtype)
    total = float(params[0].astype(jnp.float32) + jnp.float32(sign * delta))
    found = zojax.apply_updates(params, jnp.full(COUNT, sign * delta, jnp.float32), key=KEY)
    assert found.dtype == dtype
    found = np.asarray(found, np.float64)
    kept = np.unique(found)
    assert len(kept) == 2 and kept[0] <= total <= kept[1]
    neighbour = jnp.nextafter(jnp.asarray(kept[0], dtype), jnp.asarray(kept[1], dtype))
    assert float(neighbour) == kept[1] or kept[0] == 0.0
    share = (total - kept[0]) / (kept[1] - kept[0])
    error = (kept[1] - kept[0]) * (share * (1 - share) / COUNT) ** 0.5
    assert abs(found.mean() - total) < 5 * error


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_what_the_dtype_holds_exactly_stays(dtype):
    """Every finite value of the dtype that float32 arithmetic does not flush, with step zero."""
    codes = np.arange(2**16, dtype=np.uint16)
    values = jax.lax.bitcast_convert_type(jnp.asarray(codes), dtype)
    values = values[np.asarray(jnp.isfinite(values))]
    size = np.abs(np.asarray(values).astype(np.float64))
    values = values[(size >= 2.0**-126) | (size == 0)]
    zero = jnp.zeros(values.shape, jnp.float32)
    for seed in range(4):
        found = zojax.apply_updates(values, zero, key=jax.random.key(seed))
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_nan_and_infinity_pass_through(dtype):
    params = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 1.0, 1.0], dtype)
    updates = jnp.array([1.0, 1.0, 1.0, jnp.nan, jnp.inf])
    found = zojax.apply_updates(params, updates, key=KEY)
    expected = np.array([np.nan, np.inf, -np.inf, np.nan, np.inf])
    np.testing.assert_array_equal(np.asarray(found).astype(np.float64), expected)


def test_float32_is_added_as_is():
    draw = np.random.default_rng(0)
    params, updates = (jnp.asarray(draw.standard_normal(100), jnp.float32) for _ in range(2))
    np.testing.assert_array_equal(zojax.apply_updates(params, updates), params + updates)
    np.testing.assert_array_equal(zojax.apply_updates(params, updates, key=KEY), params + updates)


def test_leaves_round_independently_and_keys_differ():
    params = {"a": jnp.ones(1000, jnp.bfloat16), "b": jnp.ones(1000, jnp.bfloat16)}
    step = jax.tree.map(lambda p: jnp.full(p.shape, 2.0**-8), params)  # half a spacing
    found = zojax.apply_updates(params, step, key=KEY)
    other = zojax.apply_updates(params, step, key=jax.random.key(1))
    for a, b in [(found["a"], found["b"]), (found["a"], other["a"])]:
        assert abs(int((a == b).sum()) - 500) < 5 * 250**0.5


def test_none_and_integer_leaves():
    params = {"frozen": None, "still": jnp.ones(2, jnp.bfloat16), "count": jnp.arange(2)}
    updates = {"frozen": None, "still": None, "count": jnp.ones(2, jnp.int32)}
    found = zojax.apply_updates(params, updates)
    assert found["frozen"] is None and found["still"] is params["still"]
    assert found["count"].tolist() == [1, 2]


def test_a_missing_key_is_an_error_that_names_the_leaf():
    params = {"w": jnp.ones(2), "low": jnp.ones(2, jnp.bfloat16)}
    with pytest.raises(ValueError, match=r"leaf \['low'\] is bfloat16: pass key="):
        zojax.apply_updates(params, params)


def test_another_shape_is_an_error_that_names_the_leaf():
    with pytest.raises(ValueError, match=r"\['w'\] has shape \(2,\), its update has shape \(3,\)"):
        zojax.apply_updates({"w": jnp.ones(2)}, {"w": jnp.ones(3)})
