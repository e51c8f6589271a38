"""What the methods claim, measured on scikit-learn's digits: expectation beside outcome.

Each figure has one value a seed, five of them, and the 95 % confidence interval of their mean. A
claim holds where the whole interval lies within what was expected, fails where it lies outside and
is open otherwise. Everything that is tuned is tuned on another seed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import zojax
from tests.benchmarks import estimates, recipes
from tests.benchmarks.cbo import cbo
from tests.benchmarks.digits import accuracy, data, draw, interval, loss, network, train
from tests.benchmarks.estimates import Figure, compiled, keys
from tests.benchmarks.table import finish, parse


def sweep_training(seeds: int, small: bool) -> list[Figure]:
    """DeepZero's settings: CGE, as many random directions, a tenth of the coordinates."""
    init, epoch = network(24), 23
    epochs = 1 if small else 6
    steps, warm = epochs * epoch, epochs * epoch // 3
    shapes = jax.eval_shape(init, jax.random.key(0))
    every = jax.tree.map(lambda leaf: leaf.size, shapes)
    d = sum(jax.tree.leaves(every))
    some = recipes.grasp_counts(init, 0.1)
    part = sum(jax.tree.leaves(some))
    longer = steps * (d + 1) // (part + 1)

    def random(key):
        scheme = zojax.one_sided(d, d + 1)
        quotient = zojax.difference()
        return zojax.zeroth_order(
            zojax.Estimator(zojax.rademacher(), scheme, quotient, 5e-3 / d**0.5), key
        )

    def run(gradient: Callable, steps: int, warm: int):
        rate = optax.warmup_cosine_decay_schedule(0.0, 0.1, warm, steps)

        def optimizer(key):
            return optax.chain(
                gradient(key), optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9)
            )

        one = compiled(train(optimizer, init, steps, 64))
        return np.array([one(key).train for key in keys(seeds)], float)

    def sparse(key):
        return recipes.sweeps(key, some, 5 * epoch, batch=part + 1)

    full = run(lambda key: recipes.sweeps(key, every, steps, batch=128), steps, warm)
    gauss = run(random, steps, warm)
    short = run(sparse, steps, warm)
    long = run(sparse, longer, warm * longer // steps)
    return [
        Figure(f"CGE, {steps} steps of {d + 1} forwards: train loss", ".092", full),
        Figure("as many random directions (Rademacher): the same", ".099", gauss),
        Figure("random directions minus CGE", "> 0", gauss - full, low=0),
        Figure(f"{part} coordinates, redrawn every 5 epochs, {steps} steps", "", short),
        Figure(f"the same, {longer} steps: as many forwards as CGE", ".067", long),
        Figure("CGE minus sparse CGE at equal forwards", "> 0", full - long, low=0),
    ]


def consensus(seeds: int, small: bool) -> list[Figure]:
    """Softmax regression by 60,000 forwards: particles, and points around the parameters."""
    particles, steps = 60, 30 if small else 1000
    init = network()
    flat, unravel = ravel_pytree(init(jax.random.key(0)))
    examples, tests = (jax.tree.map(jnp.asarray, part) for part in data())

    def batch_loss(point, key):
        return loss(unravel(point), draw(key, examples, 256))

    def swarm(key, sigma, resample):
        at, own = jax.random.split(key)
        start = 0.1 * jax.random.normal(at, (particles, flat.size))
        best = cbo(batch_loss, own, start, steps, sigma, resample)
        return accuracy(unravel(best), tests), accuracy(unravel(best), examples)

    def swarms(resample):
        many = compiled(jax.vmap(lambda key, sigma: swarm(key, sigma, resample)))
        sigmas = jnp.array([1.0, 1.5, 2.0, 2.5, 3.0, 3.5])[:seeds]
        tuned = many(jnp.broadcast_to(jax.random.key(1), (seeds,)), sigmas)[1]
        sigma = sigmas[jnp.argmax(tuned)]
        return float(sigma), np.asarray(many(keys(seeds), jnp.full(seeds, sigma))[0], float)

    def hop(key):
        mu, alpha = 0.1, 100.0
        estimator = zojax.consensus_hopping(mu, particles, alpha, batch_size=particles)

        def optimizer(own):
            return optax.chain(zojax.zeroth_order(estimator, own), optax.sgd(alpha * mu**2))

        return train(optimizer, init, steps, 256)(key).test

    hops = np.array([compiled(hop)(key) for key in keys(seeds)], float)
    (low, plain), (high, drawn) = swarms(False), swarms(True)
    forwards = particles * steps
    return [
        Figure(f"consensus hopping, {forwards} forwards: accuracy", ">= .95", hops, 0.95),
        Figure(f"particles (CBO), sigma {low}", ".17 to .32", plain),
        Figure(f"particles drawn again in every step, sigma {high}", ".75 to .85", drawn),
        Figure("hopping minus particles", "> .6", hops - plain, 0.6),
        Figure("hopping minus particles drawn again", "> 0", hops - drawn, 0),
    ]


def fzoo(seeds: int, small: bool) -> list[Figure]:
    """FZOO against MeZO, each tuned, at equal forwards; seeds are those of the table of recipes."""
    init = network(32)
    rows = recipes.recipes(init)
    budget = 600 if small else 20_000
    found = {
        name: np.array(recipes.measure(rows[name](), init, budget, 64, 1).train)[:seeds]
        for name in ("fzoo", "mezo, rademacher")
    }
    ours, theirs = found["fzoo"], found["mezo, rademacher"]
    return [
        Figure(f"FZOO, {budget} forwards: train loss", "", ours),
        Figure("MeZO with its directions (Rademacher)", "", theirs),
        Figure("MeZO minus FZOO", "> 0", theirs - ours, low=0),
    ]


def reused_noise(seeds: int, small: bool) -> list[Figure]:
    """EGGROLL with the noise of its first step in every step."""
    init, steps = network(32), 20 if small else 1250
    estimator = zojax.eggroll(1e-3, 16, batch_size=32)

    def reused(key):
        def update(updates, state, params=None, *, value_fn: Any = None, **extra):
            return zojax.value_and_grad(value_fn, estimator)(key, params, **extra)[1], state

        start = zojax.zeroth_order(estimator, key).init
        return optax.GradientTransformationExtraArgs(start, update)

    def runs(make):
        def one(key, rate):
            def optimizer(own):
                return optax.chain(make(own), optax.scale_by_learning_rate(rate))

            return train(optimizer, init, steps, 64)(key).train

        return compiled(jax.vmap(one))

    fresh, same = runs(lambda key: zojax.zeroth_order(estimator, key)), runs(reused)
    rates = jnp.array([2e-3, 5e-3, 1e-2, 2e-2, 5e-2])[:seeds]
    tuned = fresh(jnp.broadcast_to(jax.random.key(1), (seeds,)), rates)
    rate = rates[jnp.argmin(tuned)]
    a = np.asarray(fresh(keys(seeds), jnp.full(seeds, rate)), float)
    b = np.asarray(same(keys(seeds), jnp.full(seeds, rate)), float)
    return [
        Figure(f"EGGROLL, {32 * steps} forwards, step {float(rate):g}: train loss", ".237", a),
        Figure("with the first step's noise in every step", "diverges, 1.759", b),
        Figure("the difference", "> 1", b - a, low=1),
    ]


CLAIMS: dict[str, Callable[[int, bool], list[Figure]]] = {
    "sweep_cosine": estimates.sweep_cosine,
    "ranking": estimates.ranking,
    "diagonals": estimates.diagonals,
    "budgets": estimates.budgets,
    "grasp": estimates.grasp,
    "consensus": consensus,
    "reused_noise": reused_noise,
    "sweep_training": sweep_training,
    "fzoo": fzoo,
}
QUICKEST = ("ranking", "diagonals")


def main() -> None:
    def add(parser):
        parser.add_argument("--claims", nargs="+", choices=list(CLAIMS))
        parser.add_argument("--seeds", type=int, default=5)

    args = parse(__doc__ or "", add)
    names = args.claims or (QUICKEST if args.small else CLAIMS)
    result = {}
    print("| | expected | mean of the seeds | |\n|---|---|---|---|", flush=True)
    for name in names:
        figures = CLAIMS[name](args.seeds, args.small)
        for f in figures:
            cells = [f.what, f.expected, interval(f.values), f.verdict]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        result[name] = [
            {"what": f.what, "expected": f.expected, "values": np.asarray(f.values).tolist(),
             "verdict": f.verdict}
            for f in figures
        ]  # fmt: skip
    finish(args, result)


if __name__ == "__main__":
    main()
