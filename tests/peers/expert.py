"""A frozen part, held by hand in one's own model class."""

from torch.ao.quantization import ObserverBase


def keep() -> None:
    """In place of `reset_running_stats`, which `update_bn` calls."""


def pass_on(x):
    """In place of an observer's forward, which writes in eval mode too."""
    return x


class HoldsPart:
    """Mixed in before the model's class: `class Model(HoldsPart, Net)`; holds `self.part`."""

    def freeze(self, optimizer=None, others=()):
        for parameter in (*self.part.parameters(), *others):
            parameter.requires_grad_(False)
            parameter.grad = None
        for group in optimizer.param_groups if optimizer else ():
            group["params"] = [p for p in group["params"] if p.requires_grad]
        for module in self.part.modules():
            if hasattr(module, "reset_running_stats"):
                module.reset_running_stats = keep
            if isinstance(module, ObserverBase):
                module.forward = pass_on
        return self.train(self.training)

    def train(self, mode=True):
        super().train(mode)
        self.part.eval()
        return self

    def forward(self, *args, **kwargs):
        self.part.eval()  # whoever wrote `training` since
        return super().forward(*args, **kwargs)
