"""Four who come here for the first time, each with a script written from README, Quickstart and guides alone."""

import io

import torch
from torch import nn
from torch.nn.functional import mse_loss

import optimfn as of

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(64, 5, generator=GENERATOR)
Y = X.sum(1, keepdim=True).sin()


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))


def test_one_who_comes_from_optax():
    model = make_model()
    params = {name: p.detach() for name, p in model.named_parameters()}
    schedule = of.warmup_cosine_decay_schedule(0.0, 1e-2, 5, 60)
    tx = of.chain(of.clip_by_global_norm(1.0), of.adamw(schedule, weight_decay=1e-3, mask=of.tree.is_matrix))

    def loss_fn(params, x, y):
        return mse_loss(torch.func.functional_call(model, params, x), y)

    first, state = loss_fn(params, X, Y), tx.init(params)
    for _ in range(60):
        grads, loss = torch.func.grad_and_value(loss_fn)(params, X, Y)
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
    assert loss < 0.9 * first
    file = io.BytesIO()
    torch.save(of.state_dict(state), file)
    file.seek(0)
    again = of.load_state_dict(tx.init(params), torch.load(file, weights_only=True))
    grads = torch.func.grad(loss_fn)(params, X, Y)
    for one, other in zip(*(of.tree.leaves(tx.update(grads, s, params)) for s in (state, again)), strict=True):
        assert torch.equal(one, other)
    tuned = of.inject_hyperparams(of.adam)(learning_rate=1e-2)
    assert tuned.init(params).hyperparams["learning_rate"] == 1e-2


def test_one_who_comes_from_torch():
    model = make_model()
    rest, heads = [*model[0].parameters()], [*model[2].parameters()]
    groups = [{"params": rest}, {"params": heads, "lr": 3e-2}]
    opt = of.Optimizer(groups, of.adamw, learning_rate=1e-2, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 40)
    first = mse_loss(model(X), Y).item()
    for _ in range(40):
        opt.zero_grad()
        loss = mse_loss(model(X), Y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        scheduler.step()
    assert loss < 0.9 * first
    assert opt.param_groups[1]["lr"] < 3e-2
    saved, twin = opt.state_dict(), make_model()
    twin.load_state_dict(model.state_dict())
    own = [{"params": [*twin[0].parameters()]}, {"params": [*twin[2].parameters()], "lr": 3e-2}]
    again = of.Optimizer(own, of.adamw, learning_rate=1e-2, weight_decay=1e-3)
    again.load_state_dict(saved)
    for net, optimizer in ((model, opt), (twin, again)):
        optimizer.zero_grad()
        mse_loss(net(X), Y).backward()
        optimizer.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    drop_in = of.optim.AdamW(twin.parameters(), lr=1e-3)
    drop_in.step()


def test_a_researcher():
    @of.factory
    def scale_by_signed_root(decay=0.9):
        def init(params):
            return {"mean": of.tree.zeros_like(params)}

        def update(updates, state, params=None, **extra):
            mean = of.tree.lerp(state["mean"], updates, 1.0 - decay)
            roots = of.tree.map(lambda m: torch.sign(m) * m.abs().sqrt(), mean)
            return roots, {"mean": of.tree.carry(mean, state["mean"])}

        return of.GradientTransformation(init, update)

    of.testing.check(scale_by_signed_root())
    rates = torch.logspace(-3, -1, 4)

    def rule(learning_rate):
        return of.chain(scale_by_signed_root(), of.scale_by_learning_rate(learning_rate))

    tx, params = of.stacked(rule, learning_rate=rates), {"w": torch.ones(4, 3)}
    step, state = of.make_step(tx), tx.init(params)
    for _ in range(10):
        params, state = step(params, state, of.tree.map(lambda p: 2 * p, params))
    assert (params["w"][0] > params["w"][2]).all()

    def after(rate):
        w, own = torch.ones(3), rule(rate)
        state = own.init(w)
        for _ in range(3):
            updates, state = own.update(2 * w, state, w)
            w = of.apply_updates(w, updates)
        return w.square().sum()

    assert torch.func.grad(after)(torch.tensor(0.1)) < 0


def test_a_maintainer():
    model = make_model()
    opt = of.Optimizer(model, of.chain(of.clip_by_global_norm(1.0), of.adamw(1e-3)))
    mse_loss(model(X), Y).backward()
    opt.step()
    assert "clip_by_global_norm" in repr(opt)
    params = {name: p.detach() for name, p in model.named_parameters()}
    tx = of.quantize_state(of.adamw(1e-3), min_size=1)
    assert "companded8" in repr(tx)
    assert "uint8" in str(of.describe(tx, params))
    step = of.make_step(tx)
    params, state = step(params, tx.init(params), of.tree.map(torch.ones_like, params))
    assert step.explain()
    assert of.tree.get(state, "mu") is not None
    assert {spec.kind for spec in of.tree.leaves(of.state_spec(of.adamw(1e-3), params))} == {"param", "replicated"}
    assert tx.replace(format="fp8") != tx
