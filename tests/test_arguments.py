"""What the stateful world is given: every key of a group is honoured or refused, and what is mistaken is named."""

import copy
import threading

import pytest
import torch
from torch import nn

import optimfn as of


def parameters(count=2):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(4, generator=generator)) for _ in range(count)]


def give(params, step=0):
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


class TestGroups:
    @pytest.mark.parametrize(
        ("make", "key"),
        [
            (lambda group: of.Optimizer([group], of.adamw(1e-3)), "weight_decay"),
            (lambda group: of.Optimizer([group], of.adamw, learning_rate=1e-3), "learning_rate"),
            (lambda group: of.Optimizer([group], of.sgd, learning_rate=1e-3), "betas"),
            (lambda group: of.Optimizer([group], of.sgd, learning_rate=1e-3), "nesterov"),
            (lambda group: of.Optimizer([group], of.adamw, learning_rate=1e-3), "mask"),
        ],
    )
    def test_a_key_that_nothing_reads_is_refused_at_any_time(self, make, key):
        with pytest.raises(ValueError, match=key):
            make({"params": parameters(), key: 0.5})
        params = parameters()
        optimizer = make({"params": params})
        give(params)
        optimizer.step()
        optimizer.param_groups[0][key] = 0.5
        before = copy.deepcopy(params)
        with pytest.raises(ValueError, match=key):
            optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
        del optimizer.param_groups[0][key]
        optimizer.step()

    def test_keys_of_a_users_own_are_left_alone(self):
        params = parameters()
        optimizer = of.Optimizer([{"params": params, "name": "backbone"}], of.adam(0.1))
        for step in range(3):
            optimizer.param_groups[0]["scale_of_mine"] = step
            give(params, step)
            optimizer.step()
        assert optimizer.param_groups[0]["name"] == "backbone"

    def test_groups_assigned_anew_and_lists_edited_by_hand(self):
        ours, theirs = parameters(3), parameters(3)
        pairs = [
            (ours, of.Optimizer(ours[:2], of.adam, learning_rate=0.1)),
            (theirs, torch.optim.Adam(theirs[:2], lr=0.1)),
        ]
        for step in range(4):
            for params, optimizer in pairs:
                if step == 1:
                    optimizer.param_groups[0]["params"].append(params[2])
                elif step == 2:
                    first = optimizer.param_groups[0]
                    optimizer.param_groups = [
                        {**first, "params": params[:1]},
                        {**first, "params": params[1:], "lr": 0.01},
                    ]
                give(params, step)
                optimizer.step()
        assert all(torch.allclose(p, q, rtol=1e-5) for p, q in zip(ours, theirs, strict=True))

    def test_a_rate_of_one_element_is_a_rate(self):
        ours, theirs = parameters(), parameters()
        optimizer, reference = of.optim.SGD(ours, lr=torch.tensor([0.1])), torch.optim.SGD(theirs, lr=0.1)
        for params, each in ((ours, optimizer), (theirs, reference)):
            give(params)
            each.step()
        assert all(torch.allclose(p, q) for p, q in zip(ours, theirs, strict=True))

    def test_labels_need_not_be_strings(self):
        params = parameters()
        tx = of.partition({0: of.sgd(0.1), 1: of.adam(0.2)}, of.tree.label_by(lambda p: 0))
        optimizer = of.Optimizer(params, tx)
        assert optimizer.param_groups[0]["label"] == "0"
        give(params)
        optimizer.step()


class TestWords:
    def test_mistaken_arguments_are_named(self):
        params = parameters()
        with pytest.raises(TypeError, match="swapped"):
            of.Optimizer(of.adam(0.1), params)
        with pytest.raises(TypeError, match="swapped"):
            of.Optimizer(of.adam, params)
        for wrong in (torch.optim.Adam, of.optim.Adam):
            with pytest.raises(TypeError, match=r"an optimizer of torch\.optim; give of\.optim\.Adam\.transform"):
                of.Optimizer(params, wrong)
        optimizer = of.Optimizer(params, of.adamw, learning_rate=0.1)
        with pytest.raises(TypeError, match="Optimizer needs tx"):
            type(optimizer)(params, **optimizer.defaults)

    def test_a_rule_that_needs_the_loss_says_how_an_optimizer_hands_it_over(self):
        params = parameters()
        give(params)
        for tx in (of.lbfgs(), of.chain(of.sgd(0.1), of.plateau()), of.polyak_sgd()):
            with pytest.raises((TypeError, ValueError), match=r"in step\(closure\)"):
                of.Optimizer(params, tx).step()

    @pytest.mark.parametrize("backtracking", [False, True])
    def test_line_searches_take_a_closure(self, backtracking):
        p = nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
        search = of.chain(of.sgd(1.0), of.scale_by_backtracking_linesearch(20)) if backtracking else of.lbfgs()
        optimizer = of.Optimizer([p], search)

        def closure():
            optimizer.zero_grad()
            loss = (torch.tensor([1.0, 5.0]) * (p - 1) ** 2).sum()
            loss.backward()
            return loss

        for _ in range(40 if backtracking else 10):
            optimizer.step(closure)
        assert torch.allclose(p, torch.ones_like(p), atol=1e-3)


@pytest.mark.parametrize(
    "make", [lambda ps: of.optim.Adam(ps, lr=0.1), lambda ps: of.Optimizer(ps, of.adam(0.1))], ids=["drop-in", "ours"]
)
class TestMemory:
    def test_parameters_that_share_elements_are_refused_by_name(self, make):
        w = torch.randn(4)
        with pytest.raises(ValueError, match=r"parameters 0.* and 1.* share memory"):
            make([nn.Parameter(w), nn.Parameter(w)])
        with pytest.raises(ValueError, match="parameters head and tail share memory"):
            make([("head", nn.Parameter(w[:3])), ("tail", nn.Parameter(w[2:]))])
        optimizer = make([nn.Parameter(w)])
        with pytest.raises(ValueError, match="share memory"):
            optimizer.add_param_group({"params": [nn.Parameter(w.view(2, 2))]})
        assert len(optimizer.param_groups) == 1

    @pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
    def test_so_is_one_that_is_there_twice(self, make):
        p = nn.Parameter(torch.randn(4))
        with pytest.raises(ValueError, match="share memory"):
            make([p, p])

    def test_columns_of_one_storage_step_apart(self, make):
        whole = torch.randn(5, 4)
        ours = [nn.Parameter(whole[:, i]) for i in range(4)]
        theirs = [nn.Parameter(whole[:, i].clone()) for i in range(4)]
        optimizer, reference = make(ours), torch.optim.Adam(theirs, lr=0.1)
        for step in range(3):
            for params, each in ((ours, optimizer), (theirs, reference)):
                give(params, step)
                each.step()
        assert all(torch.allclose(p, q, rtol=1e-5) for p, q in zip(ours, theirs, strict=True))


def test_a_first_step_at_rate_zero_is_a_step():
    for make in (lambda ps: of.Optimizer(ps, of.adam, learning_rate=0.0), lambda ps: of.optim.Adam(ps, lr=0.0)):
        ours, theirs = parameters(1), parameters(1)
        for params, optimizer in ((ours, make(ours)), (theirs, torch.optim.Adam(theirs, lr=0.0))):
            params[0].grad = torch.zeros(4)
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.1
            params[0].grad = torch.ones(4)
            optimizer.step()
        assert torch.allclose(ours[0], theirs[0], rtol=1e-5)


def test_the_rate_inside_inject_hyperparams_is_live():
    (p,) = parameters(1)
    injected = of.inject_hyperparams(of.sgd)
    for tx, given in ((injected(learning_rate=0.1), {}), (injected, {"learning_rate": 0.1})):
        optimizer, before = of.Optimizer([p], tx, **given), p.detach().clone()
        for rate in (0.1, 1.0):
            assert "lr" in optimizer.param_groups[0]
            optimizer.param_groups[0]["lr"] = rate
            p.grad = torch.ones(4)
            optimizer.step()
        assert torch.allclose(before - p, torch.full((4,), 1.1))
        assert all("0x" not in key and "(" not in key for key in optimizer.state[p])


def test_the_rate_of_a_schedule_that_is_kept_keeps_its_value():
    params, seen = parameters(1), []
    optimizer = of.Optimizer(params, of.sgd(of.linear_schedule(1.0, 0.0, 10)))
    for step in range(3):
        give(params, step)
        optimizer.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert [float(rate) for rate in seen] == pytest.approx([1.0, 0.9, 0.8])


def test_threads_share_an_optimizer():
    net, errors = nn.Linear(8, 8), []
    optimizer = of.Optimizer(net, of.adam(1e-3))

    def work():
        try:
            for _ in range(20):
                for p in net.parameters():
                    p.grad = torch.randn_like(p)
                optimizer.step()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert int(optimizer.state[net.weight]["scale_by_adam.count"]) == 60


def test_a_sparse_rule_inside_a_chain_stays_sparse():
    table = nn.Embedding(100, 4, sparse=True)
    optimizer = of.Optimizer(table, of.chain(of.scale_by_sparse_adam(), of.scale(-0.1)))
    for rows in ([1, 2], [5]):
        optimizer.zero_grad()
        table(torch.tensor(rows)).sum().backward()
        before = table.weight.detach().clone()
        optimizer.step()
        assert (table.weight != before).any(1).nonzero().flatten().tolist() == rows


def test_gradients_are_left_unscaled_as_by_torchs_fused_classes():
    for make in (lambda ps: of.Optimizer(ps, of.adam(0.1)), lambda ps: torch.optim.Adam(ps, 0.1, fused=True)):
        params, scaler = parameters(1), torch.amp.GradScaler("cpu", init_scale=8.0)
        optimizer = make(params)
        scaler.scale(params[0].sum()).backward()
        scaler.step(optimizer)
        assert torch.equal(params[0].grad, torch.ones(4))


def test_muon_refuses_steps_as_torch():
    for kind in (torch.optim.Muon, of.optim.Muon):
        p = nn.Parameter(torch.ones(2, 2))
        p.grad = torch.ones(2, 2)
        with pytest.raises(ValueError, match="Number of steps must be less than 100"):
            kind([p], ns_steps=100).step()


def test_the_wider_dtype_of_a_loaded_moment_is_kept():
    params = parameters(1)
    give(params)
    optimizer = of.optim.Adam(params, lr=0.1)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    for key in ("exp_avg", "exp_avg_sq"):
        saved["state"][0][key] = saved["state"][0][key].bfloat16()
    optimizer.load_state_dict(saved)
    assert optimizer.state[params[0]]["exp_avg"].dtype == torch.float32


def test_a_tree_of_marks_sees_parameters_without_gradients():
    params = parameters(2)
    names = list(zip("ab", params, strict=True))
    optimizer = of.Optimizer(names, of.adamw(0.1, weight_decay=0.1, mask={"a": True, "b": False}))
    params[0].grad = torch.ones(4)
    before = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[1], before)
    assert not optimizer.state.get(params[1])
