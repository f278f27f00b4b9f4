"""What a `Watch` holds, and releases."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from fastnn import _dispatch

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


class Key(str):
    """A key that can be part of a cycle."""

    watch: Any


class Hashed:
    watch: Any


WATCHES: dict[str, Callable[[Any, Any], None]] = {
    "item": lambda watch, key: watch.item({key: 1}, key, 1),
    "absent": lambda watch, key: watch.absent({}, key),
    "content": lambda watch, key: watch.content({key: 1}),
    "value": lambda watch, key: watch.item({"a": key}, "a", key),
    "attribute": lambda watch, key: watch.attribute(nn, key, None),
    "class": lambda watch, key: watch.class_item(nn.Linear, key, None),
    "type": lambda watch, key: watch.type(key),
}


@pytest.mark.parametrize("kind", WATCHES)
@pytest.mark.parametrize("make", [lambda: Key("key"), Hashed])
def test_a_cycle_through_what_is_watched_is_freed(kind: str, make: Callable[[], Any]) -> None:
    watch, key = _dispatch.cpu.Watch(), make()
    WATCHES[kind](watch, key)
    key.watch = watch
    gone = weakref.ref(key)
    del watch, key
    gc.collect()
    assert gone() is None
