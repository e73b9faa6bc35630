"""Ways to change a frozen tensor of the small model, as people write them."""

from __future__ import annotations

import torch
from torch import nn

from tests.guarding.loops import ENTRY, nudge


def past_autograd(model: nn.Module) -> None:
    model.backbone[0].weight.data.add_(0.5)


def by_numpy(model: nn.Module) -> None:
    model.backbone[0].weight.detach().numpy()[1, :] = 7.0


def rebound(model: nn.Module) -> None:
    model.backbone[0].weight.data = torch.randn(16, 12)


def other_storage(model: nn.Module) -> None:
    with torch.no_grad():
        model.backbone[0].weight.set_(torch.randn(16, 12))


def swapped(model: nn.Module) -> None:
    weight = model.backbone[0].weight
    torch.utils.swap_tensors(weight, nn.Parameter(torch.randn(16, 12), requires_grad=False))


def replaced(model: nn.Module) -> None:
    model.backbone[0].weight = nn.Parameter(torch.randn(16, 12), requires_grad=False)


def replaced_buffer(model: nn.Module) -> None:
    model.backbone[1].running_mean = torch.randn(16)


def there_and_back(model: nn.Module) -> None:
    model.backbone.half()
    model.backbone.float()


def rounded(model: nn.Module) -> None:
    model.backbone[0].weight.data = model.backbone[0].weight.data.half()
    model.backbone[0].weight.data = model.backbone[0].weight.data.float()


def loaded(model: nn.Module) -> None:
    model.backbone.load_state_dict(ENTRY.make().backbone.state_dict())


def assigned(model: nn.Module) -> None:
    state = {k: v.clone() for k, v in ENTRY.make().backbone.state_dict().items()}
    model.backbone.load_state_dict(state, assign=True)
    model.backbone.requires_grad_(False)


def reset(model: nn.Module) -> None:
    model.backbone[1].reset_running_stats()


def initialised(model: nn.Module) -> None:
    model.backbone.apply(lambda m: nn.init.ones_(m.weight) if isinstance(m, nn.Linear) else None)


def averaged(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.lerp_(torch.zeros_like(p), 0.01)


def norms_in_training_mode(model: nn.Module) -> None:
    model.backbone[1].train()
    with torch.no_grad():
        model(ENTRY.batch()[0])
    model.backbone[1].eval()


def one_ulp(model: nn.Module) -> None:
    weight = model.backbone[0].weight.data
    weight[3, 3] = torch.nextafter(weight[3, 3], torch.tensor(9.0))


def sign_of_zero_and_nan(model: nn.Module) -> None:
    model.backbone[0].weight.detach().view(torch.int32)[2, :2] = 0x7FC00001


DEEDS = [
    nudge,
    past_autograd,
    by_numpy,
    rebound,
    other_storage,
    swapped,
    replaced,
    replaced_buffer,
    there_and_back,
    rounded,
    loaded,
    assigned,
    reset,
    initialised,
    averaged,
    norms_in_training_mode,
    one_ulp,
    sign_of_zero_and_nan,
]
