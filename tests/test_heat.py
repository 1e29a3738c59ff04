"""The optimizers of Heat, by their names."""

import clusters
import pytest
import torch
from ranks import on_ranks

import optimfn as of

VALUES = [1, 0.9, 0.8, 0.7, 0.8, 0.9, 1, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]


@pytest.mark.parametrize(
    ("given", "plateaus"),
    [
        ({"mode": "min", "threshold_mode": "abs"}, {6, 9}),
        ({"mode": "min", "threshold_mode": "rel", "cooldown": 1}, {6, 10}),
        ({"mode": "max", "threshold_mode": "abs"}, {3, 6, 10, 13}),
        ({"mode": "max", "threshold_mode": "rel"}, {3, 6, 10, 13}),
    ],
)
def test_the_plateaus_are_those_of_heats_own_tests(given, plateaus):
    detector, other = of.optim.DetectMetricPlateau(patience=2, **given), of.optim.DetectMetricPlateau()
    found = set()
    for i, value in enumerate(VALUES):
        if i == 5:
            other.set_state(detector.get_state())
            detector = other
        if detector.test_if_improving(torch.tensor(value) if i % 2 else value):
            found.add(i)
    assert found == plateaus
    assert detector.last_epoch == len(VALUES)
    detector.reset()
    assert (detector.best, detector.num_bad_epochs, detector.in_cooldown) == (detector.mode_worse, 0, False)
    assert detector.last_epoch == len(VALUES)


def test_what_a_plateau_does_not_take():
    for given in ({"mode": "up"}, {"threshold_mode": "torch"}):
        with pytest.raises(ValueError, match="must be"):
            of.optim.DetectMetricPlateau(**given)
    with pytest.raises(KeyError, match="the state of a plateau has"):
        of.optim.DetectMetricPlateau().set_state({"best": 1.0})
    detector = of.optim.DetectMetricPlateau(threshold=0.1)
    assert detector.is_better(0.8, 1.0)
    assert not detector.is_better(0.95, 1.0)
    assert not detector.is_better(-1.05, -1.0)


@pytest.mark.parametrize(("blocking", "has_model"), [(True, False), (False, False), (False, True)])
def test_replicas_that_average_gradients_do_what_one_process_does(blocking, has_model):
    for ours, theirs in on_ranks("clusters.data_parallel", blocking, has_model):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["all phases", "long waits"])
def test_daso_does_what_heat_does_also_after_a_checkpoint(name):
    wanted, schedule = clusters.simulated(name)
    # 5 epochs of 23 and 2 batches on, something is on its way.
    for rank, (got, own) in enumerate(on_ranks("clusters.by_class", name, True, 117)):
        assert own == schedule
        for here, there in zip(got, wanted, strict=True):
            torch.testing.assert_close(here, there[rank], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"local_optimizer": 3}, TypeError, "local_optimizer must be a torch.optim.Optimizer"),
        ({"comm": "world"}, TypeError, "comm must be a DeviceMesh"),
        ({"total_epochs": "a"}, TypeError, "total_epochs must be int"),
        ({"total_epochs": True}, TypeError, "total_epochs must be int"),
        ({"warmup_epochs": 0.5}, TypeError, "warmup_epochs must be int"),
        ({"cooldown_epochs": None}, TypeError, "cooldown_epochs must be int"),
        ({"max_global_skips": 1.0}, TypeError, "max_global_skips must be int"),
        ({"sending_chunk_size": "x"}, TypeError, "sending_chunk_size must be int"),
        ({"skip_reduction_factor": 0.5}, TypeError, "skip_reduction_factor must be int"),
        ({"local_skip_factor": 0.5}, TypeError, "local_skip_factor must be int"),
        ({"stability_level": 1}, TypeError, "stability_level must be float"),
        ({"verbose": 1}, TypeError, "verbose must be bool"),
        ({"use_mpi_groups": "no"}, TypeError, "use_mpi_groups must be bool"),
        ({"scheduler": 3}, TypeError, "scheduler must be a learning rate scheduler"),
        ({"downcast_type": "half"}, TypeError, "downcast_type must be dtype"),
        ({"downcast_type": torch.double}, ValueError, "downcast_type must be torch.bfloat16"),
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs must be at least 0, got -1"),
        ({"cooldown_epochs": -1}, ValueError, "cooldown_epochs must be at least 0"),
        ({"max_global_skips": -1}, ValueError, "max_global_skips must be at least 0"),
        ({"total_epochs": 0}, ValueError, "total_epochs must be at least 1"),
        ({"sending_chunk_size": 0}, ValueError, "sending_chunk_size must be at least 1"),
        ({"skip_reduction_factor": 0}, ValueError, "skip_reduction_factor must be at least 1"),
        ({"local_skip_factor": 0}, ValueError, "local_skip_factor must be at least 1"),
        ({}, ValueError, "comm=None needs torch.distributed"),
    ],
)
def test_daso_judges_its_arguments_as_heat_does(given, error, says):
    local = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(error, match=says):
        of.optim.DASO(**{"local_optimizer": local, "total_epochs": 10, **given})


def test_data_parallel_judges_its_arguments():
    local = of.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(TypeError, match="blocking must be bool, got 'yes'"):
        of.optim.DataParallelOptimizer(local, blocking="yes")
    with pytest.raises(TypeError, match=r"torch_optimizer must be a torch\.optim\.Optimizer"):
        of.optim.DataParallelOptimizer(of.sgd(0.1))
