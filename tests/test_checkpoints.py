"""State dicts: what they hold, what they survive, and what loading says of those that do not fit."""

import copy
import io

import pytest
import torch
from cases import CASES
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp

import optimfn as of


def model(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def train(net, optimizer, steps, first=0, **extra):
    for step in range(first, first + steps):
        net.zero_grad()
        x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step)).to(net[0].weight)
        (net(x) ** 2).mean().backward()
        optimizer.step(**extra)
    return [p.detach().clone() for p in net.parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


MUON = of.tree.label_by_path({"weight$": "muon"}, default="adamw")
FORMS = {
    "chain": lambda net: of.Optimizer(net, of.chain(of.clip_by_global_norm(1.0), of.adamw(0.05))),
    "schedule": lambda net: of.Optimizer(net, of.adamw(of.linear_schedule(0.1, 0.0, 20))),
    "factory": lambda net: of.Optimizer(net, of.adamw, learning_rate=0.05, weight_decay=0.1),
    "tensor": lambda net: of.Optimizer(net, of.adamw, learning_rate=torch.tensor(0.05, dtype=torch.float64)),
    "rprop": lambda net: of.Optimizer(net, of.rprop, learning_rate=0.05),  # the rate is in the first state
    "asgd": lambda net: of.Optimizer([{"params": net.parameters(), "lr": 0.01}], of.asgd(0.05)),
    "stateless": lambda net: of.Optimizer(net, of.sgd(0.1)),
    "no rate": lambda net: of.Optimizer(net, of.chain(of.trace(0.9), of.scale(-0.1))),
    "nested": lambda net: of.Optimizer(net, of.apply_if_finite(of.masked(of.adam(0.1), of.tree.is_matrix), 2)),
    "partition": lambda net: of.Optimizer(
        net,
        of.partition({"muon": of.torch_muon(0.02), "adamw": of.adamw(of.linear_schedule(0.1, 0.0, 20))}, MUON),
    ),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@every_form
def test_a_state_dict_holds_plain_tensors_and_survives_a_weights_only_file(form):
    net = model()
    optimizer = form(net)
    train(net, optimizer, 3)
    saved = optimizer.state_dict()
    for entries in saved["state"].values():
        assert all(type(key) is str and type(x) is torch.Tensor for key, x in entries.items())
    file = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": saved}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    twin = model(1)
    resumed = form(twin)
    twin.load_state_dict(loaded["model"])
    resumed.load_state_dict(loaded["optimizer"])
    assert equal(train(twin, resumed, 3, first=3), train(net, optimizer, 3, first=3))


@every_form
def test_what_is_handed_out_and_taken_in_is_not_shared(form):
    net = model()
    optimizer = form(net)
    train(net, optimizer, 2)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    train(net, optimizer, 2, first=2)
    optimizer.load_state_dict(saved)
    train(net, optimizer, 2, first=4)
    assert saved["state"].keys() == before["state"].keys()
    for number, entries in saved["state"].items():
        assert equal(entries.values(), before["state"][number].values())
    addresses = [x.data_ptr() for entries in saved["state"].values() for x in entries.values()]
    assert len(set(addresses)) == len(addresses)  # safetensors refuses tensors that share memory
    for group, was in zip(saved["param_groups"], before["param_groups"], strict=True):
        assert float(group["lr"]) == float(was["lr"])


MODES = {
    "plain": {},
    "flattened": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True, "cpu_offload": True},
}


@every_form
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_torch_distributed_checkpoint(form, mode):
    if form is FORMS["stateless"] and "full_state_dict" in mode:
        with pytest.raises(AssertionError, match="Expected device to be set"):  # so it is with torch.optim.SGD
            check_dcp(lambda net: torch.optim.SGD(net.parameters(), 0.1), mode)
        return
    check_dcp(form, mode)


def check_dcp(form, mode):
    options = dcp.StateDictOptions(**mode)
    net = model()
    optimizer = form(net)
    train(net, optimizer, 3)
    saved = dcp.get_optimizer_state_dict(net, optimizer, options=options)
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    twin = copy.deepcopy(net)
    resumed = form(twin)
    dcp.set_optimizer_state_dict(twin, resumed, torch.load(file, weights_only=True), options=options)
    assert equal(train(twin, resumed, 3, first=3), train(net, optimizer, 3, first=3))
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        mine, theirs = optimizer.state.get(p, {}), resumed.state.get(q, {})
        assert {k: x.dtype for k, x in mine.items()} == {k: x.dtype for k, x in theirs.items()}


@every_form
def test_the_rehearsal_of_torch_distributed_checkpoint_moves_nothing(form):
    net, twin = model(), model()
    optimizer, reference = form(net), form(twin)
    before = [p.detach().clone() for p in net.parameters()]
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    dcp.get_optimizer_state_dict(net, optimizer)
    assert equal(net.parameters(), before)
    assert [float(group["lr"]) for group in optimizer.param_groups] == rates
    for entries in optimizer.state.values():
        assert all(x.item() == 0 for key, x in entries.items() if key.endswith("count"))
    assert equal(train(net, optimizer, 4), train(twin, reference, 4))


def test_a_warm_up_from_zero_is_no_rehearsal():
    net, twin = model(), model()
    optimizer = of.Optimizer(net, of.adam(0.1))
    reference = torch.optim.Adam(twin.parameters(), lr=0.1)
    for each in (optimizer, reference):
        each.param_groups[0]["lr"] = 0.0
    train(net, optimizer, 1)
    train(twin, reference, 1)
    for each in (optimizer, reference):
        each.param_groups[0]["lr"] = 0.1
    a, b = train(net, optimizer, 3, first=1), train(twin, reference, 3, first=1)
    assert all(torch.allclose(x, y, rtol=1e-12, atol=1e-12) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_survive_in_low_precision_models(dtype):
    net = model(dtype=dtype)
    optimizer = of.Optimizer(net, of.adam(0.1))
    train(net, optimizer, 2)
    twin = model(dtype=dtype)
    resumed = of.Optimizer(twin, of.adam(0.1))
    saved = optimizer.state_dict()
    resumed.load_state_dict(saved)
    entries = resumed.state[twin[0].weight]
    assert [x.dtype for x in entries.values()] == [torch.int64, torch.float32, torch.float32]
    twin.load_state_dict(net.state_dict())
    assert equal(train(twin, resumed, 3, first=2), train(net, optimizer, 3, first=2))


def test_a_dtype_of_the_checkpoint_is_kept():
    net = model()
    optimizer = of.Optimizer(net, of.adam(0.1, mu_dtype=torch.float32))
    train(net, optimizer, 2)
    resumed = of.Optimizer(model(), of.adam(0.1))
    resumed.load_state_dict(optimizer.state_dict())
    assert {x.dtype for e in resumed.state.values() for k, x in e.items() if k.endswith("mu")} == {torch.float32}


class TestChangedChains:
    """A checkpoint of one chain, loaded into another."""

    def saved(self, tx=None):
        net = model()
        optimizer = of.Optimizer(net, tx or of.chain(of.scale_by_adam(), of.scale_by_learning_rate(0.1)))
        train(net, optimizer, 3)
        return net, optimizer.state_dict()

    def test_a_transformation_without_state_changes_nothing(self):
        _, saved = self.saved()
        optimizer = of.Optimizer(
            model(), of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1, weight_decay=0.1), of.scale(0.5))
        )
        report = optimizer.load_state_dict(saved)
        assert len(report.matching) == 12
        assert (report.missing, report.left_over) == ([], [])
        assert {e["scale_by_adam.count"].item() for e in optimizer.state.values()} == {3}

    def test_what_is_missing_and_left_over_is_listed(self):
        _, saved = self.saved(of.chain(of.ema(0.9), of.adam(0.1)))
        net = model()
        optimizer = of.Optimizer(net, of.chain(of.trace(0.9), of.adam(0.1)))
        train(net, optimizer, 1)
        before, state = [p.detach().clone() for p in net.parameters()], optimizer.state_dict()
        with pytest.raises(KeyError) as error:
            optimizer.load_state_dict(saved)
        assert error.value.args[0] == (
            "the state dict does not fit; missing: trace.trace of 4 parameters; "
            "left over: ema.count of 4 parameters, ema.ema of 4 parameters; "
            "matching: scale_by_adam.count of 4 parameters, scale_by_adam.mu of 4 parameters, "
            "scale_by_adam.nu of 4 parameters"
        )
        assert equal(net.parameters(), before)
        for number, entries in optimizer.state_dict()["state"].items():
            assert equal(entries.values(), state["state"][number].values())

    def test_without_strict_what_matches_is_kept(self):
        _, saved = self.saved(of.chain(of.ema(0.9), of.adam(0.1)))
        optimizer = of.Optimizer(model().named_parameters(), of.chain(of.trace(0.9), of.adam(0.1)))
        report = optimizer.load_state_dict(saved, strict=False)
        assert ("0.weight", "scale_by_adam.mu") in report.matching
        assert report.missing == [(f"{i}.{name}", "trace.trace") for i in (0, 2) for name in ("weight", "bias")]
        assert {key for _, key in report.left_over} == {"ema.count", "ema.ema"}
        for number, entries in optimizer.state_dict()["state"].items():
            assert torch.equal(entries["scale_by_adam.nu"], saved["state"][number]["scale_by_adam.nu"])
            assert entries["scale_by_adam.count"].item() == 3
            assert not entries["trace.trace"].any()

    def test_a_renamed_member_of_a_named_chain_is_told(self):
        def named(name):
            return of.named_chain((name, of.scale_by_adam()), ("rate", of.scale(-0.1)))

        net = model()
        optimizer = of.Optimizer(net, named("adam"))
        train(net, optimizer, 1)
        other = of.Optimizer(model(), named("moments"))
        with pytest.raises(KeyError, match=r"missing: moments\.scale_by_adam\.count of 4 .*left over: adam\.scale_by"):
            other.load_state_dict(optimizer.state_dict())

    def test_a_few_parameters_are_named(self):
        _, saved = self.saved()
        del saved["state"][1]["scale_by_adam.nu"]
        with pytest.raises(KeyError, match=r"missing: scale_by_adam\.nu of 0\.bias; left over: nothing"):
            of.Optimizer(model(), of.adam(0.1)).load_state_dict(saved)

    def test_another_shape_is_an_error(self):
        _, saved = self.saved()
        saved["state"][1]["scale_by_adam.nu"] = torch.ones(7)
        optimizer = of.Optimizer(model(), of.adam(0.1))
        for strict in (True, False):
            with pytest.raises(
                ValueError, match=r"scale_by_adam\.nu of parameter 0\.bias has shape \(7,\) instead of \(4,\)"
            ):
                optimizer.load_state_dict(saved, strict=strict)
        assert optimizer.state_dict()["state"] == {}

    def test_torch_speaks_of_groups_and_sizes(self):
        _, saved = self.saved()
        net = model()
        optimizer = of.Optimizer([{"params": net[0].parameters()}, {"params": net[2].parameters()}], of.adam(0.1))
        with pytest.raises(ValueError, match="different number of parameter groups"):
            optimizer.load_state_dict(saved)
        with pytest.raises(ValueError, match="doesn't match the size"):
            of.Optimizer(net[0], of.adam(0.1)).load_state_dict(saved)

    def test_two_members_of_a_kind_are_told_apart(self):
        tx = of.chain(of.trace(0.9), of.trace(0.5), of.scale(-0.1))
        net, saved = self.saved(tx)
        assert list(saved["state"][0]) == ["trace.trace", "trace_2.trace"]
        twin = copy.deepcopy(net)
        resumed, optimizer = of.Optimizer(twin, tx), of.Optimizer(net, tx)
        resumed.load_state_dict(saved)
        optimizer.load_state_dict(saved)
        assert equal(train(twin, resumed, 2, first=3), train(net, optimizer, 2, first=3))


@pytest.mark.parametrize(
    "second",
    [
        "inject_hyperparams(inner_factory=scale, static_args=(), hyperparam_dtype=None)",
        "inject_hyperparams(inner_factory=functools.partial(<function f at 0x7f.1>), static_args=('a.b',))",
        "inject_hyperparams(\n    inner_factory=adam(b1=0.9),\n    static_args=(),\n)_2",
    ],
)
@pytest.mark.parametrize("label", ["", "weights."])
def test_checkpoints_of_0_1_0_held_the_repr_of_injected_factories(label, second):
    tx = of.chain(of.inject_hyperparams(of.scale_by_adam)(b1=0.8), of.inject_hyperparams(of.scale)(step_size=-0.1))
    tx = of.partition({"weights": tx}, "weights") if label else tx
    net = model()
    optimizer = of.Optimizer(net, tx)
    train(net, optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    first = "inject_hyperparams(inner_factory=scale_by_adam, static_args=(), hyperparam_dtype=None)"
    for number, entries in saved["state"].items():
        old = {key.replace("inject_hyperparams_2", second): x for key, x in entries.items()}
        old = {key.replace("inject_hyperparams.", f"{first}."): x for key, x in old.items()}
        assert all(key.startswith(label + "inject_hyperparams(") for key in old)
        saved["state"][number] = old
    twin = copy.deepcopy(net)
    resumed = of.Optimizer(twin, tx)
    assert resumed.load_state_dict(saved).left_over == []
    assert equal(train(twin, resumed, 2, first=3), train(net, optimizer, 2, first=3))


def test_names_labels_and_flags_stay_those_of_the_optimizer():
    net, twin = model(), model()
    optimizer = of.Optimizer(net.parameters(), of.adam(0.1))
    train(net, optimizer, 1)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["maximize"]
        group["betas"] = list(group.get("betas", (0, 0)))
    resumed = of.Optimizer(twin.named_parameters(), of.adam, learning_rate=0.1)
    resumed.load_state_dict(saved)
    group = resumed.param_groups[0]
    assert group["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert group["maximize"] is False
    assert group["betas"] == (0, 0)


def test_hooks_see_and_change_state_dicts():
    net, seen = model(), []
    optimizer = of.Optimizer(net, of.adam(0.1))
    train(net, optimizer, 1)
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, sd: {**sd, "mine": 1})
    saved = optimizer.state_dict()
    assert saved["mine"] == 1

    def double(_, sd):
        state = {n: {**e, "scale_by_adam.mu": 2 * e["scale_by_adam.mu"]} for n, e in sd["state"].items()}
        return {**sd, "state": state}

    optimizer.register_load_state_dict_pre_hook(double)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("post"))
    optimizer.load_state_dict(saved)
    assert seen == ["pre", "post"]
    assert torch.equal(optimizer.state[net[0].weight]["scale_by_adam.mu"], 2 * saved["state"][0]["scale_by_adam.mu"])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_rule_resumes_bit_for_bit(case):
    if case.name.startswith("minimize_by_lbfgs"):
        pytest.skip("steps with a closure, see test_contract.py")
    net = model()
    optimizer = of.Optimizer(net, case.plain())
    train(net, optimizer, 3, **case.extra)
    twin = copy.deepcopy(net)
    resumed = of.Optimizer(twin, case.plain())
    resumed.load_state_dict(optimizer.state_dict())
    assert equal(train(twin, resumed, 3, 3, **case.extra), train(net, optimizer, 3, 3, **case.extra))


def test_named_parameters_load_by_name_in_any_order():
    """Of equal shapes, where an order by position would go wrong without a word."""
    pairs = [(name, torch.nn.Parameter(torch.zeros(2))) for name in "abc"]
    optimizer = of.Optimizer(pairs, of.adamw(0.1))
    for k, (_, p) in enumerate(pairs):
        p.grad = torch.full((2,), float(k))
    optimizer.step()
    again = of.Optimizer(pairs[::-1], of.adamw(0.1))
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["param_names"] == ["c", "b", "a"]
    for _, p in pairs:
        of.tree.map(lambda x, y: torch.testing.assert_close(x, y, rtol=0, atol=0), again.state[p], optimizer.state[p])
    other = of.Optimizer([("d", pairs[0][1]), *pairs[1:]], of.adamw(0.1))
    with pytest.raises(ValueError, match=r"parameters named \['a'\] where this optimizer has \['d'\]; rename"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state
