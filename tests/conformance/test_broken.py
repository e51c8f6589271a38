"""The suite tells a broken estimator from a right one: bugs that were shipped, and wrong claims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from tests.conformance import checks
from tests.conformance.problem import SIZE
from tests.conformance.recipes import MU, gaussian_variance, unbiased
from tests.conformance.subject import Claims, Subject
from tests.slow import slow_but
from zojax import noise
from zojax.directions import combine
from zojax.estimators import Adaptive

SIGNS = zojax.rademacher()  # compiles fastest
QUOTIENT = Claims(mean=unbiased, quotient=True, scale="equivariant")


def _summed(direction, change):
    """A direction whose update is made of other terms than its queries."""

    def added(keys, weights, params, step=0):
        changed = [change(key, step) for key in keys]
        total = combine(
            direction, jnp.stack([key for key, _ in changed]), weights * len(keys), params,
            changed[0][1],
        )  # fmt: skip
        return jax.tree.leaves(total)

    return direction._replace(combine=added)


def _other_key():
    return zojax.mezo(MU, direction=_summed(SIGNS, lambda key, step: (noise.fold_in(key, 1), step)))


def _kept_too_long():
    """LOZO's: at a refresh the update still has the factor of the step before."""
    direction = zojax.low_rank(1, refresh=2)
    old = lambda key, step: (key, jnp.maximum(jnp.asarray(step) - 1, 0))  # noqa: E731
    return zojax.mezo(MU, direction=_summed(direction, old))


def _longer():
    """LOZO's again, without 1 / sqrt(rank): the covariance is rank times the identity."""

    def terms(key, params, step=0):
        return tuple(t.scaled(2**0.5) for t in SIGNS.terms(key, params, step) if t is not None)

    return zojax.mezo(MU, direction=zojax.Direction(terms, "long"))


def _one_noise():
    scheme = zojax.two_sided()
    same = lambda key: jnp.zeros((1, 2), jnp.uint32)  # noqa: E731
    return zojax.Estimator(SIGNS, scheme._replace(keys=same), zojax.difference(), MU)


def _uphill():
    turned = lambda losses, mu, key: -zojax.difference()(losses, mu, key)  # noqa: E731
    return zojax.mezo(MU, direction=SIGNS)._replace(shaping=turned)


def _unmasked(mask):
    masked = zojax.masked(SIGNS, mask)
    return zojax.mezo(MU, direction=masked._replace(combine=_summed(SIGNS, _same).combine))


def _same(key, step):
    return key, step


def _counting(start, count):
    """An estimator with a memory that begins and goes on as told."""
    inner = zojax.mezo(MU, direction=SIGNS)

    def advance(state, keys, coefficients, params, step):
        return combine(SIGNS, keys, coefficients, params, step), count(state)

    return Adaptive(lambda params: start(), lambda state: inner, advance, 1, 2, 1)


def _drawn_memory():
    """A run cannot be replayed from a memory that begins elsewhere each time."""
    draw = np.random.default_rng(0)
    return _counting(lambda: jnp.float32(draw.standard_normal()), lambda state: state)


def _growing_type():
    return _counting(lambda: jnp.zeros((), jnp.int32), lambda state: state + 0.5)


def _branches():
    """Python that looks at a value works without jit only."""

    def shape(losses, mu, key):
        found = zojax.difference()(losses, mu, key)
        return found if float(found[0]) > 0 else 2 * found

    return zojax.mezo(MU, direction=SIGNS)._replace(shaping=shape)


def _overflows():
    """Powers of the losses leave float32 where the loss is in another unit."""

    def shape(losses, mu, key):
        power = losses.plus**16
        return zojax.difference()(losses, mu, key) * (power / power)

    return zojax.mezo(MU, direction=SIGNS)._replace(shaping=shape)


BROKEN = {
    "updates with another key": (_other_key, QUOTIENT, "same_direction"),
    "updates with another key, no quotient claimed": (_other_key, Claims(), "same_direction"),
    "keeps a factor too long": (_kept_too_long, QUOTIENT, "same_direction"),
    "directions too long": (_longer, QUOTIENT, "mean"),
    "one noise for all steps": (_one_noise, QUOTIENT, "keys"),
    "goes uphill": (_uphill, Claims(), "descent"),
    "claims another variance": (
        lambda: zojax.mezo(MU, direction=SIGNS),
        QUOTIENT._replace(variance=gaussian_variance(2)),
        "variance",
    ),
    "claims to be unbiased": (
        lambda: zojax.Estimator(SIGNS, zojax.two_sided(2), zojax.standardized(), MU),
        Claims(mean=unbiased),
        "mean",
    ),
    "claims to have no unit": (
        lambda: zojax.mezo(MU, direction=SIGNS), Claims(scale="invariant"), "scale",
    ),
    "claims a unit": (lambda: zojax.fzoo(MU, 2), Claims(scale="equivariant"), "scale"),
    "updates what a mask leaves out": (
        lambda: zojax.mezo(MU, direction=SIGNS), Claims(masked=_unmasked), "mask",
    ),
    "begins at random": (_drawn_memory, Claims(), "state"),
    "branches on a value": (_branches, Claims(), "jit"),
    "changes the type of its memory": (_growing_type, Claims(), "no_retrace"),
    "breaks in another unit": (_overflows, Claims(scale="equivariant"), "scale"),
}  # fmt: skip


# one for each check
FAST = {check: name for name, (_, _, check) in reversed(BROKEN.items())}.values()


@pytest.mark.parametrize("name", slow_but(FAST, {name: name for name in BROKEN}))
def test_it_is_caught(name):
    make, claims, check = BROKEN[name]
    run, applies = checks.CHECKS[check]
    assert applies(claims)
    with pytest.raises((AssertionError, jax.errors.ConcretizationTypeError)):
        run(Subject(make(), claims))


def test_the_right_one_passes_where_the_broken_ones_fail():
    """So what is caught above is the bug, and not the way it is written."""
    claims = QUOTIENT._replace(
        variance=lambda data, x, state: (SIZE - 1) * float((data.gradient(x) ** 2).sum())
    )
    subject = Subject(zojax.mezo(MU, direction=_summed(SIGNS, _same)), claims)
    for name, check in checks.claimed(claims):
        if name not in ("jit", "bfloat16", "optax"):
            check(subject)
    counting = _counting(lambda: jnp.zeros((), jnp.int32), lambda state: state + 1)
    checks.check_state(Subject(counting, Claims()))
