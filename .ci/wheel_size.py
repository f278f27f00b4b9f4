"""Wheels stay small: ``python .ci/wheel_size.py WHEEL...``"""

from __future__ import annotations

import sys
import zipfile

# Kernels are compiled for each instruction set: one template more than is needed soon makes megabytes.
LIMIT = 3_000_000


def published_bytes(wheel: str) -> int:
    """Compressed bytes of what published wheels have: the CUDA module is in none of them."""
    with zipfile.ZipFile(wheel) as files:
        return sum(each.compress_size for each in files.infolist() if "fastnn/_cuda." not in each.filename)


def main(wheels: list[str]) -> int:
    """Tell the size of each; 1 if one of them is too large."""
    sizes = {wheel: published_bytes(wheel) for wheel in wheels}
    for wheel, size in sizes.items():
        print(f"{wheel}: {size / 1e6:.2f} MB, of {LIMIT / 1e6:.0f} at most")
    return int(max(sizes.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
