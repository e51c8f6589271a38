"""Counter-based random numbers, addressed by element.

The number at (row, col) of a leaf is a pure function of (key, row, col). Dense, scanned,
sharded, tiled and replayed noise are therefore the same bits.
"""

from zojax.noise._bits import (
    bits,
    bits_of_row_keys,
    bits_of_words,
    fold_in,
    leaf_bits,
    row_keys,
    stacked_bits,
    words,
)
from zojax.noise._coefficient import round_coefficient
from zojax.noise._distributions import gaussian, nibble_sum, rademacher

__all__ = [
    "bits",
    "bits_of_row_keys",
    "bits_of_words",
    "fold_in",
    "gaussian",
    "leaf_bits",
    "nibble_sum",
    "rademacher",
    "round_coefficient",
    "row_keys",
    "stacked_bits",
    "words",
]
