"""The drop-in classes against those of torch, with the inputs that torch keeps for its own tests."""

import copy
import inspect
import io
import pickle
import random
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.testing._internal.common_optimizers as database
from helpers import assert_trees_equal

import optimfn as of
from optimfn import optim

INFOS = {info.optim_cls.__name__: info for info in database.optim_db}
# SparseAdam takes sparse gradients only, and is below; LBFGS needs a closure, and has a file of its own.
OURS = {name: getattr(optim, name) for name in INFOS if hasattr(optim, name) and name not in ("SparseAdam", "LBFGS")}
SHAPES = [(4, 3), (5,), (2, 3, 4), ()]
MATRICES = [(4, 3), (3, 5), (4, 4), (2, 6)]


def inputs():
    """Every configuration of torch's database, each with and without the flags that choose an execution."""
    for name in OURS:
        info = INFOS[name]
        for dtype in (torch.float64, torch.complex128):
            if dtype.is_complex and not info.supports_complex:
                continue
            skip = ("fused",) if dtype.is_complex else ()
            every = database._get_optim_inputs_including_global_cliquey_kwargs("cpu", dtype, info, skip=skip)
            for number, one in enumerate(every):
                yield pytest.param(name, dtype, one.kwargs, id=f"{name}-{dtype}-{number}-{one.desc}"[:90])


def errors():
    """Every input that torch's database says is refused, if it is refused at construction."""
    for name in OURS:
        for number, case in enumerate(INFOS[name].optim_error_inputs_func("cpu", torch.float32)):
            yield pytest.param(name, case, id=f"{name}-{number}-{case.optimizer_error_input.desc}"[:90])


def reference_kwargs(kwargs):
    """The same configuration on torch's single-tensor path."""
    plain = {key: value for key, value in kwargs.items() if key not in ("fused", "differentiable", "foreach")}
    return {**copy.deepcopy(plain), **({"foreach": False} if "foreach" in kwargs or "differentiable" in kwargs else {})}


def make_pair(name, dtype, kwargs):
    """Our optimizer and torch's, on parameters of their own with the same values."""
    shapes = MATRICES if name == "Muon" else SHAPES
    values = [torch.randn(shape, dtype=dtype) for shape in shapes]
    own, theirs = ([v.clone() for v in values] for _ in range(2))
    if not kwargs.get("differentiable"):
        own = [p.requires_grad_() for p in own]
    reference = INFOS[name].optim_cls([p.requires_grad_() for p in theirs], **reference_kwargs(kwargs))
    return own, OURS[name](own, **copy.deepcopy(kwargs)), theirs, reference


def assert_close(ours, theirs, what):
    assert type(ours) is type(theirs), what
    if not isinstance(ours, torch.Tensor):
        assert ours == theirs, what
        return
    assert (ours.dtype, ours.shape, ours.device) == (theirs.dtype, theirs.shape, theirs.device), what
    if ours.numel():
        scale = max(1.0, theirs.detach().abs().max().item())
        error = (ours.detach() - theirs.detach()).abs().max().item()
        assert error <= 1e-12 * scale, f"{what}: off by {error / scale:.2e}"


def assert_same(own, optimizer, theirs, reference):
    for number, (p, q) in enumerate(zip(own, theirs, strict=True)):
        assert_close(p, q, f"parameter {number}")
        ours, state = optimizer.state.get(p, {}), reference.state.get(q, {})
        assert list(ours) == list(state), f"state of {number}: {list(ours)} instead of {list(state)}"
        for key in state:
            assert_close(ours[key], state[key], f"{key} of {number}")


def set_gradients(own, theirs, absent=0.0):
    for p, q in zip(own, theirs, strict=True):
        present = random.random() >= absent
        p.grad = torch.randn_like(p.detach()) if present else None
        q.grad = p.grad.clone() if present else None


def needs_state_made_late(name):
    """Skip where torch's own class makes its state at construction alone: Adagrad of torch 2.10."""
    own, _, theirs, reference = make_pair(name, torch.float64, {})
    set_gradients(own, theirs)
    reference.state.clear()
    try:
        reference.step()
    except KeyError:
        pytest.skip("torch's own class of this version steps no parameter that joined, or lost its state, later")


def train(own, optimizer, theirs, reference, steps, absent=0.0):
    for _ in range(steps):
        set_gradients(own, theirs, absent)
        optimizer.step()
        reference.step()


@pytest.fixture(autouse=True)
def _seed(request):
    random.seed(request.node.name)


@pytest.mark.parametrize(("name", "dtype", "kwargs"), list(inputs()))
def test_follows_torch_with_gradients_that_come_and_go(name, dtype, kwargs):
    own, optimizer, theirs, reference = make_pair(name, dtype, kwargs)
    for step in range(25):
        set_gradients(own, theirs, absent=0.3 if step > 3 else 0.0)
        optimizer.step()
        reference.step()
        if kwargs.get("differentiable"):  # states carry the graph of all steps; cut it
            for entries in optimizer.state.values():
                entries.update({k: v.detach() for k, v in entries.items() if k != "step"})
        assert_same(own, optimizer, theirs, reference)


def through_a_file(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def with_flags_of(optimizer, saved):
    """A checkpoint whose groups choose the execution that `optimizer` chooses."""
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        assert group.keys() == own.keys()
        group.update({key: own[key] for key in ("fused", "foreach", "differentiable", "capturable") if key in own})
    return saved


@pytest.mark.parametrize(("name", "dtype", "kwargs"), list(inputs()))
def test_a_checkpoint_of_torch_goes_on_here(name, dtype, kwargs):
    kwargs = {**kwargs, **({"differentiable": False} if "differentiable" in kwargs else {})}
    own, optimizer, theirs, reference = make_pair(name, dtype, kwargs)
    for _ in range(4):
        for step in range(3):
            set_gradients(own, theirs, absent=0.3 if step else 0.0)
            optimizer.step()
            reference.step()
        optimizer = OURS[name](own, **copy.deepcopy(kwargs))
        optimizer.load_state_dict(with_flags_of(optimizer, through_a_file(reference)))
        assert_same(own, optimizer, theirs, reference)


@pytest.mark.parametrize(("name", "dtype", "kwargs"), list(inputs()))
def test_a_checkpoint_of_ours_goes_on_in_torch(name, dtype, kwargs):
    """torch makes the same of our checkpoint as of its own; it casts some scalars, which is its affair."""
    kwargs = {**kwargs, **({"differentiable": False} if "differentiable" in kwargs else {})}
    own, optimizer, theirs, reference = make_pair(name, dtype, kwargs)
    for step in range(3):
        set_gradients(own, theirs, absent=0.3 if step else 0.0)
        optimizer.step()
        reference.step()
    sides = []
    for params, side in ((own, optimizer), (theirs, reference)):
        params = [p.detach().clone().requires_grad_() for p in params]
        resumed = INFOS[name].optim_cls(params, **reference_kwargs(kwargs))
        resumed.load_state_dict(with_flags_of(resumed, through_a_file(side)))
        sides += [params, resumed]
    for _ in range(4):
        set_gradients(sides[0], sides[2], absent=0.3)
        sides[1].step()
        sides[3].step()
        assert_same(*sides)


@pytest.mark.parametrize(("name", "case"), list(errors()))
def test_refuses_what_torch_refuses_in_its_words(name, case):
    given = case.optimizer_error_input
    params = given.params
    if params is None:
        params = [torch.nn.Parameter(torch.randn(2, 3))]

    def attempt(cls):
        own = copy.deepcopy(params)
        if case.error_on == database.OptimizerErrorEnum.CONSTRUCTION_ERROR:
            cls(own, **copy.deepcopy(given.kwargs))
        else:
            optimizer = cls(own, **copy.deepcopy(given.kwargs))
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.randn_like(p)
            optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(case.error_type, match=case.error_regex) as theirs:
            attempt(INFOS[name].optim_cls)
        with pytest.raises(case.error_type, match=case.error_regex) as ours:
            attempt(OURS[name])
    assert str(ours.value) == str(theirs.value)


every_class = pytest.mark.parametrize("name", list(OURS))


@every_class
def test_is_the_class_of_torch_with_its_signature(name):
    assert issubclass(OURS[name], INFOS[name].optim_cls)
    assert OURS[name].__name__ == name
    assert inspect.signature(OURS[name]) == inspect.signature(INFOS[name].optim_cls)


@pytest.mark.parametrize(("name", "dtype", "kwargs"), list(inputs()))
def test_transform_is_the_rule_of_torch(name, dtype, kwargs):
    _, _, theirs, reference = make_pair(name, dtype, kwargs)
    tx = OURS[name].transform(**copy.deepcopy(kwargs))
    params = {str(number): p.detach().clone() for number, p in enumerate(theirs)}
    state = tx.init(params)
    for _ in range(8):
        grads = {key: torch.randn_like(p) for key, p in params.items()}
        for q, g in zip(theirs, grads.values(), strict=True):
            q.grad = g.clone()
        reference.step()
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
        for q, p in zip(theirs, params.values(), strict=True):
            assert_close(p, q.detach(), "parameter")


@every_class
def test_transform_takes_the_words_of_torch_and_refuses_others(name):
    with pytest.raises(TypeError):
        OURS[name].transform(no_such_option=1)
    with pytest.raises(ValueError, match=r"(?i)learning rate"):
        OURS[name].transform(lr=-1.0)
    assert isinstance(
        OURS[name].transform(foreach=True) if name != "Muon" else OURS[name].transform(), of.GradientTransformation
    )


@every_class
def test_transform_is_recorded(name):
    tx = OURS[name].transform(lr=0.25)
    assert "lr=0.25" in repr(tx)
    assert pickle.loads(pickle.dumps(tx)) == copy.deepcopy(tx) == tx == OURS[name].transform(lr=0.25)
    assert tx != OURS[name].transform(lr=0.5)


@every_class
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_go_on_by_themselves(name, how):
    own, optimizer, theirs, reference = make_pair(name, torch.float64, {})
    train(own, optimizer, theirs, reference, steps=3)
    pair = (own, optimizer)
    own, optimizer = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    train(own, optimizer, theirs, reference, steps=3, absent=0.3)
    assert_same(own, optimizer, theirs, reference)


@every_class
def test_groups_have_their_own_options_and_join_later(name):
    needs_state_made_late(name)
    kwargs = {} if name == "Rprop" else {"weight_decay": 0.1}
    own, _, theirs, _ = make_pair(name, torch.float64, {})

    def groups(params):
        return [{"params": params[:2], "lr": 1e-2, **kwargs}, {"params": params[2:3]}]

    optimizer, reference = OURS[name](groups(own)), INFOS[name].optim_cls(groups(theirs))
    for step in range(8):
        if step == 4:
            optimizer.add_param_group({"params": own[3:], "lr": 3e-2})
            reference.add_param_group({"params": theirs[3:], "lr": 3e-2})
        set_gradients(own, theirs, absent=0.2)
        optimizer.step()
        reference.step()
    assert_same(own, optimizer, theirs, reference)


@every_class
def test_options_changed_by_hand_are_followed(name):
    own, optimizer, theirs, reference = make_pair(name, torch.float64, {})
    for step in range(9):
        for group in (optimizer.param_groups[0], reference.param_groups[0]):
            group["lr"] *= 0.9
            if "betas" in group:
                group["betas"] = (0.9 - 0.01 * step, 0.99)
            if "weight_decay" in group:
                group["weight_decay"] = 0.1 * step
            if "maximize" in group:
                group["maximize"] = step > 5
        set_gradients(own, theirs)
        optimizer.step()
        reference.step()
    assert_same(own, optimizer, theirs, reference)


@every_class
def test_state_edited_by_hand_is_followed(name):
    needs_state_made_late(name)
    own, optimizer, theirs, reference = make_pair(name, torch.float64, {})
    for step in range(8):
        set_gradients(own, theirs)
        optimizer.step()
        reference.step()
        for side, params in ((optimizer, own), (reference, theirs)):
            entries = side.state.get(params[0], {})
            for key, value in entries.items():
                if step == 3:
                    value.zero_() if key == "step" else value.mul_(0.5)
                elif step == 5:
                    entries[key] = value + 1 if key == "step" else value * 0.5
            if step == 6:
                side.state.pop(params[1], None)
    assert_same(own, optimizer, theirs, reference)


def clear_state(optimizer, _):
    optimizer.state.clear()


def pop_state(optimizer, params):
    optimizer.state.pop(params[0], None)


def replace_entries(optimizer, params):
    for p in params:
        optimizer.state.get(p, {}).update({k: v.clone() for k, v in optimizer.state.get(p, {}).items()})


def load_own_checkpoint(optimizer, _):
    if type(optimizer) in OURS.values():  # torch would cast its scalars
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def set_data_of_entries(optimizer, params):
    for p in params:
        for key, value in optimizer.state.get(p, {}).items():
            if key not in ("step", "mu_product", "eta", "mu"):
                value.data = value.data * 0.5


def set_data_of_parameters(_, params):
    for p in params:
        p.data = p.data * 2


def replace_parameter(optimizer, params):
    new = params[0].detach().clone().requires_grad_()
    if params[0] in optimizer.state:
        optimizer.state[new] = optimizer.state.pop(params[0])
    params[0] = optimizer.param_groups[0]["params"][0] = new


def edit_scalars(optimizer, params):
    for key in ("mu_product", "eta", "mu"):
        if key in optimizer.state.get(params[1], {}):
            optimizer.state[params[1]][key].mul_(0.5)


def swap_entries(optimizer, params):
    """Two parameters exchange their dicts, which stay in their places and hold the same tensors."""
    a, b = (optimizer.state.get(p) for p in params[:2])
    if a and b and params[0].shape == params[1].shape:
        optimizer.state[params[0]], optimizer.state[params[1]] = b, a


def change_list(optimizer, _):
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = list(group["betas"])
            group["betas"][0] *= 0.5


@every_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize(
    "change",
    [
        clear_state,
        pop_state,
        lambda _, params: params[0].requires_grad_(False),
        load_own_checkpoint,
        replace_entries,
        set_data_of_entries,
        set_data_of_parameters,
        replace_parameter,
        edit_scalars,
        swap_entries,
        change_list,
    ],
    ids=["clear", "pop", "freeze", "load", "replace", "data", "parameters", "parameter", "scalars", "swap", "list"],
)
def test_what_changes_behind_its_back_is_noticed(name, dtype, change):
    if dtype.is_complex and not INFOS[name].supports_complex:
        pytest.skip("real only")
    if change in (clear_state, pop_state):
        needs_state_made_late(name)
    own, optimizer, theirs, reference = make_pair(name, dtype, {})
    if change is swap_entries:
        for params, side in ((own, optimizer), (theirs, reference)):
            params[1] = params[0].detach().clone().requires_grad_()
            side.param_groups[0]["params"][1] = params[1]
            side.state.clear()
            side.__init__(params)
    for _ in range(3):
        train(own, optimizer, theirs, reference, steps=3)
        change(optimizer, own)
        change(reference, theirs)
        train(own, optimizer, theirs, reference, steps=1)
        assert_same(own, optimizer, theirs, reference)


@every_class
def test_a_step_of_a_python_number_becomes_a_tensor(name):
    own, optimizer, theirs, reference = make_pair(name, torch.float64, {})
    train(own, optimizer, theirs, reference, steps=2)
    if "step" not in optimizer.state[own[0]]:
        pytest.skip("counts no steps")
    for p in own:
        optimizer.state[p]["step"] = optimizer.state[p]["step"].item()
    train(own, optimizer, theirs, reference, steps=2)
    assert_same(own, optimizer, theirs, reference)


@every_class
def test_what_nobody_changes_is_bound_once_and_stays_where_it_is(name, monkeypatch):
    joins = []
    join = OURS[name]._join
    monkeypatch.setattr(OURS[name], "_join", lambda self, rules: joins.append(1) or join(self, rules))
    own, optimizer, theirs, reference = make_pair(name, torch.float64, {})
    train(own, optimizer, theirs, reference, steps=1)
    before = [x for entries in optimizer.state.values() for x in entries.values()]
    for step in range(5):
        for side in (optimizer, reference):
            side.param_groups[0]["lr"] = 0.1 / (step + 1)
        train(own, optimizer, theirs, reference, steps=1)
    assert_same(own, optimizer, theirs, reference)
    after = [x for entries in optimizer.state.values() for x in entries.values()]
    assert len(before) == len(after)
    assert all(x is y for x, y in zip(before, after, strict=True))
    assert len(joins) == 1


@every_class
def test_numbers_that_change_at_every_step_are_not_traced_at_every_step(name, monkeypatch):
    constants = set()  # what is no tensor is a constant of a trace
    rule = OURS[name].rule

    def noted(group):
        several = {key: value if isinstance(value, tuple) else (value,) for key, value in group.items()}
        constants.add(repr({key: [x for x in own if not isinstance(x, torch.Tensor)] for key, own in several.items()}))
        return rule(group)

    monkeypatch.setattr(OURS[name], "rule", staticmethod(noted))
    kwargs = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    own, optimizer, theirs, reference = make_pair(name, torch.float64, kwargs)
    for step in range(8):
        for group in (optimizer.param_groups[0], reference.param_groups[0]):
            for key in {"lr", "momentum", "weight_decay"} & group.keys():
                group[key] = 0.1 / (step + 1)
            if "betas" in group:
                group["betas"] = (0.9 / (step + 1), 0.999 - 0.01 * step)
        train(own, optimizer, theirs, reference, steps=1, absent=0.1)
        assert_same(own, optimizer, theirs, reference)
    assert len(constants) <= 2


@every_class
def test_default_dtype_float64_gives_float64_counts(name):
    torch.set_default_dtype(torch.float64)
    own, optimizer, theirs, reference = make_pair(name, torch.float64, {})
    train(own, optimizer, theirs, reference, steps=3)
    assert_same(own, optimizer, theirs, reference)


@every_class
def test_no_gradient_at_all_is_no_step(name):
    own, optimizer, theirs, reference = make_pair(name, torch.float64, {})
    optimizer.step()
    reference.step()
    assert_same(own, optimizer, theirs, reference)
    assert optimizer.step(lambda: 3.5) == 3.5


@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision_states_have_the_dtype_that_torch_gives_them(name, dtype):
    own, optimizer, theirs, reference = make_pair(name, dtype, {})
    train(own, optimizer, theirs, reference, steps=3)
    for p, q in zip(own, theirs, strict=True):
        ours, state = optimizer.state.get(p, {}), reference.state.get(q, {})
        assert {k: (v.dtype, v.shape) for k, v in ours.items()} == {k: (v.dtype, v.shape) for k, v in state.items()}
        # bfloat16: torch rounds after every operation, we after every step.
        torch.testing.assert_close(
            p, q, rtol=1e-5 if dtype == torch.float32 else 2**-5, atol=1e-3 if dtype == torch.bfloat16 else 1e-6
        )


@every_class
def test_a_float32_moment_of_a_bfloat16_parameter_survives_loading(name):
    own, optimizer, _, _ = make_pair(name, torch.bfloat16, {})
    set_gradients(own, own)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    for entries in saved["state"].values():
        entries.update({k: v.float() / 3 for k, v in entries.items() if k != "step" and v.is_floating_point()})
    optimizer.load_state_dict(saved)
    for number, p in enumerate(own):
        for key, value in saved["state"].get(number, {}).items():
            assert torch.equal(optimizer.state[p][key], value), key
    set_gradients(own, own)
    optimizer.step()


def test_sparse_gradients_are_refused_in_torchs_words():
    for name in ("Adam", "AdamW", "RMSprop", "Adamax", "NAdam", "RAdam", "Rprop", "Adadelta", "ASGD"):
        messages = []
        for cls in (INFOS[name].optim_cls, OURS[name]):
            p = torch.nn.Parameter(torch.ones(3, 2))
            p.grad = torch.sparse_coo_tensor([[0]], [[1.0, 1.0]], (3, 2), check_invariants=True)
            with pytest.raises(RuntimeError) as raised:
                cls([p]).step()
            messages.append(str(raised.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("kwargs", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch makes sparse tensors on the way
def test_sparse_gradients_give_torchs_numbers(name, kwargs):
    if name == "Adagrad" and kwargs:
        pytest.skip("Adagrad has no momentum")
    value = torch.randn(6, 3, dtype=torch.float64)
    own, theirs = (torch.nn.Parameter(value.clone()) for _ in range(2))
    optimizer = OURS[name]([own], lr=0.1, **kwargs)
    reference = INFOS[name].optim_cls([theirs], lr=0.1, foreach=False, **kwargs)
    for _ in range(10):
        rows = torch.randint(0, 6, (1, 4))
        own.grad = torch.sparse_coo_tensor(rows, torch.randn(4, 3, dtype=torch.float64), (6, 3), check_invariants=True)
        theirs.grad = own.grad.clone()
        optimizer.step()
        reference.step()
        assert_close(own, theirs, "parameter")


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
class TestSparseAdam:
    @pytest.mark.parametrize("kwargs", [one.kwargs for one in INFOS["SparseAdam"].optim_inputs_func("cpu")], ids=str)
    def test_follows_torch_and_checkpoints_change_sides(self, kwargs):
        values = [torch.randn(6, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]
        own, theirs = ([v.clone().requires_grad_() for v in values] for _ in range(2))
        optimizer = optim.SparseAdam(own, **copy.deepcopy(kwargs))
        reference = torch.optim.SparseAdam(theirs, **copy.deepcopy(kwargs))
        for step in range(24):
            for p, q in zip(own, theirs, strict=True):
                rows = torch.randint(0, len(p), (1, step % 4))
                entries = torch.randn(step % 4, *p.shape[1:], dtype=p.dtype)
                p.grad = None if random.random() < 0.2 else torch.sparse_coo_tensor(rows, entries, p.shape)
                q.grad = None if p.grad is None else p.grad.clone()
            optimizer.step()
            reference.step()
            assert_same(own, optimizer, theirs, reference)
            if step % 8 == 7:
                ours, torchs = through_a_file(optimizer), through_a_file(reference)
                optimizer.load_state_dict(torchs)
                reference.load_state_dict(ours)

    @pytest.mark.parametrize("case", INFOS["SparseAdam"].optim_error_inputs_func("cpu", torch.float32))
    def test_refuses_what_torch_refuses(self, case):
        given = case.optimizer_error_input
        messages = []
        for cls in (torch.optim.SparseAdam, optim.SparseAdam):
            params = copy.deepcopy(given.params) or [torch.nn.Parameter(torch.randn(2, 3))]
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(case.error_type, match=case.error_regex) as raised:
                    cls(params, **copy.deepcopy(given.kwargs))
            messages.append(str(raised.value))
        assert messages[0] == messages[1]

    def test_refuses_dense_gradients_in_torchs_words(self):
        p = torch.nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        with pytest.raises(
            RuntimeError, match="SparseAdam does not support dense gradients, please consider Adam instead"
        ):
            optim.SparseAdam([p]).step()


def test_differentiable_steps_carry_gradients_to_states_rates_and_parameters():
    def run(cls, p, lr, mu):
        q, optimizer = p.clone(), None
        optimizer = cls([q], lr=lr, differentiable=True)
        optimizer.state[q].update({"step": torch.tensor(3.0), "exp_avg": mu.clone(), "exp_avg_sq": torch.ones_like(q)})
        for step in range(2):
            q.grad = torch.full_like(q, 1.0 + step)
            optimizer.step()
        return q

    inputs = [
        torch.randn(3, dtype=torch.float64),
        torch.tensor(0.1, dtype=torch.float64),
        torch.randn(3, dtype=torch.float64),
    ]
    results = []
    for cls in (torch.optim.Adam, optim.Adam):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = run(cls, *leaves)
        results.append((out, *torch.autograd.grad(out.sum(), leaves)))
    # torch corrects the bias in float32 where steps are differentiable.
    assert_trees_equal(results[1], results[0], rtol=1e-5, atol=1e-6)
    assert torch.autograd.gradcheck(
        lambda p, mu: run(optim.Adam, p, 0.1, mu), [inputs[0].requires_grad_(), inputs[2].requires_grad_()]
    )


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="the page counts the table of torch 2.13")
def test_how_many_inputs_of_torch_run_is_what_the_docs_say():
    page = (Path(__file__).parent.parent / "docs" / "coming-from-torch.md").read_text()
    said = re.search(r"(\d+) configurations and (\d+) refusals", page)
    assert said
    assert (int(said[1]), int(said[2])) == (len(list(inputs())), len(list(errors())))
