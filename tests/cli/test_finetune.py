"""The command line on a tiny model with a tokenizer and a task made here."""

import json

import jax
import jax.numpy as jnp
import pytest

from tests.cli.conftest import finetune_args, last_json, save_model
from zojax import models
from zojax.cli import OptimizerConfig, main
from zojax.cli.method import optimizer_of


@pytest.mark.parametrize(
    "method",
    [
        ["sensitive", "--density", "0.1"],
        pytest.param(["full"], marks=pytest.mark.slow),
        pytest.param(["lora"], marks=pytest.mark.slow),
        pytest.param(["bias-and-norm"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_method_runs_and_its_adapter_gives_the_same_accuracy(
    decoder, data, tmp_path, capsys, method
):
    out = tmp_path / "run"
    flags = ["--method", *method, "--steps", "20", "--learning-rate", "0.01"]
    assert main(finetune_args(decoder, data, out, *flags)) == 0
    result = last_json(capsys)
    assert result["status"] == "finished" and result["steps"] == 20
    names = {"adapter.safetensors", "journal.bin", "metrics.jsonl", "report.png", "result.json"}
    assert names <= {p.name for p in out.iterdir()}
    assert json.loads((out / "result.json").read_text()) == result
    command = ["evaluate", "--model", str(decoder), "--task", "subj", "--data", str(data)]
    assert main([*command, "--adapter", str(out), "--num-test", "50", "--json"]) == 0
    assert last_json(capsys)["accuracy"] == result["accuracy_after"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_memory_report")
def test_an_encoder_with_your_own_prompt_and_options_learns(encoder, data, tmp_path, capsys):
    args = [
        "finetune", "--model", str(encoder), "--data", str(data), "--prompt", "{text}",
        "--options", " story", " movie", "--method", "bias-and-norm", "--steps", "80",
        "--learning-rate", "0.02", "--mu", "0.01", "--head-samples", "64", "--batch-size", "32",
        "--eval-every", "20", "--out", str(tmp_path / "run"), "--no-progress", "--json",
    ]  # fmt: skip
    assert main(args) == 0
    result = last_json(capsys)
    # 100 test examples, half of which name their class outright: chance is 50 +- 5 %
    assert result["accuracy_after"] >= 0.7


@pytest.mark.usefixtures("no_memory_report")
def test_resume_needs_the_same_model_and_task(decoder, encoder, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(finetune_args(decoder, data, out, "--steps", "4")) == 0
    assert main(finetune_args(decoder, data, out, "--steps", "4")) == 1
    assert "holds a run; resume it" in capsys.readouterr().err
    other = save_model(tmp_path / "other", "llama", vocab_size=400)
    assert main(finetune_args(other, data, out, "--steps", "4", "--resume")) == 1
    assert "cannot resume, 'model' was" in capsys.readouterr().err
    assert main(finetune_args(decoder, data, out, "--steps", "4", "--resume")) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "missing"], "missing"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--task", "imdb"], "no template is called 'imdb'"),
        (["--prompt", "{text}"], "give either task"),
        (["--density", "0", "--method", "sensitive"], r"density must be in (0, 1]"),
        (["--recipe", "fzoo"], "normalized() needs a base query and at least two directions"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_leaves_no_folder(
    decoder, data, tmp_path, capsys, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    assert main(finetune_args(decoder, data, "run", "--steps", "2", *change)) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_memory_report")
def test_too_long_examples_are_cut_on_the_left_and_said_once(decoder, data, tmp_path, capsys):
    flags = ["--steps", "1", "--max-length", "12"]
    assert main(finetune_args(decoder, data, tmp_path / "run", *flags)) == 0
    lines = [x for x in capsys.readouterr().err.splitlines() if "longer than max_length=12" in x]
    assert len(lines) == 1 and "left" in lines[0]


def test_a_tokenizer_of_another_model_is_refused(data, tmp_path, capsys):
    model = save_model(tmp_path / "model", "llama", vocab_size=100)
    assert main(finetune_args(model, data, tmp_path / "run")) == 1
    assert "they are not of one model" in capsys.readouterr().err


@pytest.mark.usefixtures("no_memory_report")
def test_the_same_run_from_python(decoder, data, tmp_path):
    from zojax.cli import Finetune, TaskConfig
    from zojax.cli.finetune import finetune

    config = Finetune(
        model=decoder,
        task=TaskConfig(data=data, task="subj", num_test=20),
        out=tmp_path / "run",
        steps=3,
        batch_size=8,
        progress=False,
    )
    result = finetune(config)
    assert result["steps"] == 3
    assert result["trainable_parameters"] == sum(
        x.size for x in jax.tree.leaves(models.functional(models.load(decoder))[1])
    )


@pytest.mark.parametrize(
    "method, optimizer, expected",
    [
        ("sensitive", "auto", 0.14),  # 0.1 * (6 / 3) ** 0.5 in two digits: a zero is padding
        ("sensitive", "sgd", 250 / 4),
        ("full", "auto", 250 / 4),
        ("scales", "auto", 1e-2),
        ("lora", "auto", 1e-3),
    ],
)
def test_the_step_size_follows_from_what_moves(method, optimizer, expected):
    moves = {"a": jnp.array([1.0, -1.0]), "b": jnp.array([0.0, 2.0])}
    config = OptimizerConfig(optimizer=optimizer)
    assert optimizer_of(config, method, 10, moves)[2] == pytest.approx(expected)
