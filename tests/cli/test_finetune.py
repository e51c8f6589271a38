"""The command line on a tiny model with a tokenizer and a task made here."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from tests.tasks.conftest import make_tokenizer
from zojax import models, training
from zojax.cli import main

WORDS = {0: ["story", "plot", "king"], 1: ["movie", "actor", "film"]}


def _examples(count: int, seed: int) -> list[dict]:
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(random.integers(2))
        words = random.choice(WORDS[label] + ["the", "is", "so"], 4)
        rows.append({"text": " ".join([*words, str(random.integers(10**6))]), "label": label})
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("train", 200, 0), ("dev", 64, 1), ("test", 100, 2)):
        lines = map(json.dumps, _examples(count, seed))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _save(folder, model_type: str, vocab_size: int | None = None):
    tokenizer = make_tokenizer()
    config = models.parse_config(
        {
            "model_type": model_type,
            "vocab_size": vocab_size or tokenizer.get_vocab_size(),
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 32,
            **({"type_vocab_size": 2} if model_type == "bert" else {}),
        }
    )
    make = models.Encoder if model_type == "bert" else models.Decoder
    models.save(make(config, rngs=nnx.Rngs(0)), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("models") / "decoder", "llama")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("models") / "encoder", "bert")


def _finetune(model, data, out, *more: str) -> list[str]:
    return [
        "finetune", "--model", str(model), "--task", "subj", "--data", str(data),
        "--out", str(out), "--batch-size", "16", "--eval-every", "10", "--num-test", "50",
        "--checkpoint-every", "10", "--no-progress", "--json", *more,
    ]  # fmt: skip


@pytest.fixture
def no_memory_report(monkeypatch):
    """For tests of something else: its three programs take longer to compile than all others."""
    monkeypatch.setattr(training, "step_memory", lambda *_: training.StepMemory(1, 1, 1))


def _last_json(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.parametrize(
    "method", [["full"], ["sensitive", "--density", "0.1"], ["lora"], ["bias-and-norm"]], ids=str
)
def test_every_method_runs_and_its_adapter_gives_the_same_accuracy(
    decoder, data, tmp_path, capsys, method
):
    out = tmp_path / "run"
    flags = ["--method", *method, "--steps", "20", "--learning-rate", "0.01"]
    assert main(_finetune(decoder, data, out, *flags)) == 0
    result = _last_json(capsys)
    assert result["status"] == "finished" and result["steps"] == 20
    names = {"adapter.safetensors", "journal.bin", "metrics.jsonl", "report.png", "result.json"}
    assert names <= {p.name for p in out.iterdir()}
    assert json.loads((out / "result.json").read_text()) == result
    command = ["evaluate", "--model", str(decoder), "--task", "subj", "--data", str(data)]
    assert main([*command, "--adapter", str(out), "--num-test", "50", "--json"]) == 0
    assert _last_json(capsys)["accuracy"] == result["accuracy_after"]


@pytest.mark.usefixtures("no_memory_report")
def test_an_encoder_with_your_own_prompt_and_options_learns(encoder, data, tmp_path, capsys):
    args = [
        "finetune", "--model", str(encoder), "--data", str(data), "--prompt", "{text}",
        "--options", " story", " movie", "--method", "bias-and-norm", "--steps", "80",
        "--learning-rate", "0.02", "--mu", "0.01", "--head-samples", "64", "--batch-size", "32",
        "--eval-every", "20", "--out", str(tmp_path / "run"), "--no-progress", "--json",
    ]  # fmt: skip
    assert main(args) == 0
    result = _last_json(capsys)
    # 100 test examples, half of which name their class outright: chance is 50 +- 5 %
    assert result["accuracy_after"] >= 0.7


@pytest.mark.usefixtures("no_memory_report")
def test_resume_needs_the_same_model_and_task(decoder, encoder, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(_finetune(decoder, data, out, "--steps", "4")) == 0
    assert main(_finetune(decoder, data, out, "--steps", "4")) == 1
    assert "holds a run; resume it" in capsys.readouterr().err
    other = _save(tmp_path / "other", "llama", vocab_size=400)
    assert main(_finetune(other, data, out, "--steps", "4", "--resume")) == 1
    assert "cannot resume, 'model' was" in capsys.readouterr().err
    assert main(_finetune(decoder, data, out, "--steps", "4", "--resume")) == 0


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
    assert main(_finetune(decoder, data, "run", "--steps", "2", *change)) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_memory_report")
def test_too_long_examples_are_cut_on_the_left_and_said_once(decoder, data, tmp_path, capsys):
    flags = ["--steps", "1", "--max-length", "12"]
    assert main(_finetune(decoder, data, tmp_path / "run", *flags)) == 0
    lines = [x for x in capsys.readouterr().err.splitlines() if "longer than max_length=12" in x]
    assert len(lines) == 1 and "left" in lines[0]


def test_a_tokenizer_of_another_model_is_refused(data, tmp_path, capsys):
    model = _save(tmp_path / "model", "llama", vocab_size=100)
    assert main(_finetune(model, data, tmp_path / "run")) == 1
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
