"""Which examples make a batch, and at what width."""

from collections.abc import Iterator, Sequence

import numpy as np

from zojax.tasks._random import permutation
from zojax.tasks.tokens import Encoded

BUCKETS = tuple(2**k for k in range(4, 18))
_MAX_GROUP = 16


def take(
    data: Encoded, indices: np.ndarray | Sequence[int], buckets: Sequence[int] = BUCKETS
) -> dict[str, np.ndarray]:
    """The batch of some examples, its rows cut to the smallest bucket that holds them all.

    Cutting to a few widths keeps padding small and lets a jitted function compile a few times
    only.

    Args:
        data: N encoded examples.
        indices: B indices below N.
        buckets: The widths to choose from, ascending; the widest row of `data` is one more.

    Returns:
        The arrays of `data` by name, B examples each.
    """
    indices = np.asarray(indices)
    if not len(indices):
        raise ValueError("no indices to take; expected at least one")
    longest = int(data.longest[indices].max())
    full = data.tokens.shape[-1]
    width = min([full, *(size for size in buckets if size >= longest)])
    arrays = {name: array for name, array in vars(data).items() if array is not None}
    batch = {name: array[indices] for name, array in arrays.items()}
    batch["tokens"] = batch["tokens"][..., :width]
    return batch


def batch_indices(examples: int | np.ndarray, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The examples of one training step, a pure function of `seed` and `step`.

    The steps walk through one fresh permutation of the examples after the other without a gap:
    the first N indices of all steps together are a permutation, so are the next N. Given the
    lengths, whole batches in an epoch are made of similar lengths: groups of some batches are
    sorted by length, and the batches come in random order.

    Args:
        examples: N, or the length of each of N examples, int[N].
        batch_size: B, which may exceed N.
        seed: Non-negative; which order.
        step: Which step, from 0.

    Returns:
        int64[B].

    Raises:
        ValueError: If there are no examples, `batch_size` is not positive, or `seed` or `step`
            is negative.
    """
    lengths = None if np.ndim(examples) == 0 else np.asarray(examples)
    num = int(examples) if lengths is None else len(lengths)  # pyright: ignore
    if num < 1 or batch_size < 1 or seed < 0 or step < 0:
        raise ValueError(
            f"{num} examples, batch_size={batch_size}, seed={seed}, step={step}: expected at "
            "least one example, a positive batch_size, and no negative seed or step"
        )
    begin, end = step * batch_size, (step + 1) * batch_size
    parts = []
    while begin < end:
        epoch, offset = divmod(begin, num)
        count = min(end - begin, num - offset)
        order = permutation(num, seed, epoch)
        parts.append(_slice_of_epoch(order, lengths, batch_size, offset, count, (seed, epoch)))
        begin += count
    return np.concatenate(parts)


def _slice_of_epoch(
    order: np.ndarray,
    lengths: np.ndarray | None,
    batch_size: int,
    offset: int,
    count: int,
    entropy: tuple[int, int],
) -> np.ndarray:
    """`order[offset : offset + count]`, whole batches regrouped by length."""
    num = len(order)
    seed, epoch = entropy
    head = -epoch * num % batch_size  # what completes the last batch of the epoch before
    num_batches = (num - head) // batch_size
    if lengths is None or count < batch_size or not 0 <= offset - head < num_batches * batch_size:
        return order[offset : offset + count]
    shuffled = permutation(num_batches, seed, epoch, 1)
    which = int(shuffled[(offset - head) // batch_size])
    # At least four groups, or the same examples would meet in every epoch.
    group_size = min(_MAX_GROUP, max(1, num_batches // 4))
    group, place = divmod(which, group_size)
    size = group_size * batch_size
    first = head + group * size
    members = order[first : min(first + size, head + num_batches * batch_size)]
    members = members[np.argsort(lengths[members], kind="stable")]
    return members[place * batch_size : (place + 1) * batch_size]


def eval_indices(data: Encoded, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every example once, in order of length, in batches of one size.

    Args:
        data: Encoded examples.
        batch_size: B.

    Yields:
        The indices int64[B] and which of them count, bool[B]: the last batch is filled up.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected at least 1")
    order = np.argsort(data.longest, kind="stable").astype(np.int64)
    for begin in range(0, len(order), batch_size):
        indices = order[begin : begin + batch_size]
        fill = batch_size - len(indices)
        valid = np.arange(batch_size) < len(indices)
        yield np.concatenate([indices, np.repeat(indices[-1:], fill)]), valid


def eval_batches(
    data: Encoded, batch_size: int, buckets: Sequence[int] = BUCKETS
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """The batches of `eval_indices`.

    Args:
        data: Encoded examples.
        batch_size: B.
        buckets: See `take`.

    Yields:
        The batch and which of its examples count, bool[B].
    """
    for indices, valid in eval_indices(data, batch_size):
        yield take(data, indices, buckets), valid
