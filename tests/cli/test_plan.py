"""`zojax plan`: what a run needs, told from a config alone."""

import json
from typing import get_args

import jax
import pytest
from flax import nnx

from zojax import models, planning, trainables
from zojax.cli import Plan, main, method
from zojax.cli import plan as cli_plan
from zojax.cli.config import Method
from zojax.models._tensors import Tensor

CONFIG = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "dtype": "bfloat16",
}
MATRICES = 2 * (4 * 32 * 32 + 3 * 32 * 64)
PARAMETERS = MATRICES + 2 * 256 * 32 + (2 * 2 + 1) * 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def plan(capsys, *args: str) -> dict:
    assert main(["plan", "--seq", "32", "--json", *args]) == 0
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    # the same as a table above
    assert f"of {found['parameters']:,} parameters move" in out and "largest arrays" in out
    return found


def forward_flops(positions: int) -> int:
    """Of one sequence: every matrix, attention in two layers, the head at some positions."""
    return 2 * (32 * MATRICES + 2 * 2 * 32 * 32 * 32 + positions * 256 * 32)


def error(capsys, *args: str) -> str:
    assert main(["plan", "--seq", "32", *args]) == 1
    return capsys.readouterr().err


def test_a_config_is_enough(folder, capsys, tmp_path):
    picture = tmp_path / "plan.png"
    found = plan(
        capsys, "--model", str(folder), "--method", "sensitive", "--density", "0.01",
        "--draw", str(picture),
    )  # fmt: skip
    assert found["parameters"] == PARAMETERS
    # a hundredth of each of the layers' matrices; of embedding, head and norms nothing
    k = 2 * 4 * round(0.01 * 32 * 32) + 2 * 3 * round(0.01 * 32 * 64)
    assert found["trainable_parameters"] == k
    # dense weights in two bytes, positions in four
    assert found["weights_gib"] == round((2 * PARAMETERS + 4 * k) / 2**30, 4)
    assert found["device"] == jax.devices()[0].device_kind and found["queries"] == 2
    assert found["flops"] == 2 * forward_flops(positions=32)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_quantised_base_is_counted_as_it_is_stored_and_options_meet_no_vocabulary(folder, capsys):
    found = plan(
        capsys, "--config", str(folder / "config.json"), "--method", "sensitive",
        "--density", "0.01", "--base", "nf4", "--group-size", "16", "--objective", "options",
    )  # fmt: skip
    # half a byte and a sixteenth of a scale of two bytes; positions
    stored = MATRICES * (1 / 2 + 2 / 16) + 2 * (PARAMETERS - MATRICES)
    assert found["weights_gib"] == round((stored + 4 * found["trainable_parameters"]) / 2**30, 4)
    assert found["parameters"] == PARAMETERS
    assert found["flops"] == 2 * forward_flops(positions=2)


@pytest.mark.parametrize("name", get_args(Method))
def test_every_method_of_finetune_has_a_plan(name, folder):
    base = {"scales": "int8", "codebook": "codebook"}.get(name, "none")
    config = Plan(folder, method=name, density=0.01, n_of_m=(1, 8), base=base, group_size=16)
    _, _, params = models.abstract_params(folder)
    split = method.abstract_split(config, cli_plan._stored(config, params))
    entries = 2 * 4 * round(0.01 * 32 * 32) + 2 * 3 * round(0.01 * 32 * 64)
    assert (
        trainables.size(split.trainable)
        == {
            "full": PARAMETERS,
            "sensitive": entries,
            "random": entries,
            "magnitude": entries,
            "n-m": MATRICES // 8,
            "bias-and-norm": 5 * 32 + 256 * 32,  # and the head
            "head": 256 * 32,
            "lora": 2 * 4 * 8 * (32 + 32),
            "scales": MATRICES // 16,
            "codebook": 16 * 2 * (4 * 32 + 2 * 64 + 32),
        }[name]
    )


def test_a_quantised_folder_is_planned_from_its_headers(folder, capsys, tmp_path):
    model = models.Decoder(models.read_config(folder), rngs=nnx.Rngs(0))
    models.save(model, tmp_path / "dense")
    shape, _, small = models.load_params(tmp_path / "dense", format="int8", group_size=16)
    models.save_params(shape, small, tmp_path / "int8")
    model = ("--model", str(tmp_path / "int8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "read", None)
        found = plan(capsys, *model, "--method", "sensitive", "--objective", "options")
        told = error(capsys, *model, "--method", "lora", "--base", "int8")
    stored = sum(x.nbytes for x in jax.tree.leaves(small))
    assert found["weights_gib"] == round((stored + 4 * found["trainable_parameters"]) / 2**30, 4)
    assert found["parameters"] == PARAMETERS
    assert "is quantised already" in told


@pytest.mark.slow
def test_an_encoder_gets_a_head(tmp_path, capsys):
    content = CONFIG | {"model_type": "bert", "num_hidden_layers": 1, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    found = plan(capsys, "--model", str(tmp_path), "--method", "head")
    _, params = models.functional(models.abstract(models.read_config(tmp_path)))
    assert found["parameters"] == sum(x.size for x in jax.tree.leaves(params)) + 2 * 32 + 2
    assert found["trainable_parameters"] == 2 * 32 + 2


def test_bad_input_says_what_to_do(folder, capsys, tmp_path, monkeypatch):
    model = ("--model", str(folder))
    picture = tmp_path / "plan.png"
    assert "give either a model or a config" in error(capsys)
    assert "llama-2-7b" in error(capsys, "--config", "llama-2-8b", "--draw", str(picture))
    assert "not a folder" in error(capsys, "--model", str(tmp_path / "nowhere"))
    assert "density must be in (0, 1], found 2" in error(
        capsys, *model, "--method", "sensitive", "--density", "2", "--draw", str(picture)
    )
    assert "none can be quantised" in error(capsys, *model, "--base", "nf4")
    assert "needs a quantised model" in error(capsys, *model, "--method", "scales")
    assert "no leaf has a codebook" in error(
        capsys, *model, "--method", "codebook", "--base", "int4", "--group-size", "16"
    )
    assert "n of every m needs 1 <= n <= m" in error(
        capsys, *model, "--method", "n-m", "--n-of-m", "5", "4"
    )
    assert "no multiple of group_size 48" in error(
        capsys, *model, "--method", "lora", "--base", "int4", "--group-size", "48"
    )
    assert "needs a base" in error(capsys, *model, "--quantize-embeddings")
    assert "two tokens at least" in error(capsys, *model, "--batch", "0")
    assert "the model has 64 positions" in error(capsys, *model, "--seq", "65")
    assert "rank must be at least 1" in error(
        capsys, *model, "--method", "lora", "--lora-rank", "0"
    )
    assert "no folder" in error(capsys, *model, "--draw", str(tmp_path / "no" / "plan.png"))
    assert "'h300' is not known" in error(capsys, *model, "--target", "h300")
    monkeypatch.setattr(planning, "missing", lambda target: "pip install something")
    assert "pip install something" in error(capsys, *model, "--target", "h200")
    assert not picture.exists()
    for flag, value in (("--method", "magic"), ("--base", "int3")):
        with pytest.raises(SystemExit):  # of tyro, which lists the choices
            main(["plan", *model, flag, value])
