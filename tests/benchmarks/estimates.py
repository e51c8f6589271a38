"""Claims about estimates: cosines, squared errors, rank correlations, where a diagonal settles."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy import stats

import zojax
from tests.benchmarks.digits import Examples, data, draw, interval, loss, network

QUICK = {"xla_backend_optimization_level": 1}
INF = float("inf")


class Figure(NamedTuple):
    """A measured number, one value a seed, and where its mean was expected."""

    what: str
    expected: str
    values: Any
    low: float = -INF
    high: float = INF

    @property
    def verdict(self) -> str:
        if self.low == -INF and self.high == INF:
            return ""
        mean, half = interval(self.values)
        if self.low <= mean - half and mean + half <= self.high:
            return "holds"
        return "fails" if mean + half < self.low or mean - half > self.high else "open"


def compiled(fun: Callable) -> Callable:
    return jax.jit(fun, compiler_options=QUICK)


def keys(seeds: int) -> jax.Array:
    """Of the seeds that are reported; tuning uses others."""
    return jax.random.split(jax.random.key(5), seeds)


def cosine(a: Any, b: Any) -> jax.Array:
    a, b = ravel_pytree(a)[0], ravel_pytree(b)[0]
    return a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b))


def sweep_cosine(seeds: int, small: bool) -> list[Figure]:
    """CGE against as many random directions as there are parameters."""
    init, size = network(4 if small else 24), 16 if small else 256
    everything = zojax.coordinate_positions(jax.eval_shape(init, jax.random.key(0)))
    d = sum(leaf.size for leaf in jax.tree.leaves(everything))
    random = zojax.Estimator(
        zojax.gaussian(), zojax.one_sided(d, 128), zojax.difference(), 5e-3 / d**0.5
    )
    sweep = zojax.deepzero(everything, 5e-3, batch_size=128)

    @compiled
    def cosines(key):
        at, batch_key, own = jax.random.split(key, 3)
        params, batch = init(at), draw(batch_key, data()[0], size)
        gradient = jax.grad(loss)(params, batch)
        return [
            cosine(zojax.value_and_grad(loss, e)(own, params, batch)[1], gradient)
            for e in (sweep, random)
        ]

    found = np.array([cosines(key) for key in keys(seeds)], float)
    theory = (1 + (d + 1) / d) ** -0.5
    return [
        Figure(f"CGE, d = {d} queries: cosine with the gradient", ".9997", found[:, 0], 0.999),
        Figure(
            f"Gaussian directions, n = {d}: the same", f"1/sqrt(2): {theory:.3f}", found[:, 1],
            theory - 0.02, theory + 0.02,
        ),
    ]  # fmt: skip


def grasp(seeds: int, small: bool) -> list[Figure]:
    """ZO-GraSP with one set of directions for both gradients, and with two."""
    init, n, mu = network(24), 16 if small else 192, 5e-3
    estimator = zojax.mezo(
        mu / 1810**0.5, num_samples=n, direction=zojax.rademacher(), batch_size=64
    )
    size = 64 if small else 512

    @compiled
    def scored(key):
        at, batch_key, one, two = jax.random.split(key, 4)
        params, batch = init(at), draw(batch_key, data()[0], size)
        shared = zojax.grasp_scores(loss, estimator, mu)(one, params, batch)
        asked = zojax.value_and_grad(loss, estimator)
        first = asked(one, params, batch)[1]
        moved = jax.tree.map(lambda p, g: p + mu * g, params, first)
        second = asked(two, moved, batch)[1]
        other = jax.tree.map(lambda p, a, b: -p * (b - a) / mu, params, first, second)
        gradient = jax.grad(loss)
        g = gradient(params, batch)
        product = jax.jvp(lambda p: gradient(p, batch), (params,), (g,))[1]
        true = jax.tree.map(lambda p, h: -p * h, params, product)
        return [ravel_pytree(tree)[0] for tree in (true, shared, other)]

    found = []
    for key in keys(seeds):
        true, *estimated = (np.asarray(x) for x in scored(key))
        at = true != 0  # biases start at zero and have no score
        found.append(
            [stats.spearmanr(turn(true[at]), turn(x[at])).statistic
             for turn in (np.abs, np.positive) for x in estimated]
        )  # fmt: skip
    found = np.array(found)
    return [
        Figure(f"ZO-GraSP, {n} shared directions: Spearman of the size", "", found[:, 0]),
        Figure("other directions for the second gradient", ".15 to .28", found[:, 1]),
        Figure("the difference", "> 0", found[:, 0] - found[:, 1], low=0),
        Figure("shared directions: Spearman of the score with its sign", "", found[:, 2]),
        Figure("other directions: the same", "", found[:, 3]),
    ]


def ranking(seeds: int, small: bool) -> list[Figure]:
    """Ranks against values of the same points."""
    init, mu, draws = network(24), 1e-3, 100 if small else 400

    def unbalanced(answers, mu, key):
        """The weights of the reference code: `2 r - m` instead of `2 r - (m - 1)`."""
        del mu, key
        return 2.0 * jnp.argsort(jnp.argsort(answers.plus)) - answers.plus.shape[0]

    out = []
    for m in (5,) if small else (5, 10, 32):
        shapings = (zojax.difference("leave_one_out"), zojax.ranks(), unbalanced)
        estimator = zojax.Estimator(zojax.gaussian(), zojax.population(m, m), shapings[0], mu)

        @compiled
        def cosines(key, estimator=estimator, shapings=shapings):
            at, batch_key, own = jax.random.split(key, 3)
            params, batch = init(at), draw(batch_key, data()[0], 128)
            gradient = jax.grad(loss)(params, batch)

            def one(key):
                found = zojax.estimate(loss, estimator)(key, params, batch)
                weights = jnp.stack([s(found.losses, mu, key) for s in shapings])
                return jax.vmap(
                    lambda c: cosine(zojax.gradient(estimator, found.keys, c, params), gradient)
                )(weights)

            return jnp.mean(jax.lax.map(one, jax.random.split(own, draws)), axis=0)

        found = np.array([cosines(key) for key in keys(seeds)], float)
        ranked, other = found[:, 1] / found[:, 0], found[:, 2] / found[:, 1]
        out.append(Figure(f"ranks of {m} points: part of the cosine kept", ">= .93", ranked, 0.93))
        # all that changes is the length: 4 sum (r - (m - 1) / 2)^2 grows by m
        theory = (1 + 3 / (m * m - 1)) ** -0.5
        out.append(
            Figure(
                f"weights 2 r - m over those, {m} points", f"{theory:.3f}", other,
                theory - 0.02, theory + 0.02,
            )
        )  # fmt: skip
    return out


def diagonals(seeds: int, small: bool) -> list[Figure]:
    """Where HiZOO's diagonal settles on a quadratic, and how much it moves there."""
    d, steps = 16, 4000 if small else 20_000
    true = jnp.exp(jnp.linspace(-1.0, 1.0, d))
    at = jnp.zeros(d)

    def quadratic(x):
        return jnp.sum(true * x * x) / 2

    def ours(decay):
        estimator = zojax.hizoo(1e-1, decay=decay)

        def step(state, key):
            found = zojax.estimate(quadratic, estimator)(key, at, state=state)
            state = zojax.advance(estimator, found.keys, found.coefficients, at, 0, state)[1]
            return state, state[0].diagonal

        return step, zojax.estimators.init(estimator, at)

    def rule(decay, learn):
        def step(diagonal, key):
            u = jax.random.normal(key, (d,))
            second = jnp.sum(true / diagonal * u * u)  # z . H z with z = D^(-1/2) u
            factor = jnp.clip(1 + (1 - decay) * learn(second, u), 0.5, 2.0)
            return diagonal * factor, diagonal * factor

        return step, true

    out = []
    for decay in (0.999, 0.99):
        rules = {
            "zojax.hizoo": (ours(decay), 1.0),
            "without |u|^2": (rule(decay, lambda h, u: h * (u * u - 1) / 2 - 1), 1.0),
            "the paper's, without -1 too": (rule(decay, lambda h, u: h * u * u / 2 - 1), 1 + d / 2),
        }
        for name, ((step, start), settles) in rules.items():

            @compiled
            def run(key, step=step, start=start):
                path = jax.lax.scan(step, start, jax.random.split(key, steps))[1]
                return jnp.mean(path[steps // 4 :] / true)

            found = np.array([run(key) for key in keys(seeds)], float)
            what = f"HiZOO's diagonal over the true one, decay {decay}: {name}"
            expected = f"{settles:g}"
            out.append(Figure(what, expected, found, 0.85 * settles, 1.15 * settles))
    return out


def budgets(seeds: int, small: bool) -> list[Figure]:
    """One direction for a batch of 64, or one for each of its examples: squared errors."""
    init, b, draws = network(), 64, 100 if small else 600
    examples = jax.tree.map(jnp.asarray, data()[0])
    estimator = zojax.fgd()
    d = sum(x.size for x in jax.tree.leaves(init(jax.random.key(0))))

    @compiled
    def errors(key):
        at, own = jax.random.split(key)
        # softmax regression away from its start, where gradients differ more
        params = jax.tree.map(lambda x: 0.3 * jax.random.normal(at, x.shape), init(key))
        full = ravel_pytree(jax.grad(loss)(params, examples))[0]
        each = jax.vmap(lambda x, y: ravel_pytree(jax.grad(loss)(params, _one(x, y)))[0])(*examples)
        size, noise = full @ full, jnp.mean(jnp.sum((each - full) ** 2, axis=1))

        def shared(key, batch):
            return zojax.value_and_grad(loss, estimator)(key, params, batch)[1]

        def own_directions(key, batch):
            split = jax.random.split(key, b)
            found = jax.vmap(lambda k, x, y: shared(k, _one(x, y)))(split, *batch)
            return jax.tree.map(lambda g: jnp.mean(g, axis=0), found)

        def squared(key):
            of_batch, of_noise = jax.random.split(key)
            batch = draw(of_batch, examples, b)
            return jnp.stack(
                [
                    jnp.sum((ravel_pytree(make(of_noise, batch))[0] - full) ** 2)
                    for make in (shared, own_directions)
                ]
            )

        found = jnp.mean(jax.lax.map(squared, jax.random.split(own, draws), batch_size=20), axis=0)
        theory = jnp.stack(
            [(d + 1) * size + noise / b * (d + 2), (d + 1) * (size + noise) / b + noise / b]
        )
        return jnp.concatenate([found / theory, theory[:1] / theory[1:], noise[None] / size])

    found = np.array([errors(key) for key in keys(seeds)], float)
    gain = found[:, 0] / found[:, 1] * found[:, 2]
    return [
        Figure(
            "squared error over theory, one direction a batch of 64", "1", found[:, 0], 0.9, 1.1
        ),
        Figure("the same, one direction an example", "1", found[:, 1], 0.9, 1.1),
        Figure("the first error over the second", "654 / 340 = 1.92", gain),
        Figure("noise scale of these batches, tr Sigma / |g|^2", "76", found[:, 3]),
    ]


def _one(image: jax.Array, label: jax.Array) -> Examples:
    return Examples(image[None], label[None])
