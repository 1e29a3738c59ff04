"""Run the optimizers of `specs.py` in optax, in float64, and keep the trajectories for `test_versus_optax.py`.

Not part of the tests. To record what is not recorded yet: make a virtual environment with jax and optax, then

    python tests/versus_optax/record.py         # or with --all, to record everything anew, which takes half an hour
"""

import json
import sys
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
    rows, update = [], tx.update if loss else jax.jit(tx.update)
    for grads in specs.gradients():
        if loss is not None:
            value, grads = jax.value_and_grad(loss)(params)
            extra = {"value": value, "grad": grads, "value_fn": loss}
        updates, state = update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
        rows.append(np.concatenate([np.ravel(params[name]) for name in sorted(params)]))
    return np.stack([rows[step] for step in specs.KEPT])


def main():
    """Write `recorded.npz` next to this file."""
    target = Path(__file__).with_name("recorded.npz")
    recorded = {} if "--all" in sys.argv else dict(np.load(target))
    wanted = {f"rule/{name}": (make, None, specs.EXTRA.get(name, {})) for name, make in specs.RULES.items()}
    wanted |= {f"search/{name}": (make, specs.rosenbrock, {}) for name, make in specs.SEARCHES.items()}
    new = {
        name: trajectory(make(optax), loss, **extra)
        for name, (make, loss, extra) in wanted.items()
        if name not in recorded
    }
    for name, make in specs.SCHEDULES.items():
        if f"schedule/{name}" not in recorded:
            new[f"schedule/{name}"] = np.array([float(make(optax)(np.int64(count))) for count in specs.COUNTS])
    wanted |= {f"schedule/{name}": None for name in specs.SCHEDULES}
    recorded = {name: rows for name, rows in recorded.items() if name in wanted}
    about = json.dumps({"optax": optax.__version__, "jax": jax.__version__})
    np.savez_compressed(target, **(recorded | new | {"about": about}))
    print(f"{len(new)} recorded, {target.stat().st_size:,} bytes, {about}")


if __name__ == "__main__":
    main()
