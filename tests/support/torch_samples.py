"""The samples that PyTorch tests itself with; tests that need them are skipped if torch lacks them."""

from __future__ import annotations

import importlib
import sys
import types
import unittest
import warnings
from typing import Any

import pytest
import torch

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def list_of(name: str, module: str) -> list[Any]:
    """One of torch's lists, such as ``op_db``."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing optional packages
        # They import expecttest, which the samples do not need: a stand-in suffices.
        stand_in: Any = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase
        patch.setitem(sys.modules, "expecttest", stand_in)
        try:
            found: list[Any] = getattr(importlib.import_module(f"torch.testing._internal.{module}"), name)
        except (ImportError, AttributeError) as error:
            pytest.skip(f"this torch has no {name}: {error}", allow_module_level=True)
    for part in ("common_utils", "opinfo.core"):
        user: Any = sys.modules.get(f"torch.testing._internal.{part}")
        if hasattr(user, "extract_test_fn"):
            # To find a test of torch's it reads the source of all callers, which takes most of the time.
            user.extract_test_fn = lambda: None
    return found
