"""A whole training step, or an epoch of them, in one call."""
