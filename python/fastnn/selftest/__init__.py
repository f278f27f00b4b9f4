"""The self-test of a device: every op, dtype and update against float64, in a process of its own."""
