"""Replicas that step by themselves and meet now and then: local SGD, SlowMo, DiLoCo and its streaming form."""

import itertools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from .. import tree
from .._assign import becomes
from .._base import GradientTransformation, apply_updates, check_transformation
from .._checks import check_choice, check_dtype, check_fraction, check_steps, need_params
from .._recipe import factory
from .._state_spec import LeafSpec
from .._typing import Assign, Count, Params, State, Tree, Updates
from ._comm import Departure, Peers, check_whole, mean, start_mean
from ._compressed import compressed_mean
from ._compressors import Compressor
from ._flight import land, launch


class OuterSyncState(NamedTuple):
    """Where the replicas last met, what the outer rule knows, and what is on its way."""

    inner: Annotated[State, LeafSpec("per_replica")]  # of the inner rule, each replica's own
    count: Annotated[Count, LeafSpec("host")]  # () int64 on the CPU, the steps of the inner rule
    anchor: Params = ()  # the parameters at the last meeting, in at least float32; with an outer rule
    outer: State = ()  # of the outer rule, one for each fragment
    sent: Annotated[Params, LeafSpec("per_replica")] = ()  # what this replica has sent; with a delay
    ticket: Annotated[Any, LeafSpec("host")] = ()  # () int64 on the CPU, finds the collective; with a delay
    compressed: Any = ()  # of the compressor, a `CompressedMeanState` for each fragment; with one

    @property
    def params_are_own(self) -> bool:
        """Whether each replica has other parameters, as checkpoints must know: between meetings they do."""
        return True


@factory
def outer_sync(
    inner: GradientTransformation,
    outer: GradientTransformation | None,
    group: Any,
    every: int,
    *,
    fragments: int = 1,
    split: str | Callable[[str], int] = "strided",
    delay: int = 0,
    alpha: float = 0.0,
    compress: torch.dtype | Compressor | None = None,
    warmup: int = 0,
) -> GradientTransformation:
    """Let every replica step by itself; every so many steps the mean of what they did is a step of an outer rule.

    The gradients are those of the replica, not averaged. After a meeting the parameters that took part are equal on
    all replicas, bit for bit; in between they, and always the state of the inner rule, are each replica's own. When
    to meet is decided by a count on the host, so every replica must take the same number of steps. A collective that
    fails raises, and nothing has changed then: go on with the old parameters and state, and they meet in the next step.

    Maths:
        x_r <- x_r + inner update                        on each replica r, every step
        per = every / fragments;  every `per` steps, of one fragment after the other:
        d <- mean over r of (anchor - x_r)               as it was `delay` steps before
        anchor <- anchor + outer update of d
        x_r <- anchor + alpha (x_r - anchor)
        without an outer rule:  x_r <- mean + alpha (x_r - mean),  mean that of x_r

    Args:
        inner: The rule of every step.
        outer: The rule of the meetings, which takes `d` for a gradient; `None` takes the mean itself, and keeps no
            anchor.
        group: The replicas: a process group, a `DeviceMesh` of one axis, or a pair of a mesh and one of its axes.
        every: Steps between two meetings of the same parameter, >= 1, a multiple of `fragments`.
        fragments: Parts that meet one after the other, so that less is sent at once, >= 1.
        split: Which leaf belongs to which part: `"strided"` in turn, `"sequential"` in runs of about the same size,
            or a function of the dotted path of a leaf that returns the number of its part.
        delay: Steps for which a collective may be on its way while the next ones compute, >= 0, below
            every / fragments.
        alpha: How much of its own steps a replica keeps at a meeting, no unit, in [0, 1]: at 0 it takes what all have
            agreed on, and the replicas are equal then.
        compress: The dtype in which `d` is sent, such as `torch.bfloat16`; or a compressor such as `int8_block(512)`
            or `powersgd(4)`, which keeps what it has not sent of `d` for the next meeting, as in `compressed_mean`.
            Either needs an outer rule. What a compressor sends is waited for at once, so that a `delay` hides nothing
            of it. `None` sends it as it is.
        warmup: Steps before the first period begins, in which DDP averages the gradients, say: the replicas only meet
            at its end, >= 0.

    Shapes:
        params: needed, all of them on every replica.
        state: that of `inner`; count () int64 on the CPU; anchor like params, and the state of `outer` for each
            fragment, with an outer rule; sent like params and ticket () int64 on the CPU with a delay; compressed, that
            of `compressed_mean` for each fragment, with a compressor.
        Memory: 1 x params for the anchor, 1 x for what is sent, 1 x for what a compressor has not sent.
        Sends: 1 all-reduce of a fragment, of its size, every `every / fragments` steps.

    Raises:
        TypeError, ValueError: at construction, naming the argument and its value.
        ValueError: in `update` if no parameters are given, or `split` returns no number of a part.

    Differs from: torchft, which counts steps in its manager, and whose buckets may lose a tensor.

    Source: Douillard et al., 2023, arXiv:2311.08105, Algorithm 1; Douillard et al., 2025, arXiv:2501.18512.

    Example:
        >>> import torch, optimfn as of
        >>> tx = of.distributed.outer_sync(of.sgd(0.1), of.sgd(1.0), None, every=2)
        >>> params = torch.tensor([1.0])
        >>> state = tx.init(params)
        >>> updates, state = tx.update(torch.tensor([1.0]), state, params)  # the first of two, so nobody is met
        >>> of.apply_updates(params, updates), state.anchor
        (tensor([0.9000]), tensor([1.]))
    """
    check_transformation(inner=inner, **({} if outer is None else {"outer": outer}))
    peers = Peers(group)
    check_steps(every=every, fragments=fragments, at_least=1)
    check_steps(delay=delay, warmup=warmup)
    check_fraction(alpha=alpha)
    if every % fragments:
        raise ValueError(f"every must be a multiple of fragments={fragments}, got {every}")
    per = every // fragments
    if delay >= per:
        raise ValueError(f"delay must be below every / fragments = {per}, got {delay}")
    if not callable(split):
        check_choice("split", split, ("strided", "sequential"))
    plan = _Plan(outer, peers, fragments, split, alpha, *_fewer_bytes(compress, outer, group))

    def init(params: Params) -> OuterSyncState:
        host = tree.host_count(params)
        state = OuterSyncState(inner.init(params), host)
        if outer is not None:
            state = plan.first(state, params)
        if delay:
            state = state._replace(sent=tree.init_moment(params), ticket=host.clone())
        return state

    def update(
        updates: Updates, state: OuterSyncState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, OuterSyncState]:
        need_params("outer_sync", params)
        check_whole("outer_sync", updates)
        step, own = inner.rule(updates, state.inner, params, **extra)
        count, steps = count_step(state.count, warmup)
        new = state._replace(inner=own, count=count)
        before, phase = divmod(steps, per)  # whole periods, and steps since the last of them
        if outer is not None and steps == 0:
            return plan.agree(step, new, params)
        if steps <= 0 or (phase and phase != per - delay):
            return step, new
        if phase:
            return step, plan.send(step, new, params, before)
        return plan.meet(step, new, params, before - 1, bool(delay))

    # Cut by `zero`, each replica would have another part of a leaf.
    return GradientTransformation(init, update, takes_shards=False)


def _fewer_bytes(
    compress: torch.dtype | Compressor | None, outer: GradientTransformation | None, group: Any
) -> tuple[torch.dtype | None, GradientTransformation | None]:
    """The dtype in which differences are sent, or the mean of what a compressor sends of them."""
    if compress is not None and outer is None:
        raise ValueError(f"compress={compress} would round the parameters: give an outer rule, such as sgd(1.0)")
    if isinstance(compress, Compressor):
        return None, compressed_mean(group, compress)
    check_dtype(compress=compress)
    return compress, None


class _Plan(NamedTuple):
    """What is done in the steps in which replicas communicate."""

    outer: GradientTransformation | None
    peers: Peers
    fragments: int
    split: str | Callable[[str], int]
    alpha: float
    dtype: torch.dtype | None
    less: GradientTransformation | None  # the mean of what a compressor sends

    def first(self, state: OuterSyncState, params: Params) -> OuterSyncState:
        """The state where all begin at the same parameters."""
        assert self.outer is not None
        anchor = tree.map(lambda p: p.clone(), params)
        parts = [self.part(anchor, i) for i in range(self.fragments)]
        state = state._replace(anchor=anchor, outer=tuple(self.outer.init(part) for part in parts))
        if self.less is None:
            return state
        return state._replace(compressed=tuple(self.less.init(wide(part)) for part in parts))

    def part(self, params: Params, number: int) -> Params:
        """The leaves of a fragment, and `None` in the place of the others."""
        if self.fragments == 1:
            return params
        return tree.map(lambda p, own: p if own == number % self.fragments else None, params, self._numbers(params))

    def _numbers(self, params: Params) -> Tree:
        """For each leaf the number of its fragment."""
        if callable(self.split):
            numbers = tree.map(self.split, tree.paths(params))
            for path, number in tree.leaves_with_path(numbers):
                if not (isinstance(number, int) and 0 <= number < self.fragments):
                    place = tree.join_path(path)
                    raise ValueError(f"split must return a number below {self.fragments}, got {number!r} for {place}")
            return numbers
        leaves = tree.leaves(params)
        if self.split == "strided":
            return tree.unflatten(params, [i % self.fragments for i in range(len(leaves))])
        sizes = [p.numel() for p in leaves]
        ends = list(itertools.accumulate(sizes))
        middles = [end - size / 2 for end, size in zip(ends, sizes, strict=True)]
        return tree.unflatten(params, [int(middle * self.fragments / max(1, ends[-1])) for middle in middles])

    def agree(self, step: Updates, state: OuterSyncState, params: Params) -> tuple[Updates, OuterSyncState]:
        """Begin anew at the mean of all replicas."""
        met = mean(wide(next_params(step, params)), self.peers)
        return tree.map(Assign, met), state._replace(anchor=met)

    def _difference(self, step: Updates, state: OuterSyncState, params: Params, number: int) -> Params:
        """What a replica sends: how far it has come since the last meeting, or where it is."""
        here = self.part(next_params(step, params), number)
        if self.outer is None:
            return wide(here)
        return tree.map(lambda a, x: None if x is None else a - x.to(a.dtype), state.anchor, here)

    def _begin(self, sent: Params) -> Callable[[], Departure]:
        return lambda: start_mean(sent, self.peers, self.dtype)

    def send(self, step: Updates, state: OuterSyncState, params: Params, number: int) -> OuterSyncState:
        """Set a collective going."""
        sent = self._difference(step, state, params, number)
        if self.less is not None:
            met, state = self._compressed(sent, state, number)
            return state._replace(sent=_changed(state.sent, met))
        if self.peers.size == 1:  # nothing goes anywhere
            return state._replace(sent=_changed(state.sent, sent), ticket=torch.zeros_like(state.ticket))
        device = next((x.device for x in tree.leaves(sent) if x is not None), torch.device("cpu"))
        ticket = launch(self._begin(sent), self.peers, device)
        return state._replace(sent=_changed(state.sent, sent), ticket=torch.full_like(state.ticket, ticket))

    def _compressed(self, sent: Params, state: OuterSyncState, number: int) -> tuple[Params, OuterSyncState]:
        """The mean of what a compressor sends, and what it keeps."""
        assert self.less is not None
        index = number % self.fragments
        met, own = self.less.rule(sent, state.compressed[index])
        return met, state._replace(compressed=(*state.compressed[:index], own, *state.compressed[index + 1 :]))

    def meet(
        self, step: Updates, state: OuterSyncState, params: Params, number: int, is_on_its_way: bool
    ) -> tuple[Updates, OuterSyncState]:
        """Move to where all have agreed to go."""
        if is_on_its_way and self.less is not None:
            met = self.part(state.sent, number)
        elif self.less is not None:
            met, state = self._compressed(self._difference(step, state, params, number), state, number)
        elif is_on_its_way:
            met = land(int(state.ticket), self._begin(self.part(state.sent, number)), self.peers)
        else:
            met = mean(self._difference(step, state, params, number), self.peers, self.dtype)
        if self.outer is not None:
            index, anchor = number % self.fragments, self.part(state.anchor, number)
            move, own = self.outer.rule(met, state.outer[index], anchor)
            met = apply_updates(anchor, move)
            outer = (*state.outer[:index], own, *state.outer[index + 1 :])
            state = state._replace(anchor=_changed(state.anchor, met), outer=outer)
        here = next_params(step, params)

        def leaf(x: Tensor, u: Any, m: Tensor | None) -> Any:
            if m is None:
                return u
            return Assign(torch.lerp(m, x.to(m.dtype), self.alpha) if self.alpha else m)

        return tree.map(leaf, here, step, met), state


def count_step(count: Count, warmup: int) -> tuple[Count, int]:
    """The count after one more step, and the number of that step after the warm-up, from 1 on, by which periods go."""
    steps = int(count) + 1
    return torch.full_like(count, steps), steps - warmup


def next_params(step: Updates, params: Params) -> Params:
    """The parameters after the own step, as they will be kept."""
    return tree.map(becomes, tree.narrow(params), step)


def wide(params: Params) -> Params:
    """A copy in at least float32."""
    return tree.map(lambda p: p.to(torch.promote_types(p.dtype, torch.float32), copy=True), params)


def _changed(old: Tree, new: Tree) -> Tree:
    """The new leaves where there are some."""
    return tree.map(lambda was, now: was if now is None else now, old, new)
