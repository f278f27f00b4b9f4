"""Stable-Baselines3: PPO and SAC with fastnn's modules and optimizers, and the same in plain torch.

Checks that both train the same weights, that PPO and A2C keep their eps, that a run continues after
`load`, and that a saved model needs no fastnn.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm

import fastnn

POLICY_KWARGS = {"optimizer_class": fastnn.optim.Adam, "optimizer_kwargs": {"eps": 1e-5}}
WITHOUT_FASTNN = """
import sys
sys.modules["fastnn"] = None  # as where it is not installed
from stable_baselines3 import PPO
for path, custom_objects in ((sys.argv[1], None), (sys.argv[2], {"policy_kwargs": {}})):
    model = PPO.load(path, device="cpu", custom_objects=custom_objects)
    assert model.policy.optimizer.defaults["eps"] == 1e-5
"""


def use_fastnn(model: BaseAlgorithm) -> None:
    """Convert the networks of a model and all its optimizers; again after each `load`."""
    fastnn.convert(model.policy)
    owners = model, model.policy, getattr(model, "actor", None), getattr(model, "critic", None)
    for owner in owners:
        for name in ("optimizer", "ent_coef_optimizer"):
            if isinstance(getattr(owner, name, None), torch.optim.Optimizer):
                fastnn.convert(getattr(owner, name))


def ppo(**options: Any) -> PPO:
    """A small PPO, its weights from one seed."""
    return PPO("MlpPolicy", "Pendulum-v1", n_steps=128, n_epochs=2, seed=0, device="cpu", **options)


def sac() -> SAC:
    """A SAC that has something to learn from soon."""
    return SAC("MlpPolicy", "Pendulum-v1", learning_starts=100, seed=0, device="cpu")


def same(a: BaseAlgorithm, b: BaseAlgorithm) -> None:
    """Raise where two models do not have the same weights up to rounding."""
    torch.testing.assert_close(b.policy.state_dict(), a.policy.state_dict(), rtol=1e-3, atol=1e-4)


def check_conversion(folder: Path) -> None:
    """Train with and without, save, load, convert again and go on."""
    for make, steps in ((ppo, 256), (sac, 110)):
        plain, fast = make().learn(steps), make()
        use_fastnn(fast)
        fast.learn(steps)
        same(plain, fast)
        if isinstance(fast, SAC):
            assert type(fast.ent_coef_optimizer) is fastnn.optim.Adam
        fast.save(folder / "model.zip")
        loaded = type(fast).load(folder / "model.zip", device="cpu")
        assert not any(isinstance(module, fastnn.nn.Linear) for module in loaded.policy.modules())
        use_fastnn(loaded)
        assert any(isinstance(module, fastnn.nn.Linear) for module in loaded.policy.modules())
        same(fast, loaded)
        print(f"{make.__name__}: weights as without fastnn, and after save, load and convert")


def check_eps() -> None:
    """See what becomes of eps."""
    for algorithm in (PPO, A2C):
        model = algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs=POLICY_KWARGS, device="cpu")
        assert model.policy.optimizer.defaults["eps"] == 1e-5
        assert algorithm("MlpPolicy", "Pendulum-v1", device="cpu").policy.optimizer.defaults["eps"] == 1e-5
        lost = {"optimizer_class": fastnn.optim.Adam}
        model = algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs=lost, device="cpu")
        assert model.policy.optimizer.defaults["eps"] == 1e-8
    model = A2C("MlpPolicy", "Pendulum-v1", device="cpu")
    use_fastnn(model)
    assert type(model.policy.optimizer) is fastnn.optim.RMSprop
    assert model.policy.optimizer.defaults["eps"] == 1e-5
    print("PPO and A2C: eps is 1e-5 where it was given, and after convert")


def check_load_without_fastnn(folder: Path) -> None:
    """Load what was saved in a process that has no fastnn."""
    model = ppo()
    use_fastnn(model)
    model.save(folder / "converted.zip")
    ppo(policy_kwargs=POLICY_KWARGS).save(folder / "named.zip")
    paths = [str(folder / name) for name in ("converted.zip", "named.zip")]
    subprocess.run([sys.executable, "-c", WITHOUT_FASTNN, *paths], check=True)
    print("loaded without fastnn")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_conversion(Path(folder))
        check_eps()
        check_load_without_fastnn(Path(folder))


if __name__ == "__main__":
    main()
