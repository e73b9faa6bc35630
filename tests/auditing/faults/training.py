"""Autograd, memory, many devices, compilers, checkpoints, and process: F66 to F85."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tests.auditing.cases import Case
from tests.auditing.faults.fault import (
    adamw,
    case,
    fault,
    flags_off,
    lived,
    running,
    sgd,
    trainable,
)
from tests.auditing.faults.nets import (
    NormEval,
    classes,
    conv_norm,
    detector,
    images,
    mlp,
    squared,
    vectors,
)
from tests.zoo import ZOO, seeded


def _cut(model: nn.Module, batch: Tensor) -> Tensor:
    features = model.stem(batch).relu()
    with torch.no_grad():
        features = model.middle(features)
    return F.cross_entropy(model.head(features), torch.arange(len(batch)) % 3)


@fault(66, "stargan-v2#16")
def no_grad_around_the_frozen_middle() -> Case:
    model = mlp()
    flags_off(model.middle)
    return case(model, vectors(), _cut, "207", optimizer=sgd(trainable(model)))


class _Reentrant(nn.Module):
    """A frozen embedding, then layers whose activations are computed again."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, 12)
        self.layer = nn.Sequential(nn.Linear(12, 12), nn.ReLU())
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.layer, self.embedding(x), use_reentrant=True))


@fault(67, "pytorch#7617")
def reentrant_checkpoint_in_the_code_of_a_forward() -> Case:
    with seeded(7):
        model = _Reentrant().train()
    flags_off(model.embedding)
    return case(model, vectors(), classes, "207", optimizer=adamw(trainable(model)))


@fault(67, "transformers#21381")
def reentrant_checkpoint_of_a_library() -> Case:
    entry = ZOO["bert"]
    model = lived(entry)
    flags_off(model.bert.embeddings)
    model.activation_checkpointing_enable({"use_reentrant": True})
    model.disable_input_require_grads()  # which nobody called before libraries did it themselves
    return running(entry, model, "207", "703", optimizer=adamw(trainable(model)))


@fault(68, "pytorch#8582")
def recurrent_part_in_eval_under_a_trainable_embedding() -> Case:
    entry = ZOO["lstm"]
    model = nn.Sequential(nn.Linear(8, 8), lived(entry)).train()
    flags_off(model[1].rnn)
    model[1].rnn.eval()
    return running(entry, model, "112", optimizer=sgd(trainable(model)))


@fault(69, "transformers' layers, which ask for self.training")
def checkpointing_off_in_a_base_in_eval() -> Case:
    entry = ZOO["bert"]
    model = lived(entry)
    model.activation_checkpointing_enable({"use_reentrant": False})
    flags_off(model.bert)
    model.bert.eval()
    return running(entry, model, "113", optimizer=adamw(trainable(model)))


def _one_rank() -> None:
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


@fault(71, "pytorch#22049")
def flags_toggled_under_ddp() -> Case:
    _one_rank()
    model = DistributedDataParallel(mlp())
    flags_off(model.module.middle)
    return case(model, vectors(), classes, "701", optimizer=sgd(trainable(model)))


@fault(72, "STARK#15")
def buffers_broadcast_over_a_frozen_backbone() -> Case:
    _one_rank()
    net = detector(NormEval(conv_norm(3, 6), conv_norm(6, 8)))
    flags_off(net.backbone)
    model = DistributedDataParallel(net.train())
    return case(model, images(), squared, "702", optimizer=sgd(trainable(model)))


@fault(77, "transformers#11294")
def resumed_without_the_flags() -> Case:
    trained = detector()
    flags_off(trained.backbone)
    model = detector()
    model.load_state_dict(trained.state_dict())
    optimizer = sgd(model.parameters())
    return case(model, images(), squared, "003", "101", optimizer=optimizer, frozen="backbone")


@fault(79, "an optimizer of the model before deepcopy")
def optimizer_of_another_copy() -> Case:
    model = mlp()
    flags_off(model.middle)
    optimizer = sgd(trainable(model))
    return case(copy.deepcopy(model), vectors(), classes, "202", "204", optimizer=optimizer)


@fault(82, "gt-pyg#112")
def status_says_frozen_while_statistics_move() -> Case:
    model = detector()
    model.frozen = True
    flags_off(model.backbone)
    model.train()
    return case(model, images(), squared, "101", optimizer=sgd(trainable(model)))


class _FreezesInStep(torch.optim.SGD):
    """A modifier of training that comes at the start of an epoch, in the call of `step`."""

    due: nn.Module | None = None

    def step(self, closure: None = None) -> None:
        if self.due is not None:
            flags_off(self.due)
        return super().step(closure)


@fault(84, "sparseml#965")
def frozen_inside_of_a_step() -> Case:
    model = mlp()
    optimizer = _FreezesInStep(model.parameters(), lr=0.01, momentum=0.9)
    classes(model, vectors()).backward()
    optimizer.due = model.middle
    optimizer.step()
    return case(model, vectors(), classes, "005", optimizer=optimizer)


@fault(85, "a tutorial's loop over requires_grad")
def tutorial_of_transfer_learning() -> Case:
    entry = ZOO["two_branches"]
    model = lived(entry)
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.main = nn.Sequential(nn.Flatten(), nn.Linear(256, 5))
    return running(entry, model, "101", optimizer=sgd(model.main.parameters()))
