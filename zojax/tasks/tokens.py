"""Text to arrays of tokens."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """Examples as arrays; see `encode_options` and `encode_texts` for their shapes.

    Attributes:
        tokens: Right padded with zeros; `length` tells the pads, never the token.
        length: Tokens of each row.
        label: Index of the right class or option.
        row: Row that each option is scored on, or None where classes come from a head.
        position: Where in that row the hidden state that predicts each token of an option is.
        target: The tokens of each option.
        target_mask: Which of those are tokens.
        option_mask: Which options the example has.
    """

    tokens: np.ndarray
    length: np.ndarray
    label: np.ndarray
    row: np.ndarray | None = None
    position: np.ndarray | None = None
    target: np.ndarray | None = None
    target_mask: np.ndarray | None = None
    option_mask: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def longest(self) -> np.ndarray:
        """Tokens of the longest row of each example, int32[N]."""
        return self.length if self.length.ndim == 1 else self.length.max(axis=1)


def load_tokenizer(model_folder: str | os.PathLike[str]) -> Tokenizer:
    """Reads the `tokenizer.json` of a Hugging Face folder.

    Padding and truncation that the file asks for are switched off: both are done here.

    Args:
        model_folder: The folder.

    Returns:
        A tokenizer of the `tokenizers` library.

    Raises:
        FileNotFoundError: If the folder has no `tokenizer.json`.
        ValueError: If the file is malformed.
    """
    path = Path(model_folder) / "tokenizer.json"
    if not path.is_file():
        found = (
            sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else "no folder"
        )
        raise FileNotFoundError(
            f"{path}: no such file; found {found}; a slow tokenizer (tokenizer.model, vocab.json) "
            "is converted by transformers: AutoTokenizer.from_pretrained(folder)"
            ".save_pretrained(folder)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: not a tokenizer ({error}); copy it again") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode_texts(
    texts: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    tokenizer: Tokenizer,
    max_length: int,
    num_labels: int,
) -> Encoded:
    """Encodes texts with the special tokens of the tokenizer ([CLS] ... [SEP]), for an encoder.

    A text longer than `max_length` is cut on the right, as is usual for encoders, and keeps its
    special tokens; a warning tells how many were.

    Args:
        texts: N texts.
        labels: N class indices.
        tokenizer: A tokenizer.
        max_length: Most tokens in a row, special tokens included.
        num_labels: How many classes there are.

    Returns:
        With T the longest row: `tokens` int32[N,T], `length` int32[N], `label` int32[N].

    Raises:
        ValueError: If there are no texts, their number is not that of the labels, a label is
            out of range, a text has no tokens, or the special tokens alone exceed `max_length`.
    """
    require_examples(texts, max_length)
    if len(texts) != len(labels):
        raise ValueError(f"found {len(texts)} texts but {len(labels)} labels; expected as many")
    for i, label in enumerate(labels):
        if label != int(label) or not 0 <= label < num_labels:
            raise ValueError(
                f"text {i}: label {label!r} is no class; expected an integer from 0 to "
                f"{num_labels - 1}"
            )
    room = max_length - tokenizer.num_special_tokens_to_add(is_pair=False)
    if room < 1:
        raise ValueError(f"max_length={max_length} has no room beside the special tokens; raise it")
    rows = []
    num_truncated = 0
    for i, encoding in enumerate(tokenizer.encode_batch(list(texts), add_special_tokens=False)):
        num_truncated += len(encoding.ids) > room
        encoding.truncate(room)
        rows.append(tokenizer.post_process(encoding).ids)
        if not rows[-1]:
            raise ValueError(f"text {i}: {texts[i]!r} has no tokens; drop it")
    warn_truncated(num_truncated, len(texts), max_length, "the right")
    tokens, length = pad_rows(rows)
    return Encoded(tokens, length, np.asarray(labels, np.int32))


def require_examples(examples: Sequence[object], max_length: int) -> None:
    """Raises unless there are examples and room for a token."""
    if not len(examples):
        raise ValueError("no examples to encode; expected at least one")
    if max_length < 1:
        raise ValueError(f"max_length={max_length}; expected at least 1")


def warn_truncated(count: int, total: int, max_length: int, side: str) -> None:
    """Warns the caller of an encoder once of all that was cut."""
    if count:
        warnings.warn(
            f"{count} of {total} examples are longer than max_length={max_length}; {side} was cut",
            stacklevel=3,
        )


def pad_rows(rows: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Right padded tokens int32[N,T] and the length int32[N] of each row."""
    length = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), length.max()), np.int32)
    tokens[np.arange(tokens.shape[1]) < length[:, None]] = np.concatenate(rows)
    return tokens, length
