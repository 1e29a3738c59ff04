"""The table: a case for every public transformation and schedule, by family. Every law runs over every case."""

from . import (
    adagrad,
    adam,
    adam_kin,
    adam_later,
    averages,
    common,
    contributed,
    core,
    decay,
    iterates,
    low_rank,
    matrix,
    momentum,
    parts,
    precision,
    quasi_newton,
    rate_free,
    schedules,
    sharpness,
    sign,
    torch_schedules,
    transforms,
    wrappers,
)

TRANSFORMATIONS = (
    core,
    transforms,
    decay,
    averages,
    adam,
    adam_kin,
    adam_later,
    adagrad,
    momentum,
    contributed,
    iterates,
    sharpness,
    parts,
    sign,
    rate_free,
    low_rank,
    matrix,
    quasi_newton,
    wrappers,
    precision,
)
CASES = tuple(case for family in TRANSFORMATIONS for case in family.CASES)
SCHEDULES = (*schedules.SCHEDULES, *torch_schedules.SCHEDULES)
FAMILIES = (common, *TRANSFORMATIONS, schedules, torch_schedules)
