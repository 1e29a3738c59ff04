"""Run the optimizers of `specs.py` in optax, in float64, and keep the trajectories for `test_versus_optax.py`.

Not part of the tests. To record anew: make a virtual environment with jax and optax, then

    python tests/versus_optax/record.py
"""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import specs

jax.config.update("jax_enable_x64", True)
# The decay of Adafactor is computed in float32, whatever the leaves: off in the eighth digit too.
optax.scale_by_factored_rms.__defaults__ = (
    *optax.scale_by_factored_rms.__defaults__[:-1],
    lambda step, exponent: 1.0 - (step + 1.0) ** -exponent,
)


def trajectory(tx, loss=None, **extra):
    """All parameters after the steps that are kept, as rows."""
    params = jax.tree.map(np.asarray, specs.params())
    # optax counts in int32, and jax divides an int32 in float32: schedules would be off in the eighth digit.
    state = jax.tree.map(lambda x: x.astype(np.int64) if x.dtype == np.int32 else x, tx.init(params))
    rows = []
    for grads in specs.gradients():
        if loss is not None:
            value, grads = jax.value_and_grad(loss)(params)
            extra = {"value": value, "grad": grads, "value_fn": loss}
        updates, state = tx.update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
        rows.append(np.concatenate([np.ravel(params[name]) for name in sorted(params)]))
    return np.stack([rows[step] for step in specs.KEPT])


def main():
    """Write `recorded.npz` next to this file."""
    rules = {f"rule/{name}": trajectory(make(optax), **specs.EXTRA.get(name, {})) for name, make in specs.RULES.items()}
    rules |= {f"search/{name}": trajectory(make(optax), specs.rosenbrock) for name, make in specs.SEARCHES.items()}
    schedules = {
        f"schedule/{name}": np.array([float(make(optax)(np.int64(count))) for count in specs.COUNTS])
        for name, make in specs.SCHEDULES.items()
    }
    about = {"optax": optax.__version__, "jax": jax.__version__}
    target = Path(__file__).with_name("recorded.npz")
    np.savez_compressed(target, about=json.dumps(about), **rules, **schedules)
    print(f"{len(rules)} rules and {len(schedules)} schedules, {target.stat().st_size:,} bytes, {about}")


if __name__ == "__main__":
    main()
