"""Drop-in replacements for the optimizers of :mod:`torch.optim`, and the soft update of target networks.

What all of them share
    Arguments, defaults, parameter groups, the names of the state and ``state_dict`` are torch's; checkpoints
    load both ways. ``lr`` is a float or a tensor of one element.

    All parameters of a group are updated in one native call if they are float32, float64, bfloat16 or
    float16 tensors on the CPU, or all on one CUDA device, if each fills one block of memory and has a
    gradient and state of its own dtype (the state of a 16-bit parameter may be float32), and if they share no
    memory. 16-bit parameters are updated in float32 and rounded once.

    ``foreach`` and ``fused`` are kept for checkpoints and change nothing on the CPU. With ``fused`` or
    ``capturable`` on CUDA, steps are counted on the device, and a learning rate that is a tensor and the
    numbers of a ``GradScaler`` are read there, so nothing waits for the device.

    Any other group is left to torch; so are ``differentiable`` and, on the CPU, ``capturable`` and the scale
    of a fused ``GradScaler``. :func:`fastnn.explain` says why.

Parameters of 16 bits
    bfloat16 has 8 significant bits and float16 has 11. An update smaller than :math:`2^{-9}` (float16:
    :math:`2^{-12}`) of a weight is lost whenever the weight is rounded, and so is the decay of a moment by
    0.999. All optimizers here have two options against that, for bfloat16 and float16 parameters only:

    - ``state_dtype=torch.float32`` keeps the state (moments, buffers, sums of squares) in float32. This costs
      2 more bytes per parameter for every tensor of state.
    - ``master_weights=True`` also keeps a float32 copy of each parameter (4 bytes), in the state under
      ``master_param``. The copy is updated, and rounded to the parameter. With the same gradients the copies
      are bit for bit the parameters of a float32 optimizer.

    Parameter, gradient and state together take 8 bytes per parameter with Adam, 12 with float32 state and 16
    with master weights; 6, 8 and 12 with SGD's momentum.

    Changes to a parameter between steps, as by ``load_state_dict`` of its model, are noticed: an element that
    no longer equals its rounded master weight becomes the new master weight. Elements that are set to the
    value they had keep theirs, so model and optimizer can be loaded in either order.

    The options belong to the optimizer and are not part of its checkpoints, which can be exchanged between
    optimizers with and without them, including torch's. Float32 state and master weights are restored as
    saved. If a checkpoint has none, state is converted to float32 and master weights start as the parameters.
    An optimizer without the options rounds state, as torch does, and drops master weights. (torch's
    optimizers keep them, rounded and unused; when loaded here, the parameters take precedence over those.)

    Source: Micikevicius et al., `Mixed Precision Training <https://arxiv.org/abs/1710.03740>`_.
"""

from fastnn.optim.adagrad import Adagrad
from fastnn.optim.adam import Adam, AdamW
from fastnn.optim.polyak import polyak_
from fastnn.optim.rmsprop import RMSprop
from fastnn.optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "RMSprop", "polyak_"]
