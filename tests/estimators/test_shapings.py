"""Shapings against their formulas, in float64 and by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax

KEY = jax.random.key(0)
MU = jnp.float32(0.25)
EPS = 2.0**-23
DRAW = np.random.default_rng(0)
POINTS = jnp.asarray(DRAW.standard_normal(12), jnp.float32)
EACH = jnp.asarray(DRAW.standard_normal((12, 5)), jnp.float32)
PAIRS = zojax.Losses(plus=POINTS[:6], minus=POINTS[6:])


def _shaped(shaping, losses) -> np.ndarray:
    return np.asarray(shaping(losses, MU, KEY), np.float64)


def _population(points) -> zojax.Losses:
    return zojax.Losses(plus=jnp.asarray(points, jnp.float32))


@pytest.mark.parametrize("points", [POINTS, EACH], ids=["mean", "per_example"])
@pytest.mark.parametrize("baseline, factor", [("mean", 1.0), ("leave_one_out", 12 / 11)])
def test_a_baseline_is_the_mean_of_all_or_of_the_others(points, baseline, factor):
    losses = np.asarray(points, np.float64).reshape(12, -1).mean(1)
    others = (losses.sum() - losses) / 11
    assert np.allclose((losses - others), (losses - losses.mean()) * 12 / 11)
    expected = (losses - losses.mean()) * factor / 0.25
    found = _shaped(zojax.difference(baseline), _population(points))
    np.testing.assert_allclose(found, expected, rtol=0, atol=32 * EPS * 12)


def test_a_baseline_of_one_point_is_an_error():
    with pytest.raises(ValueError, match='baseline "mean" needs at least two points, found 1'):
        zojax.difference("mean")(_population([1.0]), MU, KEY)
    with pytest.raises(ValueError, match=r"must be None, .* found 'median'"):
        zojax.difference("median")  # pyright: ignore


def _rank_weights(losses, k):
    """One for each point that is known to beat it, minus one for each that it is known to beat."""
    losses = np.where(np.isnan(losses), np.inf, losses)
    best = set(np.argsort(losses, kind="stable")[:k].tolist())
    weights = np.zeros(len(losses))
    for i, a in enumerate(losses):
        for j, b in enumerate(losses):
            if i in best or j in best:
                weights[i] += (b < a) - float(a < b)
    return weights


TIED = np.array([0.5, 0.25, 0.5, -1, 3, 0.25, 0.5, 2, 7, 7, -2, 0])
SPOILT = np.array([0.5, np.nan, 3, -1, np.inf, 2, np.nan, -np.inf, 1, 8, 9, 10])


@pytest.mark.parametrize("points", [np.asarray(POINTS), TIED, SPOILT], ids=["", "ties", "nan"])
@pytest.mark.parametrize("k", [None, 1, 3, 5, 12])
def test_ranks_are_counted_pair_by_pair(points, k):
    """Small integers times m / pairs: one product, one rounding error."""
    m, top = 12, 12 if k is None else k
    weights = _rank_weights(points, top)
    assert weights.sum() == 0
    pairs = top * (top - 1) / 2 + top * (m - top)
    found = _shaped(zojax.ranks(k), _population(points))
    np.testing.assert_allclose(found, weights * m / pairs, rtol=2 * EPS)
    if top == m and points is not TIED and points is not SPOILT:
        rank = np.argsort(np.argsort(points))
        np.testing.assert_array_equal(weights, 2 * rank - (m - 1))


def test_ranks_of_pairs_weigh_each_side():
    """g = sum over the twelve points of w_i z_i / pairs, with -z_k on the other side."""
    weights = _rank_weights(np.asarray(POINTS), 12)
    expected = (weights[:6] - weights[6:]) / (12 * 11 / 2) * 6
    np.testing.assert_allclose(_shaped(zojax.ranks(), PAIRS), expected, rtol=4 * EPS)


def test_only_the_order_counts_for_ranks():
    squashed = _population(jnp.exp(3 * POINTS) - 5)
    np.testing.assert_array_equal(
        _shaped(zojax.ranks(4), squashed), _shaped(zojax.ranks(4), _population(POINTS))
    )


def test_equal_losses_give_zero():
    equal = _population(np.full(4, 3.0))
    for shaping in (zojax.ranks(), zojax.standardized(), zojax.consensus(), zojax.consensus(2.0)):
        np.testing.assert_array_equal(_shaped(shaping, equal), np.zeros(4))


def test_ranking_keeps_nearly_all_of_the_cosine():
    """A linear loss, 60 entries, 20 points: .93 of the cosine that the values give, and more.

    Between normal scores and their ranks the correlation is sqrt(3 / pi) = .977 for many points.
    """
    d, n, count = 60, 20, 1000
    slope = DRAW.standard_normal(d)
    slope = slope / np.linalg.norm(slope)
    z = jnp.asarray(DRAW.standard_normal((count, n, d)), jnp.float32)

    def cosines(shaping):
        shape = lambda losses: shaping(zojax.Losses(plus=losses), MU, KEY)  # noqa: E731
        found = jax.jit(jax.vmap(shape))(z @ slope)
        grads = np.einsum("cn,cnd->cd", np.asarray(found, np.float64), z)
        return grads @ slope / np.linalg.norm(grads, axis=1)

    by_rank, by_value = cosines(zojax.ranks()), cosines(zojax.difference("mean"))
    gap = by_rank - 0.93 * by_value
    assert gap.mean() > 3 * gap.std() / count**0.5
    loss = by_value - by_rank
    assert loss.mean() > 3 * loss.std() / count**0.5  # an order is less than the values


@pytest.mark.parametrize("top, match", [(0, "at least 1, found 0"), (13, "of 12 points: at most")])
def test_more_ranks_than_points_are_an_error(top, match):
    with pytest.raises(ValueError, match=match):
        zojax.ranks(top)(_population(POINTS), MU, KEY)


def _softmax(losses, alpha):
    weights = np.exp(-alpha * (losses - losses.min()))
    return weights / weights.sum()


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("alpha", [0.1, 1.0, 30.0])
def test_consensus_hops_to_the_weighted_mean(alpha, sides):
    """SGD with alpha mu^2 goes to sum_i w_i (x + mu z_i), less the mean of the z_i."""
    n, mu = 6, 0.25
    x, z = DRAW.standard_normal(4), DRAW.standard_normal((n, 4))
    points = np.concatenate([z, -z]) if sides == 2 else z
    asked = jnp.asarray(((x + mu * points) ** 2).sum(1), jnp.float32)
    losses = zojax.Losses(plus=asked[:n], minus=asked[n:] if sides == 2 else None)
    weights = _softmax(np.asarray(asked, np.float64), alpha)
    hop = -alpha * mu**2 * (_shaped(zojax.consensus(alpha), losses) @ z / n)
    expected = mu * weights @ points - mu * points.mean(0)
    # a weight has a rounding error of its own size, and one of alpha times the loss
    atol = 4 * EPS * (1 + alpha * float(asked.max())) * abs(z).max()
    np.testing.assert_allclose(hop, expected, rtol=0, atol=atol)


def test_consensus_of_a_small_alpha_is_the_difference():
    """(1 - m w) / alpha = L - mean L + O(alpha): at most alpha max (L - mean L)^2 away."""
    alpha = 1e-2
    losses = _population(POINTS)
    centred = np.asarray(POINTS, np.float64) - np.asarray(POINTS, np.float64).mean()
    bound = (alpha * (centred**2).max() + 12 * EPS / alpha) / 0.25
    found = _shaped(zojax.consensus(alpha), losses)
    assert abs(found - _shaped(zojax.difference("mean"), losses)).max() < bound


@pytest.mark.parametrize("effective", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e4])
def test_consensus_finds_the_effective_sample_size(effective, unit):
    """Against a bisection of our own in float64, whatever the unit of the loss."""
    losses = unit * np.asarray(POINTS, np.float64)
    low, high = 1e-6 / unit, 1e6 / unit
    for _ in range(200):
        alpha = (low * high) ** 0.5
        many = 1 / np.sum(_softmax(losses, alpha) ** 2) > 12 * effective
        low, high = (alpha, high) if many else (low, alpha)
    expected = (1 - 12 * _softmax(losses, low)) / (low * 0.25)
    found = _shaped(zojax.consensus(effective=effective), _population(losses))
    # alpha itself is known to float32's rounding of the effective size
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("shaping, match", [
    (lambda: zojax.consensus(0.0), "alpha must be positive, found 0"),
    (lambda: zojax.consensus(effective=1.0), "between 0 and 1, found 1"),
    (lambda: zojax.clipped(zojax.difference(), -1.0), "must be positive, found -1"),
])  # fmt: skip
def test_settings_out_of_range_are_errors(shaping, match):
    with pytest.raises(ValueError, match=match):
        shaping()


@pytest.mark.parametrize("name", ["ranks", "consensus", "standardized"])
def test_shapings_that_compare_need_points(name):
    shaping = getattr(zojax, name)()
    with pytest.raises(ValueError, match="at least two points to compare, found 1"):
        shaping(_population([1.0]), MU, KEY)
    with pytest.raises(ValueError, match="found slopes only"):
        shaping(zojax.Losses(base=MU, slope=POINTS), MU, KEY)


@pytest.mark.parametrize("points", [POINTS, EACH], ids=["mean", "per_example"])
def test_standard_scores_are_those_of_each_example(points):
    """Mean over examples of (L - mean L) / std L, each over the points."""
    each = np.asarray(points, np.float64).reshape(12, -1)
    scores = ((each - each.mean(0)) / (each.std(0) + 1e-8)).mean(1)
    found = _shaped(zojax.standardized(), _population(points))
    np.testing.assert_allclose(found, scores, rtol=0, atol=32 * EPS)
    pairs = zojax.Losses(plus=points[:6], minus=points[6:])
    found = _shaped(zojax.standardized(), pairs)
    np.testing.assert_allclose(found, (scores[:6] - scores[6:]) / 2, rtol=0, atol=32 * EPS)


def test_a_loud_example_counts_like_the_others():
    """Another unit and another offset for each example change nothing."""
    units = jnp.asarray([1.0, 1024, 1 / 64, 8, 2.0**-10])
    offsets = jnp.asarray([0.0, 64, 1, -2, 0.5]) * units
    # an offset of 64 rounds the losses by 64 eps before anything is subtracted
    np.testing.assert_allclose(
        _shaped(zojax.standardized(1e-30), _population(EACH * units + offsets)),
        _shaped(zojax.standardized(1e-30), _population(EACH)),
        rtol=0,
        atol=64 * EPS,
    )


def test_clipped_is_another_shaping_within_a_limit():
    plain = _shaped(zojax.difference(), PAIRS)
    limit = float(np.float32(np.median(abs(plain))))
    assert 0 < (abs(plain) > limit).sum() < 6
    found = _shaped(zojax.clipped(zojax.difference(), limit), PAIRS)
    np.testing.assert_array_equal(found, np.clip(plain, -limit, limit))


@pytest.mark.parametrize("scheme", [zojax.one_sided(4), zojax.two_sided(4)], ids=["one", "two"])
def test_normalized_takes_the_mean_over_examples(scheme):
    """FZOO with a loss of each example is FZOO with their mean."""
    each = lambda w: jnp.sum(w) * jnp.arange(1.0, 4.0) + jnp.square(w).sum()  # noqa: E731
    estimator = zojax.Estimator(zojax.rademacher(), scheme, zojax.normalized(), 0.25)
    w, key = jnp.arange(5.0), jax.random.key(3)
    found = zojax.estimate(each, estimator, per_example=True)(key, w)
    mean = zojax.estimate(lambda w: each(w).mean(), estimator)(key, w)
    np.testing.assert_allclose(found.coefficients, mean.coefficients, rtol=1e-4)
