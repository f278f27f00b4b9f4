"""The training loop behind ``fastnn train``: settings, steps, evaluation, checkpoints and reports."""
