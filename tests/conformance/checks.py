"""What an estimator promises, as functions that raise AssertionError where it does not hold.

Each takes a `Subject`. `CHECKS` names them all; `claimed` gives those that an estimator's claims
call for.
"""

import io
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

import zojax
from tests.conformance import links, problem
from tests.conformance.problem import FLAT, LINEAR, PARAMS, QUADRATIC
from tests.conformance.subject import BATCH, STEP_SIZE, WARM_UP, Claims, Subject, descend, flat_rows
from zojax.estimators import Adaptive, init

SIGMAS = 5  # standard errors; a correct estimator fails one comparison in two million
EPS = 2.0**-23
INTEGERS = 2.0**-12  # of integer noise, whose coefficient has 13 bits
# losses of about 30 from 500 products, their difference over mu = 1/2, coefficients of about 5
COEFFICIENTS = 2e-4


def _flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def _at(subject: Subject, step: int, memory, data=QUADRATIC, params=PARAMS):
    """The estimate of one step with the given memory, its gradient and the memory after it."""
    found = subject.many(subject.keys_of([step]), np.array([step]), memory, data, params)
    return jax.tree.map(lambda a: a[0], found)


def _warm(subject: Subject):
    return subject.journal.states[WARM_UP].memory


def check_same_direction(subject: Subject) -> None:
    """What perturbs is what updates, at every step of a run.

    The directions are read from losses (`Subject.directions`), the update from the optimiser.
    Where the estimator claims a difference quotient, the gradient is the mean of coefficients times
    those directions; else the part of it that the coefficients make lies in their span.
    """
    journal = subject.journal
    for step, (gradients, coefficients) in enumerate(
        zip(journal.gradients, journal.coefficients, strict=True)
    ):
        z, found = subject.directions[step], _flat(gradients)
        if subject.claims.quotient:
            expected = coefficients[: len(z)].astype(np.float64) @ z / len(z)
            size = abs(coefficients[: len(z), None] * z).max() + 1e-30
            assert abs(found - expected).max() <= 2 * INTEGERS * size, (
                f"step {step}: the gradient is not the mean of coefficients times the directions "
                "that the loss was asked along"
            )
        elif subject.claims.spans:
            memory = journal.states[step].memory
            keys = subject.again[0].keys[step]
            still, _ = subject.apply(keys, np.zeros_like(coefficients), step, memory)
            moved = found - _flat(still)
            outside = moved - z.T @ np.linalg.lstsq(z.T, moved, rcond=None)[0]
            assert np.linalg.norm(outside) <= 4 * INTEGERS * np.linalg.norm(moved) + 1e-30, (
                f"step {step}: {np.linalg.norm(outside) / np.linalg.norm(moved):.2g} of the "
                "gradient is outside of the directions that the loss was asked along"
            )


def check_coefficients(subject: Subject) -> None:
    """On a linear loss the coefficient of direction z is `z . g`, for each step's directions."""
    for step in range(3):
        z = subject.directions[step]
        found, _, _ = _at(subject, step, subject.journal.states[step].memory, LINEAR)
        expected = z @ LINEAR.gradient(FLAT)
        given = np.asarray(found.coefficients, np.float64)[: len(z)]
        assert abs(given - expected).max() <= COEFFICIENTS * max(1, abs(expected).max()), (
            f"step {step}: coefficients {given}, z . g is {expected}"
        )


def check_mean(subject: Subject) -> None:
    """The mean of many estimates is the claimed one, entry by entry and along the gradient."""
    assert subject.claims.mean is not None
    state = _warm(subject)
    expected = subject.claims.mean(QUADRATIC, np.asarray(FLAT, np.float64), state)
    error = subject.samples(QUADRATIC, state) - expected
    bound = SIGMAS * error.std(0) / len(error) ** 0.5 + COEFFICIENTS
    assert np.all(abs(error.mean(0)) <= bound), (
        f"the mean is off by {error.mean(0)} where {bound} is allowed, of {expected}"
    )
    along = error @ (expected / np.linalg.norm(expected))
    bound = SIGMAS * along.std() / len(error) ** 0.5 + COEFFICIENTS
    assert abs(along.mean()) <= bound, (
        f"the mean is too long by {along.mean():.3g} of {np.linalg.norm(expected):.3g}; "
        f"{bound:.3g} is allowed"
    )


def check_descent(subject: Subject) -> None:
    """The mean of many estimates points along the gradient, not against it."""
    gradient = QUADRATIC.gradient(FLAT)
    along = subject.samples(QUADRATIC, _warm(subject), 2048) @ gradient
    assert along.mean() > SIGMAS * along.std() / len(along) ** 0.5, (
        f"the estimates have {along.mean():.3g} +- {along.std() / len(along) ** 0.5:.3g} along the "
        "gradient: no descent direction"
    )


def check_variance(subject: Subject) -> None:
    """On a linear loss the total variance is the claimed one."""
    assert subject.claims.variance is not None
    state = _warm(subject)
    found = subject.samples(LINEAR, state)
    squared = ((found - found.mean(0)) ** 2).sum(1)
    expected = subject.claims.variance(LINEAR, np.asarray(FLAT, np.float64), state)
    bound = SIGMAS * squared.std() / len(found) ** 0.5 + COEFFICIENTS**2
    assert abs(squared.mean() - expected) <= bound, (
        f"the variance is {squared.mean():.4g}, {expected:.4g} is claimed, {bound:.3g} allowed"
    )


def check_scale(subject: Subject) -> None:
    """A thousand times the loss: a gradient a thousand times as large, or the same."""
    factor = 1024.0
    steps, state = np.arange(4), subject.start
    plain, scaled = (
        flat_rows(subject.many(subject.keys_of(steps), steps, state, data)[1])
        for data in (QUADRATIC, QUADRATIC.scaled(factor))
    )
    expected = plain * (factor if subject.claims.scale == "equivariant" else 1)
    assert np.any(plain), "the gradient is zero"
    # a power of two changes no rounding; invariant shapings add a small number to a deviation
    assert abs(scaled - expected).max() <= 1e-6 * abs(expected).max(), (
        f"not {subject.claims.scale}: off by {abs(scaled - expected).max() / abs(expected).max()}"
    )


def _masked(subject: Subject) -> zojax.Estimator | Adaptive | zojax.Joint | None:
    mask = {"b": False, "w": True}
    if subject.claims.masked is not None:
        return subject.claims.masked(mask)
    if isinstance(subject.estimator, zojax.Estimator):
        direction = zojax.masked(subject.estimator.direction, mask)
        return subject.estimator._replace(direction=direction)
    return None


def check_mask(subject: Subject) -> None:
    """A leaf that the mask leaves out is neither perturbed nor updated; the others are."""
    estimator = _masked(subject)
    if estimator is None:
        return
    masked = Subject(estimator, subject.claims)
    zero, key = jax.tree.map(jnp.zeros_like, PARAMS), subject.keys_of([0])[0]
    state = masked.start
    for leaf in PARAMS:
        ones = {name: jnp.full_like(a, name == leaf) for name, a in PARAMS.items()}
        probe = problem.along(_flat(ones))
        found, _, _ = masked.compiled(key, zero, probe, 0, state)
        answers = [np.asarray(a) for a in jax.tree.leaves(found.losses)]
        moved = any(np.any(a) for a in answers)
        assert moved == (leaf == "w"), f"leaf {leaf} is {'' if moved else 'not '}perturbed"
    _, gradients, _ = masked.compiled(key, PARAMS, QUADRATIC, 0, state)
    for leaf, gradient in gradients.items():
        moved = bool(np.any(gradient))
        assert moved == (leaf == "w"), f"leaf {leaf} is {'' if moved else 'not '}updated"


def check_keys(subject: Subject) -> None:
    """No direction is asked twice: not in 512 steps, not from the same parameters."""
    n = sum(part.num_samples if isinstance(part, Adaptive) else part.scheme.num_samples
            for part in subject.parts)  # fmt: skip
    steps, memory = np.arange(BATCH), subject.start
    found, _, _ = subject.many(subject.keys_of(steps), steps, memory, QUADRATIC)
    keys = found.keys.reshape(-1, 2)
    distinct = len(np.unique(keys, axis=0))
    assert distinct == BATCH * n, f"{BATCH * n} directions of {distinct} keys"
    state, seen = subject.transformation.init(PARAMS), set()
    memory = state.memory
    for _ in range(4):
        # with the same memory, so that nothing but the key can make a difference
        _, state, gradients = subject.take_step(PARAMS, state._replace(memory=memory))
        seen.add(_flat(gradients).tobytes())
    assert len(seen) == 4, "two steps from the same parameters made the same gradient"


def check_jit(subject: Subject) -> None:
    """With jit it finds what it finds without, and so it does for many keys at once."""
    state, step = _warm(subject), WARM_UP
    eager = subject.one(subject.keys_of([step])[0], PARAMS, QUADRATIC, step, state)
    _assert_near(_at(subject, step, state), eager, "under jit and vmap it differs from without")


def _assert_near(found, expected, message: str) -> None:
    """Same keys, and coefficients, gradient and memory but for rounding."""
    np.testing.assert_array_equal(found[0].keys, expected[0].keys, err_msg=message)
    atol = 4 * COEFFICIENTS * max(1.0, float(abs(expected[0].coefficients).max()))
    parts = [(each[0].coefficients, each[1], each[2]) for each in (found, expected)]
    for a, b in zip(*map(jax.tree.leaves, parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol, err_msg=message)


def check_vmap(subject: Subject) -> None:
    """Many keys at once find what the optimiser, which asks for one, finds."""
    journal = subject.journal
    for step, state in enumerate(journal.states[1:]):
        found, gradients, memory = jax.tree.map(lambda a, step=step: a[step], subject.again)
        expected = found._replace(coefficients=journal.coefficients[step])
        expected = (expected, journal.gradients[step], state.memory)
        _assert_near((found, gradients, memory), expected, f"step {step}: under vmap it differs")


def check_no_retrace(subject: Subject) -> None:
    """One trace for all steps, data, parameters, and states that come from a file."""
    journal = subject.journal
    traces = subject.traces
    assert traces == 1, f"eight steps were traced {traces} times"
    subject.take_step(journal.params[-1], journal.states[-1], LINEAR)
    subject.take_step(PARAMS, _through_a_file(journal.states[2]), QUADRATIC)
    assert subject.traces == 1, "another state, parameters or data were traced again"


def _through_a_file(state):
    """A state written by numpy and read again, into the structure of a new one."""
    leaves, structure = jax.tree.flatten(state)
    keys = [jnp.issubdtype(a.dtype, jax.dtypes.prng_key) for a in leaves]
    file = io.BytesIO()
    plain = [jax.random.key_data(a) if k else a for a, k in zip(leaves, keys, strict=True)]
    np.savez(file, *[np.asarray(a) for a in plain])
    file.seek(0)
    with np.load(file) as stored:
        read = [jnp.asarray(stored[name]) for name in stored.files]
    read = [jax.random.wrap_key_data(a) if k else a for a, k in zip(read, keys, strict=True)]
    return jax.tree.unflatten(structure, read)


def check_state(subject: Subject) -> None:
    """The state is arrays, needs shapes alone to begin, keeps its types, and survives a file.

    From a state that was stored, the run goes on bit for bit.
    """
    transformation, journal = subject.transformation, subject.journal
    begin = transformation.init(PARAMS)
    of_shapes = transformation.init(jax.eval_shape(lambda: PARAMS))
    again = transformation.init(PARAMS)
    for other in (of_shapes, again):
        assert jax.tree.structure(begin) == jax.tree.structure(other)
        _assert_same(begin, other, "states that begin a run differ")
    types = [jax.typeof(a) for a in jax.tree.leaves(begin)]
    for step, state in enumerate(journal.states):
        assert jax.tree.structure(state) == jax.tree.structure(begin), f"step {step}"
        assert all(isinstance(a, jax.Array) for a in jax.tree.leaves(state)), f"step {step}"
        found = [jax.typeof(a) for a in jax.tree.leaves(state)]
        assert found == types, f"step {step}: the types of the state change"
    params, state = journal.params[4], _through_a_file(journal.states[4])
    for _ in range(4):
        params, state, _ = subject.take_step(params, state)
    _assert_same(params, journal.params[-1], "a restored run ends elsewhere")
    _assert_same(state, journal.states[-1], "a restored run ends with another state")


def check_replay(subject: Subject) -> None:
    """Keys and coefficients alone make a run again: no data, no model, no memory kept.

    Bit for bit with the program that made the update; the program of a whole step may contract a
    product and a sum differently, one rounding error a step.
    """
    params, memory, records = PARAMS, subject.start, []
    for step in range(4):
        found, _, _ = _at(subject, step, memory, QUADRATIC, params)
        records.append((found.keys.tobytes(), found.coefficients.tobytes()))
        gradients, memory = subject.apply(found.keys, found.coefficients, step, memory)
        params = descend(params, gradients)
    again, remembered = PARAMS, init(subject.estimator, jax.eval_shape(lambda: PARAMS))
    for step, (keys, coefficients) in enumerate(records):
        words = np.frombuffer(keys, np.uint32).reshape(-1, 2)
        gradients, remembered = subject.apply(
            words, np.frombuffer(coefficients, np.float32), step, remembered
        )
        again = descend(again, gradients)
    _assert_same(again, params, "the journal replays to other parameters")
    _assert_same(remembered, memory, "the journal replays to another memory")
    size = max(float(abs(_flat(g)).max()) for g in subject.journal.gradients)
    run = subject.journal
    for a, b in zip(*map(jax.tree.leaves, (run.params[4], params)), strict=True):
        atol = 16 * EPS * 4 + 4 * COEFFICIENTS * size * float(STEP_SIZE)
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg="the optimiser goes elsewhere")


def check_donation(subject: Subject) -> None:
    """A step may write over the parameters and the state it is given."""
    params, state = jax.tree.map(jnp.copy, (PARAMS, subject.transformation.init(PARAMS)))
    given = jax.tree.leaves(params)
    for _ in range(2):
        params, state, _ = subject.step(params, state, QUADRATIC)
    assert all(leaf.is_deleted() for leaf in given), "the parameters were not donated"
    _assert_same(params, subject.journal.params[2], "donated buffers change the result")


def check_bfloat16(subject: Subject) -> None:
    """With bfloat16 parameters it finds nearly the gradient of float32 ones, in their dtype."""
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS)
    same = jax.tree.map(lambda a: a.astype(jnp.float32), low)
    state, cosines = subject.start, []
    for step in range(3):
        key = subject.keys_of([step])[0]
        _, gradients, _ = subject.compiled(key, low, QUADRATIC, step, state)
        _, expected, _ = _at(subject, step, state, QUADRATIC, same)
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(gradients))
        a, b = _flat(gradients), _flat(expected)
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert subject.claims.cosine is not None
    assert np.mean(cosines) >= subject.claims.cosine, f"cosines {cosines}"


def check_optax(subject: Subject) -> None:
    """As the first of an optax chain, each link receives its estimates and keeps its state.

    The links run as they are; the estimator is the compiled one.
    """

    def update(updates, state, params=None, *, value_fn, data):
        del updates, value_fn
        _, state, gradients = subject.take_step(params, state, data)
        return gradients, state

    begin = subject.transformation.init(PARAMS)
    first = subject.transformation._replace(init=lambda params: begin, update=update)
    links.check(first, subject.loss, QUADRATIC)


def _assert_same(a, b, message: str) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y, err_msg=message)


CHECKS: dict[str, tuple[Callable[[Subject], None], Callable[[Claims], bool]]] = {
    "same_direction": (check_same_direction, lambda c: c.quotient or c.spans),
    "coefficients": (check_coefficients, lambda c: c.quotient),
    "mean": (check_mean, lambda c: c.mean is not None),
    "descent": (check_descent, lambda c: c.mean is None),
    "variance": (check_variance, lambda c: c.variance is not None),
    "scale": (check_scale, lambda c: c.scale is not None),
    "mask": (check_mask, lambda c: True),
    "keys": (check_keys, lambda c: not c.repeats),
    "vmap": (check_vmap, lambda c: True),
    "jit": (check_jit, lambda c: True),
    "no_retrace": (check_no_retrace, lambda c: True),
    "state": (check_state, lambda c: True),
    "replay": (check_replay, lambda c: True),
    "donation": (check_donation, lambda c: True),
    "bfloat16": (check_bfloat16, lambda c: c.cosine is not None),
    "optax": (check_optax, lambda c: True),
}


def claimed(claims: Claims) -> Iterator[tuple[str, Callable[[Subject], None]]]:
    """The checks of what is claimed, by name."""
    return ((name, run) for name, (run, applies) in CHECKS.items() if applies(claims))
