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

CONSTRUCTION |= {
    "betas in a pair": (lambda: of.adamw(1e-3, (0.9, 0.99)), "b1", r"\(0.9, 0.99\)"),
    "a sum of transformations": (lambda: of.clip(1.0) + ADAM, r"chain\(first, second\)", "clip"),
    "a name for tx": (lambda: of.Optimizer(linear(), "adam"), "tx", "'adam'", "the factory, optimfn.adam"),
    "partition of a list": (lambda: of.partition([ADAM], "a"), "transforms", "dict from labels", "adam"),
    "a pattern that is none": (lambda: of.masked(ADAM, of.tree.mask_by_path(["w", "b"])), "pattern", "one|another"),
    "patterns in a list": (lambda: of.tree.label_by_path(["w"], default="a"), "patterns", "dict"),
    "a schedule in pieces, not called": (
        lambda: of.join_schedules([of.cosine_decay_schedule], []),
        r"schedules\[0\]",
        "not called",
    ),
    "pieces in a list": (lambda: of.piecewise_constant_schedule(1.0, [10]), "boundaries_and_scales", r"\[10\]", "dict"),
    "a schedule of nothing": (lambda: of.adam(lambda: 1e-3), "learning_rate", "function of the count", "<lambda>"),
    "T_max": (lambda: of.cosine_decay_schedule(0.1, T_max=10), "'T_max'", "here decay_steps"),
    "nesterov in words": (lambda: of.sgd(0.1, momentum=0.9, nesterov="yes"), "nesterov", "True or False", "'yes'"),
    "donate in words": (lambda: of.make_step(ADAM, donate="yes"), "donate", "True or False", "'yes'"),
    "names of torch for inject": (lambda: of.inject_hyperparams(of.adam)(lr=1e-3), "'lr'", "here learning_rate"),
    "an unknown static argument": (lambda: of.inject_hyperparams(of.adam, "beta1"), "static_args", "adam", "beta1"),
    "names of torch for stacked": (lambda: of.stacked(of.adam, lr=torch.ones(2)), "'lr'", "here learning_rate"),
    "rates in a list": (
        lambda: of.stacked(of.adam, learning_rate=[0.1, 0.2]),
        "learning_rate",
        "tensor",
        r"\[0.1, 0.2\]",
    ),
    "options of transform in order": (lambda: of.optim.AdamW.transform(1e-3), "AdamW.transform", "by name", "0.001"),
    "names of optax for a class": (lambda: of.optim.Adam([torch.ones(1)], learning_rate=1e-3), "learning_rate", "lr"),
    "one beta for a class": (lambda: of.optim.Adam([torch.ones(1)], betas=0.9), "betas", "0.9", "pair"),
    "a dtype by name": (lambda: of.adam(1e-3, mu_dtype="float16"), "mu_dtype", "torch.dtype", "'float16'"),
    "metrics of a transformation": (lambda: of.metrics(ADAM), "state", "adam", r"tx.init\(params\)"),
    "the state of a transformation in a file": (lambda: of.state_dict(ADAM), "state", "adam", "update|init"),
    "eval_params without tx": (lambda: of.eval_params(ADAM.init(trees()), trees()), "tx", "GradientTransformation"),
    "describe of a model": (lambda: of.describe(ADAM, linear()), "params", "Linear", "named_parameters"),
    "describe of an Optimizer": (lambda: of.describe(of.Optimizer(linear(), ADAM)), "tx", "its attribute tx"),
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

TREES |= {
    "no arguments to init": (lambda: ADAM.init(), "init", "'params'"),
    "no state in update": (lambda: ADAM.update(trees()), "update", "'state'"),
    "two arguments to a step": (lambda: of.make_step(ADAM)(trees(), trees()), "step", "'grads'"),
    "a mask of one leaf": (lambda: update(of.adamw(1e-3, mask=lambda p: p.ndim > 1)), "tree of all", "tree.mask_by"),
    "labels of one leaf": (lambda: update(of.partition({"a": ADAM}, lambda p: p.name)), "tree of all", "tree.label_by"),
    "labels in a list": (lambda: update(of.partition({"a": ADAM}, ["a", "a"])), "param_labels", "list", "dict"),
    "no labels": (lambda: update(of.partition({"a": ADAM}, None)), "param_labels", "None"),
    "a schedule without return": (lambda: update(of.adam(lambda count: None)), "schedule", "None", "return"),
    "a schedule of text": (lambda: update(of.adam(lambda count: "1")), "schedule", "'1'", "number"),
    "the count of a schedule as text": (lambda: SCHEDULE("3"), "count", "'3'", "number"),
    "a loss of text": (lambda: update(of.polyak_sgd(), value="1"), "value", "'1'", "loss"),
    "gradients for the loss": (lambda: update(of.polyak_sgd(), value=trees()), "value", "loss"),
    "no function for the loss": (lambda: update(of.lbfgs(), value=1.0, grad=trees(), value_fn=3), "value_fn", "3"),
    "gradients elsewhere": (
        lambda: update(ADAM, grads=of.tree.map(lambda x: x.to("meta"), trees())),
        "updates.b",
        "meta",
        "cpu",
    ),
    "gradients of torch.autograd.grad": (
        lambda: update(ADAM, grads=(torch.ones(3, 2), torch.ones(2))),
        "tuple of 2 tensors",
        r"dict\(zip\(params, grads\)\)",
    ),
    "gradients and the loss": (lambda: update(ADAM, grads=(trees(), torch.ones(()))), "grad_and_value", "unpack"),
    "the state of other parameters": (
        lambda: update(ADAM, {"x": torch.ones(2)}, state=ADAM.init(trees())),
        "other parameters",
        "b, w",
        "with x",
    ),
    "the state of other shapes": (
        lambda: update(ADAM, {"w": torch.ones(2)}, state=ADAM.init({"w": torch.ones(3)})),
        r"mu.w has shape \(3,\)",
        r"\(2,\)",
    ),
    "a state in a list": (lambda: update(ADAM, state=[1, 2]), "state", r"\[1, 2\]", "tx.init"),
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
    "a schedule for the rule": (
        lambda: of.Optimizer(linear().parameters(), of.linear_schedule(0.1, 0.0, 9)),
        "linear_schedule",
        "scale_by_learning_rate",
    ),
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

STATEFUL |= {
    "a dict": (lambda: of.Optimizer(dict(linear().named_parameters()), ADAM), "params is a dict", "named_parameters"),
    "modules": (lambda: of.Optimizer([linear(), linear()], ADAM), "params holds modules", "ModuleList"),
    "a schedule for tx": (
        lambda: of.Optimizer(linear(), SCHEDULE),
        "tx",
        "cosine",
        r"scale_by_learning_rate\(schedule",
    ),
    "a group without parameters": (lambda: of.Optimizer([{"lr": 0.1}], ADAM), "'params'", "lr"),
    "a rule in a group": (
        lambda: of.Optimizer([{"params": linear().parameters(), "tx": ADAM}], ADAM),
        "tx=adam",
        "partition",
    ),
    "a checkpoint of torch": (
        lambda: of.Optimizer(linear(), ADAM).load_state_dict(
            stepped(torch.optim.Adam((model := linear()).parameters()), model).state_dict()
        ),
        "exp_avg",
        r"optim\.convert",
    ),
}

# Attributes that a value does not have, with the words that say what it has.
ATTRIBUTES = {
    "step": (ADAM, r"Optimizer\(params, tx\) has step"),
    "zero_grad": (ADAM, "pure functions"),
    "lr": (ADAM, r"arguments\['learning_rate'\].*replace\(learning_rate"),
    "b1": (ADAM, r"arguments\['b1'\]"),
    "apply": (ADAM, "apply_updates"),
    "get_last_lr": (SCHEDULE, "no attribute"),
    "tree_map": (of.tree, r"tree\.map"),
    "multiply": (of.tree, r"tree\.mul"),
    "adamw": (of.optim, r"optimfn\.adamw"),
    "AdamX": (of.optim, "did you mean Adam"),
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
