import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax import trainables
from zojax.training import apply_adapter, fingerprint, load_adapter, make_adapter, save_adapter
from zojax.virtual import materialize

KEY = jax.random.key(0)


def _params(dtype=jnp.float32):
    return {
        "layers": {"attention": {"kernel": jax.random.normal(KEY, (2, 6, 4)).astype(dtype)}},
        "final_norm": {"scale": jnp.ones(4, dtype)},
        "head": {"kernel": jax.random.normal(KEY, (4, 3)).astype(dtype), "bias": jnp.zeros(3)},
    }


def _splits(params):
    return {
        "full": zojax.full(params),
        "bias_and_norm": zojax.bias_and_norm(params),
        "head": zojax.head(params),
        "sensitive": zojax.sensitive(params, jax.tree.map(jnp.abs, params), density=0.2),
        "lora": zojax.lora(params, KEY, rank=2),
    }


@pytest.mark.parametrize("method", ["full", "bias_and_norm", "head", "sensitive", "lora"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_adapter_restores_the_trained_parameters(tmp_path, method, dtype):
    params = _params(dtype)
    split = _splits(params)[method]
    trained = jax.tree.map(lambda x: x + 0.5, split.trainable)
    expected = materialize(split.merge(trained, split.frozen))
    path = tmp_path / "adapter.safetensors"
    size = save_adapter(make_adapter(split, trained, {"base": fingerprint(params)}), path)
    assert size == path.stat().st_size
    adapter = load_adapter(path)
    assert adapter.metadata["base"] == fingerprint(params)
    got = materialize(apply_adapter(params, adapter))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("method", ["sensitive", "lora", "scales", "codebook", "both"])
def test_an_adapter_goes_over_a_quantised_base(tmp_path, method):
    dense = _params(jnp.bfloat16)
    format = "codebook" if method == "codebook" else "nf4"
    params = zojax.quantize(dense, format, group_size=2)
    sensitive = zojax.sensitive(params, jax.tree.map(jnp.abs, dense), density=0.2)
    split = {
        "sensitive": lambda: sensitive,
        "lora": lambda: zojax.lora(params, KEY, rank=2),
        "scales": lambda: zojax.scales(params),
        "codebook": lambda: trainables.codebook(params),
        "both": lambda: zojax.compose(sensitive, zojax.scales(params)),
    }[method]()
    trained = jax.tree.map(lambda x: x * 1.5 + 0.125, split.trainable)
    expected = split.merge(trained, split.frozen)
    path = tmp_path / "adapter.safetensors"
    save_adapter(make_adapter(split, trained, {}), path)
    got = apply_adapter(params, load_adapter(path))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    if method == "scales":
        with pytest.raises(ValueError, match="is dense, the adapter has scales"):
            apply_adapter(dense, load_adapter(path))


def test_what_an_adapter_cannot_hold_is_refused():
    split = trainables.blocks(_params(), [1])
    with pytest.raises(ValueError, match="leaf layers/attention/kernel is a formula"):
        make_adapter(split, split.trainable, {})


def test_an_adapter_holds_only_what_moved():
    params = _params()
    split = _splits(params)["bias_and_norm"]
    adapter = make_adapter(split, split.trainable, {})
    assert sorted(adapter.leaves) == ["final_norm/scale", "head/bias"]
    split = _splits(params)["sensitive"]
    parts = make_adapter(split, split.trainable, {}).leaves["layers/attention/kernel"]
    assert parts["values"].shape == parts["index"].shape == (2, round(0.2 * 24))


def test_adapters_of_other_models_and_damaged_files_are_refused(tmp_path):
    params = _params()
    split = _splits(params)["head"]
    path = tmp_path / "adapter.safetensors"
    save_adapter(make_adapter(split, split.trainable, {}), path)
    with pytest.raises(ValueError, match="head/bias, which the parameters lack"):
        apply_adapter({"w": jnp.ones(2)}, load_adapter(path))
    other = {**params, "head": {"kernel": jnp.ones((5, 3)), "bias": jnp.zeros(3)}}
    with pytest.raises(ValueError, match=r"head/kernel has shape \(5, 3\)"):
        apply_adapter(other, load_adapter(path))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="truncated"):
        load_adapter(path)
    with pytest.raises(FileNotFoundError, match="no adapter"):
        load_adapter(tmp_path / "missing.safetensors")


def test_fingerprints_tell_values_shapes_and_names_apart():
    a = {"w": jnp.arange(6.0)}
    assert fingerprint(a) == fingerprint({"w": jnp.arange(6.0)})
    others = [{"w": jnp.arange(6.0) + 1}, {"w": jnp.arange(6.0).reshape(2, 3)},
              {"v": jnp.arange(6.0)}, {"w": jnp.arange(6.0).astype(jnp.float16)}]  # fmt: skip
    assert len({fingerprint(a), *map(fingerprint, others)}) == 5
