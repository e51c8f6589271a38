"""Train a network whose activations are whole numbers: no gradient exists, zojax needs none.

Run it with `python examples/rounded_network.py`; needs scikit-learn for its digits.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import zojax

STEPS, BATCH = 1500, 128


def logits(params, x):
    hidden = jnp.round(jax.nn.relu(x @ params["in"] + params["in_bias"]))
    return hidden @ params["out"] + params["out_bias"]


def loss(params, batch):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def main() -> float:
    """Train, print and return the test accuracy."""
    data = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        jnp.asarray(data.data, jnp.float32) / 16, jnp.asarray(data.target), random_state=0
    )
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "in": jax.random.normal(keys[0], (64, 32)) * 0.5,
        "in_bias": jnp.zeros(32),
        "out": jax.random.normal(keys[1], (32, 10)) * 0.1,
        "out_bias": jnp.zeros(10),
    }
    estimator = zojax.mezo(mu=0.05, num_samples=16, batch_size=32)
    schedule = optax.cosine_decay_schedule(1e-2, STEPS)
    tx = optax.chain(zojax.zeroth_order(estimator, key=1), optax.adam(schedule))

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, len(x_train))
        batch = (x_train[rows], y_train[rows])
        updates, state = tx.update(None, state, params, value_fn=loss, batch=batch)
        return (optax.apply_updates(params, updates), state), state[0].value

    def train(params):
        keys = jax.random.split(jax.random.key(2), STEPS)
        (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), keys)
        return params, losses

    before = jnp.mean(logits(params, x_test).argmax(-1) == y_test)
    params, losses = jax.jit(train)(params)
    after = jnp.mean(logits(params, x_test).argmax(-1) == y_test)
    slope = jax.tree.map(jnp.abs, jax.grad(loss)(params, (x_train, y_train))["in"]).max()
    print(f"largest derivative by the first layer: {slope}")
    print(f"loss {losses[:20].mean():.3f} -> {losses[-20:].mean():.3f}")
    print(f"test accuracy {before:.1%} -> {after:.1%}")
    return float(after)


if __name__ == "__main__":
    main()
