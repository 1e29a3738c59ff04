"""Optimizers that optax and optimfn spell alike. Each entry is a function of the library, so the same words make both.

`record.py` runs them in optax and keeps the numbers; `test_versus_optax.py` runs them here and compares.
"""

import numpy as np

STEPS = 30
KEPT = (0, 1, 2, 4, 7, 12, 20, 29)  # steps whose parameters are recorded
COUNTS = (0, 1, 2, 5, 9, 10, 11, 19, 20, 21, 50, 99, 100, 101, 1000, 20_000_000)

MASK = {"a": True, "b": False, "c": True}


def params():
    """Leaves with one, two and three axes."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in {"a": (4, 3), "b": (5,), "c": (2, 3, 2)}.items()}


def gradients():
    """Gradients that flip signs, vanish, explode and shrink."""
    rng = np.random.default_rng(1)
    sequence = []
    for step in range(STEPS):
        factor = {3: 0.0, 4: 1e3, 5: 1e-3}.get(step % 7, 1.0)
        grads = {name: factor * rng.normal(size=p.shape) for name, p in params().items()}
        if step % 7 == 6:
            grads = {name: -g for name, g in sequence[-1].items()}
        sequence.append(grads)
    return sequence


def _warmup(lib):
    return lib.warmup_cosine_decay_schedule(0.0, 0.1, 5, 25, 0.01)


def _multi(lib, inner, k, mean=True):
    if lib.__name__ == "optimfn":
        return lib.multi_steps(inner, k, mean)
    # optax accumulates in float32 unless it is told not to.
    return lib.MultiSteps(inner, k, mean, accumulator_dtype=np.float64).gradient_transformation()


def _more(lib):
    """Where a library has what optax calls contributed."""
    return lib if lib.__name__ == "optimfn" else lib.contrib


def _sides(lib):
    """A matrix, no matrix, and two matrices in a batch."""
    dims = _more(lib).MuonDimensionNumbers
    return {"a": dims(1, 0), "b": None, "c": dims((2,), (0,))}


RULES = {
    "identity": lambda lib: lib.identity(),
    "set_to_zero": lambda lib: lib.set_to_zero(),
    "scale": lambda lib: lib.scale(-0.3),
    "scale_by_learning_rate": lambda lib: lib.scale_by_learning_rate(0.3),
    "scale_by_learning_rate_schedule": lambda lib: lib.scale_by_learning_rate(_warmup(lib), flip_sign=False),
    "scale_by_schedule": lambda lib: lib.scale_by_schedule(_warmup(lib)),
    "trace": lambda lib: lib.trace(0.9),
    "trace_nesterov": lambda lib: lib.trace(0.9, nesterov=True),
    "ema": lambda lib: lib.ema(0.9),
    "ema_biased": lambda lib: lib.ema(0.9, debias=False),
    "clip": lambda lib: lib.clip(0.5),
    "clip_by_global_norm": lambda lib: lib.clip_by_global_norm(1.0),
    "add_decayed_weights": lambda lib: lib.add_decayed_weights(0.01),
    "add_decayed_weights_mask": lambda lib: lib.add_decayed_weights(0.01, MASK),
    "masked": lambda lib: lib.masked(lib.trace(0.9), MASK),
    "named_chain": lambda lib: lib.named_chain(("clip", lib.clip(0.5)), ("trace", lib.trace(0.5))),
    "sgd": lambda lib: lib.sgd(0.1),
    "sgd_momentum": lambda lib: lib.sgd(0.1, momentum=0.9),
    "sgd_nesterov": lambda lib: lib.sgd(_warmup(lib), momentum=0.9, nesterov=True),
    "scale_by_adam": lambda lib: lib.scale_by_adam(),
    "scale_by_adam_nesterov": lambda lib: lib.scale_by_adam(0.8, 0.99, eps_root=1e-8, nesterov=True),
    "adam": lambda lib: lib.adam(0.01),
    "adam_schedule": lambda lib: lib.adam(_warmup(lib), b1=0.8, b2=0.95, eps=1e-6, eps_root=1e-9),
    "adam_nesterov": lambda lib: lib.adam(0.01, nesterov=True),
    "adamw": lambda lib: lib.adamw(0.01),
    "adamw_mask": lambda lib: lib.adamw(0.01, weight_decay=0.1, mask=MASK),
    "adamw_nesterov": lambda lib: lib.adamw(0.01, weight_decay=0.1, nesterov=True),
    "scale_by_lion": lambda lib: lib.scale_by_lion(),
    "lion": lambda lib: lib.lion(0.01),
    "lion_mask": lambda lib: lib.lion(_warmup(lib), b1=0.8, b2=0.95, weight_decay=0.1, mask=MASK),
    "scale_by_rms": lambda lib: lib.scale_by_rms(),
    "scale_by_rms_debiased": lambda lib: lib.scale_by_rms(eps_in_sqrt=False, bias_correction=True),
    "scale_by_stddev": lambda lib: lib.scale_by_stddev(eps=1e-4),
    "scale_by_stddev_debiased": lambda lib: lib.scale_by_stddev(eps=1e-4, initial_scale=0.5, bias_correction=True),
    "rmsprop": lambda lib: lib.rmsprop(0.01),
    "rmsprop_momentum": lambda lib: lib.rmsprop(_warmup(lib), momentum=0.9, nesterov=True, initial_scale=1.0),
    "rmsprop_centered": lambda lib: lib.rmsprop(0.01, eps=1e-4, centered=True, momentum=0.5, eps_in_sqrt=False),
    "scale_by_adadelta": lambda lib: lib.scale_by_adadelta(),
    "adadelta": lambda lib: lib.adadelta(0.5, rho=0.8, eps=1e-3, weight_decay=0.1),
    "adadelta_mask": lambda lib: lib.adadelta(0.5, weight_decay=0.1, weight_decay_mask=MASK),
    "scale_by_rss": lambda lib: lib.scale_by_rss(),
    "scale_by_rss_from_nothing": lambda lib: lib.scale_by_rss(0.0, 0.0),
    "adagrad": lambda lib: lib.adagrad(0.1),
    "scale_by_adamax": lambda lib: lib.scale_by_adamax(0.8, 0.99, 1e-4),
    "adamax": lambda lib: lib.adamax(0.01),
    "adamaxw": lambda lib: lib.adamaxw(0.01),
    "adamaxw_mask": lambda lib: lib.adamaxw(0.01, weight_decay=0.1, mask=MASK),
    "scale_by_amsgrad": lambda lib: lib.scale_by_amsgrad(),
    "amsgrad": lambda lib: lib.amsgrad(0.01, b2=0.9, eps_root=1e-8),
    "amsgrad_biased": lambda lib: lib.amsgrad(0.01, bias_correction_mu=False, bias_correction_nu=False),
    "radam": lambda lib: lib.radam(0.01, b2=0.9),
    "radam_nesterov": lambda lib: lib.radam(_warmup(lib), b2=0.95, eps_root=1e-8, threshold=4.5, nesterov=True),
    "scale_by_radam": lambda lib: lib.scale_by_radam(),
    "clip_by_block_rms": lambda lib: lib.clip_by_block_rms(0.5),
    "scale_by_param_block_rms": lambda lib: lib.scale_by_param_block_rms(),
    "scale_by_param_block_norm": lambda lib: lib.scale_by_param_block_norm(0.5),
    "scale_by_belief": lambda lib: lib.scale_by_belief(0.8, 0.99, 1e-4, 1e-6),
    "adabelief": lambda lib: lib.adabelief(_warmup(lib), eps=1e-8, eps_root=1e-8),
    "adabelief_nesterov": lambda lib: lib.adabelief(0.01, b2=0.9, eps=1e-6, eps_root=1e-6, nesterov=True),
    "scale_by_yogi": lambda lib: lib.scale_by_yogi(0.8, 0.9, 1e-4, 1e-6, 1e-3),
    "yogi": lambda lib: lib.yogi(0.01),
    "scale_by_trust_ratio": lambda lib: lib.scale_by_trust_ratio(),
    "scale_by_trust_ratio_bounded": lambda lib: lib.scale_by_trust_ratio(0.5, 0.1, 1e-3),
    "lamb": lambda lib: lib.lamb(0.01),
    "lamb_mask": lambda lib: lib.lamb(_warmup(lib), b1=0.8, b2=0.95, weight_decay=0.1, mask=MASK),
    "lars": lambda lib: lib.lars(0.1),
    "lars_masks": lambda lib: lib.lars(
        _warmup(lib), 0.1, MASK, 0.01, 1e-3, {"a": False, "b": True, "c": True}, 0.8, nesterov=True
    ),
    "fromage": lambda lib: lib.fromage(0.01),
    "fromage_schedule": lambda lib: lib.fromage(_warmup(lib), min_norm=0.5),
    "scale_by_novograd": lambda lib: lib.scale_by_novograd(),
    "novograd": lambda lib: lib.novograd(0.01, 0.95, 0.8, 1e-3, 1e-6, 0.1),
    "scale_by_optimistic_gradient": lambda lib: lib.scale_by_optimistic_gradient(0.7, 0.3),
    "optimistic_gradient_descent": lambda lib: lib.optimistic_gradient_descent(_warmup(lib), 0.9, 0.5),
    "optimistic_adam_v2": lambda lib: lib.optimistic_adam_v2(0.01),
    "optimistic_adam_v2_plain": lambda lib: lib.optimistic_adam_v2(_warmup(lib), alpha=0.5, beta=0.2, nesterov=False),
    "optimistic_adam": lambda lib: lib.optimistic_adam(0.01),
    "optimistic_adam_less": lambda lib: lib.optimistic_adam(0.01, 0.005, 0.8, 0.99, nesterov=False),
    "polyak_sgd": lambda lib: lib.polyak_sgd(),
    "polyak_sgd_bounded": lambda lib: lib.polyak_sgd(0.01, 0.5, 0.1, 1e-3, "sps+"),
    "scale_by_polyak": lambda lib: lib.scale_by_polyak(f_min=3.0),
    "scale_by_sign": lambda lib: lib.scale_by_sign(),
    "sign_sgd": lambda lib: lib.sign_sgd(_warmup(lib)),
    "signum": lambda lib: lib.signum(0.01, 0.8),
    "scale_by_sm3": lambda lib: lib.scale_by_sm3(),
    "scale_by_sm3_decayed": lambda lib: lib.scale_by_sm3(0.8, 0.95, 1e-4),
    "sm3": lambda lib: lib.sm3(0.1, 0.5),
    "scale_by_distance_over_gradients": lambda lib: lib.scale_by_distance_over_gradients(
        1e-2, param_dtype=None, global_scale=-1.0
    ),
    "scale_by_factored_rms": lambda lib: lib.scale_by_factored_rms(),
    "scale_by_factored_rms_small": lambda lib: lib.scale_by_factored_rms(
        decay_rate=0.6, min_dim_size_to_factor=2, epsilon=1e-6
    ),
    "adafactor": lambda lib: lib.adafactor(_warmup(lib), 3, eps=1e-8),
    "adafactor_with_all": lambda lib: lib.adafactor(
        0.1, 2, 0.7, 0, False, 0.5, 0.9, np.float64 if lib.__name__ == "optax" else None, 0.01, 1e-8, True, MASK
    ),
    "adafactor_without_rate": lambda lib: lib.adafactor(clipping_threshold=None, factored=False, eps=1e-8),
    "adafactor_with_narrow_momentum": lambda lib: lib.adafactor(_warmup(lib), 3, momentum=0.9, eps=1e-8),
    "adafactor_begun": lambda lib: lib.adafactor(0.1, 3, decay_offset=-4, eps=1e-8),
    "radam_never_rectified": lambda lib: lib.radam(0.01, b2=0.5),
    "lion_modes": lambda lib: lib.chain(
        lib.scale_by_lion(0.5, 0.8, mode="smooth", smooth_beta=3.0), lib.scale_by_lion(mode="refined")
    ),
    "nadam": lambda lib: lib.nadam(_warmup(lib), b1=0.8),
    "nadamw": lambda lib: lib.nadamw(0.01, weight_decay=0.1, mask=MASK),
    "normalize_by_update_norm": lambda lib: lib.normalize_by_update_norm(0.5, 1e-3),
    "centralize": lambda lib: lib.centralize(),
    "zero_nans": lambda lib: lib.zero_nans(),
    "keep_params_nonnegative": lambda lib: lib.chain(lib.sgd(0.1), lib.keep_params_nonnegative()),
    "adaptive_grad_clip": lambda lib: lib.adaptive_grad_clip(0.1, 0.5, 0),
    "inject_hyperparams": lambda lib: lib.inject_hyperparams(lib.adam)(0.01, b2=0.9),
    "inject_hyperparams_schedules": lambda lib: lib.inject_hyperparams(lib.adamw)(
        _warmup(lib), b1=lib.linear_schedule(0.9, 0.5, 20), weight_decay=lib.constant_schedule(0.1), mask=MASK
    ),
    "multi_steps": lambda lib: _multi(lib, lib.adam(_warmup(lib)), 3),
    "multi_steps_sum": lambda lib: _multi(lib, lib.sgd(0.01, momentum=0.9), lambda step: step + 1, False),
    "apply_every": lambda lib: lib.chain(lib.adam(0.01), lib.apply_every(4)),
    "conditionally_transform": lambda lib: lib.conditionally_transform(lib.adam(0.01), lambda step: step % 3 == 0),
    "conditionally_mask": lambda lib: lib.conditionally_mask(lib.adam(0.01), lambda step: step > 5),
    "flatten": lambda lib: lib.flatten(lib.lamb(0.01)),
    "freeze": lambda lib: lib.chain(lib.adam(0.01), lib.freeze(MASK)),
    "selective_transform": lambda lib: lib.selective_transform(
        lib.chain(lib.clip_by_global_norm(1.0), lib.adam(0.01)), freeze_mask=MASK
    ),
    "snapshot": lambda lib: lib.chain(lib.snapshot("norm", lib.tree.norm), lib.adam(0.01)),
    "monitor": lambda lib: lib.chain(lib.monitor({"norm": lib.tree.norm}), lib.adam(0.01)),
    "chain": lambda lib: lib.chain(
        lib.clip_by_global_norm(1.0),
        lib.scale_by_adam(b1=0.9, b2=0.95),
        lib.add_decayed_weights(0.1, mask=MASK),
        lib.scale_by_learning_rate(_warmup(lib)),
    ),
    "acprop": lambda lib: _more(lib).acprop(_warmup(lib), 0.8, 0.99, 1e-8, 1e-6, 0.1, MASK),
    "scale_by_acprop": lambda lib: _more(lib).scale_by_acprop(),
    "ademamix": lambda lib: _more(lib).ademamix(0.01, weight_decay=0.1, mask=MASK),
    "ademamix_scheduled": lambda lib: _more(lib).ademamix(
        _warmup(lib), 0.8, 0.99, lib.linear_schedule(0.9, 0.99, 20), lib.linear_schedule(0.0, 4.0, 20), 1e-6, 1e-8
    ),
    "scale_by_ademamix": lambda lib: _more(lib).scale_by_ademamix(),
    "simplified_ademamix": lambda lib: _more(lib).simplified_ademamix(0.01, weight_decay=0.1, mask=MASK),
    "simplified_ademamix_scheduled": lambda lib: _more(lib).simplified_ademamix(
        _warmup(lib), 0.9, 0.99, lib.linear_schedule(0.0, 4.0, 20), 1e-6, 1e-8
    ),
    "scale_by_simplified_ademamix": lambda lib: _more(lib).scale_by_simplified_ademamix(alpha=3.0),
    "adopt": lambda lib: _more(lib).adopt(0.01),
    "adopt_nesterov": lambda lib: _more(lib).adopt(_warmup(lib), 0.8, 0.99, 1e-4, nesterov=True),
    "adopt_clipped": lambda lib: _more(lib).adopt(0.01, b2=0.9, clip_value_fn=lambda x: x**0.5),
    "scale_by_adopt": lambda lib: _more(lib).scale_by_adopt(b2=0.99, use_clipping=False),
    "madgrad": lambda lib: _more(lib).madgrad(0.01),
    "dog": lambda lib: _more(lib).dog(),
    "dog_distance": lambda lib: _more(lib).dog(_warmup(lib), ("distance", 0.1), 1e-6, 0.1, MASK),
    "dog_rate": lambda lib: _more(lib).dog(init_step=("learning_rate", 0.1)),
    "dowg": lambda lib: _more(lib).dowg(),
    "dowg_decayed": lambda lib: _more(lib).dowg(_warmup(lib), 0.1, 1e-6, 0.1, MASK),
    "cocob": lambda lib: _more(lib).cocob(),
    "cocob_decayed": lambda lib: _more(lib).cocob(_warmup(lib), 10.0, 1e-6, 0.1, MASK),
    "scale_by_cocob": lambda lib: _more(lib).scale_by_cocob(),
    "momo": lambda lib: _more(lib).momo(),
    "momo_adapted": lambda lib: _more(lib).momo(_warmup(lib), 0.8, -0.5, 0.1, True),
    "momo_adam": lambda lib: _more(lib).momo_adam(),
    "momo_adam_adapted": lambda lib: _more(lib).momo_adam(_warmup(lib), 0.8, 0.99, 1e-6, -0.5, 0.1, True),
    "prodigy": lambda lib: _more(lib).prodigy(),
    # A rate of 0 makes the estimate of optax 0 / 0.
    "prodigy_with_all": lambda lib: _more(lib).prodigy(0.5, (0.8, 0.99), 0.9, 1e-6, 1e-3, 0.5, 0.1, True),
    "prodigy_falling": lambda lib: _more(lib).prodigy(lib.linear_schedule(1.0, 0.1, 20), estim_lr0=1e-2),
    "dadapt_adamw": lambda lib: _more(lib).dadapt_adamw(),
    "dadapt_adamw_falling": lambda lib: _more(lib).dadapt_adamw(
        lib.linear_schedule(1.0, 0.1, 20), (0.8, 0.99), 1e-6, 1e-2, 0.1
    ),
    "mechanize": lambda lib: _more(lib).mechanize(lib.sgd(1.0)),
    "mechanize_with_all": lambda lib: _more(lib).mechanize(lib.adam(_warmup(lib)), 0.1, 1e-6, 1e-3, 4),
    "schedule_free": lambda lib: _more(lib).schedule_free(lib.adam(0.1, b1=0.0), 0.1, 0.8, 1.0),
    "schedule_free_sgd": lambda lib: _more(lib).schedule_free_sgd(0.1, weight_decay=0.1),
    "schedule_free_adamw": lambda lib: _more(lib).schedule_free_adamw(0.01, b2=0.99, weight_decay=0.1),
    "sam": lambda lib: _more(lib).sam(lib.adam(0.01), lib.sgd(0.05)),
    "sam_of_three": lambda lib: _more(lib).sam(lib.sgd(0.1, 0.9), lib.sgd(0.05, 0.5), 3, False),
    "muon": lambda lib: _more(lib).muon(0.02, weight_decay=0.1, muon_weight_dimension_numbers=_sides(lib)),
    "muon_otherwise": lambda lib: _more(lib).muon(
        _warmup(lib),
        "dion",
        5,
        0.8,
        1e-6,
        adaptive=True,
        nesterov=False,
        preconditioning="schatten",
        adam_b1=0.8,
        adam_b2=0.99,
        adam_weight_decay=0.1,
        adam_learning_rate=0.01,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_sides(lib),
    ),
    "muon_aol": lambda lib: _more(lib).muon(
        0.02, preconditioning="aol", muon_weight_dimension_numbers=_sides(lib), mu_dtype=None
    ),
    "muon_spectral": lambda lib: _more(lib).muon(
        0.02, (2.0, -1.5, 0.5), 7, preconditioning="spectral", muon_weight_dimension_numbers=_sides(lib)
    ),
    "madgrad_scheduled": lambda lib: _more(lib).madgrad(_warmup(lib), 0.5, 0.1, 1e-3),
}


def rosenbrock(params):
    """A valley along a parabola, for each leaf as a vector."""
    total = 0.0
    for name in sorted(params):
        x = params[name].reshape(-1)
        total = total + (10.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()
    return total


# Rules that evaluate a loss, and follow its gradients instead of the given ones.
SEARCHES = {
    "backtracking": lambda lib: lib.chain(lib.sgd(1.0), lib.scale_by_backtracking_linesearch(30)),
    "backtracking_stored": lambda lib: lib.chain(
        lib.sgd(0.1), lib.scale_by_backtracking_linesearch(9, 0.1, 0.5, 3.0, 2.0, 1e-9, 1e-9, True)
    ),
    "zoom": lambda lib: lib.chain(lib.sgd(1.0), lib.scale_by_zoom_linesearch(20)),
    "zoom_bounded": lambda lib: lib.chain(
        lib.sgd(0.01), lib.scale_by_zoom_linesearch(15, 3.0, 1e-6, 1.7, 1e-3, 0.1, None, 1e-4, "one")
    ),
    "zoom_short": lambda lib: lib.chain(lib.sgd(1.0), lib.scale_by_zoom_linesearch(2, curv_rtol=0.01)),
    "scale_by_lbfgs": lambda lib: lib.chain(lib.scale_by_lbfgs(3), lib.scale(-0.1)),
    "lbfgs": lambda lib: lib.lbfgs(),
    "lbfgs_unscaled": lambda lib: lib.lbfgs(
        0.5, 4, False, lib.scale_by_backtracking_linesearch(30, max_learning_rate=2.0)
    ),
    "lbfgs_plain": lambda lib: lib.lbfgs(_warmup(lib), 5, linesearch=None),
}

EXTRA = {name: {"value": 2.0} for name in RULES if "polyak" in name or "momo" in name}  # given to every update

SCHEDULES = {
    "constant": lambda lib: lib.constant_schedule(0.3),
    "linear": lambda lib: lib.linear_schedule(0.1, 1.0, 20, 5),
    "linear_of_no_length": lambda lib: lib.linear_schedule(0.1, 1.0, 0),
    "polynomial": lambda lib: lib.polynomial_schedule(1.0, 0.1, 2.5, 20, 3),
    "exponential": lambda lib: lib.exponential_decay(0.5, 10, 0.9),
    "exponential_staircase": lambda lib: lib.exponential_decay(0.5, 10, 0.5, 3, True, 0.01),
    "exponential_growth": lambda lib: lib.exponential_decay(0.5, 10, 1.1, end_value=3.0),
    "exponential_of_nothing": lambda lib: lib.exponential_decay(0.5, 10, 0.0),
    "cosine": lambda lib: lib.cosine_decay_schedule(1.0, 40, 0.1, 1.5),
    "warmup_cosine": lambda lib: lib.warmup_cosine_decay_schedule(0.1, 1.0, 10, 100, 0.05, 1.5),
    "cosine_without_warmup": lambda lib: lib.warmup_cosine_decay_schedule(0.1, 1.0, 0, 100),
    "warmup_to_zero": lambda lib: lib.warmup_cosine_decay_schedule(0.1, 0.0, 10, 100),
    "piecewise_constant": lambda lib: lib.piecewise_constant_schedule(1.0, {10: 0.5, 20: 0.1}),
    "piecewise_linear": lambda lib: lib.piecewise_interpolate_schedule("linear", 2.0, {10: 0.5, 20: 3.0}),
    "piecewise_cosine": lambda lib: lib.piecewise_interpolate_schedule("cosine", 2.0, {20: 3.0, 10: 0.5}),
    "linear_onecycle": lambda lib: lib.linear_onecycle_schedule(99, 0.5),
    "linear_onecycle_short": lambda lib: lib.linear_onecycle_schedule(21, 0.5, 0.45, 0.5, 10.0, 3.0),
    "cosine_onecycle": lambda lib: lib.cosine_onecycle_schedule(99, 0.5, 0.2),
    "warmup_constant": lambda lib: lib.warmup_constant_schedule(0.1, 1.0, 20),
    "warmup_exponential": lambda lib: lib.warmup_exponential_decay_schedule(0.1, 1.0, 10, 5, 0.9, 1),
    "warmup_staircase": lambda lib: lib.warmup_exponential_decay_schedule(0.1, 1.0, 10, 5, 0.5, 0, True, 0.2),
    "sgdr": lambda lib: lib.sgdr_schedule(
        [
            {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 10},
            {"init_value": 0.0, "peak_value": 0.5, "warmup_steps": 1, "decay_steps": 40, "end_value": 0.1},
        ]
    ),
    "join": lambda lib: lib.join_schedules([lib.linear_schedule(0.0, 1.0, 10), lib.constant_schedule(0.5)], [11]),
}
