"""Permutations that every numpy version draws alike."""

import numpy as np


def permutation(num: int, *entropy: int) -> np.ndarray:
    """A permutation of `range(num)`, a pure function of `entropy`.

    It sorts raw 64-bit words, because numpy keeps the stream of a bit generator fixed for ever
    but may change how `Generator.permutation` uses it.

    Args:
        num: How many indices.
        *entropy: Non-negative integers that name the permutation.

    Returns:
        int64[num].
    """
    words = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(num)
    return np.argsort(words, kind="stable").astype(np.int64)
