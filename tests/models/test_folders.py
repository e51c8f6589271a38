"""Folders: what is read, what is written, and what is refused."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import zojax.models as models
from tests.models import tiny
from zojax.models import huggingface


def _flat(model):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(models.functional(model)[1])
    }


def _assert_same(first, second):
    first, second = _flat(first), _flat(second)
    assert first.keys() == second.keys()
    for name, leaf in first.items():
        assert leaf.dtype == second[name].dtype
        np.testing.assert_array_equal(leaf, second[name])


def _bfloat16(tensors):
    return {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}


@pytest.mark.parametrize("case", tiny.CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_is_bit_exact(case, dtype, tmp_path):
    tensors = tiny.weights(case)
    tensors = _bfloat16(tensors) if dtype == "bfloat16" else tensors
    model = models.load(tiny.write_folder(tmp_path / "in", tensors, tiny.CASES[case]))
    assert model.config.dtype == dtype
    models.save(model, tmp_path / "out")
    again = models.load(tmp_path / "out")
    assert again.config == model.config
    _assert_same(model, again)
    written = load_file(tmp_path / "out" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    assert written.keys() == kept.keys()
    for name, tensor in kept.items():
        assert written[name].dtype == tensor.dtype
        np.testing.assert_array_equal(written[name], tensor)


def test_shards_load_as_one_file(tmp_path):
    tensors, config = tiny.weights("llama"), tiny.CASES["llama"]
    one = models.load(tiny.write_folder(tmp_path / "one", tensors, config))
    three = models.load(tiny.write_folder(tmp_path / "three", tensors, config, shards=3))
    _assert_same(one, three)


def test_dtype_of_the_caller(tmp_path):
    folder = tiny.case_folder(tmp_path, "gpt2")
    cast = models.load(folder, dtype=jnp.bfloat16)
    assert cast.config.dtype == "bfloat16"
    stored = tiny.write_folder(
        tmp_path / "bf16", _bfloat16(tiny.weights("gpt2")), tiny.CASES["gpt2"]
    )
    _assert_same(cast, models.load(stored))
    widened = models.load(stored, dtype="float32")
    for name, leaf in _flat(widened).items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, _flat(cast)[name].astype(np.float32))
    with pytest.raises(ValueError, match="dtype int8 cannot hold weights"):
        models.load(folder, dtype=jnp.int8)


def test_float64_and_float16_load(tmp_path):
    tensors = tiny.weights("llama")
    for kind in (np.float64, np.float16):
        stored = {name: tensor.astype(kind) for name, tensor in tensors.items()}
        folder = tiny.write_folder(tmp_path / kind.__name__, stored, tiny.CASES["llama"])
        for leaf in _flat(models.load(folder)).values():
            # Without jax_enable_x64 the widest float is float32.
            assert leaf.dtype == (np.float16 if kind is np.float16 else np.float32)


def test_bfloat16_logits_are_near(tmp_path):
    case = "llama"
    tokens, mask = tiny.inputs(case)
    reference = models.load(tiny.case_folder(tmp_path, case))(jnp.asarray(tokens), mask)[mask]
    rounded = models.load(tmp_path / case, dtype=jnp.bfloat16)(jnp.asarray(tokens), mask)[mask]
    assert rounded.dtype == jnp.float32
    # Each of about 30 roundings (12 a layer and the weights) is off by 2^-9 relative on average.
    error = jnp.std(rounded - reference) / jnp.std(reference)
    assert 2.0**-9 < error < 2.0**-8 * 30**0.5


@pytest.mark.parametrize(
    ("case", "rename"),
    [
        ("gpt2", lambda name: name.removeprefix("transformer.")),
        ("opt", lambda name: name.removeprefix("model.")),
        ("llama_linear", lambda name: name),
        ("bert", lambda name: f"bert.{name}"),
        ("roberta", lambda name: f"roberta.{name}"),
        (
            "bert",
            lambda name: f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ),
        ),
    ],
)
def test_names_of_older_files(case, rename, tmp_path):
    tensors = tiny.weights(case)
    renamed = {rename(name): tensor for name, tensor in tensors.items()}
    old = models.load(tiny.write_folder(tmp_path / "old", renamed, tiny.CASES[case]))
    _assert_same(old, models.load(tiny.case_folder(tmp_path, case)))


@pytest.mark.parametrize(
    ("case", "extra"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt2", "transformer.h.1.attn.masked_bias"),
        ("bert", "embeddings.position_ids"),
        ("bert", "cls.predictions.bias"),
        ("roberta", "lm_head.dense.weight"),
    ],
)
def test_tensors_without_a_use_are_ignored(case, extra, tmp_path):
    tensors = tiny.weights(case) | {extra: np.zeros((1, 3), np.float32)}
    folder = tiny.write_folder(tmp_path / "extra", tensors, tiny.CASES[case])
    _assert_same(models.load(folder), models.load(tiny.case_folder(tmp_path, case)))


def test_a_stored_copy_of_a_tied_head(tmp_path):
    tensors, config = tiny.weights("qwen2"), tiny.CASES["qwen2"]
    table = tensors["model.embed_tokens.weight"]
    folder = tiny.write_folder(tmp_path / "same", tensors | {"lm_head.weight": table}, config)
    assert "head" not in models.functional(models.load(folder))[1]
    folder = tiny.write_folder(tmp_path / "other", tensors | {"lm_head.weight": 2 * table}, config)
    with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
        models.load(folder)


def test_loading_holds_one_stack_at_a_time(tmp_path):
    config = tiny.CASES["llama"] | {
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 8,
        "head_dim": 64,
    }
    model = models.Decoder(models.parse_config(config), rngs=nnx.Rngs(0))
    sizes = [leaf.nbytes for leaf in _flat(model).values()]
    models.save(model, tmp_path / "model")
    # Once before, so that what jax and flax keep is not counted.
    models.load(tmp_path / "model")
    tracemalloc.start()
    loaded = models.load(tmp_path / "model")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Device buffers that share the memory of numpy count as well: at most one model and one leaf.
    assert peak < sum(sizes) + max(sizes) + 2**20
    _assert_same(model, loaded)


def test_save_copies_the_tokenizer_and_nothing_else(tmp_path):
    source = tiny.case_folder(tmp_path, "llama")
    for name in ("tokenizer.json", "vocab.txt", "generation_config.json", "notes.md"):
        (source / name).write_text(name)
    models.save(models.load(source), tmp_path / "out", source=source)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.txt",
    ]
    assert (tmp_path / "out" / "vocab.txt").read_text() == "vocab.txt"


def test_save_replaces_its_files_in_an_existing_folder(tmp_path):
    folder = tiny.case_folder(tmp_path, "llama")
    (folder / "journal").write_text("keep me")
    model = models.load(folder)
    bind, params = models.functional(model)
    models.save(bind(jax.tree.map(lambda leaf: 2 * leaf, params)), folder)
    assert (folder / "journal").read_text() == "keep me"
    for name, leaf in _flat(models.load(folder)).items():
        np.testing.assert_array_equal(leaf, 2 * _flat(model)[name])


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    model = models.load(tiny.case_folder(tmp_path, "llama"))
    before = sorted(tmp_path.iterdir())

    def interrupted(file, layout, tensors):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface, "write_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        models.save(model, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(KeyboardInterrupt):
        models.save(model, tmp_path / "llama")
    monkeypatch.undo()
    _assert_same(model, models.load(tmp_path / "llama"))


def test_save_refuses(tmp_path):
    tensors, config = tiny.weights("llama"), tiny.CASES["llama"]
    folder = tiny.write_folder(tmp_path / "shards", tensors, config, shards=2)
    model = models.load(folder)
    with pytest.raises(FileExistsError, match="holds a sharded model"):
        models.save(model, folder)
    with pytest.raises(FileExistsError, match="config.json is a file"):
        models.save(model, folder / "config.json")
    with pytest.raises(FileNotFoundError, match="source of the tokenizer, .*nowhere"):
        models.save(model, tmp_path / "out", source=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def _broken(change):
    def make(folder):
        tensors, config = dict(tiny.weights("llama")), dict(tiny.CASES["llama"])
        change(tensors, config)
        return tiny.write_folder(folder, tensors, config)

    return make


def _edited(edit, shards=1):
    def make(folder):
        tiny.write_folder(folder, tiny.weights("llama"), tiny.CASES["llama"], shards)
        edit(folder)
        return folder

    return make


def _cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _drop_from_shard(folder):
    file = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    tensors.pop("lm_head.weight", None)
    tensors.pop("model.embed_tokens.weight", None)
    save_file(tensors, file)


def _set(key, value):
    return _broken(lambda tensors, config: config.update({key: value}))


UP = "model.layers.1.mlp.up_proj.weight"
REFUSED = {
    "no folder": (lambda folder: folder, FileNotFoundError, "is not a folder; models are loaded"),
    "no config": (
        _edited(lambda f: (f / "config.json").unlink()),
        FileNotFoundError,
        r"no config.json; found \['model.safetensors'\]",
    ),
    "config is not JSON": (
        _edited(lambda f: (f / "config.json").write_text("{")),
        ValueError,
        "config.json is not valid JSON",
    ),
    "config is a list": (
        _edited(lambda f: (f / "config.json").write_text("[]")),
        ValueError,
        "config.json holds a JSON list; expected an object",
    ),
    "architecture": (
        _set("model_type", "rwkv"),
        ValueError,
        r"config.json: .*'rwkv' is not.*llama",
    ),
    "no weights": (
        _edited(lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin")),
        FileNotFoundError,
        r"no model.safetensors.*pytorch_model.bin.*Convert",
    ),
    "truncated": (_edited(_cut), ValueError, "model.safetensors is truncated or damaged"),
    "foreign": (
        _edited(lambda f: (f / "model.safetensors").write_bytes(b"\x80\x02}q\x00." * 50)),
        ValueError,
        "model.safetensors is not a safetensors file",
    ),
    "foreign header": (
        _edited(lambda f: (f / "model.safetensors").write_bytes(b"\x04" + bytes(7) + b"spam")),
        ValueError,
        "model.safetensors is not a safetensors file.*header is unreadable",
    ),
    "empty": (
        _edited(lambda f: (f / "model.safetensors").write_bytes(b"")),
        ValueError,
        "it has 0 bytes",
    ),
    "pointer": (
        _edited(lambda f: (f / "model.safetensors").write_text("version https://git-lfs...")),
        ValueError,
        "Git LFS pointer",
    ),
    "shard": (
        _edited(lambda f: (f / "model-00002-of-00002.safetensors").unlink(), shards=2),
        FileNotFoundError,
        r"lists 2 shards, of which \['model-00002-of-00002.safetensors'\]",
    ),
    "shard without its tensor": (
        _edited(_drop_from_shard, shards=2),
        ValueError,
        "promises '.*' in model-00001-of-00002.safetensors, which does not hold it",
    ),
    "index": (
        _edited(lambda f: (f / "model.safetensors.index.json").write_text("{}"), shards=2),
        ValueError,
        "is not a safetensors index",
    ),
    "missing": (
        _broken(lambda tensors, config: tensors.pop(UP)),
        ValueError,
        f"lacks 1 tensors .*: {UP}",
    ),
    "missing head": (
        _broken(lambda tensors, config: tensors.pop("lm_head.weight")),
        ValueError,
        "lm_head.weight.*set tie_word_embeddings to true",
    ),
    "shape": (
        _broken(lambda tensors, config: tensors.update({UP: np.zeros((40, 31), np.float32)})),
        ValueError,
        rf"{UP} has shape \[40, 31\]; config.json asks for \[40, 32\]",
    ),
    "vocabulary": (
        _set("vocab_size", 60),
        ValueError,
        r"embed_tokens.weight has shape \[61, 32\]; .*\[60, 32\].*vocab_size=60",
    ),
    "extra": (
        _broken(lambda tensors, config: tensors.update(bonus=np.zeros(3, np.float32))),
        ValueError,
        "holds 1 tensors that a llama model .* does not have: bonus",
    ),
    "more layers than the config": (
        _set("num_hidden_layers", 1),
        ValueError,
        r"num_hidden_layers=1\) does not have: model.layers.1",
    ),
    "integers": (
        _broken(lambda tensors, config: tensors.update({UP: tensors[UP].astype(np.int8)})),
        ValueError,
        f"{UP} has dtype I8; expected floating point",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused(reason, tmp_path):
    make, kind, message = REFUSED[reason]
    with pytest.raises(kind, match=message) as caught:
        models.load(make(tmp_path / "model"))
    assert str(tmp_path / "model") in str(caught.value)


def test_header_that_lies_about_a_size(tmp_path):
    folder = tiny.case_folder(tmp_path, "llama")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["lm_head.weight"]["shape"] = [61, 33]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(ValueError, match=r"unreadable \(7808 bytes for a tensor F32\[61, 33\]\)"):
        models.load(folder)
