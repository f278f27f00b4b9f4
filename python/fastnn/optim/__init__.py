"""Optimizers: drop-in for those of :mod:`torch.optim`. And the soft update of target networks.

What all of them share
    Arguments, defaults, parameter groups, the names of the state and ``state_dict`` are torch's; checkpoints
    load both ways. ``lr`` is a float or a tensor of one element.

    All parameters of a group are updated in one native call when they are float32, float64, bfloat16 or
    float16 tensors on the CPU or all on one CUDA device, each fills one block of memory and has gradient and
    state of its own dtype (a 16-bit one's state may be float32), and they share no memory. 16-bit parameters
    are computed in float32 and rounded once.

    ``foreach`` and ``fused`` are kept for checkpoints and change nothing on the CPU. On CUDA ``fused`` and
    ``capturable`` count the steps on the device, where a learning rate that is a tensor and what a
    ``GradScaler`` leaves to a fused optimizer are read too: nothing waits for the device.

    Other groups are left to torch, each by itself, and so are ``differentiable`` and, on the CPU,
    ``capturable`` and the scale of a fused ``GradScaler``. :func:`fastnn.explain` says why.

Parameters of 16 bits
    bfloat16 keeps 8 bits of a number and float16 11. An update smaller than :math:`2^{-9}` (float16:
    :math:`2^{-12}`) of a weight is lost when the weight is rounded, every time, and so is what a moment that
    decays by 0.999 should lose in a step. All optimizers here take two options against that, which concern
    bfloat16 and float16 parameters only:

    - ``state_dtype=torch.float32`` keeps the state (moments, buffers, sums of squares) in float32. It costs 2
      bytes a parameter for every tensor of state.
    - ``master_weights=True`` also keeps a float32 copy of each parameter, 4 bytes, in the state under
      ``master_param``. The update is done on the copy, which rounded is the parameter. With the same
      gradients the copies are bit by bit the parameters of a float32 optimizer.

    Parameter, gradient and state together take 8 bytes a parameter with Adam, 12 with float32 state and 16
    with masters; 6, 8 and 12 with SGD's momentum.

    A parameter that is changed between steps, as by ``load_state_dict`` of its model, is noticed: an
    element that is not its master rounded becomes the new master. Elements that are set to what they were
    keep theirs, so that model and optimizer are loaded in either order.

    The options belong to the optimizer and are not in its checkpoints, which pass both ways between
    optimizers with and without them, torch's too. Float32 state and masters come back as they were saved;
    where there were none, state is widened and masters begin as the parameters; an optimizer without the
    options rounds state, as torch does, and drops masters. (torch's own keeps them, rounded and without use:
    here they give way to the parameters.)

    Source: Micikevicius et al., `Mixed Precision Training <https://arxiv.org/abs/1710.03740>`_.
"""

from fastnn.optim.adagrad import Adagrad
from fastnn.optim.adam import Adam, AdamW
from fastnn.optim.polyak import polyak_
from fastnn.optim.rmsprop import RMSprop
from fastnn.optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "RMSprop", "polyak_"]
