"""Frameworks drive an `Optimizer` as they drive those of torch: Lightning, transformers, accelerate, safetensors.

Where a framework is not installed its tests are skipped; `scripts/clients` installs all of them.
"""

import csv

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import optimfn as of

# Frameworks warn of much that is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore", "error:::optimfn", "error:Detected call of `lr_scheduler.step")

TOLERANCE = 1e-6  # to the same training with an optimizer of torch; after a checkpoint it is 0
STEPS = 12  # three epochs of four batches
BOUND = 0.2  # of the norm of the gradients, which is larger

schedulers = torch.optim.lr_scheduler
warm_cosine = of.warmup_cosine_decay_schedule(0.001, 0.05, warmup_steps=3, decay_steps=STEPS)


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def make_data():
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, torch.stack([x.sum(1), x[:, 0] * x[:, 1]], 1))


def distance(a, b):
    """The largest difference of a parameter of two modules."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max((x.detach() - y.detach()).abs().max().item() for x, y in pairs)


# Makers of an optimizer, ours or torch's, and of its scheduler if it has one.


def one_cycle(module, ours):
    if ours:
        opt = of.Optimizer(module.parameters(), of.adamw, learning_rate=0.01, weight_decay=0.1)
    else:
        opt = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    return opt, schedulers.OneCycleLR(opt, 0.05, total_steps=STEPS + 1)  # which cycles betas


def cosine(module, ours):
    if ours:
        opt = of.Optimizer(module, of.adamw, learning_rate=0.05, weight_decay=0.1)
    else:
        opt = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.1)
    return opt, schedulers.CosineAnnealingLR(opt, STEPS)


def unfused(module, ours):
    if ours:
        opt = of.Optimizer(module, of.adamw(0.05), fused=False)
    else:
        opt = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=1e-4)
    return opt, schedulers.LambdaLR(opt, lambda step: float(warm_cosine(step)))


def constant(module, ours):
    if ours:
        return of.Optimizer(module, of.adamw(0.05)), None
    return torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=1e-4), None


def clipped(module, ours):
    """Ours clips by itself and has a schedule; that of torch needs a scheduler, and to be clipped for."""
    if ours:
        tx = of.chain(of.clip_by_global_norm(BOUND), of.adamw(warm_cosine, weight_decay=0.1))
        return of.Optimizer(module, tx), None
    opt = torch.optim.AdamW(module.parameters(), lr=1.0, weight_decay=0.1)
    return opt, schedulers.LambdaLR(opt, lambda step: float(warm_cosine(step)))


def muon_and_adamw(module, ours):
    assert ours, "torch has none"
    labels = of.tree.label_by(lambda p: "muon" if p.ndim == 2 else "adamw")
    return of.Optimizer(module, of.partition({"muon": of.torch_muon(0.02), "adamw": of.adamw(3e-4)}, labels)), None


class TestLightning:
    @pytest.fixture
    def lightning(self):
        return pytest.importorskip("lightning.pytorch")

    @pytest.fixture
    def fit(self, lightning, tmp_path):
        """Train; returns the trainer."""

        class Model(lightning.LightningModule):
            def __init__(self, make, ours, manual):
                super().__init__()
                self.net = make_net()
                self.make, self.ours = make, ours
                self.automatic_optimization = not manual

            def training_step(self, batch, number):
                x, y = batch
                loss = nn.functional.mse_loss(self.net(x), y)
                if not self.automatic_optimization:
                    opt = self.optimizers()
                    opt.zero_grad()
                    self.manual_backward(loss)
                    self.clip_gradients(opt, BOUND, "norm")
                    opt.step()
                    self.lr_schedulers().step()
                return loss

            def configure_optimizers(self):
                opt, scheduler = self.make(self, self.ours)
                return opt if scheduler is None else ([opt], [{"scheduler": scheduler, "interval": "step"}])

        def fit(make, ours=True, epochs=3, checkpoint=None, weights_only=None, manual=False, **options):
            if make is clipped and not ours:
                options["gradient_clip_val"] = BOUND
            trainer = lightning.Trainer(
                accelerator="cpu",
                max_epochs=epochs,
                default_root_dir=tmp_path,
                enable_progress_bar=False,
                enable_model_summary=False,
                **{"logger": False, "enable_checkpointing": False, **options},
            )
            loader = DataLoader(make_data(), batch_size=8)
            trainer.fit(Model(make, ours, manual), loader, ckpt_path=checkpoint, weights_only=weights_only)
            return trainer

        return fit

    @pytest.fixture
    def half(self, lightning):
        """Options for float16 on a CPU, where Lightning takes bfloat16 unless it is told twice."""

        def half(growth_interval=2):
            """With a scale that grows so often, some steps are skipped."""
            scaler = torch.amp.GradScaler("cpu", 2.0**12, growth_factor=16.0, growth_interval=growth_interval)
            return {"plugins": [lightning.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}

        return half

    @pytest.mark.parametrize(
        "options",
        [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}],
        ids=["plain", "accumulated", "bfloat16"],
    )
    @pytest.mark.parametrize("make", [one_cycle, cosine, clipped])
    def test_ends_where_torch_does(self, fit, make, options):
        ours, theirs = fit(make, **options), fit(make, ours=False, **options)
        assert distance(ours.model, theirs.model) <= TOLERANCE
        assert distance(ours.model.net, make_net()) > 0.1

    @pytest.mark.parametrize("make", [one_cycle, cosine])
    def test_manual_optimization_ends_where_torch_does(self, fit, make):
        ours, theirs = fit(make, manual=True), fit(make, ours=False, manual=True)
        assert distance(ours.model, theirs.model) <= TOLERANCE
        assert distance(ours.model.net, make_net()) > 0.1

    @pytest.mark.parametrize("make", [one_cycle, clipped, unfused])
    def test_float16_with_a_scaler_ends_where_torch_does(self, fit, half, make):
        options = {"gradient_clip_val": BOUND} if make is unfused else {}
        # A schedule of ours counts the steps taken, a scheduler of torch also those skipped.
        interval = STEPS if make is clipped else 2
        ours, theirs = (fit(make, own, **half(interval), **options) for own in (True, False))
        assert distance(ours.model, theirs.model) <= TOLERANCE
        assert ours.precision_plugin.scaler.state_dict() == theirs.precision_plugin.scaler.state_dict()
        state = ours.optimizers[0].state_dict()["state"]
        (taken,) = {int(x) for entries in state.values() for key, x in entries.items() if key.endswith("count")}
        assert taken == STEPS if make is clipped else 0 < taken < STEPS

    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    def test_with_clipping_by_lightning_ends_where_torch_does(self, fit, precision):
        options = {"precision": precision, "gradient_clip_val": BOUND}
        ours, theirs = fit(unfused, **options), fit(unfused, ours=False, **options)
        assert distance(ours.model, theirs.model) <= TOLERANCE
        assert distance(ours.model, fit(unfused, precision=precision).model) > 1e-3  # it does clip

    @pytest.mark.parametrize("make", [one_cycle, cosine, clipped, unfused, muon_and_adamw])
    @pytest.mark.parametrize("weights_only", [False, True])
    def test_goes_on_from_a_checkpoint(self, fit, tmp_path, make, weights_only):
        whole, first = fit(make), fit(make, epochs=1)
        first.save_checkpoint(tmp_path / "first.ckpt")
        assert distance(first.model, whole.model) > 1e-3
        second = fit(make, checkpoint=tmp_path / "first.ckpt", weights_only=weights_only)
        assert second.global_step == STEPS
        assert distance(second.model, whole.model) == 0

    @pytest.mark.parametrize("make", [clipped, muon_and_adamw])
    def test_goes_on_from_what_model_checkpoint_kept(self, lightning, fit, tmp_path, make):
        keep = lightning.callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1)
        whole = fit(make, callbacks=[keep], enable_checkpointing=True)
        assert {path.name for path in tmp_path.glob("*.ckpt")} == {"step=4.ckpt", "step=8.ckpt", "step=12.ckpt"}
        assert distance(fit(make, checkpoint=tmp_path / "step=8.ckpt").model, whole.model) == 0

    def test_float16_goes_on_from_a_checkpoint(self, fit, half, tmp_path):
        whole, first = fit(clipped, **half()), fit(clipped, epochs=1, **half())
        first.save_checkpoint(tmp_path / "first.ckpt")
        second = fit(clipped, checkpoint=tmp_path / "first.ckpt", **half())
        assert distance(second.model, whole.model) == 0

    def test_the_learning_rate_monitor_logs_what_is_in_the_groups(self, lightning, fit, tmp_path):
        def rows(make, ours):
            logger = lightning.loggers.CSVLogger(tmp_path, f"{make.__name__}-{ours}")
            monitor = lightning.callbacks.LearningRateMonitor(
                "step", log_momentum=make is one_cycle, log_weight_decay=make is one_cycle
            )
            fit(make, ours, logger=logger, log_every_n_steps=1, callbacks=[monitor])
            with open(f"{logger.log_dir}/metrics.csv") as file:
                logged = list(csv.DictReader(file))
            name = "lr-Optimizer" if ours else "lr-AdamW"
            return [
                {key.removeprefix(name): float(x) for key, x in row.items() if key.startswith(name)} for row in logged
            ]

        mine, its = rows(one_cycle, True), rows(one_cycle, False)
        assert len(mine) == STEPS
        assert set(mine[0]) == {"", "-momentum", "-weight_decay"}
        assert mine == its
        # It looks before each step, and a schedule shows the value of the last one.
        shown = [row[""] for row in rows(clipped, True)]
        assert shown == pytest.approx([float(warm_cosine(max(step - 1, 0))) for step in range(STEPS)])


class TestTransformers:
    @pytest.fixture
    def fit(self, tmp_path):
        """Train a small GPT-2, with dropout, in float64.

        The bias of a key has no gradient but for rounding, of which Adam makes steps: in float32 the end would
        be that of torch to 1e-4 only, as are the ends of torch's own fused and plain AdamW.
        """
        pytest.importorskip("accelerate")
        transformers = pytest.importorskip("transformers")

        class Stop(transformers.TrainerCallback):
            def __init__(self, step):
                self.step = step

            def on_step_end(self, args, state, control, **_):
                control.should_training_stop |= state.global_step == self.step

        def fit(make, ours=True, name="run", stop=STEPS, resume=False, **options):
            torch.manual_seed(0)
            sizes = {"vocab_size": 32, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
            net = transformers.GPT2LMHeadModel(
                transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM")
            ).double()
            tokens = torch.randint(0, 32, (32, 8), generator=torch.Generator().manual_seed(1))
            trainer = transformers.Trainer(
                net,
                transformers.TrainingArguments(
                    tmp_path / name,
                    max_steps=STEPS,
                    per_device_train_batch_size=8,
                    save_steps=4,
                    logging_steps=1,
                    report_to="none",
                    use_cpu=True,
                    disable_tqdm=True,
                    **options,
                ),
                train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
                callbacks=[Stop(stop)],
                **({"optimizers": make(net, ours)} if callable(make) else {"optimizer_cls_and_kwargs": make}),
            )
            trainer.train(resume_from_checkpoint=resume)
            return trainer

        return fit

    @staticmethod
    def logged(trainer, key):
        return [entry[key] for entry in trainer.state.log_history if key in entry]

    @pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}], ids=["plain", "accumulated"])
    @pytest.mark.parametrize("make", [one_cycle, cosine, constant])
    def test_ends_where_torch_does(self, fit, make, options):
        ours = fit(make, max_grad_norm=BOUND, **options)
        theirs = fit(make, ours=False, name="theirs", max_grad_norm=BOUND, **options)
        assert distance(ours.model, theirs.model) <= TOLERANCE
        assert len(self.logged(ours, "learning_rate")) == STEPS
        assert self.logged(ours, "learning_rate") == self.logged(theirs, "learning_rate")
        assert min(self.logged(ours, "grad_norm")) > BOUND

    def test_clipping_by_the_transformation_is_that_of_the_trainer(self, fit):
        def make(net, ours):
            return of.Optimizer(net, of.chain(of.clip_by_global_norm(BOUND), of.adamw(0.05))), None

        ours = fit(make, max_grad_norm=0.0)
        theirs = fit(constant, ours=False, name="theirs", max_grad_norm=BOUND)
        assert distance(ours.model, theirs.model) <= TOLERANCE

    def test_trainer_makes_one_from_a_class_and_a_factory(self, fit):
        options = {"learning_rate": 0.05, "weight_decay": 0.1}
        ours = fit((of.Optimizer, {"tx": of.adamw, "learning_rate": 0.05}), **options)
        theirs = fit((torch.optim.AdamW, {"lr": 0.05}), name="theirs", **options)
        assert distance(ours.model, theirs.model) <= TOLERANCE
        assert [group["weight_decay"] for group in ours.optimizer.param_groups] == [0.1, 0.0]  # biases have none

    @pytest.mark.parametrize("make", [one_cycle, unfused, constant, muon_and_adamw])
    def test_goes_on_from_a_checkpoint(self, fit, make):
        whole = fit(make)
        first = fit(make, name="parts", stop=4)
        assert first.state.global_step == 4
        assert distance(first.model, whole.model) > 1e-3
        second = fit(make, name="parts", resume=True)
        assert second.state.global_step == STEPS
        assert distance(second.model, whole.model) == 0

    def test_its_scheduler_cannot_overrule_a_schedule(self, fit):
        with pytest.raises(ValueError, match=r"lr was set to .* but the schedule warmup_cosine_decay_schedule"):
            fit(clipped)


class TestAccelerate:
    @pytest.fixture
    def fit(self):
        """Train, two batches a step; returns the network."""
        accelerate = pytest.importorskip("accelerate")

        def fit(make, ours=True, save=None, load=None, precision="no"):
            accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
            accelerate.state.GradientState._reset_state()
            accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
            net = make_net()
            opt, scheduler = make(net, ours)
            loader = DataLoader(make_data(), batch_size=4)
            net, opt, loader, *rest = accelerator.prepare(net, opt, loader, *([scheduler] if scheduler else []))
            if load is not None:
                accelerator.load_state(load)
            for epoch in range(0 if load is None else 1, 3):
                for x, y in loader:
                    with accelerator.accumulate(net):
                        accelerator.backward(nn.functional.mse_loss(net(x), y))
                        if accelerator.sync_gradients and make is clipped and not ours:
                            accelerator.clip_grad_norm_(net.parameters(), BOUND)
                        opt.step()
                        for one in rest:
                            one.step()
                        opt.zero_grad()
                if save is not None and epoch == 0:
                    accelerator.save_state(save)
            return accelerator.unwrap_model(net)

        return fit

    @pytest.mark.parametrize("precision", ["no", "bf16"])
    @pytest.mark.parametrize("make", [one_cycle, cosine, clipped])
    def test_ends_where_torch_does(self, fit, make, precision):
        ours, theirs = fit(make, precision=precision), fit(make, ours=False, precision=precision)
        assert distance(ours, theirs) <= TOLERANCE
        assert distance(ours, make_net()) > 0.1

    @pytest.mark.parametrize("make", [one_cycle, cosine, clipped, muon_and_adamw])
    def test_goes_on_from_a_checkpoint(self, fit, tmp_path, make):
        whole = fit(make, save=tmp_path / "state")
        assert distance(fit(make, load=tmp_path / "state"), whole) == 0


class TestSafetensors:
    def train(self, net, opt, first, last):
        data = make_data()
        for step in range(first, last):
            x, y = data[4 * step : 4 * step + 4]
            opt.zero_grad()
            nn.functional.mse_loss(net(x.to(net[0].weight.dtype)), y).backward()
            opt.step()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("make", [cosine, clipped, muon_and_adamw])
    def test_the_state_goes_on_bit_for_bit(self, tmp_path, make, dtype):
        safetensors = pytest.importorskip("safetensors.torch")
        net = make_net().to(dtype)
        opt, _ = make(net, True)
        self.train(net, opt, 0, 3)
        saved = opt.state_dict()
        flat = {f"{i}.{key}": x for i, entries in saved["state"].items() for key, x in entries.items()}
        safetensors.save_file(flat, tmp_path / "state.safetensors")
        safetensors.save_model(net, str(tmp_path / "model.safetensors"))

        state = {}
        for name, x in safetensors.load_file(tmp_path / "state.safetensors").items():
            i, key = name.split(".", 1)
            state.setdefault(int(i), {})[key] = x
        twin = make_net().to(dtype)
        safetensors.load_model(twin, str(tmp_path / "model.safetensors"))
        again, _ = make(twin, True)
        report = again.load_state_dict({**again.state_dict(), "state": state})
        assert (len(report.matching), report.missing, report.left_over) == (len(flat), [], [])
        self.train(net, opt, 3, 8)
        self.train(twin, again, 3, 8)
        assert distance(net, twin) == 0
        ends = [one.state_dict()["state"] for one in (opt, again)]
        assert all(torch.equal(x, ends[1][i][key]) for i, entries in ends[0].items() for key, x in entries.items())
