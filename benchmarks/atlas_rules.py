"""The optimizers of the atlas: each is a function of a learning rate, a number or a schedule."""

from collections.abc import Callable
from typing import Any

import optimfn as of

Make = Callable[..., of.GradientTransformation]


def whole(make: Make, **arguments: Any) -> Make:
    """A whole optimizer with other arguments than its defaults."""
    return lambda rate: make(rate, **arguments)


def after(front: of.GradientTransformation, make: Make, **arguments: Any) -> Make:
    return lambda rate: of.chain(front, make(rate, **arguments))


def around(wrapper: Callable[[of.GradientTransformation], of.GradientTransformation], make: Make) -> Make:
    return lambda rate: wrapper(make(rate))


def matrices(make: Make, **arguments: Any) -> Make:
    """A rule for the matrices, with AdamW at the same rate for all the rest."""

    def optimizer(rate: Any) -> of.GradientTransformation:
        rules = {"matrices": make(rate, **arguments), "rest": adamw(rate)}
        return of.partition(rules, of.tree.label_by(lambda p: "matrices" if p.ndim == 2 else "rest"))

    return optimizer


def adamw(rate: Any) -> of.GradientTransformation:
    return of.adamw(rate, weight_decay=0.0)


def momentum(rate: Any) -> of.GradientTransformation:
    return of.sgd(rate, momentum=0.9)


def climbing(rate: Any) -> of.GradientTransformation:
    return of.sam(adamw(rate), of.chain(of.normalize(), of.sgd(0.05)), opaque_mode=True)


def grafted(rate: Any) -> of.GradientTransformation:
    parts = of.graft(of.scale_by_adam(), of.scale_by_lion()), of.scale_by_learning_rate(rate)
    return of.chain(*parts)


def followed(rate: Any) -> of.GradientTransformation:
    return of.chain(adamw(rate), of.params_ema(0.98))


FAMILIES: dict[str, dict[str, Make]] = {
    "Adam": {
        "adamw": adamw,
        "nadam": of.nadam,
        "radam": of.radam,
        "amsgrad": of.amsgrad,
        "adamax": of.adamax,
        "adabelief": of.adabelief,
        "yogi": of.yogi,
        "adan": of.adan,
        "novograd": of.novograd,
        "lamb": of.lamb,
    },
    "Adam's later kin": {
        "ademamix": of.ademamix,
        "simplified_ademamix": of.simplified_ademamix,
        "adopt": of.adopt,
        "laprop": of.laprop,
        "adam_atan2": of.adam_atan2,
        "adam_mini": of.adam_mini,
        "stable_adamw": whole(of.stable_adamw, weight_decay=0.0),
        "grams": of.grams,
        "adamp": of.adamp,
        "qhadam": of.qhadam,
        "acprop": of.acprop,
        "spam": of.spam,
    },
    "Descent, momentum, signs": {
        "sgd": of.sgd,
        "sgd, momentum 0.9": momentum,
        "sgd, nesterov 0.9": whole(of.sgd, momentum=0.9, nesterov=True),
        "aggmo": of.aggmo,
        "qhm": of.qhm,
        "lars": of.lars,
        "sign_sgd": of.sign_sgd,
        "signum": of.signum,
        "lion": whole(of.lion, weight_decay=0.0),
        "tiger": whole(of.tiger, weight_decay=0.0),
    },
    "Adagrad, and less memory": {
        "adagrad": of.adagrad,
        "rmsprop": of.rmsprop,
        "adadelta": of.adadelta,
        "madgrad": of.madgrad,
        "adafactor": of.adafactor,
        "came": of.came,
        "sm3": of.sm3,
        "galore_adamw": whole(of.galore_adamw, rank=8, update_proj_gap=50),
        "fira": whole(of.fira, rank=8, update_proj_gap=50),
        "apollo": whole(of.apollo, rank=8, update_proj_gap=50),
    },
    "Matrices": {
        "muon": of.muon,
        "normuon": matrices(of.normuon),
        "soap": whole(of.soap, weight_decay=0.0),
        "psgd kron": of.kron_whiten,
        "dion": matrices(of.dion),
        "splus": whole(of.splus, weight_decay=0.0),
        "shampoo, adam's lengths": whole(of.shampoo, max_preconditioner_dim=64, target_dims=None, grafting="adam"),
    },
    "Rates of their own": {
        "prodigy": of.prodigy,
        "dadapt_adamw": of.dadapt_adamw,
        "dog": of.dog,
        "dowg": of.dowg,
        "cocob": of.cocob,
        "mechanize(adamw)": around(of.mechanize, adamw),
        "momo": of.momo,
        "momo_adam": of.momo_adam,
        "polyak_sgd": of.polyak_sgd,
    },
    "Means of the iterates": {
        "schedule_free_adamw": of.schedule_free_adamw,
        "schedule_free_sgd": of.schedule_free_sgd,
        "schedule_free_radam": of.schedule_free_radam,
        "gpa(adamw)": around(of.gpa, adamw),
        "adamw, params_ema 0.98": followed,
    },
    "Parts around a rule": {
        "cautious(adamw)": around(of.cautious, adamw),
        "cautious(lion)": around(of.cautious, whole(of.lion, weight_decay=0.0)),
        "mars, adamw": after(of.mars(), of.adamw, b1=0.95, b2=0.99, weight_decay=0.0),
        "sam(adamw)": climbing,
        "hyperball(adam)": lambda rate: of.hyperball(of.scale_by_adam(), rate),
        "graft(adam, lion)": grafted,
        "orthograd, adamw": after(of.orthograd(), adamw),
        "grokfast, adamw": after(of.grokfast(), adamw),
    },
}
RULES: dict[str, Make] = {name: make for rules in FAMILIES.values() for name, make in rules.items()}
# Averages are made for a constant rate, and these few take a number only.
CONSTANT = {"polyak_sgd", *(name for name in FAMILIES["Means of the iterates"] if name.startswith("schedule_free"))}
