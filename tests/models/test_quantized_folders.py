"""Quantised folders: made while reading, written and read back, and imported from others."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import zojax
import zojax.models as models
from tests.models import tiny
from zojax.models._tensors import Tensor
from zojax.virtual import Entries, is_virtual, materialize


def _assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def _assert_headers_tell(folder, found, dtype=None):
    """The shapes of parameters, without a tensor being read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "read", None)
        config, _, shapes = models.abstract_params(folder, dtype)
    assert config.dtype == found["embedding"]["embedding"].dtype.name
    assert jax.tree.structure(shapes) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(found), strict=True):
        assert isinstance(a, jax.ShapeDtypeStruct)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def _is_up(path):
    """One leaf, so that little is compiled."""
    return path == "layers/mlp/up/kernel"


def _is_picked(path):
    return _is_up(path) or path in ("embedding/embedding", "head/kernel")


def _bfloat16(folder, case):
    tensors = {n: t.astype(ml_dtypes.bfloat16) for n, t in tiny.weights(case).items()}
    return tiny.write_folder(folder, tensors, tiny.CASES[case])


@pytest.mark.parametrize(
    "format", ["int8", "nf4", pytest.param("codebook", marks=pytest.mark.slow)]
)
def test_quantised_while_reading_is_quantised_after_reading(format, tmp_path):
    folder = _bfloat16(tmp_path / "llama", "llama")
    _, dense = models.functional(models.load(folder))
    random = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: random.random(x.shape, np.float32), dense)
    exclude = jax.tree.map(lambda _: None, dense)
    exclude["layers"]["mlp"]["up"]["kernel"] = np.array([[0, 7, 1279], [3, 5, 1280]], np.int32)
    exclude["head"]["kernel"] = np.array([4], np.int32)
    seen = []
    where = _is_up if format == "codebook" else _is_picked
    how = {"group_size": 8, "where": where, "exclude": exclude, "weights": weights}
    config, _, params = models.load_params(
        folder, None, format, **how, observe=lambda path, w, q: seen.append((path, w.shape))
    )
    assert config.dtype == "bfloat16"
    _assert_same(params, zojax.quantize(dense, format, **how))
    # a layer at a time: none of the stacks was dense
    assert len(seen) == (2 if format == "codebook" else 2 + 2)
    assert all(len(shape) == 2 for _, shape in seen)


def test_a_function_of_quantised_parameters_is_that_of_their_dense_values(tmp_path):
    tokens, mask = map(jnp.asarray, tiny.inputs("gemma"))
    folder = tiny.case_folder(tmp_path, "gemma")
    _, bind, params = models.load_params(folder, format="nf4", group_size=8, where=_is_picked)
    assert is_virtual(params["embedding"]["embedding"])
    run = zojax.virtualize(lambda p: bind(p)(tokens, mask), on_fallback="error")
    expected = bind(materialize(params))(tokens, mask)
    np.testing.assert_allclose(run(params)[mask], expected[mask], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "format", "where"),
    [("bert", "int8", _is_picked), ("gpt2", "int8", None), ("llama", "codebook", _is_up)],
)
def test_our_folders_are_read_back_bit_for_bit(case, format, where, tmp_path):
    source = _bfloat16(tmp_path / "in", case)
    config, _, params = models.load_params(source, None, format, group_size=8, where=where)
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    entries = Entries(jnp.array([[1.5], [2.5]]), jnp.array([[3], [9]], jnp.int32), kernel.shape)
    params["layers"]["mlp"]["up"]["kernel"] = replace(kernel, entries=entries)
    models.save_params(config, params, tmp_path / "out")
    again, _, found = models.load_params(tmp_path / "out")
    assert again == config
    _assert_same(found, params)
    _assert_headers_tell(tmp_path / "out", params)
    # `load` gives the same numbers, dense
    _assert_same(models.functional(models.load(tmp_path / "out"))[1], materialize(params))
    with pytest.raises(ValueError, match=r"out is quantised already \(zojax\)"):
        models.load_params(tmp_path / "out", format="nf4")


def test_formulas_are_not_saved(tmp_path):
    folder = tiny.case_folder(tmp_path, "llama")
    config, _, params = models.load_params(folder, format="int8", group_size=8, where=_is_up)
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    params["layers"]["mlp"]["up"]["kernel"] = kernel.transpose((0, 2, 1))
    with pytest.raises(ValueError, match="leaf layers.mlp.up.kernel is a formula"):
        models.save_params(config, params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What others write, from the formulas: an int32 holds eight codes of 4 bits.


def _words(codes, order: tuple[int, ...] = tuple(range(8))):
    """uint8[a, 8 b] to int32[a, b]: nibble i holds the column order[i] of its eight."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for i, column in enumerate(order):
        words |= codes[:, column::8].astype(np.uint32) << np.uint32(4 * i)
    return words.view(np.int32)


PACKED = tiny._ROTARY | {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_key_value_heads": 4,
    "torch_dtype": "float16",
}
SHAPES = {"q": (32, 32), "k": (32, 32), "v": (32, 32), "o": (32, 32), "gate": (32, 48),
          "up": (32, 48), "down": (48, 32)}  # fmt: skip


def _packed(about, *, zeros=None, shift=0, act_order=False, bias=False):
    """Tensors and the values of their matrices, [in, out] by module."""
    random, tensors, values = np.random.default_rng(3), {}, {}
    table = random.standard_normal((61, 32)).astype(np.float16)
    tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"] = table
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = np.ones(32, np.float16)
        for short, (rows, columns) in SHAPES.items():
            part = "self_attn" if len(short) == 1 else "mlp"
            stem = f"{prefix}{part}.{short}_proj"
            size = rows if about["group_size"] == -1 else about["group_size"]
            codes = random.integers(0, 16, (rows, columns)).astype(np.uint8)
            zero = random.integers(1, 16, (rows // size, columns)).astype(np.uint8)
            zero = zero if zeros is None else np.full_like(zero, zeros)
            scales = random.uniform(0.01, 0.1, zero.shape).astype(np.float16)
            group = np.arange(rows) // size
            if act_order:
                group = random.permutation(group)
            wide = codes.astype(np.float32) - zero[group]
            values[stem] = wide * scales[group].astype(np.float32)
            if about["quant_method"] == "gptq":
                tensors[f"{stem}.qweight"] = np.ascontiguousarray(_words(codes.T).T)
                tensors[f"{stem}.qzeros"] = _words(zero - shift)
                tensors[f"{stem}.g_idx"] = group.astype(np.int32)
            else:
                order = (0, 2, 4, 6, 1, 3, 5, 7)
                tensors[f"{stem}.qweight"] = _words(codes, order)
                tensors[f"{stem}.qzeros"] = _words(zero, order)
            tensors[f"{stem}.scales"] = scales
            if bias:
                tensors[f"{stem}.bias"] = np.zeros(columns, np.float16)
    tensors["model.norm.weight"] = np.ones(32, np.float16)
    return tensors, values


def _packed_folder(folder, about, **how):
    tensors, values = _packed(about, **how)
    tiny.write_folder(folder, tensors, PACKED | {"quantization_config": about})
    return values


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "GEMM", "zero_point": True}


@pytest.mark.parametrize(
    ("about", "how"),
    [
        (GPTQ, {"shift": 1}),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, {}),
        (GPTQ | {"checkpoint_format": "gptq", "sym": True, "group_size": -1},
         {"shift": 1, "zeros": 8, "bias": True}),
        # says gptq, has the zeros of gptq_v2
        (GPTQ | {"checkpoint_format": "gptq", "sym": True}, {"zeros": 8}),
        (AWQ, {}),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 16, "group_size": 16}, {}),
    ],
    ids=["gptq", "gptq_v2", "symmetric", "mislabelled", "awq", "awq of old"],
)  # fmt: skip
def test_folders_of_others_decode_to_their_formula(about, how, tmp_path):
    values = _packed_folder(tmp_path / "packed", about, **how)
    config, bind, params = models.load_params(tmp_path / "packed")
    assert config.dtype == "float16"
    ours = {"q": "query", "k": "key", "v": "value", "o": "output"}
    for short in SHAPES:
        part, theirs = ("attention", "self_attn") if len(short) == 1 else ("mlp", "mlp")
        leaf = params["layers"][part][ours.get(short, short)]["kernel"]
        assert leaf.base.format == "int4" and leaf.dtype == jnp.float16
        stems = [f"model.layers.{i}.{theirs}.{short}_proj" for i in range(2)]
        expected = np.stack([values[stem] for stem in stems]).astype(np.float16)
        np.testing.assert_array_equal(np.asarray(leaf.materialize()), expected)
    # and they are kept so in our own folder
    models.save_params(config, params, tmp_path / "ours")
    _assert_same(models.load_params(tmp_path / "ours")[2], params)
    _assert_headers_tell(tmp_path / "packed", params)
    wide = models.load_params(tmp_path / "packed", jnp.float32)[2]
    _assert_headers_tell(tmp_path / "packed", wide, jnp.float32)
    wide = wide["layers"]["mlp"]["up"]["kernel"]
    stems = [f"model.layers.{i}.mlp.up_proj" for i in range(2)]
    np.testing.assert_allclose(
        wide.materialize(), np.stack([values[s] for s in stems]), rtol=1e-6, atol=0
    )


def _config(about):
    return lambda folder: _packed_folder(folder, GPTQ | about)


def _edit(change, about=GPTQ):
    def make(folder):
        tensors, _ = _packed(about)
        config = PACKED | {"quantization_config": about}
        change(tensors, config)
        tiny.write_folder(folder, tensors, config)

    return make


def _ours(change):
    def make(folder):
        source = tiny.case_folder(folder.parent, "llama")
        config, _, params = models.load_params(source, format="nf4", group_size=8, where=_is_up)
        models.save_params(config, params, folder)
        file = folder / "config.json"
        content = json.loads(file.read_text())
        change(content["quantization_config"])
        file.write_text(json.dumps(content))

    return make


def _cut(folder):
    _packed_folder(folder, GPTQ)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


QUERY, UP = "model.layers.0.self_attn.q_proj", "layers.mlp.up.kernel"
REFUSED = {
    "method": (_config({"quant_method": "bitsandbytes"}), "quant_method='bitsandbytes'.*read are"),
    "bits": (_config({"bits": 8}), "bits=8, a layout that is not read"),
    "marlin": (_config({"checkpoint_format": "marlin"}), "checkpoint_format='marlin'"),
    "dynamic": (_config({"dynamic": {"+:.*": {"bits": 8}}}), "other settings for some modules"),
    "gemv": (_config(AWQ | {"version": "gemv"}), "version='gemv'"),
    "no object": (_edit(lambda t, c: c.update(quantization_config=3)), "is no JSON object"),
    "act-order": (
        lambda folder: _packed_folder(folder, GPTQ | {"desc_act": True}, act_order=True),
        rf"rows of {QUERY} are in groups by activation \(desc_act",
    ),
    "group size": (
        _edit(lambda t, c: c.update(quantization_config=GPTQ | {"group_size": 8})),
        rf"{QUERY}.qzeros has shape \[2, 4\]; config.json asks for \[4, 4\]",
    ),
    "group size of another model": (
        _edit(lambda t, c: c.update(quantization_config=GPTQ | {"group_size": 64})),
        rf"{QUERY} is a matrix \[32, 32\], which cannot be packed .* groups of 64"),
    "a layer is missing": (
        _edit(lambda t, c: t.pop("model.layers.1.mlp.up_proj.scales")),
        "lacks 1 tensors .*: model.layers.1.mlp.up_proj.scales",
    ),
    "codes are floats": (
        _edit(lambda t, c: t.update({f"{QUERY}.qweight": np.zeros((4, 32), np.float32)})),
        f"{QUERY}.qweight has dtype F32; expected I32",
    ),
    "a bias that counts": (
        _edit(lambda t, c: t.update({f"{QUERY}.bias": np.ones(32, np.float16)})),
        f"holds 1 tensors .*: {QUERY}.bias",
    ),
    "no config": (
        _edit(lambda t, c: c.pop("quantization_config")),
        "lacks 14 tensors",
    ),
    "truncated": (_cut, "model.safetensors is truncated or damaged"),
    "version": (_ours(lambda about: about.update(version=2)), "has version 2, this zojax reads 1"),
    "no tensors": (_ours(lambda about: about.pop("tensors")), "lacks the descriptions"),
    "format": (
        _ours(lambda about: about["tensors"][UP].update(format="q5")), f"{UP} no format 'q5'"
    ),
    "length": (
        _ours(lambda about: about["tensors"][UP].update(length=64)),
        rf"{UP} has length 64 along axis -2 of \[2, 32, 40\]",
    ),
    "groups": (
        _ours(lambda about: about["tensors"][UP].update(group_size=4)),
        rf"{UP}.scales is BF16\[2, 4, 40\]; expected .*\[2, 8, 40\]",
    ),
    "a tensor too few": (
        _ours(lambda about: about["tensors"].pop(UP)),
        "lacks 2 tensors .*: model.layers.0.mlp.up_proj.weight",
    ),
}  # fmt: skip


NOT_IN_HEADERS = ("act-order", "a bias that counts")


@pytest.mark.parametrize("reason", REFUSED)
def test_refused(reason, tmp_path):
    make, message = REFUSED[reason]
    make(tmp_path / "model")
    with pytest.raises(ValueError, match=message) as caught:
        models.load_params(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)
    if reason not in NOT_IN_HEADERS:
        with pytest.raises(ValueError, match=message):
            models.abstract_params(tmp_path / "model")


def test_gpt2_of_others_is_refused(tmp_path):
    tensors = tiny.weights("gpt2")
    fused = "transformer.h.0.attn.c_attn"
    tensors[f"{fused}.qweight"] = np.zeros((4, 96), np.int32)
    about = {"quantization_config": GPTQ}
    tiny.write_folder(tmp_path / "gpt2", tensors, tiny.CASES["gpt2"] | about)
    with pytest.raises(ValueError, match="c_attn.weight is packed; of a gpt2 model such tensors"):
        models.load_params(tmp_path / "gpt2")


def test_what_cannot_be_quantised_is_said_with_its_name(tmp_path):
    folder = tiny.case_folder(tmp_path, "llama")
    with pytest.raises(ValueError, match="output/kernel .* no multiple of group_size 32"):
        models.load_params(folder, format="nf4", group_size=32)
    with pytest.raises(ValueError, match="leaf layers/attention/query/bias .* is no matrix"):
        models.load_params(folder, format="nf4", group_size=8, where=lambda path: "bias" in path)
    with pytest.raises(ValueError, match="no format 'int5'"):
        models.load_params(folder, format="int5")
    _, params = models.functional(models.load(folder))
    weights = jax.tree.map(lambda x: np.ones((*x.shape[:-1], 3), np.float32), params)
    weights["layers"]["mlp"]["up"]["kernel"] = np.ones((3, 32, 40), np.float32)
    with pytest.raises(ValueError, match="weights has leaf .* it is of another model"):
        models.load_params(folder, format="codebook", weights=weights)
    with pytest.raises(ValueError, match="exclude has leaf bonus .* none: it is of another model"):
        models.load_params(folder, format="nf4", exclude={"bonus": np.zeros((2, 3), np.int32)})
