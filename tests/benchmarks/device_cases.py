"""The programs that `device` runs: forward passes and training steps of the model of `llama`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import zojax
from tests.benchmarks import llama
from tests.benchmarks.steps import DENSITY, MU, plain_step
from zojax import noise
from zojax.directions import perturb
from zojax.trainables import SensitiveFrozen
from zojax.virtual import is_virtual, materialize

RATE = 250 / 6.7e9  # the command line's default for so many parameters


class Case(NamedTuple):
    """One way to make a step.

    Attributes:
        kind: "forward", "estimate", "sparse", "in place" or "plain".
        direction: of an estimate or of the sweeps in place; None where there is none.
        batch_size: queries asked at once.
        base: format of the layers' matrices; None for bfloat16.
        implementation: of products with virtual weights; None for the library's choice.
    """

    kind: str
    direction: Callable[[], zojax.Direction] | None = None
    batch_size: int = 1
    base: str | None = None
    implementation: Any = None


CASES = {
    "forward": Case("forward"),
    "both_forwards": Case("forward", batch_size=2),
    "low_rank": Case("estimate", lambda: zojax.low_rank(1)),
    "low_rank_both": Case("estimate", lambda: zojax.low_rank(1), batch_size=2),
    "sparse": Case("sparse"),
    "forward_nf4": Case("forward", base="nf4"),
    "forward_int4": Case("forward", base="int4"),
    "sparse_nf4": Case("sparse", base="nf4"),
    "sparse_int4": Case("sparse", base="int4"),
    "rademacher": Case("estimate", zojax.rademacher),
    "rademacher_both": Case("estimate", zojax.rademacher, batch_size=2),
    "integer_normal": Case("estimate", zojax.integer_normal),
    "gaussian": Case("estimate", zojax.gaussian),
    "in_place_rademacher": Case("in place", zojax.rademacher),
    "in_place_gaussian": Case("in place", zojax.gaussian),
    "plain_jax": Case("plain"),
    "rademacher_xla": Case("estimate", zojax.rademacher, implementation="xla"),
    "rademacher_both_xla": Case("estimate", zojax.rademacher, 2, implementation="xla"),
    "sparse_nf4_kernel": Case("sparse", base="nf4", implementation="gpu"),
    "forward_nf4_xla": Case("forward", base="nf4", implementation="xla"),
    "forward_int4_xla": Case("forward", base="int4", implementation="xla"),
    "sparse_nf4_xla": Case("sparse", base="nf4", implementation="xla"),
    "sparse_int4_xla": Case("sparse", base="int4", implementation="xla"),
}


class Program(NamedTuple):
    """A function, its abstract arguments and whether the first of them is donated."""

    fn: Callable
    args: tuple
    donate: bool

    def lower(self) -> Any:
        return jax.jit(self.fn, donate_argnums=(0,) if self.donate else ()).lower(*self.args)


def step(loss: Callable, estimator: zojax.Estimator, implementation=None) -> Callable:
    """`(params, key, tokens) -> (params, loss)`: an estimate and its SGD update."""
    grad = zojax.value_and_grad(loss, estimator, implementation=implementation)

    def run(params, key, tokens):
        value, grads = grad(key, params, tokens)
        updates = jax.tree.map(lambda g: -RATE * g, grads)
        return zojax.apply_updates(params, updates, key=jax.random.fold_in(key, 0)), value

    return run


def sparse_step(loss: Callable, implementation=None) -> Callable:
    """`(theta, key, params, index, tokens) -> (theta, loss)` on `zojax.sensitive` entries."""
    tiny = jnp.ones((2, 2))
    merge = zojax.sensitive(tiny, tiny).merge  # the same for all

    def of_theta(theta, frozen, tokens):
        virtual = zojax.virtualize(loss, implementation=implementation)
        return virtual(merge(theta, frozen), tokens)

    grad = zojax.value_and_grad(of_theta, zojax.mezo(mu=MU), implementation=implementation)

    def run(theta, key, params, index, tokens):
        value, grads = grad(key, theta, SensitiveFrozen(params, index), tokens)
        return jax.tree.map(lambda p, g: p - RATE * g, theta, grads), value

    return run


def sweep(direction: zojax.Direction) -> Callable:
    """`(params, key, scale) -> params + scale z`, rounded to nearest as MeZO's loop does."""

    def run(params, key, scale):
        return materialize(perturb(direction, noise.words(key), params, scale))

    return run


def abstract_entries(params: Any) -> tuple[Any, Any]:
    """(theta, index) of a thousandth of every matrix of the layers, as the paper's rule is."""

    def index(leaf):
        if leaf.ndim < 2:
            return None
        count = max(1, round(DENSITY * leaf.shape[-2] * leaf.shape[-1]))
        return jax.ShapeDtypeStruct((*leaf.shape[:-2], count), jnp.int32)

    found = {"layers": jax.tree.map(index, params["layers"])}
    # the stacked norms are no matrices, though they have two axes
    found["layers"] |= {"norm1": None, "norm2": None}
    found |= {name: None for name in params if name != "layers"}
    return jax.tree.map(lambda i: jax.ShapeDtypeStruct(i.shape, jnp.float32), found), found


def parameters(case: Case, shape: llama.Shape) -> Any:
    """Abstract parameters, those of the layers quantised where the case says so."""
    params = llama.parameters(shape)
    if case.base is None:
        return params
    return jax.eval_shape(lambda p: zojax.quantize(p, case.base, group_size=64), params)


def programs(case: Case, shape: llama.Shape) -> dict[str, Program]:
    """What a step runs, by name; "step" or "forward", and "sweep" for steps in place."""
    loss = functools.partial(llama.loss, heads=shape.heads)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, tokens = parameters(case, shape), llama.batch(shape)
    if case.kind == "forward":
        both = llama.batch(shape._replace(batch=case.batch_size * shape.batch))
        forward = zojax.virtualize(loss, implementation=case.implementation)
        return {"forward": Program(forward, (params, both), False)}
    if case.kind == "sparse":
        theta, index = abstract_entries(llama.parameters(shape))
        run = sparse_step(loss, case.implementation)
        return {"step": Program(run, (theta, key, params, index, tokens), True)}
    if case.kind == "plain":
        return {"step": Program(plain_step(loss), (params, key, tokens), True)}
    assert case.direction is not None
    if case.kind == "in place":
        scale = jax.ShapeDtypeStruct((), jnp.float32)
        return {
            "forward": Program(loss, (params, tokens), False),
            "sweep": Program(sweep(case.direction()), (params, key, scale), True),
        }
    estimator = zojax.mezo(mu=MU, direction=case.direction(), batch_size=case.batch_size)
    run = step(loss, estimator, case.implementation)
    return {"step": Program(run, (params, key, tokens), True)}


def initialize(params: Any) -> Any:
    """Normal weights or random codes, made leaf by leaf on the device; norms are ones."""

    def leaf(path, x):
        if "norm" in jax.tree_util.keystr(path):
            return jnp.ones(x.shape, x.dtype)
        if jax.tree_util.keystr(path).endswith(".scales"):
            return jnp.full(x.shape, 0.005, x.dtype)
        key = noise.fold_in(noise.words(jax.random.key(0)), hash_of(jax.tree_util.keystr(path)))

        @jax.jit
        def draw(key):
            bits = noise.leaf_bits(key, x.shape)
            if x.dtype == jnp.uint8:
                return (bits >> 24).astype(jnp.uint8)
            return (0.02 * noise.gaussian(bits)).astype(x.dtype)

        return draw(key).block_until_ready()

    return jax.tree_util.tree_map_with_path(leaf, params)


def hash_of(name: str) -> int:
    """A number of a name, the same in every process."""
    return sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**31


def entries_of(params: Any, theta: Any, index: Any) -> tuple[Any, Any]:
    """Random ascending positions in each matrix, and the values there."""
    draw = np.random.default_rng(0)

    def positions(leaf, i):
        size, count = leaf.shape[-2] * leaf.shape[-1], i.shape[-1]
        cells = np.arange(count) + draw.random(i.shape)
        return jnp.asarray((cells * (size / count)).astype(np.int64).clip(0, size - 1), jnp.int32)

    @jax.jit
    def values(leaf, at):
        if is_virtual(leaf):  # the codes are random, so may the values be
            return 0.02 * jax.random.normal(jax.random.key(2), at.shape)
        flat = leaf.reshape(*at.shape[:-1], -1)
        return jnp.take_along_axis(flat, at, -1).astype(jnp.float32)

    tree = jax.tree.structure(theta, is_leaf=lambda x: x is None)
    leaves, wanted = tree.flatten_up_to(params), tree.flatten_up_to(index)
    at = [i if i is None else positions(x, i) for x, i in zip(leaves, wanted, strict=True)]
    picked = [i if i is None else values(x, i) for x, i in zip(leaves, at, strict=True)]
    return jax.tree.unflatten(tree, picked), jax.tree.unflatten(tree, at)


def runner(
    case: Case, compiled: dict[str, Callable], held: dict[str, Any], tokens: jax.Array
) -> Callable[[int], jax.Array]:
    """One step a call; gives its loss, which may not be there yet.

    Args:
        case: what to run.
        compiled: the case's programs.
        held: "params", replaced at every step that moves them.
        tokens: the batch.
    """
    key = jax.random.key(7)
    if case.kind == "forward":
        both = jnp.tile(tokens, (case.batch_size, 1))
        return lambda i: compiled["forward"](held["params"], both)
    if case.kind == "in place":

        def mezo(i):
            def move(scale):
                held["params"] = compiled["sweep"](held["params"], k, jnp.float32(scale))

            k = jax.random.fold_in(key, i)
            move(MU)
            plus = compiled["forward"](held["params"], tokens)
            move(-2 * MU)
            minus = compiled["forward"](held["params"], tokens)
            move(MU)
            move(-RATE * (plus - minus) / (2 * MU))
            return plus

        return mezo
    if case.kind == "sparse":
        params = held["params"]
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params, is_leaf=is_virtual
        )
        theta, index = entries_of(params, *abstract_entries(shapes))

        def sparse(i):
            nonlocal theta
            theta, loss = compiled["step"](theta, jax.random.fold_in(key, i), params, index, tokens)
            return loss

        return sparse

    def run(i):
        held["params"], loss = compiled["step"](held["params"], jax.random.fold_in(key, i), tokens)
        return loss

    return run
