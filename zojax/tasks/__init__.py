"""Tasks: prompts, encoding, batches, scoring and a demonstration data set."""

from zojax.tasks.batches import batch_indices, eval_batches, eval_indices, take
from zojax.tasks.docstrings import DocstringTask, docstring_topics
from zojax.tasks.jsonl import read_jsonl
from zojax.tasks.language import encode_chunks, language_modelling
from zojax.tasks.options import encode_options
from zojax.tasks.scoring import (
    accuracy,
    example_losses,
    head_classification,
    init_head,
    label_name_head,
    macro_f1,
    option_scoring,
)
from zojax.tasks.splits import Splits, find_template, load_splits
from zojax.tasks.templates import TEMPLATES, Rendered, Template
from zojax.tasks.tokens import Encoded, encode_texts, load_tokenizer

__all__ = [
    "TEMPLATES",
    "DocstringTask",
    "Encoded",
    "Rendered",
    "Splits",
    "Template",
    "accuracy",
    "batch_indices",
    "docstring_topics",
    "encode_chunks",
    "encode_options",
    "encode_texts",
    "eval_batches",
    "eval_indices",
    "example_losses",
    "find_template",
    "head_classification",
    "init_head",
    "label_name_head",
    "language_modelling",
    "load_splits",
    "load_tokenizer",
    "macro_f1",
    "option_scoring",
    "read_jsonl",
    "take",
]
