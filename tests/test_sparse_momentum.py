"""Momentum of sparse gradients, which torch keeps sparse where the first gradient was."""

import copy

import pytest
import torch

import optimfn as of

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch makes sparse tensors on the way
OPTIONS = [
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "maximize": True},
    {"momentum": 0.9, "foreach": True},
]


def tables(dtype=torch.float64):
    torch.manual_seed(0)
    values = [torch.randn(shape, dtype=dtype) for shape in ((6, 3), (5,), (4, 2, 3))]
    return [[x.clone().requires_grad_() for x in values] for _ in range(2)]


def give(ours, theirs, seed, sparse=True):
    generator = torch.Generator().manual_seed(seed)
    for p, q in zip(ours, theirs, strict=True):
        rows = torch.randint(0, len(p), (1, 2), generator=generator)
        entries = torch.randn((2, *p.shape[1:]), dtype=torch.float64, generator=generator).to(p.dtype)
        grad = torch.sparse_coo_tensor(rows, entries, p.shape, check_invariants=True)
        p.grad, q.grad = (grad if sparse else grad.to_dense()), (grad if sparse else grad.to_dense()).clone()


def assert_same(ours, opt, theirs, reference):
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)
        own, other = opt.state[p], reference.state[q]
        assert own.keys() == other.keys()
        assert own["momentum_buffer"].layout == other["momentum_buffer"].layout
        torch.testing.assert_close(own["momentum_buffer"].to_dense(), other["momentum_buffer"].to_dense())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("first", ["sparse", "dense"])
def test_buffers_have_the_layout_and_the_numbers_of_torch(options, dtype, first):
    if options.get("nesterov") and first == "dense":
        pytest.skip("torch refuses to add a dense buffer to a sparse gradient")
    ours, theirs = tables(dtype)
    opt, reference = of.optim.SGD(ours, lr=0.1, **options), torch.optim.SGD(theirs, lr=0.1, **options)
    for step in range(6):
        give(ours, theirs, step, sparse=first == "sparse" or step > 0)
        opt.step()
        reference.step()
        assert_same(ours, opt, theirs, reference)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_checkpoints_go_on_in_torch_and_back(options):
    ours, theirs = tables()
    opt, reference = of.optim.SGD(ours, lr=0.1, **options), torch.optim.SGD(theirs, lr=0.1, **options)
    for step in range(8):
        give(ours, theirs, step)
        opt.step()
        reference.step()
        assert_same(ours, opt, theirs, reference)
        mine, saved = copy.deepcopy(opt.state_dict()), copy.deepcopy(reference.state_dict())
        if step % 2:
            opt, reference = of.optim.SGD(ours, lr=0.1, **options), torch.optim.SGD(theirs, lr=0.1, **options)
        opt.load_state_dict(saved)
        reference.load_state_dict(mine)


def test_a_buffer_that_was_written_to_is_read_again():
    ours, theirs = tables()
    opt, reference = of.optim.SGD(ours, lr=0.1, momentum=0.9), torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    for step in range(4):
        give(ours, theirs, step)
        for optimizer, params in ((opt, ours), (reference, theirs)):
            if step == 2:
                optimizer.state[params[0]]["momentum_buffer"].zero_()
            optimizer.step()
        assert_same(ours, opt, theirs, reference)


def test_copies_go_on_by_themselves():
    ours, theirs = tables()
    opt = of.optim.SGD(ours, lr=0.1, momentum=0.9)
    give(ours, theirs, 0)
    opt.step()
    other = copy.deepcopy(opt)
    others = other.param_groups[0]["params"]
    for p, q in zip(ours, others, strict=True):
        p.grad, q.grad = (torch.sparse_coo_tensor([[0]], torch.ones(1, *p.shape[1:]).double(), p.shape) for _ in "ab")
    opt.step()
    other.step()
    for p, q in zip(ours, others, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(opt.state[p]["momentum_buffer"].to_dense(), other.state[q]["momentum_buffer"].to_dense())


def test_a_dense_gradient_makes_the_buffer_dense():
    """Which torch refuses."""
    ours, theirs = tables()
    opt, reference = of.optim.SGD(ours, lr=0.1, momentum=0.9), torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    for step in range(6):
        give(ours, theirs, step, sparse=step in (0, 1, 4))
        for q in theirs:
            q.grad = q.grad.to_dense()
        opt.step()
        reference.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q)
            own, other = opt.state[p]["momentum_buffer"], reference.state[q]["momentum_buffer"]
            assert own.is_sparse == (step < 2)
            torch.testing.assert_close(own.to_dense(), other)


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"fused": True}], ids=str)
def test_one_that_is_refused_leaves_all_tables_and_the_others_as_they_were(options):
    (a, b, c), _ = tables()
    opt = of.optim.SGD([{"params": [a, c]}, {"params": [b], **options}], lr=0.1, momentum=0.9)
    give([a, b], [a, b], 0)
    c.grad, before = torch.ones_like(c), [x.detach().clone() for x in (a, b, c)]
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    assert all(torch.equal(x, old) for x, old in zip((a, b, c), before, strict=True))
    assert not any(opt.state.values())


def test_what_prepares_a_capture_makes_no_dense_state_of_tables():
    (a, b, c), _ = tables()
    opt = of.optim.SGD([a, b, c], lr=0.1, momentum=0.9)
    give([a, b], [a, b], 0)
    c.grad = torch.ones_like(c)
    opt.write_hyperparameters()
    opt.addresses()
    opt.step()
    assert [opt.state[p]["momentum_buffer"].is_sparse for p in (a, b, c)] == [True, True, False]
