"""Counter-based random numbers, addressed by element.

The number at (row, col) of a leaf is a pure function of (key, row, col). Dense, scanned,
sharded, tiled and replayed noise are therefore the same bits.
"""

from zojax.noise._bits import (
    bits,
    bits_of_words,
    fold_in,
    leaf_bits,
    row_keys,
    stacked_bits,
    words,
)
from zojax.noise._distributions import gaussian, rademacher

__all__ = [
    "bits",
    "bits_of_words",
    "fold_in",
    "gaussian",
    "leaf_bits",
    "rademacher",
    "row_keys",
    "stacked_bits",
    "words",
]
