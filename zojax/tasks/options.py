"""Prompts and their options to arrays of tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from zojax.tasks.templates import Example, Template
from zojax.tasks.tokens import Encoded, pad_rows, require_examples, warn_truncated


class _Scored(NamedTuple):
    """The options of one example: its rows, and each option's row and tokens from `start` on."""

    rows: list[list[int]]
    places: list[int]
    start: int
    targets: list[list[int]]


def encode_options(
    examples: Sequence[Example], template: Template, tokenizer: Tokenizer, max_length: int
) -> Encoded:
    r"""Encodes prompts with their options, to be scored by a decoder.

    The tokens of an option are those of the full text, prompt and option tokenised together,
    that come after the tokens of the prompt. Where a tokenizer merges across that boundary (the
    space that ends a prompt belongs to the first word of the option, say), the prompt ends at
    the last token that all its full texts share with it, so every option of an example is
    scored after the same tokens. Special tokens that the tokenizer puts in front (bos) stay,
    those that it appends (eos) are dropped.

    The last token of an option is only ever predicted, so rows hold the prompt and the option
    but for that token. A row that begins another row of the example is left out and its option
    scored on the longer row, which a causal model may not see past: options of one token all
    share one row.

    A row longer than `max_length` loses the front of its prompt, special tokens apart, as do
    all rows of that example alike; a warning tells how many examples did.

    Args:
        examples: N mappings from field to value.
        template: How to render them.
        tokenizer: A tokenizer.
        max_length: Most tokens in a row.

    Returns:
        With U the most rows of an example, O the most options, M the most tokens of an option
        and T the longest row: `tokens` int32[N,U,T], `length` int32[N,U] (0 for a row that is
        not there), `label` int32[N], `row` int32[N,O], `position` and `target` int32[N,O,M],
        `target_mask` bool[N,O,M], `option_mask` bool[N,O].

    Raises:
        ValueError: If there are no examples, a label stands for no option, an option has no
            tokens or nothing before it, or does not fit into `max_length`.
    """
    require_examples(examples, max_length)
    labels = [template.gold(e, f"example {i}") for i, e in enumerate(examples)]
    rendered = [template.render(e, f"example {i}") for i, e in enumerate(examples)]
    prompts = iter(tokenizer.encode_batch([r.prompt for r in rendered]))
    fulls = iter(tokenizer.encode_batch([r.prompt + o for r in rendered for o in r.options]))
    scored = []
    num_truncated = 0
    for i, (prompt, options) in enumerate(rendered):
        where = f"example {i} of template {template.name!r}"
        num_front, prompt_ids = _strip_specials(next(prompts))
        full_ids = [_strip_specials(next(fulls))[1] for _ in options]
        start = min(_common(prompt_ids, ids) for ids in full_ids)
        for option, ids in zip(options, full_ids, strict=True):
            if len(ids) == start:
                raise ValueError(f"{where}: option {option!r} has no tokens of its own")
        if start == 0:
            raise ValueError(
                f"{where}: no token comes before the options {options!r} (prompt {prompt!r}); "
                "expected a prompt that ends where a word ends, or a tokenizer that adds bos"
            )
        excess = max(0, max(map(len, full_ids)) - 1 - max_length)
        if excess:
            num_front = min(num_front, start)
            if excess > start - max(num_front, 1):
                raise ValueError(
                    f"{where}: its longest option leaves no room for the prompt in max_length="
                    f"{max_length}; raise max_length or shorten the option"
                )
            full_ids = [ids[:num_front] + ids[num_front + excess :] for ids in full_ids]
            start -= excess
            num_truncated += 1
        rows, places = _share_rows(full_ids)
        scored.append(_Scored(rows, places, start, [ids[start:] for ids in full_ids]))
    warn_truncated(num_truncated, len(examples), max_length, "the left of the prompt")
    return _pack(scored, labels)


def _strip_specials(encoding: Encoding) -> tuple[int, list[int]]:
    """How many special tokens are in front, and all tokens but the special ones at the end."""
    ids, special = encoding.ids, encoding.special_tokens_mask
    end = len(ids)
    while end and special[end - 1]:
        end -= 1
    front = 0
    while front < end and special[front]:
        front += 1
    return (front, ids[:end]) if end else (len(ids), ids)


def _common(left: list[int], right: list[int]) -> int:
    """Length of the common prefix."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _share_rows(full_ids: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """The rows that no other row begins with, and for each option the row to score it on."""
    rows: list[list[int]] = []
    for ids in sorted((ids[:-1] for ids in full_ids), key=len, reverse=True):
        if not any(row[: len(ids)] == ids for row in rows):
            rows.append(ids)
    places = [
        next(u for u, row in enumerate(rows) if row[: len(ids) - 1] == ids[:-1]) for ids in full_ids
    ]
    return rows, places


def _pack(scored: list[_Scored], labels: list[int]) -> Encoded:
    num_rows = max(len(s.rows) for s in scored)
    num_options = max(len(s.targets) for s in scored)
    num_targets = max(len(target) for s in scored for target in s.targets)
    flat_tokens, flat_length = pad_rows(
        [row for s in scored for row in s.rows + [[]] * (num_rows - len(s.rows))]
    )
    by_option = (len(scored), num_options)
    row = np.zeros(by_option, np.int32)
    start = np.zeros(by_option, np.int32)
    target = np.zeros((*by_option, num_targets), np.int32)
    num_tokens = np.zeros(by_option, np.int32)
    for i, s in enumerate(scored):
        row[i, : len(s.places)] = s.places
        start[i] = s.start
        for o, ids in enumerate(s.targets):
            target[i, o, : len(ids)] = ids
            num_tokens[i, o] = len(ids)
    steps = np.arange(num_targets, dtype=np.int32)
    target_mask = steps < num_tokens[..., None]
    position = np.where(target_mask, start[..., None] - 1 + steps, 0).astype(np.int32)
    return Encoded(
        tokens=flat_tokens.reshape(len(scored), num_rows, -1),
        length=flat_length.reshape(len(scored), num_rows),
        label=np.array(labels, np.int32),
        row=row,
        position=position,
        target=target,
        target_mask=target_mask,
        option_mask=num_tokens > 0,
    )
