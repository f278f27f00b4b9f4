"""torch's own samples of the ops that have rules, forward and backward."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from covered import Covered, assert_same
from fastnn import _dispatch
from torch_samples import list_of
from variants import runnable_isas

pytestmark = [
    pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module"),
    pytest.mark.filterwarnings("ignore"),
]

NAMES = """
    add sub mul div rsub __radd__ __rsub__ __rmul__ __rdiv__ true_divide neg abs sgn sign reciprocal sqrt
    rsqrt square exp expm1 log log1p log2 log10 sin cos tan atan erf floor ceil round trunc pow
    float_power fmod remainder atan2 minimum maximum fmin fmax clamp clamp_min clamp_max eq ne lt le gt ge
    logical_and logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_not where
    masked_fill isnan isinf isfinite lerp addcmul addcdiv xlogy special.xlog1py sigmoid tanh hypot sinc
    deg2rad nn.functional.gelu nn.functional.relu nn.functional.silu nn.functional.mish nn.functional.elu
    nn.functional.celu nn.functional.selu nn.functional.leaky_relu nn.functional.hardtanh
    nn.functional.relu6 nn.functional.softplus nn.functional.logsigmoid nn.functional.threshold
    nn.functional.softsign nn.functional.tanhshrink nn.functional.mse_loss nn.functional.l1_loss
    nn.functional.smooth_l1_loss nn.functional.huber_loss nn.functional.binary_cross_entropy
    nn.functional.binary_cross_entropy_with_logits nn.functional.kl_div nn.functional.gaussian_nll_loss
    nn.functional.poisson_nll_loss nn.functional.cosine_similarity nn.functional.normalize
    nn.functional.pairwise_distance zeros_like ones_like full_like zeros ones full fill clone to bool
    double long new_zeros new_ones new_full sum mean amax amin max min argmax argmin any all var std
    var_mean std_mean norm linalg.vector_norm logsumexp count_nonzero aminmax nansum nan_to_num
"""
FEW, MANY = 3, 12

OPS = {
    f"{op.name} {op.variant_test_name}".strip(): op
    for op in list_of("op_db", "common_methods_invocations")
    if op.name in NAMES.split()
}


def run(op: Any, sample: Any, backward: bool) -> Covered | None:
    """None if torch itself cannot run it."""
    x = sample.input
    if backward:
        if not (op.supports_autograd and isinstance(x, torch.Tensor) and x.is_floating_point()):
            return None
        x = x.detach().clone().requires_grad_()
    try:
        op(x, *sample.args, **sample.kwargs)
    except (RuntimeError, NotImplementedError, ValueError):
        return None
    with Covered() as mode:
        result = op(x, *sample.args, **sample.kwargs)
        if backward:
            parts = result if isinstance(result, (list, tuple)) else [result]
            scalars = [part.sum() for part in parts if isinstance(part, torch.Tensor) and part.requires_grad]
            if scalars:
                torch.autograd.backward(scalars)
    return mode


@pytest.mark.each_value
@pytest.mark.parametrize("samples", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", sorted(OPS))
@pytest.mark.parametrize("isa", [isa for isa in runnable_isas() if isa != "avx512_bf16"], indirect=True)
def test_captured_it_gives_what_torch_gives(name: str, samples: int, isa: str) -> None:
    op = OPS[name]
    for dtype in (torch.float32, torch.float64):
        if dtype not in op.dtypes:
            continue
        for sample in itertools.islice(op.sample_inputs("cpu", dtype), samples):
            for backward in (False, True):
                mode = run(op, sample, backward)
                for op_name, expected, found in mode.results if mode else ():
                    # Sums of a few hundred values cancel: eps times the sum of their sizes.
                    wide = op_name.startswith(("sum", "mean")) and dtype is torch.float32
                    atol = rtol = 1e-4 if wide else None
                    assert_same(op_name, expected, found, rtol, atol)
