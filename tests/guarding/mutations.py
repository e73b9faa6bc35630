"""What happens to frozen tensors, as people write it: the table that the tiers are tested by.

Each row says on which models it can be done, which tiers have to see it when they look alone, and
what a guard says. That bytes change, and of which tensors, is read off the bytes themselves.
"""

from __future__ import annotations

import copy
import os
from functools import partial
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

from tests.guarding.mutation import CNN, ELSEWHERE, FROM_OUTSIDE, UNSEEN, Mutation, quietly, to_odd
from tests.guarding.mutations_in_memory import HALVES, IN_MEMORY, OPTIMIZERS
from tests.guarding.subjects import Run, loss_of

# --- what people call --------------------------------------------------------------------------


def other_state(run: Run) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        key: value + torch.rand(value.shape, generator=draw).add(1).to(value.dtype)
        for key, value in run.net.state_dict().items()
    }


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)


def reset_all(run: Run) -> None:
    for module in run.net.backbone.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def student(run: Run) -> None:
    """The backbone is the slow teacher of a copy that trains."""
    run.past["student"] = [p.detach() + 0.1 for p in run.net.backbone.parameters()]


def average_by_torch(run: Run) -> None:
    get_ema_multi_avg_fn(0.99)(list(run.net.backbone.parameters()), run.past["student"], 1)


def average_by_hand(run: Run) -> None:
    for old, new in zip(run.net.backbone.parameters(), run.past["student"], strict=True):
        old.data.mul_(0.99).add_(new, alpha=0.01)


def merge_and_unmerge(run: Run) -> None:
    rows, columns = run.weight.shape[0], run.weight[0].numel()
    delta = (torch.randn(rows, 2) @ torch.randn(2, columns)).view(run.weight.shape)
    run.weight.data += delta
    run.weight.data -= delta


def balance(run: Run) -> None:
    """As mixtures of experts do: no gradient, a hook of the step moves the bias."""
    run.odd[5] += 0.001


CALLS = [
    Mutation(
        "load_state_dict", lambda run: run.net.load_state_dict(other_state(run)), cause="load"
    ),
    Mutation(
        "apply(init)",
        lambda run: run.net.apply(initialise),
        models=("cnn", "transformer", "tied"),
        cause="initialise",
    ),
    Mutation(
        "reset_parameters()",
        reset_all,
        models=("cnn", "tied"),
        cause="drawn anew|initialised|reset",
    ),
    Mutation("EMA by torch", average_by_torch, before=student),
    Mutation("EMA by hand", average_by_hand, before=student, cause="averag"),
    Mutation("an adapter merged and unmerged", merge_and_unmerge, cause="merge"),
    Mutation("a bias balanced by a step hook", balance, place="step hook"),
]


# --- other memory, other objects ---------------------------------------------------------------


def vector(run: Run) -> None:
    parameters = list(run.net.backbone.parameters())
    vector_to_parameters(parameters_to_vector(parameters).detach() * 1.01, parameters)


def put(run: Run, new: nn.Parameter) -> None:
    owner, _, name = run.largest.rpartition(".")
    setattr(run.net.get_submodule(owner), name, new)


def another_backbone(run: Run) -> None:
    other = copy.deepcopy(run.net.backbone)
    for parameter in other.parameters():
        parameter.data.mul_(1.01)
    run.net.backbone = other


OTHERS = [
    Mutation(".data = other", lambda run: setattr(run.weight, "data", run.weight * 2), ELSEWHERE),
    Mutation("vector_to_parameters", vector, ELSEWHERE),
    Mutation(
        "swap_tensors",
        lambda run: torch.utils.swap_tensors(run.weight, nn.Parameter(run.weight * 2, False)),
        ELSEWHERE,
        models=("cnn", "transformer", "tied"),  # recurrent layers refer weakly to their weights
    ),
    Mutation("set_", quietly(lambda w: w.set_(w * 2)), ELSEWHERE),
    Mutation(
        "another Parameter",
        lambda run: put(run, nn.Parameter(run.weight.detach() * 2, False)),
        ELSEWHERE,
    ),
    Mutation(
        "load_state_dict(assign=True)",
        lambda run: run.net.load_state_dict(other_state(run), assign=True),
        ELSEWHERE,
        cause="load_state_dict at .* loaded",
    ),
    Mutation("another backbone", another_backbone, ELSEWHERE),
    Mutation("deleted", lambda run: setattr(run.net.backbone, "odd", None), ELSEWHERE),
    Mutation("resize_() in place", to_odd(lambda t: t.resize_(2)), ELSEWHERE, latest=16),
    Mutation("half() and back", lambda run: run.net.half().float(), ELSEWHERE, "cast|half", "cast"),
]


# --- forwards that write -----------------------------------------------------------------------


def train_mode(run: Run) -> None:
    run.net.train()


@torch.no_grad()
def extra_forward(run: Run) -> None:
    run.net.train()
    run.net(run.batch[0])
    run.net.backbone.eval()


def recompute(run: Run) -> None:
    run.net.train()
    features = checkpoint(run.net.backbone, run.batch[0], use_reentrant=False)
    F.cross_entropy(run.net.head(features), run.batch[1]).backward()
    run.net.backbone.eval()


def wipe(run: Run) -> None:
    for module in run.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()


def refill(run: Run) -> None:
    update_bn([run.batch[0]], run.net)
    run.net.backbone.eval()


def by_function(run: Run) -> None:
    norm = run.net.backbone[1]
    F.batch_norm(torch.randn(4, 64, 2, 2), norm.running_mean, norm.running_var, training=True)


def new_words(run: Run) -> None:
    run.batch = torch.arange(100, 120).view(4, 5), run.batch[1]


STATS = r"running statistics|statistics|BatchNorm"
FORWARDS = [
    Mutation("model.train() after validation", train_mode, cause=STATS, models=CNN),
    Mutation("a forward under no_grad", extra_forward, cause=STATS, models=CNN),
    Mutation("recomputed by checkpoint", recompute, cause=STATS, models=CNN),
    Mutation("reset_running_stats", wipe, cause="reset", models=CNN),
    Mutation("update_bn", refill, cause=STATS + "|update_bn", models=CNN),
    Mutation("F.batch_norm", by_function, cause=STATS, models=CNN),
    Mutation(
        "a counter",
        lambda run: run.net.backbone[1].num_batches_tracked.add_(1),
        models=CNN,
        cause=STATS,
    ),
    Mutation(
        "Embedding(max_norm)",
        new_words,
        cause="max_norm",
        models=("renormed",),
        place="loader",
        before=lambda run: run.net(run.batch[0]),
    ),
    Mutation("spectral_norm", train_mode, cause="spectral|power", models=("spectral",)),
    Mutation(
        "an observer is switched on",
        lambda run: run.net.apply(torch.ao.quantization.enable_observer),
        before=lambda run: run.net.apply(torch.ao.quantization.disable_observer),
        cause="observ|quant",
        models=("quantized",),
    ),
    Mutation("a codebook and its queue", train_mode, cause="Codebook", models=("codebook",)),
]


# --- from elsewhere, or shared with others -----------------------------------------------------


def mapped(run: Run) -> None:
    """The weights are a file's pages, as `load_file` leaves them."""
    folder = run.undo.enter_context(TemporaryDirectory())
    run.past["file"] = f"{folder}/weights.safetensors"
    save_file({"weight": run.weight.detach().clone()}, run.past["file"])
    run.weight.data = load_file(run.past["file"])["weight"]


def edit(run: Run) -> None:
    with open(run.past["file"], "r+b") as file:
        file.seek(-16, os.SEEK_END)
        file.write(HALVES)


def born_in_inference_mode(run: Run) -> None:
    with torch.inference_mode():
        run.net.backbone.odd = torch.ones(4)


@torch.inference_mode()
def add_in_inference_mode(run: Run) -> None:
    run.odd.add_(1)


SPECIAL = [
    Mutation("a file edited under its tensor", edit, FROM_OUTSIDE, before=mapped),
    Mutation(
        "a tensor born in inference mode",
        add_in_inference_mode,
        before=born_in_inference_mode,
    ),
    Mutation("one of the slices of one tensor", quietly(lambda w: w.mul_(2)), models=("flat",)),
    Mutation(
        "a slice written through the whole",
        lambda run: torch.as_strided(run.weight.detach(), (8,), (1,)).add_(1),
        models=("flat",),
    ),
]


# --- equal bytes -------------------------------------------------------------------------------


def write_and_undo(run: Run) -> None:
    old = run.weight.detach().clone()
    run.weight.data.mul_(3)
    run.weight.data.copy_(old)


def load_equal(run: Run) -> None:
    run.net.load_state_dict({key: value.clone() for key, value in run.net.state_dict().items()})


def functional(run: Run) -> None:
    others = {name: p.detach() * 2 for name, p in run.net.named_parameters()}
    with torch.no_grad():
        torch.func.functional_call(run.net, others, run.batch[0])


def parallel(run: Run) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    run.undo.callback(dist.destroy_process_group)
    run.net.zero_grad()
    loss_of(DistributedDataParallel(run.net), run.batch).backward()


def beside(run: Run) -> None:
    """A tensor over the same storage that shares no byte with the frozen ones."""
    run.past["free"].mul_(2)


def neighbour(run: Run) -> None:
    whole = torch.randn(run.weight.numel() + 4096)
    whole[: run.weight.numel()] = run.weight.detach().view(-1)
    run.weight.data = whole[: run.weight.numel()].view(run.weight.shape)
    run.past["free"] = whole[run.weight.numel() :]


SILENT = partial(Mutation, seen=UNSEEN, says="nothing")
EQUAL = [
    SILENT("a write and its undo", write_and_undo, note="written and put back"),
    SILENT("equal bytes", quietly(lambda w: w.copy_(w.clone())), note="written and put back"),
    SILENT("load_state_dict of what is there", load_equal),
    SILENT("zero_grad(set_to_none=False)", lambda run: run.optimizer.zero_grad(set_to_none=False)),
    SILENT("functional_call with others", functional),
    SILENT("DistributedDataParallel", parallel, models=("cnn", "lstm", "tied")),
    SILENT("the neighbour in one storage", beside, before=neighbour),
    SILENT("state_dict and deepcopy", lambda run: copy.deepcopy(run.net.state_dict())),
    SILENT(
        ".data = a clone", lambda run: setattr(run.weight, "data", run.weight.clone()), note="moved"
    ),
    SILENT("share_memory_()", lambda run: run.weight.share_memory_(), note="moved", frees=True),
    SILENT(
        "channels_last",
        lambda run: run.net.to(memory_format=torch.channels_last),
        models=CNN,
        note="moved",
    ),
    Mutation(
        "a Parameter of equal bytes",
        lambda run: put(run, nn.Parameter(run.weight.detach().clone(), False)),
        UNSEEN,
        says="replaced",
    ),
]

MUTATIONS = [*IN_MEMORY, *OPTIMIZERS, *CALLS, *OTHERS, *FORWARDS, *SPECIAL, *EQUAL]
