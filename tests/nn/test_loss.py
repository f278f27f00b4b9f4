"""nn.CrossEntropyLoss replaces torch's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from fastnn import functional as FF
from fastnn import nn


def example() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 4, requires_grad=True), torch.tensor([0, 1, 2, 3, 2, 1])


def test_same_values_repr_and_state_dict_as_torch() -> None:
    x, t = example()
    weight = torch.rand(4)
    for options in ({}, {"weight": weight}, {"reduction": "sum", "ignore_index": 2, "label_smoothing": 0.1}):
        ours, theirs = nn.CrossEntropyLoss(**options), torch.nn.CrossEntropyLoss(**options)
        torch.testing.assert_close(ours(x, t), theirs(x, t))
        assert repr(ours) == repr(theirs)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        theirs.load_state_dict(ours.state_dict())
        ours.load_state_dict(theirs.state_dict())


def test_z_loss_reaches_the_function_and_the_repr() -> None:
    x, t = example()
    loss = nn.CrossEntropyLoss(z_loss=0.5)
    torch.testing.assert_close(loss(x, t), FF.cross_entropy(x, t) + 0.5 * x.logsumexp(1).square().mean())
    assert repr(loss) == "CrossEntropyLoss(z_loss=0.5)"


def test_copies_and_pickles() -> None:
    x, t = example()
    loss = nn.CrossEntropyLoss(weight=torch.rand(4), z_loss=0.5, label_smoothing=0.1)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(twin) is nn.CrossEntropyLoss
        assert torch.equal(twin(x, t), loss(x, t))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripts_as_torchs_does() -> None:
    x, t = example()
    for options in (
        {},
        {"weight": torch.rand(4), "reduction": "sum", "ignore_index": 2, "label_smoothing": 0.1},
    ):
        loss = nn.CrossEntropyLoss(**options)
        torch.testing.assert_close(torch.jit.script(loss)(x, t), loss(x, t))
    with pytest.raises(torch.jit.Error, match="z_loss is not available in TorchScript"):
        torch.jit.script(nn.CrossEntropyLoss(z_loss=0.5))(x, t)
