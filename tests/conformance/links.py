"""optax's own transformations after an estimator: each gets its estimates, and nothing else."""

import chex
import jax
import numpy as np
import optax
from optax import contrib

from tests.conformance.problem import PARAMS, Data

_LABELS = {"b": "adam", "w": "free"}


def _partition() -> optax.GradientTransformation:
    links = {"free": optax.sgd(0.1), "adam": optax.adam(1e-2)}
    return optax.partition(links, _LABELS)


def _compiled(link: optax.GradientTransformation) -> optax.GradientTransformation:
    """It needs nothing of what `value_fn` needs."""
    update = jax.jit(lambda updates, state, params: link.update(updates, state, params))
    return optax.GradientTransformation(link.init, update)


LINKS: dict[str, optax.GradientTransformation] = {
    "scheduled sgd": optax.sgd(optax.linear_schedule(0.1, 0.0, 3), momentum=0.9),
    "clip and adam": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)),
    "masked": optax.masked(optax.sgd(0.1), {"b": False, "w": True}),
    "partition": _partition(),
    "MultiSteps": optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "inject_hyperparams": optax.inject_hyperparams(optax.sgd)(
        learning_rate=optax.linear_schedule(0.1, 0.0, 3)
    ),
    "apply_if_finite": optax.apply_if_finite(optax.adam(1e-2), 3),
    "schedule_free": contrib.schedule_free(optax.sgd(0.1), learning_rate=0.1),
}
"""By name."""
COMPILED = {name: _compiled(link) for name, link in LINKS.items()}
"""The same, each compiled once for all estimators."""


def check(first: optax.GradientTransformationExtraArgs, loss, data: Data, steps: int = 3) -> None:
    """Steps of `chain(first, link)` are those of the link alone on what `first` returns."""
    estimates, params, state = [], PARAMS, first.init(PARAMS)
    for _ in range(steps):
        gradients, state = first.update(None, state, params, value_fn=loss, data=data)
        estimates.append(gradients)
    for name, link in COMPILED.items():
        chained = optax.chain(first, link)
        state, alone = chained.init(PARAMS), link.init(PARAMS)
        for gradients in estimates:
            updates, state = chained.update(None, state, PARAMS, value_fn=loss, data=data)
            expected, alone = link.update(gradients, alone, PARAMS)
            chex.assert_trees_all_equal(updates, expected, custom_message=name)
            assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(updates)), name
        chex.assert_trees_all_equal_structs(state, chained.init(PARAMS))
