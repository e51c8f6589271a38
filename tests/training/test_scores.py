"""Files of scores: the same numbers again, and nothing of another model or half a file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from zojax import training

DRAW = np.random.default_rng(0)
PARAMS = {
    "layers": {"kernel": jnp.asarray(DRAW.standard_normal((2, 4, 6)), jnp.bfloat16)},
    "bias": jnp.asarray(DRAW.standard_normal(6), jnp.float32),
}
SCORES = {"layers": {"kernel": jnp.asarray(DRAW.random((2, 4, 6)), jnp.float32)}, "bias": None}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scores.safetensors"
    assert training.save_scores(path, SCORES, PARAMS) == path.stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    return path


def test_what_is_saved_is_loaded(file):
    found = training.load_scores(file, PARAMS)
    assert found["bias"] is None
    assert found["layers"]["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(found["layers"]["kernel"], SCORES["layers"]["kernel"])
    doubled = jax.tree.map(lambda x: 2 * x, SCORES)
    training.save_scores(file, doubled, PARAMS)  # replaces
    np.testing.assert_array_equal(
        training.load_scores(file, PARAMS)["layers"]["kernel"], doubled["layers"]["kernel"]
    )


def test_scores_of_other_values_are_an_error(file):
    other = PARAMS | {"bias": PARAMS["bias"] + 1}
    with pytest.raises(ValueError, match="fingerprint .* these have .*: same shapes but other"):
        training.load_scores(file, other)


def test_scores_of_another_shape_are_an_error(file):
    other = {"layers": {"kernel": jnp.ones((3, 4, 6))}, "bias": jnp.ones(6)}
    with pytest.raises(ValueError, match=r"leaf layers/kernel, .*\(3, 4, 6\).* of another model"):
        training.load_scores(file, other)
    with pytest.raises(ValueError, match="have no such leaf: the scores are of another model"):
        training.load_scores(file, {"bias": jnp.ones(6)})


def test_a_truncated_file_is_an_error(file):
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="truncated or not safetensors"):
        training.load_scores(file, PARAMS)


def test_a_foreign_file_is_an_error(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"bias": np.ones(6, np.float32)}, path)
    with pytest.raises(ValueError, match="not a file of scores"):
        training.load_scores(path, PARAMS)
    with pytest.raises(FileNotFoundError, match="save_scores writes one"):
        training.load_scores(tmp_path / "nothing", PARAMS)


def test_what_cannot_be_saved_leaves_the_file_as_it_was(file):
    before = file.read_bytes()
    with pytest.raises(ValueError, match="the scores are no tree like the parameters"):
        training.save_scores(file, {"bias": jnp.ones(6)}, PARAMS)
    with pytest.raises(ValueError, match=r"leaf bias has shape \(6,\), its score \(5,\)"):
        training.save_scores(file, SCORES | {"bias": jnp.ones(5)}, PARAMS)
    with pytest.raises(ValueError, match="no score to save"):
        training.save_scores(file, jax.tree.map(lambda _: None, PARAMS), PARAMS)
    assert file.read_bytes() == before
