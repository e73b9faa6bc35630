# ruff: noqa: E501  (a table)
"""Changes as users write them, and who did it: what the causes are scored on.

Where the evidence of two changes is the same, "unknown" is what is expected: a step or a load that
leaves the bytes alone moves the version counter, and so hides how somebody else wrote.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.ao.quantization import MinMaxObserver
from torch.nn.utils import parameters_to_vector, prune, vector_to_parameters
from torch.utils.checkpoint import checkpoint as checkpoint_

from tests.guarding.causes import cause_models as models
from tests.guarding.causes.cause_harness import Case, Live

CNN, CONV, NORM = "two_branches", "trunk.0.0", "trunk.0.1"
IN_PLACE, PAST = "in-place operation", "write past autograd"
STATS, SELF, RESET = "running statistics", "self-writing forward", "statistics reset"
REINIT, REBOUND = "re-initialisation", "rebound data"


def under_no_grad(do):
    def done(live: Live) -> None:
        with torch.no_grad():
            do(live)

    return done


def stale(kind: type[torch.optim.Optimizer], *, value: float | None = None, **options):
    """Before: an optimizer over all, and gradients of the frozen part from before the freeze."""

    def before(live: Live) -> None:
        draw = torch.Generator().manual_seed(3)
        for p in live.model.parameters():
            p.grad = torch.zeros_like(p) if value == 0 else torch.randn(p.shape, generator=draw)
        live.past["optimizer"] = kind(live.model.parameters(), **options)

    return before


def without_gradients(live: Live) -> None:
    """Before: what is frozen is in a group that decays, and torch leaves it alone."""
    live.past["optimizer"] = torch.optim.SGD(live.model.parameters(), lr=0.1, weight_decay=0.1)


def with_momentum(kind: type[torch.optim.Optimizer], **options):
    """Before: some steps, so that there is momentum; then gradients of zero."""

    def before(live: Live) -> None:
        stale(kind, **options)(live)
        live.past["optimizer"].step()
        live.past["optimizer"].zero_grad(set_to_none=False)

    return before


def step(live: Live) -> None:
    live.past["optimizer"].step()


def train_the_rest(live: Live, **options) -> None:
    """A step on what is free, as every training has it."""
    free = [p for p in live.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(free, lr=0.1, **options)
    live.model.eval()
    live.loss(live.model, live.batch).backward()
    optimizer.step()


def other_state(live: Live) -> dict[str, Tensor]:
    """A checkpoint of another run."""
    draw = torch.Generator().manual_seed(5)
    return {
        key: value + torch.randn(value.shape, generator=draw).abs().to(value.dtype) + 1
        for key, value in live.model.state_dict().items()
    }


def checkpoint(live: Live) -> None:
    live.past["state"] = other_state(live)


def equal_load(live: Live) -> None:
    live.model.load_state_dict({k: v.clone() for k, v in live.model.state_dict().items()})


def head_load(live: Live) -> None:
    state = {k: v + 1 for k, v in live.model.state_dict().items() if not k.startswith("trunk")}
    live.model.load_state_dict(state, strict=False)


def init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def double(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        module.weight.data.mul_(1.0)
        with torch.no_grad():
            module.weight.mul_(2.0)


def update_bn(live: Live) -> None:
    loader = [live.batch[0], live.batch[0]]
    torch.optim.swa_utils.update_bn(loader, live.model)


def scaled_fused(live: Live) -> None:
    """A fused step that the scaler makes void, and a write of somebody else."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    live[CONV].bias.grad.fill_(float("inf"))
    scaler.step(live.past["optimizer"])
    scaler.update()
    live[CONV].weight.data.add_(0.5)


def closure_step(live: Live) -> None:
    """Gradients that come to be within the step."""
    live.model.requires_grad_(True)
    optimizer = torch.optim.SGD(live.model.parameters(), lr=0.1)

    def closure() -> Tensor:
        loss = live.loss(live.model.eval(), live.batch)
        loss.backward()
        return loss

    optimizer.step(closure)


class DecaysAll(torch.optim.Optimizer):
    """As some optimizers outside torch: decay does not ask for a gradient."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])


def decays_all(live: Live) -> None:
    defaults = {"lr": 0.1, "weight_decay": 0.1}
    live.past["optimizer"] = DecaysAll(live.model.parameters(), defaults)


def set_other(live: Live) -> None:
    live[CONV].weight.set_(torch.randn_like(live[CONV].weight) * 9)


def average(live: Live) -> None:
    with torch.no_grad():
        for p in live.past["source"].parameters():
            p.add_(torch.randn_like(p))
    live.model.update_parameters(live.past["source"])


def ema_by_hand(live: Live) -> None:
    for p in live["trunk"].parameters():
        p.lerp_(torch.randn_like(p) * 3, 0.01)


def there_and_back(live: Live) -> None:
    live.model.merge()
    live.model.unmerge()


def peft_there_and_back(live: Live) -> None:
    live.model.merge_adapter()
    live.model.unmerge_adapter()


def steps_on_shared(live: Live) -> None:
    optimizer = torch.optim.SGD([live["free"]], lr=0.1)
    live.loss(live.model, live.batch).backward()
    optimizer.step()


def tied_head_trains(live: Live) -> None:
    live["lm_head"].weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(live["lm_head"].parameters(), lr=0.1)
    live.loss(live.model, live.batch).backward()
    optimizer.step()


def apply_and_step(live: Live) -> None:
    """An init of one branch, and a step on the other: each has its own cause."""
    live["second"].apply(init_weights)
    step(live)


# fmt: off
NORMS = [
    Case("forward in training mode", CNN, Live.forward, STATS),
    Case("forward in training mode, no_grad", CNN, under_no_grad(Live.forward), STATS),
    Case("three forwards in training mode", CNN, lambda v: [v.forward() for _ in range(3)], STATS),
    Case("forward in training mode, 1d", "mlp_bn1d", Live.forward, STATS),
    Case("forward in training mode, 3d", "conv_bn3d", Live.forward, STATS),
    Case("forward, momentum=None", models.cumulative, Live.forward, STATS),
    Case("forward, momentum=0", models.still, Live.forward, STATS),
    Case("forward and a step on the rest", CNN, lambda v: [v.forward(), train_the_rest(v)], STATS),
    Case("reset_running_stats()", CNN, lambda v: v[NORM].reset_running_stats(), RESET),
    Case("swa_utils.update_bn", CNN, update_bn, RESET),
    Case("update_bn, 1d", "mlp_bn1d", update_bn, RESET),
    Case("running_mean written by hand in training mode", CNN, lambda v: v.model.train() and v[NORM].running_mean.mul_(0.9), IN_PLACE),
    Case("running_mean.data written by hand", CNN, lambda v: v[NORM].running_mean.data.mul_(0.9), PAST),
    Case("running_var halved and counted by hand", CNN, lambda v: [v[NORM].running_var.mul_(0.3), v[NORM].running_mean.mul_(0.3), v[NORM].num_batches_tracked.add_(1)], IN_PLACE),
    Case("counter alone by hand", CNN, lambda v: v[NORM].num_batches_tracked.add_(1), IN_PLACE),
    Case("norm's weight by hand, no forward", CNN, under_no_grad(lambda v: v[NORM].weight.mul_(2)), IN_PLACE),
]

OPTIMIZERS = [
    Case("SGD, gradient from before", CNN, step, "optimizer", before=stale(torch.optim.SGD, lr=0.1)),
    Case("AdamW, gradient from before", "transformer", step, "optimizer", before=stale(torch.optim.AdamW, lr=0.01)),
    Case("fused Adam, gradient from before", CNN, step, "optimizer", before=stale(torch.optim.Adam, lr=0.01, fused=True)),
    Case("RMSprop, gradient from before", "gru", step, "optimizer", before=stale(torch.optim.RMSprop, lr=0.01)),
    Case("Adam, tied head", "gpt2", tied_head_trains, "optimizer", frozen="transformer.wte"),
    Case("SGD with a closure, thawed", "lstm", closure_step, "optimizer"),
    Case("memory shared with what trains", models.shared, steps_on_shared, "optimizer", frozen="frozen"),
    Case("SGD, momentum alone", CNN, step, "momentum only", before=with_momentum(torch.optim.SGD, lr=0.1, momentum=0.9)),
    Case("Adam, momentum alone", "gru", step, "momentum only", before=with_momentum(torch.optim.Adam, lr=0.1)),
    Case("SGD, decay alone", CNN, step, "weight decay only", before=stale(torch.optim.SGD, value=0, lr=0.1, weight_decay=0.1)),
    Case("AdamW, decay alone", "lstm", step, "weight decay only", before=stale(torch.optim.AdamW, value=0, lr=0.1, weight_decay=0.1)),
    Case("AdamW, decay alone, two steps", "lstm", lambda v: [step(v), step(v)], "weight decay only", before=stale(torch.optim.AdamW, value=0, lr=0.1, weight_decay=0.1)),
    Case("decay of an optimizer that asks for no gradient", CNN, step, "weight decay only", before=decays_all),
    Case("w.mul_(0.999), others trained with decay", CNN, lambda v: [train_the_rest(v, weight_decay=0.01), under_no_grad(lambda u: u[CONV].weight.mul_(0.999))(v)], IN_PLACE),
    Case("w.mul_(0.99), in a group with lr=0", CNN, lambda v: [step(v), under_no_grad(lambda u: u[CONV].weight.mul_(0.99))(v)], "unknown", before=stale(torch.optim.SGD, lr=0.0, weight_decay=0.1)),
    Case("w.data.mul_(0.999), stale gradient and lr=0", CNN, lambda v: [step(v), v[CONV].weight.data.mul_(0.999)], "unknown", before=stale(torch.optim.SGD, lr=0.0)),
    Case("w.mul_(1 - lr * weight_decay), no gradient", CNN, lambda v: [step(v), under_no_grad(lambda u: u[CONV].weight.mul_(0.99))(v)], IN_PLACE, before=without_gradients),
    Case("w.mul_(0.999), zero gradient, no decay", CNN, lambda v: [step(v), under_no_grad(lambda u: u[CONV].weight.mul_(0.999))(v)], "unknown", before=stale(torch.optim.SGD, value=0, lr=0.1)),
    Case(".data, and a fused step that a scaler made void", CNN, scaled_fused, PAST, before=stale(torch.optim.SGD, lr=0.1, fused=True)),
]

LOADS = [
    Case("load_state_dict", CNN, lambda v: v.model.load_state_dict(v.past["state"]), "load", before=checkpoint),
    Case("load_state_dict, transformer", "transformer", lambda v: v.model.load_state_dict(v.past["state"]), "load", before=checkpoint),
    Case("load_state_dict, tied", "gpt2", lambda v: v.model.load_state_dict(v.past["state"]), "load", before=checkpoint),
    Case("load_state_dict(assign=True)", CNN, lambda v: v.model.load_state_dict(v.past["state"], assign=True), "load", before=checkpoint),
    Case("load, and a step on the rest", CNN, lambda v: [v.model.load_state_dict(v.past["state"]), train_the_rest(v)], "load", before=checkpoint),
    Case("load of equal bytes, then a write", CNN, lambda v: [equal_load(v), under_no_grad(lambda u: u[CONV].weight[0, 0, 0].add_(1))(v)], "unknown"),
    Case("load of equal bytes, then a forward", CNN, lambda v: [equal_load(v), v.forward()], STATS),
    Case("load of the head, then a write", CNN, lambda v: [head_load(v), under_no_grad(lambda u: u[CONV].weight.add_(1))(v)], IN_PLACE),
    Case("load of other bytes, then .data", CNN, lambda v: [v.model.load_state_dict(v.past["state"]), [p.data.mul_(1.5) for p in v["trunk"].parameters()]], {"running_mean": "load", "running_var": "load", "num_batches_tracked": "load", "*": "unknown"}, before=checkpoint),
]

INITS = [
    Case("model.apply(init_weights)", CNN, lambda v: v.model.apply(init_weights), REINIT),
    Case("apply(init_weights), transformer", "transformer", lambda v: v.model.apply(init_weights), REINIT),
    Case("apply(model._init_weights)", "gpt2", lambda v: v.model.apply(v.model._init_weights), REINIT),
    Case("reset_parameters()", "lstm", lambda v: v["rnn"].reset_parameters(), REINIT),
    Case("reset_parameters() of linear layers", "mlp_bn1d", lambda v: [v["backbone.0"].reset_parameters(), v["backbone.3"].reset_parameters()], REINIT),
    Case("xavier_uniform_", "transformer", lambda v: nn.init.xavier_uniform_(v["encoder"].layers[0].linear1.weight), REINIT),
    Case("zeros_", CNN, lambda v: nn.init.zeros_(v[CONV].bias), REINIT),
    Case("ones_", CNN, lambda v: nn.init.ones_(v[NORM].weight), REINIT),
    Case("apply(init) of a branch, and a step", CNN, apply_and_step, "optimizer", before=stale(torch.optim.SGD, lr=0.1)),
    Case("apply(double)", CNN, lambda v: v.model.apply(double), IN_PLACE),
    Case("copy_ of values unlike any init", CNN, under_no_grad(lambda v: v["trunk.1.0"].weight.copy_(torch.randn(12, 8, 3, 3).exp())), IN_PLACE),
]

CASTS = [
    Case("half()", CNN, lambda v: v.model.half(), "cast"),
    Case("to(bfloat16)", "transformer", lambda v: v.model.to(torch.bfloat16), "cast"),
    Case("half().float()", CNN, lambda v: v.model.half().float(), "cast"),
    Case("bfloat16().float()", "gru", lambda v: v.model.bfloat16().float(), "cast"),
    Case("rounded by hand", CNN, lambda v: v[CONV].weight.data.copy_(v[CONV].weight.half().float()), "cast"),
    Case("half().float() of the head, a write elsewhere", CNN, lambda v: [v["second"].half().float(), under_no_grad(lambda u: u[CONV].weight.add_(1e-3))(v)], IN_PLACE),
    Case("half().float(), then a write", CNN, lambda v: [v.model.half().float(), [p.data.add_(0.01) for p in v["trunk"].parameters()]], {"*": REBOUND, "running_mean": "cast", "running_var": "cast"}),
]

OWN = [
    Case("spectral_norm", models.spectral, Live.forward, SELF),
    Case("spectral_norm, old", models.old_spectral, Live.forward, SELF),
    Case("spectral_norm, _u by hand", models.spectral, lambda v: v["parametrizations.weight"][0]._u.add_(0.1), IN_PLACE),
    Case("spectral_norm, _u and _v by hand", models.spectral, lambda v: [b.mul_(1.1) for b in v["parametrizations.weight"][0].buffers()], IN_PLACE),
    Case("spectral_norm, old, weight_u by hand", models.old_spectral, lambda v: v["weight_u"].copy_(torch.ones(16) / 4), IN_PLACE),
    Case("Embedding(max_norm)", models.embedding, lambda v: v.forward(train=False), SELF),
    Case("Embedding(max_norm), rows by hand", models.embedding, under_no_grad(lambda v: v["weight"][:9].mul_(0.7)), IN_PLACE),
    Case("FakeQuantize in eval mode", models.quantized, lambda v: v.model.eval()(v.batch * 1.5), SELF),
    Case("FakeQuantize, scale by hand", models.quantized, lambda v: v["scale"].mul_(1.01), IN_PLACE),
    Case("InstanceNorm in training mode", "instance_norm", Live.forward, SELF),
    Case("InstanceNorm alone", models.instance, Live.forward, SELF),
    Case("InstanceNorm, running_mean by hand", models.instance, lambda v: v["running_mean"].mul_(0.9), IN_PLACE),
    Case("codebook", models.codebook, Live.forward, SELF),
    Case("codebook, codes by hand", models.codebook, lambda v: v["codes"].mul_(1.1), IN_PLACE),
    Case("queue and pointer", models.queue, Live.forward, SELF),
    Case("queue cleared by hand", models.queue, lambda v: v["queue"].mul_(0.5), IN_PLACE),
]

ADAPTERS = [
    Case("merge and unmerge", models.lora, there_and_back, "merge and unmerge", frozen="weight"),
    Case("merge", models.lora, lambda v: v.model.merge(), "merge and unmerge", frozen="weight"),
    Case("noise on a layer with an adapter", models.lora, lambda v: v["weight"].data.add_(torch.randn(32, 32) * 1e-3), PAST, frozen="weight"),
    Case("merge_adapter and unmerge_adapter of peft", models.peft_lora, peft_there_and_back, "merge and unmerge", frozen="0.weight"),
    Case("merge_adapter of peft", models.peft_lora, lambda v: v.model.merge_adapter(), "merge and unmerge", frozen="0.weight"),
    Case("AveragedModel.update_parameters", models.averaged, average, "averaging"),
    Case("average by hand", CNN, under_no_grad(ema_by_hand), IN_PLACE),
]

WRITES = [
    Case("add_ under no_grad", CNN, under_no_grad(lambda v: v[CONV].weight.add_(0.1)), IN_PLACE),
    Case("one element", "gru", under_no_grad(lambda v: v["rnn"].weight_hh_l0[0, :1].fill_(3.0)), IN_PLACE),
    Case("detach().add_", "transformer", lambda v: v["encoder"].layers[1].linear2.weight.detach().add_(0.1), IN_PLACE),
    Case(".data.add_", CNN, lambda v: v[CONV].weight.data.add_(0.1), PAST),
    Case("numpy", "lstm", lambda v: v["rnn"].weight_ih_l0.detach().numpy().__imul__(1.1), PAST),
    Case("dlpack", CNN, lambda v: torch.from_dlpack(v[CONV].weight.detach()).add_(0.1), PAST),
    Case("untyped_storage().fill_", CNN, lambda v: v[CONV].weight.untyped_storage().fill_(63), PAST),
    Case(".data = other", CNN, lambda v: setattr(v[CONV].weight, "data", v[CONV].weight.data * 1.3), REBOUND),
    Case("set_(other)", CNN, under_no_grad(set_other), REBOUND),
    Case("vector_to_parameters", "gru", lambda v: vector_to_parameters(parameters_to_vector(v["rnn"].parameters()).detach() * 1.1, v["rnn"].parameters()), REBOUND),
    Case("module.weight = Parameter(...)", CNN, lambda v: setattr(v[CONV], "weight", nn.Parameter(v[CONV].weight.detach() * 1.3)), "replaced object"),
    Case("module.weight = Parameter(...), tied", "gpt2", lambda v: setattr(v["transformer.wte"], "weight", nn.Parameter(v["transformer.wte"].weight.detach() + 1)), "replaced object", frozen="transformer.wte"),
    Case("swap_tensors", CNN, lambda v: torch.utils.swap_tensors(v[CONV].weight, nn.Parameter(v[CONV].weight.detach() * 1.3)), REBOUND),
    Case("a buffer assigned anew", CNN, lambda v: setattr(v[NORM], "running_mean", v[NORM].running_mean * 0.9), "replaced object"),
    Case("all modules clipped by hand", "transformer", lambda v: [p.data.clamp_(-0.1, 0.1) for p in v["encoder"].parameters()], PAST),
]
# fmt: on


def checkpointed(live: Live) -> None:
    """Activation checkpointing, which runs the norms a second time in the backward."""
    live.model.train()
    images = live.batch[0].clone().requires_grad_()
    checkpoint_(live["trunk"], images, use_reentrant=False).sum().backward()


def swapping_load(live: Live) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        live.model.load_state_dict(live.past["state"])
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def two_optimizers(live: Live) -> None:
    train_the_rest(live)
    step(live)


def ema_model() -> Live:
    live = models.averaged()
    live.model = torch.optim.swa_utils.AveragedModel(
        live.past["source"], multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    live.model.update_parameters(live.past["source"])
    return live


def observer() -> Live:
    live = models.quantized()
    live.model = MinMaxObserver()
    live.model(live.batch)
    return live


def bag() -> Live:
    live = models.embedding()
    live.model = nn.EmbeddingBag(50, 16, max_norm=1.0).requires_grad_(False)
    return live


def pre_hook_bias(live: Live) -> None:
    """A load-balancing bias that is corrected before each step of the optimizer."""
    free = [p for p in live.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(free, lr=0.1)

    def correct(*_) -> None:
        live[NORM].running_mean.add_(0.1)

    optimizer.register_step_pre_hook(correct)
    optimizer.step()


def foreach_by_hand(live: Live) -> None:
    torch._foreach_mul_(list(live["trunk"].parameters()), 0.99)


def infer(live: Live) -> None:
    with torch.inference_mode():
        live[CONV].weight.add_(0.1)


def bit_flip(live: Live) -> None:
    live[CONV].weight.detach().numpy().view("uint8").reshape(-1)[6] ^= 64


# fmt: off
HELD_OUT = [
    Case("Adagrad, gradient from before", "transformer", step, "optimizer", before=stale(torch.optim.Adagrad, lr=0.01)),
    Case("AdamW with lr as a tensor", CNN, step, "optimizer", before=stale(torch.optim.AdamW, lr=torch.tensor(0.01))),
    Case("the second of two optimizers", CNN, two_optimizers, "optimizer", before=stale(torch.optim.SGD, lr=0.1)),
    Case("NAdam, momentum alone", "gru", step, "momentum only", before=with_momentum(torch.optim.NAdam, lr=0.1)),
    Case("SGD, nesterov and decay, zero gradient", CNN, step, "momentum only", before=with_momentum(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)),
    Case("AdamW, amsgrad and decay, zero gradient", "lstm", step, "momentum only", before=with_momentum(torch.optim.AdamW, lr=0.1, amsgrad=True)),
    Case("Adam with coupled decay, zero gradient", "gru", step, "weight decay only", before=stale(torch.optim.Adam, value=0, lr=0.01, weight_decay=0.1)),
    Case("forward, and a gradient from before", CNN, lambda v: [v.forward(), step(v)], {"running_mean": STATS, "running_var": STATS, "num_batches_tracked": STATS, "*": "optimizer"}, before=stale(torch.optim.SGD, lr=0.1)),
    Case("forward under activation checkpointing", CNN, checkpointed, STATS),
    Case("forward, and a load of the head", CNN, lambda v: [v.forward(), head_load(v)], STATS),
    Case("forward of resnet18", "resnet18", Live.forward, STATS),
    Case("load into the part itself", CNN, lambda v: v["trunk"].load_state_dict({k.removeprefix("trunk."): t for k, t in v.past["state"].items() if k.startswith("trunk")}), "load", before=checkpoint),
    Case("load that swaps", CNN, swapping_load, "load", before=checkpoint),
    Case("trunc_normal_(std=0.02)", "transformer", lambda v: nn.init.trunc_normal_(v["encoder"].layers[0].linear1.weight, std=0.02), REINIT),
    Case("orthogonal_", "gru", lambda v: nn.init.orthogonal_(v["rnn"].weight_hh_l0), REINIT),
    Case("apply(partial(init, ...))", CNN, lambda v: v.model.apply(partial(init_weights)), REINIT),
    Case("apply(lambda)", CNN, lambda v: v.model.apply(lambda m: m.weight.data.mul_(2) if isinstance(m, nn.Conv2d) else None), PAST),
    Case("EmbeddingBag(max_norm)", bag, lambda v: v.forward(train=False), SELF),
    Case("MinMaxObserver", observer, lambda v: v.model(v.batch * 2), SELF),
    Case("EMA of AveragedModel", ema_model, average, "averaging"),
    Case("bias corrected in a hook of the optimizer", CNN, pre_hook_bias, IN_PLACE),
    Case("_foreach_mul_", CNN, under_no_grad(foreach_by_hand), IN_PLACE),
    Case("inference_mode", CNN, infer, IN_PLACE),
    Case("add(out=)", CNN, under_no_grad(lambda v: torch.add(v[CONV].weight, 1, out=v[CONV].weight)), IN_PLACE),
    Case("one bit", CNN, bit_flip, PAST),
    Case("resize_token_embeddings", "gpt2", lambda v: v.model.resize_token_embeddings(50), REBOUND, frozen="transformer.wte"),
    Case("pruned by nn.utils.prune, baked in", CNN, lambda v: [prune.l1_unstructured(v[CONV], "weight", amount=0.5), prune.remove(v[CONV], "weight")], REBOUND),
    Case("codebook moved to the mean by hand", models.codebook, lambda v: [v["codes"].data.sub_(v["codes"].mean()), v["sums"].data.mul_(2)], PAST),
]
"""Written when the rules were done."""

FIRST_RUN = """\
22 of them
were named rightly. Two were named wrongly, and the rules were mended for these: Adam with coupled
decay, and a codebook of which two of three tables were written by hand. For two the expectation was
mended: libraries that rebind `.data` where a new object was expected. One was vague, and one did
not run."""
# fmt: on

CASES = [*NORMS, *OPTIMIZERS, *LOADS, *INITS, *CASTS, *OWN, *ADAPTERS, *WRITES]
