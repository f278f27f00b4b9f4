"""Batches: every sample once per epoch, in an order determined by the seed."""

from __future__ import annotations

import pytest
import torch

from fastnn.data import Batches, normalise

MEAN, STD = 33.0, 78.0


def make(dtype: torch.dtype = torch.uint8, seed: int = 0) -> Batches:
    """23 images whose pixels are their number, labelled with it."""
    images = torch.arange(23).to(dtype)[:, None].repeat(1, 7)
    return Batches(images, torch.arange(23), batch_size=5, seed=seed)


def epoch_labels(batches: Batches) -> list[int]:
    return batches.labels[batches.rows(0, len(batches))].tolist()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_each_sample_comes_once_with_its_label(dtype: torch.dtype) -> None:
    batches = make(dtype)
    assert len(batches) == 5
    sizes = []
    for index in range(len(batches)):
        rows = batches.rows(index, index + 1)
        images, labels = batches.images[rows], batches.labels[rows]
        sizes.append(len(labels))
        assert images.dtype == dtype
        assert torch.equal(images, labels[:, None].to(dtype).expand(-1, 7))
    assert sizes == [5, 5, 5, 5, 3]
    assert torch.equal(batches.rows(1, 5), torch.cat([batches.rows(1, 3), batches.rows(3, 5)]))
    assert sorted(epoch_labels(batches)) == list(range(23))


def test_the_order_is_new_in_each_epoch_and_the_same_for_a_seed() -> None:
    one, same, other = make(), make(), make(seed=1)
    first = epoch_labels(one)
    assert first == epoch_labels(same)
    assert first != epoch_labels(other)
    one.start_epoch()
    same.start_epoch()
    assert epoch_labels(one) == epoch_labels(same) != first


def test_restore_continues_as_the_original() -> None:
    original, restored = make(), make(seed=9)
    original.start_epoch()
    restored.restore(original.state())
    for _ in range(3):
        assert epoch_labels(original) == epoch_labels(restored)
        original.start_epoch()
        restored.start_epoch()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalised_in_the_dtype(dtype: torch.dtype) -> None:
    pixels = torch.arange(256, dtype=torch.uint8)[None]
    exact = (pixels.double() - MEAN) / STD
    result = normalise(pixels, MEAN, STD, dtype)
    assert result.dtype == dtype
    # Scale and offset are rounded, then product and sum: four roundings of values up to 256 / STD.
    tolerance = 4 * torch.finfo(dtype).eps * 256 / STD
    assert (result.double() - exact).abs().max().item() <= tolerance
    assert pixels[0, 255] == 255
