"""Distillation: a student learns from a teacher that hangs inside of it.

frostline audit examples/targets/teacher.py:setup

Someone put the teacher in eval mode once, in `__init__`. It is a submodule, so `model.train()` at
the start of each epoch undoes that: the targets change while the student learns them. And the
student begins with the teacher's last layer, by assignment: one parameter in two places, so that
the student's optimizer trains the teacher.

The audit says:
  FRZ301 error    the weight of the head hangs in both.
  FRZ003 error    it is trainable, though frozen="teacher" claims that it is not.
  FRZ102 warning  the norms are quiet now, and `model.train()` makes them write.
  FRZ103 info     so it does with the teacher's dropout.
`student[-1].load_state_dict(teacher[-1].state_dict())` and `fl.freeze(model, 'teacher')` mend it.
"""

import torch
from torch import nn
from torch.nn import functional as F


def network(width):
    return nn.Sequential(
        nn.Linear(20, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1),
        nn.Linear(width, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5),
    )  # fmt: skip


class Distillation(nn.Module):
    def __init__(self):
        super().__init__()
        self.teacher = network(128)
        self.teacher(torch.randn(256, 20))  # stands for its training
        self.teacher.requires_grad_(False)
        self.teacher.eval()
        self.student = network(32)
        self.student[-1].weight = self.teacher[-1].weight  # begins where the teacher is
        self.student.requires_grad_(True)

    def forward(self, features):
        with torch.no_grad():
            target = self.teacher(features)
        return self.student(features), target


def compute_loss(model, features):
    scores, target = model(features)
    return F.kl_div(F.log_softmax(scores, -1), F.softmax(target, -1), reduction="batchmean")


def setup():
    torch.manual_seed(0)
    model = Distillation()
    return {
        "model": model,
        "frozen": "teacher",
        "optimizer": torch.optim.SGD(model.student.parameters(), lr=0.1, momentum=0.9),
        "batch": torch.randn(16, 20),
        "compute_loss": compute_loss,
    }
