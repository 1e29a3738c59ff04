"""Groups of one optimizer: what they share, what keeps them apart, and groups made by labels."""

import copy
import pickle

import pytest
import torch
from torch import nn

import optimfn as of


def model(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return net


def backward(net, seed):
    net.zero_grad()
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    (net(x) ** 2).sum().backward()


def train(net, optimizer, steps, first=0, scheduler=None):
    for step in range(first, first + steps):
        backward(net, step)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return [p.detach().clone() for p in net.parameters()]


def pure(net, tx, steps, first=0, state=None):
    """The parameters after steps of the pure transformation on all of them as one tree."""
    params = {name: p.detach().clone() for name, p in net.named_parameters()}
    state = tx.init(params) if state is None else state
    for step in range(first, first + steps):
        backward(net, step)
        grads = {name: p.grad.clone() for name, p in net.named_parameters()}
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.copy_(params[name])
    return list(params.values())


def close(a, b, tolerance=1e-12):
    return all(torch.allclose(x, y, rtol=tolerance, atol=tolerance) for x, y in zip(a, b, strict=True))


def halves(net, **second):
    return [{"params": net[0].parameters()}, {"params": net[2].parameters(), **second}]


def clipped(net, optimizer, steps):
    """torch's way of clipping the norm of all groups."""
    for step in range(steps):
        backward(net, step)
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


class TestCoupling:
    def test_a_global_norm_is_that_of_all_groups(self):
        ours, theirs = model(), model()
        tx = of.chain(of.clip_by_global_norm(0.5), of.adamw(0.05, weight_decay=0.1))
        optimizer = of.Optimizer(halves(ours, lr=0.01), tx)
        reference = torch.optim.AdamW(halves(theirs, lr=0.01), lr=0.05, weight_decay=0.1)
        assert close(train(ours, optimizer, 8), clipped(theirs, reference, 8), 1e-6)  # torch adds 1e-6 to the norm

    def test_also_inside_a_factory_and_under_its_own_hyperparameter(self):
        @of.factory
        def clipped_adamw(learning_rate, max_norm=1.0, weight_decay=0.0):
            return of.chain(of.clip_by_global_norm(max_norm), of.adamw(learning_rate, weight_decay=weight_decay))

        ours, theirs = model(), model()
        groups = halves(ours, weight_decay=0.3)
        optimizer = of.Optimizer(groups, clipped_adamw, learning_rate=0.05, max_norm=0.5)
        reference = torch.optim.AdamW(halves(theirs, weight_decay=0.3), lr=0.05, weight_decay=0.0)
        assert close(train(ours, optimizer, 8), clipped(theirs, reference, 8), 1e-6)

    def test_groups_that_differ_in_the_hyperparameter_of_a_norm_have_norms_of_their_own(self):
        net, twin = model(), model()
        optimizer = of.Optimizer(halves(net, max_norm=0.1), capped, learning_rate=0.1, max_norm=0.2)
        a = train(net, optimizer, 1)
        backward(twin, 0)
        for half, norm in ((twin[0], 0.2), (twin[2], 0.1)):
            nn.utils.clip_grad_norm_(half.parameters(), norm)
        torch.optim.SGD(twin.parameters(), 0.1).step()
        assert close(a, [p.detach() for p in twin.parameters()], 1e-6)

    def test_a_hyperparameter_may_come_to_differ_at_any_time(self):
        ours, theirs = model(), model()
        optimizer = of.Optimizer(halves(ours), of.adamw, learning_rate=0.05, weight_decay=0)
        reference = torch.optim.AdamW(halves(theirs), lr=0.05, weight_decay=0.0)
        assert close(train(ours, optimizer, 3), train(theirs, reference, 3))
        optimizer.param_groups[1]["weight_decay"] = reference.param_groups[1]["weight_decay"] = 0.5
        assert close(train(ours, optimizer, 3, first=3), train(theirs, reference, 3, first=3))
        optimizer.param_groups[1]["weight_decay"] = reference.param_groups[1]["weight_decay"] = 0.0
        assert close(train(ours, optimizer, 3, first=6), train(theirs, reference, 3, first=6))

    def test_a_rule_without_record_sees_all_groups_where_it_cannot_hold_their_numbers(self):
        def update(updates, state, params=None, **extra):
            norm = of.tree.norm(updates)
            return of.tree.map(lambda u: u / norm, updates), state

        rule = of.GradientTransformation(lambda params: of.EmptyState(), update)
        net, twin = model(), model()
        optimizer = of.Optimizer(halves(net, lr=0.01), of.chain(rule, of.sgd(0.1)))
        a = train(net, optimizer, 1)
        backward(twin, 0)
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        torch.optim.SGD(halves(twin, lr=0.01), 0.1).step()
        assert close(a, [p.detach() for p in twin.parameters()], 1e-6)

    def test_one_group_equals_the_pure_rule_bit_for_bit(self):
        tx = of.chain(of.clip_by_global_norm(0.5), of.apply_if_finite(of.lion(0.01, weight_decay=0.1), 3))
        ours, theirs = model(), model()
        assert close(train(ours, of.Optimizer(ours, tx), 5), pure(theirs, tx, 5), 0.0)


@of.factory
def capped(learning_rate, max_norm):
    """A norm and a rate."""
    return of.chain(of.clip_by_global_norm(max_norm), of.sgd(learning_rate))


class TestLaterGroups:
    @pytest.mark.parametrize("resumed", [False, True])
    def test_a_group_added_later_starts_at_step_one(self, resumed):
        ours, theirs = model(), model()
        optimizer = of.Optimizer(ours[0].parameters(), of.adam(0.1))
        reference = torch.optim.Adam(theirs[0].parameters(), lr=0.1)
        train(ours, optimizer, 3)
        train(theirs, reference, 3)
        optimizer.add_param_group({"params": ours[2].parameters()})
        reference.add_param_group({"params": theirs[2].parameters()})
        assert close(train(ours, optimizer, 2, first=3), train(theirs, reference, 2, first=3))
        if resumed:
            fresh = of.Optimizer(halves(ours), of.adam(0.1))
            fresh.load_state_dict(optimizer.state_dict())
            optimizer = fresh
        assert close(train(ours, optimizer, 3, first=5), train(theirs, reference, 3, first=5))
        counts = {int(entries["scale_by_adam.count"]) for entries in optimizer.state.values()}
        assert counts == {5, 8}

    def test_loading_an_earlier_checkpoint_over_a_later_state(self):
        net = model()
        optimizer = of.Optimizer(halves(net), of.adam(0.1))
        train(net, optimizer, 2)
        saved, at = optimizer.state_dict(), copy.deepcopy(net.state_dict())
        wanted = train(net, optimizer, 4, first=2)
        net.load_state_dict(at)
        optimizer.load_state_dict(saved)
        assert close(train(net, optimizer, 4, first=2), wanted, 0.0)

    def test_parameters_of_a_group_may_be_exchanged(self):
        net, other = model(), model(1)
        optimizer = of.Optimizer(net.parameters(), of.sgd(0.1))
        train(net, optimizer, 1)
        optimizer.param_groups[0]["params"] = list(other.parameters())
        twin = model(1)
        assert close(train(other, optimizer, 1), train(twin, torch.optim.SGD(twin.parameters(), 0.1), 1))


MUON = of.tree.label_by(lambda p: "muon" if p.ndim == 2 else "adamw")


def hidden():
    return of.partition(
        {"muon": of.torch_muon(0.02, weight_decay=0.1), "adamw": of.adamw(0.01, weight_decay=0.2)}, MUON
    )


class TestPartition:
    def test_each_label_is_a_group_with_its_hyperparameters(self):
        optimizer = of.Optimizer(model(), of.chain(of.clip_by_global_norm(0.5), hidden()))
        muon, adamw = optimizer.param_groups
        assert (muon["label"], muon["param_names"]) == ("muon", ["0.weight", "2.weight"])
        assert (adamw["label"], adamw["param_names"]) == ("adamw", ["0.bias", "2.bias"])
        assert {k: muon[k] for k in ("lr", "beta", "eps", "weight_decay")} == {
            "lr": 0.02,
            "beta": 0.95,
            "eps": 1e-7,
            "weight_decay": 0.1,
        }
        assert {k: adamw[k] for k in ("lr", "b1", "b2", "weight_decay", "betas")} == {
            "lr": 0.01,
            "b1": 0.9,
            "b2": 0.999,
            "weight_decay": 0.2,
            "betas": (0.9, 0.999),
        }

    def test_it_is_the_pure_rule(self):
        tx = of.chain(of.clip_by_global_norm(0.5), hidden(), of.scale(0.5))
        ours, theirs = model(), model()
        assert close(train(ours, of.Optimizer(ours, tx), 6), pure(theirs, tx, 6))

    def test_norms_within_a_label_are_those_of_the_label(self):
        rules = {name: of.chain(of.clip_by_global_norm(0.5), of.sgd(0.1)) for name in ("muon", "adamw")}
        tx = of.partition(rules, MUON)
        ours, theirs = model(), model()
        assert close(train(ours, of.Optimizer(ours, tx), 3), pure(theirs, tx, 3))

    def test_partitions_nest(self):
        first = of.tree.label_by_path({r"^0\.": "first"}, default="second")
        inner = of.partition({"first": of.sgd(0.1), "second": of.adam(0.2)}, first)
        tx = of.partition({"muon": inner, "adamw": of.adamw(0.01)}, MUON)
        ours, theirs = model(), model()
        optimizer = of.Optimizer(ours, tx)
        assert [group["label"] for group in optimizer.param_groups] == ["muon.first", "muon.second", "adamw"]
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.01]
        assert close(train(ours, optimizer, 4), pure(theirs, tx, 4))

    def test_schedulers_drive_every_label(self):
        ours, theirs = model(), model()
        optimizer = of.Optimizer(ours, hidden())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda t: 1 / (1 + t), lambda t: 0.9**t])
        muon = [p for p in theirs.parameters() if p.ndim == 2]
        rest = [p for p in theirs.parameters() if p.ndim != 2]
        first = torch.optim.Muon(muon, lr=0.02, weight_decay=0.1)
        second = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.2)
        schedulers = [
            torch.optim.lr_scheduler.LambdaLR(first, lambda t: 1 / (1 + t)),
            torch.optim.lr_scheduler.LambdaLR(second, lambda t: 0.9**t),
        ]
        for step in range(6):
            train(ours, optimizer, 1, first=step, scheduler=scheduler)
            optimizer.param_groups[1]["weight_decay"] = second.param_groups[0]["weight_decay"] = 0.1 * step
            backward(theirs, step)
            for each, its in zip((first, second), schedulers, strict=True):
                each.step()
                its.step()
        # The step of Muon is computed in bfloat16, and torch rounds it with its rate.
        assert close(ours.parameters(), theirs.parameters(), 2e-3)

    @pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
    def test_one_state_dict_resumes_all(self, how):
        net = model()
        optimizer = of.Optimizer(net, hidden())
        train(net, optimizer, 3)
        if how == "state_dict":
            twin = copy.deepcopy(net)
            resumed = of.Optimizer(twin, hidden())
            resumed.load_state_dict(optimizer.state_dict())
        else:
            labels = of.tree.label_by_path({"weight$": "muon"}, default="adamw")
            net = model()
            optimizer = of.Optimizer(net, of.partition({"muon": of.torch_muon(0.02), "adamw": of.adamw(0.01)}, labels))
            train(net, optimizer, 3)
            both = (net, optimizer)
            twin, resumed = copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
        assert close(train(twin, resumed, 3, first=3), train(net, optimizer, 3, first=3), 0.0)
        keys = {key for entries in optimizer.state.values() for key in entries}
        assert keys == {
            "muon.ema.count",
            "muon.ema.ema",
            "adamw.scale_by_adam.count",
            "adamw.scale_by_adam.mu",
            "adamw.scale_by_adam.nu",
        }

    def test_given_groups_are_split_too(self):
        ours, theirs = model(), model()
        rules = {"muon": of.adam(0.1), "adamw": of.sgd(0.2)}
        optimizer = of.Optimizer(halves(ours, lr=0.01), of.partition(rules, MUON))
        assert [(g["label"], g["lr"]) for g in optimizer.param_groups] == [
            ("muon", 0.1),
            ("adamw", 0.2),
            ("muon", 0.01),
            ("adamw", 0.01),
        ]
        adam = torch.optim.Adam([{"params": [theirs[0].weight]}, {"params": [theirs[2].weight], "lr": 0.01}], lr=0.1)
        sgd = torch.optim.SGD([{"params": [theirs[0].bias]}, {"params": [theirs[2].bias], "lr": 0.01}], lr=0.2)
        train(ours, optimizer, 4)
        for step in range(4):
            backward(theirs, step)
            adam.step()
            sgd.step()
        assert close(ours.parameters(), theirs.parameters())

    def test_schedules_of_labels_show_their_values(self):
        rules = {"muon": of.sgd(of.linear_schedule(1.0, 0.0, 10)), "adamw": of.adam(of.constant_schedule(0.1))}
        net = model()
        optimizer = of.Optimizer(net, of.partition(rules, MUON))
        train(net, optimizer, 3)
        assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.8, 0.1])

    def test_names_that_two_modules_share(self):
        net = model()
        groups = [{"params": list(net[0].named_parameters())}, {"params": list(net[2].named_parameters())}]
        optimizer = of.Optimizer(groups, of.adam(0.1))
        twin = model()
        reference = torch.optim.Adam(twin.parameters(), lr=0.1)
        assert close(train(net, optimizer, 3), train(twin, reference, 3))


class TestHyperparameters:
    def test_betas_and_b1_are_the_same_number(self):
        net = model()
        optimizer = of.Optimizer(halves(net, betas=(0.5, 0.9)), of.adamw, learning_rate=0.1, b1=0.8)
        first, second = optimizer.param_groups
        assert (first["b1"], first["betas"]) == (0.8, (0.8, 0.999))
        assert (second["b1"], second["b2"], second["betas"]) == (0.5, 0.9, (0.5, 0.9))
        first["b1"] = 0.7
        second["betas"] = (0.6, 0.9)
        train(net, optimizer, 1)
        assert (first["betas"], second["b1"]) == ((0.7, 0.999), 0.6)
        first["b1"], first["betas"] = 0.1, (0.2, 0.999)
        with pytest.raises(ValueError, match=r"b1, b2 were set to \(0.1, 0.999\) and betas to \(0.2, 0.999\)"):
            train(net, optimizer, 1)

    @pytest.mark.parametrize("cycle", ["OneCycleLR", "CyclicLR"])
    @pytest.mark.parametrize(
        ("make", "torch_class"),
        [
            (lambda p: of.Optimizer(p, of.adamw, learning_rate=0.1, weight_decay=1e-2), torch.optim.AdamW),
            (lambda p: of.Optimizer(p, of.sgd, learning_rate=0.1, momentum=0.9), torch.optim.SGD),
        ],
    )
    def test_schedulers_cycle_betas_and_momentum(self, cycle, make, torch_class):
        def scheduler(optimizer):
            if cycle == "OneCycleLR":
                return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
            return torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, step_size_up=4)

        ours, theirs = model(), model()
        momentum = {"momentum": 0.9} if torch_class is torch.optim.SGD else {}
        optimizer, reference = make(ours.parameters()), torch_class(theirs.parameters(), lr=0.1, **momentum)
        a = train(ours, optimizer, 12, scheduler=scheduler(optimizer))
        b = train(theirs, reference, 12, scheduler=scheduler(reference))
        assert close(a, b)

    def test_a_tensor_given_to_several_groups_is_not_shared(self):
        ours, theirs = model(), model()
        rate = torch.tensor(0.1, dtype=torch.float64)
        optimizer = of.Optimizer(halves(ours), of.sgd(rate))
        reference = torch.optim.SGD(halves(theirs), lr=0.1)
        a = train(ours, optimizer, 3, scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
        b = train(theirs, reference, 3, scheduler=torch.optim.lr_scheduler.ExponentialLR(reference, 0.5))
        assert close(a, b)

    def test_wrong_numbers_in_a_group_are_refused(self):
        with pytest.raises(ValueError, match=r"b1 must be in \[0, 1\), got 2.0"):
            of.Optimizer(halves(model(), b1=2.0), of.adamw, learning_rate=0.1)
        with pytest.raises(ValueError, match=r"a group has lr=0\.1, but the schedule linear_schedule"):
            of.Optimizer(halves(model(), lr=0.1), of.sgd(of.linear_schedule(1.0, 0.0, 10)))

    @pytest.mark.parametrize("is_begun", [False, True])
    @pytest.mark.parametrize(
        ("key", "wrong"),
        [("lr", "0.1"), ("lr", None), ("lr", [0.1]), ("lr", torch.ones(2)), ("weight_decay", "much"), ("betas", 0.9)],
    )
    def test_what_is_no_number_is_named_and_nothing_is_written(self, key, wrong, is_begun):
        net = model()
        optimizer = of.Optimizer(net, of.adamw, learning_rate=0.1)
        train(net, optimizer, is_begun)
        old, optimizer.param_groups[0][key] = optimizer.param_groups[0][key], wrong
        before = [p.detach().clone() for p in net.parameters()]
        with pytest.raises((TypeError, ValueError), match=f"{key} of a group must be"):
            train(net, optimizer, 1)
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
        optimizer.param_groups[0][key] = old
        train(net, optimizer, 1)

    def test_an_overruled_schedule_goes_on_after_the_error(self):
        net = model()
        optimizer = of.Optimizer(net, of.sgd(of.linear_schedule(1.0, 0.0, 10)))
        train(net, optimizer, 2)
        optimizer.param_groups[0]["lr"].mul_(0.5)  # as schedulers write into tensors
        with pytest.raises(ValueError, match="lr was set to tensor"):
            train(net, optimizer, 1)
        train(net, optimizer, 1, first=2)
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.8)

    def test_a_schedule_may_return_plain_numbers(self):
        net, twin = model(), model()
        optimizer = of.Optimizer(net, of.sgd(lambda count: 0.25))
        assert optimizer.param_groups[0]["lr"] == 0.25
        assert close(train(net, optimizer, 2), train(twin, torch.optim.SGD(twin.parameters(), 0.25), 2))

    def test_maximize_goes_uphill(self):
        ours, theirs = model(), model()
        optimizer = of.Optimizer(halves(ours, maximize=True), of.adam(0.01))
        reference = torch.optim.Adam(halves(theirs, maximize=True), lr=0.01)
        assert close(train(ours, optimizer, 4), train(theirs, reference, 4))


@pytest.mark.parametrize(
    "make", [lambda groups: of.optim.AdamW(groups, 0.1), lambda groups: of.Optimizer(groups, of.sgd, learning_rate=0.1)]
)
@pytest.mark.parametrize("position", [0, 1])
def test_a_group_may_be_empty(make, position):
    params = [torch.nn.Parameter(torch.ones(3))]
    params[0].grad = torch.ones(3)
    groups = [{"params": params}]
    groups.insert(position, {"params": []})
    optimizer = make(groups)
    for _ in range(2):
        optimizer.step()
    assert params[0].max() < 0.9
