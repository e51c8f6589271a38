"""Every recipe on scikit-learn's digits, at one budget of forward passes and one of tuning.

Each trains a network 64-32-10 on batches of 64, with SGD where nothing else is said and a step size
that decays to zero. Twelve runs find the step size by the loss on all training examples: six step
sizes a factor of 10 apart on one seed, then the best one and its neighbours by a factor of sqrt(10)
on two others; six fresh seeds are reported, means with 95 % confidence intervals. A forward pass
with a tangent counts as two, a gradient by backpropagation as three.
"""

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from tests.benchmarks.digits import (
    Examples,
    Run,
    data,
    decayed,
    interval,
    loss,
    network,
    train,
)
from tests.benchmarks.memory import temporaries
from tests.benchmarks.table import finish, parse
from zojax.estimators import num_queries

COARSE = 10.0 ** np.arange(-5, 1)
FINE = 10.0 ** np.array([-0.5, 0, 0.5])
_LOST = 3.0  # a training loss that is worse than before the first step
_SEEDS = 6  # one compiled program runs six at a time
# half the compile time of the default, and code as fast for matrices this small
_OPTIONS = {"xla_backend_optimization_level": 1}

Transform = optax.GradientTransformationExtraArgs


class Recipe(NamedTuple):
    """A method, with the numbers that an equal budget needs."""

    gradient: Callable[[jax.Array, int], Transform]  # of a key and of how many queries at once
    forwards: int  # a step
    after: Callable[[], optax.GradientTransformation] = optax.identity
    last: Callable[[], optax.GradientTransformation] = optax.identity  # after the step size
    before: int = 0  # forwards before the first step


def exact() -> Transform:
    """Gradients by backpropagation, in the place of `zojax.zeroth_order`."""

    def update(updates, state, params=None, *, value_fn: Any = None, **extra):
        return jax.grad(value_fn)(params, **extra), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def sweeps(key: jax.Array, counts: Any, refresh: int, mu: float = 5e-3, batch: int = 1):
    """DeepZero: gradients on coordinates that are drawn again every so many steps."""

    def update(updates, count, params=None, *, value_fn: Any = None, **extra):
        positions = zojax.draw_positions(jax.random.fold_in(key, count // refresh), params, counts)
        ask = zojax.value_and_grad(value_fn, zojax.deepzero(positions, mu, batch_size=batch))
        return ask(key, params, **extra)[1], count + 1

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros((), jnp.int32), update)


def grasp_counts(init: Callable, density: float, samples: int = 192, seed: int = 0) -> Any:
    """DeepZero's shares of the layers, from ZO-GraSP at a network before training."""
    params = init(jax.random.key(seed))
    estimator = zojax.mezo(
        5e-3, num_samples=samples, direction=zojax.rademacher(), batch_size=2 * samples
    )
    scored = jax.jit(zojax.grasp_scores(loss, estimator), compiler_options=_OPTIONS)
    return zojax.layer_counts(scored(jax.random.key(seed), params, data()[0]), density)


def asked(make: Callable[..., Any], after: Callable = optax.identity, cost: int = 1) -> Recipe:
    """Of an estimator: `make(key, batch_size=)`."""
    queries = num_queries(make(jax.random.key(0), batch_size=1))
    return Recipe(
        lambda key, batch: zojax.zeroth_order(make(key, batch_size=batch), key),
        cost * queries,
        after,
    )


def recipes(init: Callable) -> dict[str, Callable[[], Recipe]]:
    """All rows, made when asked for."""

    def keyless(make, **settings):
        return lambda key, batch_size: make(batch_size=batch_size, **settings)

    def sweep() -> Recipe:
        counts = grasp_counts(init, 0.1)
        forwards = sum(jax.tree.leaves(counts)) + 1
        return Recipe(
            lambda key, batch: sweeps(key, counts, 10, batch=batch),
            forwards,
            lambda: optax.trace(0.9),
            before=4 * 192,
        )

    def baseline(key, batch_size):
        inner = zojax.Estimator(
            zojax.gaussian(), zojax.population(1, batch_size), zojax.difference(), 3e-2
        )
        return zojax.moving_baseline(inner)

    def subspaces(key, batch_size):
        return zojax.subzero(rank=4, key=key, batch_size=batch_size)

    def conservative() -> Recipe:
        step = asked(mezo)
        best = functools.partial(zojax.scale_by_best, (1.0, 0.0, -1.0))
        return step._replace(forwards=step.forwards + 3, last=best)

    mezo, momentum = keyless(zojax.mezo), lambda: optax.trace(0.9)
    directed = {
        "mezo, rademacher": zojax.rademacher(),
        "mezo, sphere": zojax.sphere(),
        "mezo, low_rank(1)": zojax.low_rank(1),
    }
    rows: dict[str, Callable[[], Recipe]] = {
        "backpropagation, SGD": lambda: Recipe(lambda key, batch: exact(), 3),
        "backpropagation, Adam": lambda: Recipe(lambda key, batch: exact(), 3, optax.scale_by_adam),
        "mezo": lambda: asked(mezo),
        **{
            name: lambda direction=direction: asked(keyless(zojax.mezo, direction=direction))
            for name, direction in directed.items()
        },
        "mezo, 8 directions": lambda: asked(keyless(zojax.mezo, num_samples=8)),
        "mezo, momentum 0.9": lambda: asked(mezo, momentum),
        "mezo, Adam": lambda: asked(mezo, optax.scale_by_adam),
        "mezo, sign": lambda: asked(mezo, optax.scale_by_sign),
        "mezo, conservative": conservative,
        "fzoo": lambda: asked(keyless(zojax.fzoo)),
        "eggroll": lambda: asked(keyless(zojax.eggroll)),
        "lozo": lambda: asked(lambda key, batch_size: zojax.lozo(key=key, batch_size=batch_size)),
        "lozo_m": lambda: asked(
            lambda key, batch_size: zojax.lozo_m(key=key, batch_size=batch_size)
        ),
        "subzero, rank 4": lambda: asked(subspaces),
        "hizoo": lambda: asked(keyless(zojax.hizoo)),
        "hizoo, 8 directions": lambda: asked(keyless(zojax.hizoo, num_samples=8)),
        "qzo": lambda: asked(keyless(zojax.qzo)),
        "deepzero, 10 %": sweep,
        "rank_sgd": lambda: asked(keyless(zojax.rank_sgd)),
        "consensus_hopping": lambda: asked(keyless(zojax.consensus_hopping)),
        "block_sampling of mezo": lambda: asked(
            lambda key, batch_size: zojax.block_sampling(zojax.mezo(batch_size=batch_size))
        ),
        "moving_baseline": lambda: asked(baseline),
        "fgd": lambda: asked(keyless(zojax.fgd), cost=2),
    }
    return rows


class Result(NamedTuple):
    """A row of the table, one value a seed."""

    rate: float
    train: list[float]
    test: list[float]
    curve: list[float]  # mean over the seeds
    forwards: int  # a step
    steps: int
    memory: float  # temporaries of a step over the forward's
    at_end: bool  # whether the step size is the largest or smallest that was tried


def measure(recipe: Recipe, init: Callable, budget: int, batch: int, points: int) -> Result:
    """Tune a recipe and run it."""
    steps = (budget - recipe.before) // recipe.forwards

    def one(key, rate) -> Run:
        def optimizer(own):
            return optax.chain(
                recipe.gradient(own, recipe.forwards),
                recipe.after(),
                optax.scale_by_learning_rate(decayed(rate, steps)),
                recipe.last(),
            )

        return train(optimizer, init, steps, batch, points)(key)

    many = jax.jit(jax.vmap(one), compiler_options=_OPTIONS)
    tuning, fresh = jax.random.split(jax.random.key(1), 3), jax.random.split(jax.random.key(2), 6)
    coarse = many(tuning[jnp.zeros(_SEEDS, int)], jnp.asarray(COARSE, jnp.float32))
    around = COARSE[np.argmin(coarse.train)] * FINE
    fine = many(tuning[jnp.array([1, 2] * 3)], jnp.asarray(np.repeat(around, 2), jnp.float32))
    best = int(np.argmin(np.mean(np.reshape(fine.train, (3, 2)), axis=1)))
    rate = float(around[best])
    runs = many(fresh, jnp.full(_SEEDS, rate, jnp.float32))
    return Result(
        rate=rate,
        train=np.asarray(runs.train, float).tolist(),
        test=np.asarray(runs.test, float).tolist(),
        curve=np.mean(runs.curve, axis=0, dtype=float).tolist(),
        forwards=recipe.forwards,
        steps=steps,
        memory=memory(recipe, init),
        at_end=bool(rate < COARSE[0] or rate > COARSE[-1]),
    )


def memory(recipe: Recipe, init: Callable) -> float:
    """Temporaries of a step on all training examples, one query at a time, over the forward's."""
    params = jax.eval_shape(init, jax.random.key(0))
    examples = Examples(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in data()[0]))
    tx = optax.chain(
        recipe.gradient(jax.random.key(0), 1), recipe.after(), optax.scale(-1.0), recipe.last()
    )

    def step(params, state, batch):
        updates, state = tx.update(None, state, params, value_fn=loss, batch=batch)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    forward = temporaries(loss, params, examples)
    return temporaries(step, params, state, examples, donate=(0, 1)) / forward


def table(results: dict[str, Result]) -> None:
    """The results as Markdown, best training loss first."""
    order = sorted(results, key=lambda name: float(np.mean(results[name].train)))
    print("| recipe | train loss | test accuracy | forwards a step | steps | step size | memory |")
    print("|---|---|---|---|---|---|---|")
    for name in order:
        r = results[name]
        rate = f"{r.rate:.1e}" + (" (end)" if r.at_end else "")
        lost = sum(x > _LOST for x in r.train)
        train_loss = f"diverged on {lost} of {_SEEDS}" if lost else interval(r.train)
        cells = [name, train_loss, interval(r.test), r.forwards, r.steps, rate]
        print("| " + " | ".join(map(str, cells)) + f" | {r.memory:.2f} |", flush=True)


def picture(results: dict[str, Result], budget: int, path: Path) -> None:
    """Training loss against forward passes, one line a recipe; none of what diverged."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    fig, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    shown = {n: r for n, r in results.items() if max(r.train) < _LOST and "backprop" not in n}
    order = sorted(shown, key=lambda name: shown[name].curve[-1], reverse=True)
    for i, name in enumerate(order):
        curve = shown[name].curve
        at = budget * np.arange(1, len(curve) + 1) / len(curve)
        # ten colours, the second time dashed, the third time dotted
        ax.plot(at, curve, ("-", "--", ":")[i // 10 % 3], color=f"C{i % 10}", lw=1.3, label=name)
    ax.set(yscale="log", xlabel="forward passes", ylabel="training loss", xlim=(0, budget))
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3)
    drawn = io.BytesIO()
    fig.savefig(drawn, dpi=100)
    plt.close(fig)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
    def add(parser):
        parser.add_argument("--budget", type=int, default=20_000, help="forward passes of a run")
        parser.add_argument("--recipes", nargs="+", help="rows; all if not given")
        parser.add_argument("--picture", type=Path, help="where to save the curves")

    args = parse(__doc__ or "", add)
    init = network() if args.small else network(32)
    budget, points = (1000, 2) if args.small else (args.budget, 25)
    rows = recipes(init)
    names = args.recipes or (["backpropagation, SGD", "mezo"] if args.small else list(rows))
    results = {name: measure(rows[name](), init, budget, 64, points) for name in names}
    table(results)
    if args.picture:
        picture(results, budget, args.picture)
    if args.json:
        finish(args, {name: r._asdict() for name, r in results.items()})


if __name__ == "__main__":
    main()
