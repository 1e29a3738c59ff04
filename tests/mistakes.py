"""What people do wrong, each with the words that must tell them: the argument, its value, and what to do instead."""

import torch
from torch import nn

import optimfn as of

SCHEDULE = of.cosine_decay_schedule(0.9, 10)


def trees():
    return {"w": torch.ones(3, 2), "b": torch.ones(2)}


def linear():
    return nn.Linear(3, 2)


def update(tx, params=None, grads=None, state=None, **extra):
    params = trees() if params is None else params
    grads = of.tree.map(torch.ones_like, params) if grads is None else grads
    return tx.update(grads, tx.init(params) if state is None else state, params, **extra)


def stepped(opt, model):
    model(torch.ones(1, 3)).sum().backward()
    opt.step()
    return opt


def with_loss(tx):
    model = linear()
    opt = of.Optimizer(model, tx)
    loss = model(torch.ones(1, 3)).sum()
    loss.backward()
    return opt, loss


ADAM = of.adam(1e-3)

CONSTRUCTION = {
    "a factory in a chain": (lambda: of.chain(of.clip(1.0), of.adam), "member 1", "function adam", r"call adam\("),
    "a factory's init": (lambda: of.adam.init(trees()), "adam", "not called", r"call adam\(learning_rate\)"),
    "a factory's update": (lambda: of.sgd.update(trees(), ()), "sgd", "not called", r"call sgd\("),
    "lr": (lambda: of.adam(lr=1e-3), "'lr'", "here learning_rate"),
    "betas": (lambda: of.adam(1e-3, betas=(0.9, 0.99)), "'betas'", "here b1 and b2"),
    "epsilon": (lambda: of.adam(1e-3, epsilon=1e-6), "'epsilon'", "here eps"),
    "momentum of Adam": (lambda: of.adam(1e-3, momentum=0.9), "'momentum'", "here b1"),
    "weight decay of Adam": (lambda: of.adam(1e-3, weight_decay=0.1), "'weight_decay'", "adamw"),
    "maximize": (lambda: of.adam(1e-3, maximize=True), "'maximize'", r"scale\(-1.0\)"),
    "foreach": (lambda: of.adam(1e-3, foreach=True), "'foreach'", "make_step or Optimizer"),
    "a slip in a name": (lambda: of.adamw(1e-3, wieght_decay=0.1), "'wieght_decay'", "did you mean weight_decay"),
    "no rate": (lambda: of.adam(), "learning_rate", r"Call adam\(learning_rate\)"),
    "a negative rate": (lambda: of.adam(-1e-3), "learning_rate", "-0.001", ">= 0"),
    "a rate of NaN": (lambda: of.adam(float("nan")), "learning_rate", "nan"),
    "an infinite rate": (lambda: of.adam(float("inf")), "learning_rate", "inf"),
    "a rate that is text": (lambda: of.adam("1e-3"), "learning_rate", "'1e-3'", "0.001"),
    "a rate of None": (lambda: of.adam(None), "learning_rate", "None", "number"),
    "a rate of True": (lambda: of.adam(True), "learning_rate", "True", "number"),
    "parameters for the rate": (lambda: of.adam(linear().parameters()), "learning_rate", "generator", r"tx.init\("),
    "a model for the rate": (lambda: of.adam(linear()), "learning_rate", "Linear", r"Optimizer\(params"),
    "a list of rates": (lambda: of.adam([1e-3]), "learning_rate", r"\[0.001\]", "partition"),
    "a vector of rates": (lambda: of.adam(torch.ones(2)), "learning_rate", r"shape \(2,\)", "stacked"),
    "a scheduler of torch": (
        lambda: of.adam(torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], 0.1), 1)),
        "learning_rate",
        "StepLR",
        "cosine_decay_schedule",
    ),
    "a schedule not called": (lambda: of.adam(of.linear_schedule), "linear_schedule", "not called"),
    "b1 of 1": (lambda: of.adam(1e-3, b1=1.0), "b1", r"\[0, 1\)", "1.0"),
    "b2 above 1": (lambda: of.adam(1e-3, b2=1.5), "b2", "1.5"),
    "a negative eps": (lambda: of.adam(1e-3, eps=-1), "eps", "-1"),
    "a schedule for b1": (lambda: of.adam(1e-3, b1=SCHEDULE), "b1", "cosine_decay", "inject_hyperparams.*b1=schedule"),
    "a schedule for a norm": (lambda: of.clip_by_global_norm(SCHEDULE), "max_norm", "inject_hyperparams"),
    "a negative norm": (lambda: of.clip_by_global_norm(-1.0), "max_norm", "-1.0"),
    "a norm that is text": (lambda: of.clip_by_global_norm("1"), "max_norm", "'1'", "1.0"),
    "a list in a chain": (lambda: of.chain([of.clip(1.0), ADAM]), "member 0", r"chain\(\*members\)"),
    "a number in a chain": (lambda: of.chain(ADAM, 0.1), "member 1", "0.1", r"scale\(0.1\)"),
    "None in a chain": (lambda: of.chain(None, ADAM), "member 0", "None", r"identity\(\)"),
    "a schedule in a chain": (lambda: of.chain(ADAM, SCHEDULE), "member 1", r"scale_by_learning_rate\(schedule\)"),
    "an optimizer in a chain": (
        lambda: of.chain(torch.optim.Adam(linear().parameters())),
        "member 0",
        r"optimfn.optim.Adam.transform",
    ),
    "decay that is text": (lambda: of.adamw(1e-3, weight_decay="0.1"), "weight_decay", "'0.1'", "0.1"),
    "negative decay": (lambda: of.adamw(1e-3, weight_decay=-0.1), "weight_decay", "-0.1"),
    "masked, swapped": (lambda: of.masked(of.tree.is_matrix, ADAM), "inner", "function is_matrix"),
    "partition, swapped": (lambda: of.partition({"w": "a"}, {"a": ADAM}), r"transforms\['w'\]", "'a'"),
    "partition of factories": (lambda: of.partition({"a": of.sgd}, "a"), r"transforms\['a'\]", r"call sgd\("),
    "partition without labels": (lambda: of.partition({"a": ADAM}), "param_labels", "Call partition"),
    "a name twice": (lambda: of.named_chain(("a", ADAM), ("a", ADAM)), "names", r"\['a', 'a'\]"),
    "no names": (lambda: of.named_chain(ADAM, ADAM), "named_chain", "pairs of a name and a member"),
    "no steps": (lambda: of.cosine_decay_schedule(0.1, 0), "decay_steps", ">= 1", "0"),
    "a warm-up that is too long": (lambda: of.warmup_cosine_decay_schedule(0.0, 0.1, 100, 50), "decay_steps", "50"),
    "negative steps": (lambda: of.linear_schedule(0.1, 0.0, -5), "transition_steps", "-5"),
    "an unknown argument to replace": (lambda: ADAM.replace(lr=0.1), "'lr'", "it has learning_rate"),
    "multi_steps of none": (lambda: of.multi_steps(ADAM, 0), "every_k_schedule", ">= 1", "0"),
    "multi_steps, swapped": (lambda: of.multi_steps(4, ADAM), "inner", "4", "GradientTransformation"),
    "stacked of a number": (lambda: of.stacked(3), "inner", "callable", "3"),
    "inject of a transformation": (lambda: of.inject_hyperparams(ADAM), "inner_factory", "callable", "adam"),
    "inject, not called": (lambda: of.inject_hyperparams(of.adam).init(trees()), "inject_hyperparams", "call it first"),
    "make_step of a factory": (lambda: of.make_step(of.adam), "tx", "function adam", r"call adam\("),
    "make_step of a model": (lambda: of.make_step(linear()), "tx", "Linear", "Optimizer"),
    "an unknown backend": (lambda: of.make_step(ADAM, backend="gpu"), "backend", "'gpu'", "'eager'"),
}

TREES = {
    "a model": (lambda: ADAM.init(linear()), "params", "Linear", r"dict\(module.named_parameters\(\)\)"),
    "a generator": (lambda: ADAM.init(linear().parameters()), "params", "generator", "or a list"),
    "numbers": (lambda: ADAM.init({"w": 1.0}), r"params\.w", r"float \(1.0\)", "torch.as_tensor"),
    "text": (lambda: ADAM.init({"w": torch.ones(2), "name": "x"}), r"params\.name", "'x'", "leave it out"),
    "whole numbers": (lambda: update(ADAM, {"w": torch.ones(3).long()}), r"\.w", "whole numbers", "masked"),
    "no parameters": (lambda: of.adamw(1e-3).update(trees(), of.adamw(1e-3).init(trees())), "needs the parameters"),
    "state and parameters swapped": (
        lambda: ADAM.update(trees(), trees(), ADAM.init(trees())),
        "order",
        "params is a state",
    ),
    "gradients and state swapped": (lambda: ADAM.update(ADAM.init(trees()), trees()), "order", "updates is a state"),
    "the state of another": (
        lambda: update(of.adamw(1e-3), state=of.sgd(0.1).init(trees())),
        "2 members",
        "its own init",
    ),
    "no state": (lambda: ADAM.update(trees(), None, trees()), "state is None", r"tx\.init\(params\)"),
    "the pair for the state": (lambda: update(ADAM, state=update(ADAM)), "pair", "unpack"),
    "a gradient too few": (lambda: update(ADAM, grads={"w": torch.ones(3, 2)}), "updates lacks b", "pass None"),
    "a gradient too many": (
        lambda: update(ADAM, grads={**trees(), "z": torch.ones(1)}),
        "updates has z",
        "params lacks",
    ),
    "a list of gradients": (lambda: update(ADAM, grads=[torch.ones(3, 2)]), "updates is a list", "params is a dict"),
    "the loss for gradients": (lambda: update(ADAM, grads=torch.ones(())), "updates is a tensor", "params is a dict"),
    "a transposed gradient": (
        lambda: update(ADAM, {"w": torch.ones(3, 2)}, {"w": torch.ones(2, 3)}),
        "of w",
        r"\(2, 3\)",
    ),
    "whole gradients": (lambda: update(ADAM, grads=of.tree.map(lambda x: x.long(), trees())), r"updates\.", "int64"),
    "complex gradients": (
        lambda: update(ADAM, grads=of.tree.map(lambda x: x.to(torch.complex64), trees())),
        r"updates\.",
        "complex64",
        "float32",
    ),
    "numbers for gradients": (
        lambda: update(ADAM, grads={"w": 1.0, "b": 2.0}),
        r"updates\.b",
        "2.0",
        "torch.as_tensor",
    ),
    "apply_updates of a pair": (lambda: of.apply_updates(trees(), update(ADAM)), "updates is a pair", "unpack"),
    "apply_updates with one too few": (lambda: of.apply_updates(trees(), {"w": torch.ones(3, 2)}), "updates lacks b"),
    "apply_updates of a model": (lambda: of.apply_updates(linear(), {}), "params", "Linear", "named_parameters"),
    "make_step, out of order": (
        lambda: of.make_step(ADAM)(ADAM.init(trees()), trees(), trees()),
        "order",
        r"step\(params, state, grads\)",
    ),
    "no loss for a search": (
        lambda: update(of.chain(of.sgd(0.1), of.scale_by_backtracking_linesearch(10))),
        "needs the loss",
        "value_fn=f",
    ),
    "no loss for Polyak": (lambda: update(of.polyak_sgd()), "needs the loss", "value=loss"),
    "a mask of text": (lambda: update(of.adamw(1e-3, mask="w")), "mask", "bools", "'w'"),
    "a mask of tensors": (
        lambda: update(of.adamw(1e-3, mask={"w": torch.tensor(True), "b": False})),
        "mask",
        "bools",
        "at w",
    ),
    "a mask of numbers": (lambda: update(of.adamw(1e-3, mask={"w": 1, "b": 0})), "mask", "bools", "at b"),
    "a mask of other names": (lambda: update(of.adamw(1e-3, mask={"w": True})), "mask is no prefix", r"\['w'\]"),
    "an unknown label": (
        lambda: update(of.partition({"a": ADAM}, {"w": "a", "b": "c"})),
        "b has the label 'c'",
        "only 'a'",
    ),
    "models that are not stacked": (
        lambda: update(of.stacked(of.adam, learning_rate=torch.ones(2))),
        "first axis of one length",
        r"\(3,\)",
    ),
}

NAMES = {
    "multi_transform": "partition",
    "MultiSteps": "multi_steps",
    "Adam": r"optimfn\.optim\.Adam.*optimfn\.adam",
    "LBFGS": r"optimfn\.lbfgs",
    "apply_update": "apply_updates",
    "softmax_cross_entropy": r"torch\.nn\.functional",
    "huber_loss": r"torch\.nn\.functional",
    "contrib": "top level",
    "tree_utils": r"optimfn\.tree",
    "tree_map": r"optimfn\.tree\.map",
    "clip_grad_norm_": "clip_by_global_norm",
    "adamww": "did you mean adamw",
    "cosine_decay": "did you mean cosine_decay_schedule",
    "GradientTransformationExtraArgs": "extra arguments",
    "reduce_on_plateau": "plateau",
}

STATEFUL = {
    "no transformation": (lambda: of.Optimizer(linear()), "tx", r"Optimizer\(params, of.adamw"),
    "swapped": (lambda: of.Optimizer(ADAM, linear()), "swapped", r"Optimizer\(params, tx\)"),
    "a factory without its rate": (lambda: of.Optimizer(linear(), of.adam), "learning_rate", r"adam\(learning_rate\)"),
    "lr for a factory": (lambda: of.Optimizer(linear(), of.adam, lr=1e-3), "'lr'", "here learning_rate"),
    "a slip in a name": (
        lambda: of.Optimizer(linear(), of.sgd, learning_rate=0.1, momentun=0.9),
        "'momentun'",
        "momentum",
    ),
    "numbers beside a transformation": (lambda: of.Optimizer(linear(), ADAM, b1=0.5), "b1", "factory", r"adam\("),
    "a class of torch": (lambda: of.Optimizer(linear(), torch.optim.Adam), "tx", r"of\.optim\.Adam\.transform"),
    "an optimizer of torch": (
        lambda: of.Optimizer(linear(), torch.optim.SGD(linear().parameters())),
        "tx",
        "SGD.transform",
    ),
    "no parameters": (lambda: of.Optimizer([], ADAM), "empty parameter list"),
    "one tensor": (lambda: of.Optimizer(torch.ones(3, requires_grad=True), ADAM), "params", "iterable"),
    "a name": (lambda: of.Optimizer("model", ADAM), "params", "'model'", "module"),
    "the loss for a closure": (
        lambda: (lambda opt, loss: opt.step(loss))(*with_loss(ADAM)),
        "closure",
        r"step\(value=loss\)",
    ),
    "no closure": (lambda: with_loss(of.lbfgs())[0].step(), "needs the loss", r"step\(closure\)"),
    "no state dict": (lambda: of.Optimizer(linear(), ADAM).load_state_dict({"a": 1}), "'state'", "'a'"),
    "no state dict at all": (lambda: of.optim.Adam(linear().parameters()).load_state_dict([1]), "state dict", r"\[1\]"),
}

WARNED = {
    "a pattern that matches nothing": (
        lambda: update(of.adamw(1e-3, mask=of.tree.mask_by_path("bais"))),
        "'bais' of tree.mask_by_path",
        "There are b, w",
    ),
    "a label's pattern that matches nothing": (
        lambda: (
            ADAM and update(of.partition({"a": ADAM, "b": ADAM}, of.tree.label_by_path({"bais": "a"}, default="b")))
        ),
        "'bais' of tree.label_by_path",
    ),
    "a predicate that chooses nothing": (
        lambda: update(of.masked(of.scale(2.0), of.tree.mask_by(lambda p: p.ndim > 5))),
        "chosen by mask_by",
    ),
    "a label that nothing has": (
        lambda: update(of.partition({"a": ADAM, "z": ADAM}, "a")),
        "label 'z' of partition",
    ),
    "the same behind Optimizer": (
        lambda: of.Optimizer(linear().parameters(), of.adamw(1e-3, mask=of.tree.mask_by_path("bias"))),
        "'bias' of tree.mask_by_path",
        "There are 0, 1",
    ),
    "no gradient": (lambda: update(ADAM, grads={"w": None, "b": None}), "no gradient", "backward"),
    "no gradient in step": (lambda: of.Optimizer(linear(), ADAM).step(), "no gradient", "backward"),
    "a slip in a group": (
        lambda: of.Optimizer([{"params": linear().parameters(), "learningrate": 1.0}], of.adam, learning_rate=1e-3),
        "learningrate=1.0",
        "did you mean lr",
    ),
}
