"""The bit rule: frozen, addressed by element, and random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zojax import noise
from zojax.noise._bits import top_bits_of_row_keys

KEY = jnp.array([1, 2], jnp.uint32)
_M = 2**32 - 1

# ((key words), row, col) -> bits. A change here breaks every stored journal.
GOLDEN = [
    ((0, 0), 0, 0, 0x3A5C57A3),
    ((1, 2), 0, 0, 0x5AA681FA),
    ((1, 2), 0, 1, 0xAC95ED6E),
    ((1, 2), 3, 5, 0x869CD48B),
    ((42, 0), 1000, 70000, 0xEFB913F6),
    ((_M, 0x12345678), _M, _M, 0xF7DAEEC7),
]
GOLDEN_FOLDS = [
    ((0, 0), 0, (0x58DEDE7B, 0xAEE1A895)),
    ((1, 2), 3, (0x90AFC922, 0x09080708)),
    ((_M, 0x12345678), _M, (0x05E25176, 0x4AFBBEE7)),
]


def _threefry(k0, k1, x0, x1):
    """Threefry-2x32-13 in Python integers, from the paper."""
    keys = (k0, k1, k0 ^ k1 ^ 0x1BD11BDA)
    x0, x1 = (x0 + k0) & _M, (x1 + k1) & _M
    for i, r in enumerate((13, 15, 26, 6, 17, 29, 16, 24, 13, 15, 26, 6, 17)):
        x0 = (x0 + x1) & _M
        x1 = (((x1 << r) | (x1 >> (32 - r))) & _M) ^ x0
        if (i + 1) % 4 == 0:
            j = (i + 1) // 4
            x0, x1 = (x0 + keys[j % 3]) & _M, (x1 + keys[(j + 1) % 3] + j) & _M
    return x0, x1


def _oracle(key, row, col):
    r0, r1 = _threefry(*key, row, 0)
    x = (col * 0x9E3779B9 + r0) & _M
    x = ((x ^ x >> 16) * 0x21F0AAAD) & _M
    x = ((x ^ x >> 15) + r1) & _M
    x = (x * 0xD35A2D97) & _M
    return x ^ x >> 15


def _u32(*values):
    return jnp.array(values, jnp.uint32)


@pytest.mark.parametrize("key, row, col, expected", GOLDEN)
def test_bits_golden(key, row, col, expected):
    assert int(noise.bits(_u32(*key), _u32(row), _u32(col))[0]) == expected
    assert _oracle(key, row, col) == expected


def test_the_highest_bits_are_right_without_the_last_step():
    words = noise.row_keys(KEY, jnp.arange(64)[:, None])
    cols = jnp.arange(256)[None]
    np.testing.assert_array_equal(
        top_bits_of_row_keys(*words, cols) >> 17, noise.bits_of_row_keys(*words, cols) >> 17
    )


@pytest.mark.parametrize("key, data, expected", GOLDEN_FOLDS)
def test_fold_in_golden(key, data, expected):
    assert tuple(noise.fold_in(_u32(*key), _u32(data))[0].tolist()) == expected
    assert _threefry(*key, data, 0x7A6F6A61) == expected


def test_leaf_bits_golden():
    expected = [
        0x211FCEFB, 0xF6153855, 0xD17F54FD, 0x3005E4FA,
        0x7F8F7657, 0xF31DB7A3, 0xEA208AD9, 0x8714485C,
    ]  # fmt: skip
    found = noise.leaf_bits(_u32(7, 8), (2, 2, 2))
    assert found.ravel().tolist() == expected
    assert [_oracle((7, 8), row, col) for row in range(4) for col in range(2)] == expected


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_keys_of_every_implementation_have_two_words(impl):
    keys = jax.random.split(jax.random.key(5, impl=impl), 3)
    words = noise.words(keys)
    assert words.shape == (3, 2) and words.dtype == jnp.uint32
    assert len(set(map(tuple, words.tolist()))) == 3
    assert jnp.array_equal(noise.words(keys[1]), words[1])
    assert jnp.array_equal(noise.bits(keys[1], 3, 4), noise.bits(words[1], 3, 4))


def test_rbg_words_golden():
    assert noise.words(jax.random.key(5, impl="rbg")).tolist() == [0x2F253F7A, 0xA8B50932]
    assert list(_threefry(0, 5, 0, 5)) == [0x2F253F7A, 0xA8B50932]


@pytest.mark.parametrize(
    "key", [jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.float32), jnp.zeros(3, jnp.uint32)]
)
def test_what_is_no_key_is_an_error_that_says_so(key):
    with pytest.raises(TypeError, match=rf"found {key.dtype}\[{key.shape[0]}\].*jax.random.key"):
        noise.bits(key, 0, 0)


# Layout-free: one reference array, and every other way to make the same elements.

SHAPE = (16, 24)
DENSE = np.asarray(noise.leaf_bits(KEY, SHAPE))


def test_dense_equals_any_rectangle():
    rows, cols = jnp.arange(3, 11)[:, None], jnp.arange(5, 20)[None]
    np.testing.assert_array_equal(noise.bits(KEY, rows, cols), DENSE[3:11, 5:20])


def test_leaf_rows_are_all_axes_but_the_last():
    np.testing.assert_array_equal(noise.leaf_bits(KEY, (2, 8, 24)).reshape(SHAPE), DENSE)
    np.testing.assert_array_equal(noise.leaf_bits(KEY, (24,)), DENSE[0])
    np.testing.assert_array_equal(noise.leaf_bits(KEY, ()), DENSE[0, 0])
    assert noise.leaf_bits(KEY, (3, 0)).shape == (3, 0)


def test_stacked_bits_equal_each_leaf():
    keys = noise.fold_in(KEY, jnp.arange(3))
    stacked = noise.stacked_bits(keys, 5, 24)
    leaves = [noise.leaf_bits(k, (5, 24)) for k in keys]
    np.testing.assert_array_equal(stacked, np.stack(leaves))


def test_jit_vmap_and_scan_give_the_dense_bits():
    cols = jnp.arange(SHAPE[1])
    np.testing.assert_array_equal(jax.jit(lambda k: noise.leaf_bits(k, SHAPE))(KEY), DENSE)
    by_row = jax.vmap(lambda r: noise.bits(KEY, r, cols))(jnp.arange(SHAPE[0]))
    np.testing.assert_array_equal(by_row, DENSE)
    _, scanned = jax.lax.scan(
        lambda c, r: (c, noise.bits(KEY, r, cols)), None, jnp.arange(SHAPE[0])
    )
    np.testing.assert_array_equal(scanned, DENSE)


def test_vmap_over_keys_gives_each_key_its_bits():
    keys = noise.fold_in(KEY, jnp.arange(3))
    batched = jax.vmap(lambda k: noise.leaf_bits(k, SHAPE))(keys)
    np.testing.assert_array_equal(batched, [noise.leaf_bits(k, SHAPE) for k in keys])


@pytest.mark.parametrize("spec", [("x", None), (None, "x"), ("x", "y")])
def test_sharded_over_eight_devices_equals_dense(spec):
    assert jax.device_count() == 8
    shape = (4, 2) if "y" in spec else (8, 1)
    sharding = NamedSharding(
        Mesh(np.array(jax.devices()).reshape(shape), ("x", "y")), PartitionSpec(*spec)
    )
    found = jax.jit(lambda k: noise.leaf_bits(k, SHAPE), out_shardings=sharding)(KEY)
    assert len({str(s.index) for s in found.addressable_shards}) == 8
    np.testing.assert_array_equal(found, DENSE)


# Randomness. Every statistic below is a sum of independent terms; five sigma.

SIDE = 1024
COUNT = SIDE * SIDE
FIELD = np.asarray(noise.leaf_bits(KEY, (SIDE, SIDE)))
SIGNS = np.asarray(noise.rademacher(FIELD))


def _assert_uncorrelated(x, y):
    assert abs(float(np.mean(x * y, dtype=np.float64))) < 5 / x.size**0.5


def test_each_bit_is_balanced():
    for bit in range(32):
        ones = int(((FIELD >> np.uint32(bit)) & 1).sum())
        assert abs(ones - COUNT / 2) < 5 * (COUNT / 4) ** 0.5, bit


@pytest.mark.parametrize("byte", range(4))
def test_bytes_are_uniform(byte):
    """Pearson's chi-square: mean 255, variance 2 * 255."""
    counts = np.bincount(((FIELD >> np.uint32(8 * byte)) & 255).ravel(), minlength=256)
    statistic = ((counts - COUNT / 256) ** 2).sum() / (COUNT / 256)
    assert abs(statistic - 255) < 5 * (2 * 255) ** 0.5


@pytest.mark.parametrize("step", ["column", "row", "key"])
def test_pairs_of_bytes_are_uniform(step):
    """A byte with the same byte of the next column, row or key, disjoint pairs: 2**16 cells."""
    if step == "key":
        other = np.asarray(noise.leaf_bits(KEY + jnp.uint32(1), FIELD.shape))
        pairs = [(FIELD, other)]
    else:
        field = FIELD if step == "column" else FIELD.T
        pairs = [(field[:, ::2], field[:, 1::2])]
    for a, b in pairs:
        for byte in range(4):
            shift = np.uint32(8 * byte)
            cells = ((a >> shift) & 255) * 256 + ((b >> shift) & 255)
            expected = cells.size / 2**16
            counts = np.bincount(cells.ravel(), minlength=2**16)
            statistic = ((counts - expected) ** 2).sum() / expected
            assert abs(statistic - (2**16 - 1)) < 5 * (2 * (2**16 - 1)) ** 0.5, byte


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 512])
def test_no_correlation_along_rows_columns_and_diagonals(lag):
    _assert_uncorrelated(SIGNS[:, lag:], SIGNS[:, :-lag])
    _assert_uncorrelated(SIGNS[lag:], SIGNS[:-lag])
    _assert_uncorrelated(SIGNS[lag:, lag:], SIGNS[:-lag, :-lag])
    _assert_uncorrelated(SIGNS[lag:, :-lag], SIGNS[:-lag, lag:])


def test_no_correlation_with_the_transpose():
    upper = np.triu_indices(SIDE, 1)
    _assert_uncorrelated(SIGNS[upper], SIGNS.T[upper])


@pytest.mark.parametrize("word", [0, 1])
@pytest.mark.parametrize("bit", [0, 1, 31])
def test_no_correlation_between_neighbouring_keys(word, bit):
    other = KEY.at[word].set(KEY[word] ^ jnp.uint32(2**bit))
    _assert_uncorrelated(SIGNS, np.asarray(noise.rademacher(noise.leaf_bits(other, SIGNS.shape))))


def test_no_correlation_between_neighbouring_folds():
    a, b = (np.asarray(noise.rademacher(noise.leaf_bits(k, SIGNS.shape)))
            for k in noise.fold_in(KEY, jnp.arange(2)))  # fmt: skip
    _assert_uncorrelated(a, b)
    _assert_uncorrelated(a, SIGNS)


@pytest.mark.parametrize("word", ["key0", "key1", "row", "col"])
def test_avalanche(word):
    """Flipping any input bit flips each output bit half the time."""
    samples = 4096
    draw = np.random.default_rng(0)
    inputs = {
        name: draw.integers(0, 2**32, samples, dtype=np.uint64).astype(np.uint32)
        for name in ("key0", "key1", "row", "col")
    }
    hashed = jax.jit(
        jax.vmap(lambda key0, key1, row, col: noise.bits(jnp.stack([key0, key1]), row, col))
    )
    before = np.asarray(hashed(*inputs.values()))
    for bit in range(32):
        changed = inputs | {word: inputs[word] ^ np.uint32(2**bit)}
        difference = before ^ np.asarray(hashed(*changed.values()))
        flips = (difference[:, None] >> np.arange(32, dtype=np.uint32)) & 1
        assert np.all(abs(flips.sum(0) - samples / 2) < 5 * (samples / 4) ** 0.5), bit
        assert abs(int(flips.sum()) - samples * 16) < 5 * (samples * 8) ** 0.5, bit
