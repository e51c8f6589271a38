"""A tiny decoder and encoder with a tokenizer, and a task, all made here."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from tests.tasks.conftest import make_tokenizer
from zojax import models, training

WORDS = {0: ["story", "plot", "king"], 1: ["movie", "actor", "film"]}


def _examples(count: int, seed: int) -> list[dict]:
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(random.integers(2))
        words = random.choice(WORDS[label] + ["the", "is", "so"], 4)
        rows.append({"text": " ".join([*words, str(random.integers(10**6))]), "label": label})
    return rows


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("train", 200, 0), ("dev", 64, 1), ("test", 100, 2)):
        lines = map(json.dumps, _examples(count, seed))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def save_model(folder: Path, model_type: str, vocab_size: int | None = None) -> Path:
    tokenizer = make_tokenizer()
    config = models.parse_config(
        {
            "model_type": model_type,
            "vocab_size": vocab_size or tokenizer.get_vocab_size(),
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,  # square matrices: one program quantises them all
            "max_position_embeddings": 32,
            **({"type_vocab_size": 2} if model_type == "bert" else {}),
        }
    )
    make = models.Encoder if model_type == "bert" else models.Decoder
    models.save(make(config, rngs=nnx.Rngs(0)), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "decoder", "llama")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "encoder", "bert")


@pytest.fixture
def no_memory_report(monkeypatch):
    """For tests of something else: its three programs take longer to compile than all others."""
    monkeypatch.setattr(training, "step_memory", lambda *_: training.StepMemory(1, 1, 1))


def finetune_args(model, data, out, *more: str) -> list[str]:
    return [
        "finetune", "--model", str(model), "--task", "subj", "--data", str(data),
        "--out", str(out), "--batch-size", "16", "--eval-every", "10", "--num-test", "50",
        "--checkpoint-every", "10", "--no-progress", "--json", *more,
    ]  # fmt: skip


def last_json(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])
