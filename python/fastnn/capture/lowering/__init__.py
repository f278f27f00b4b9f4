"""Native instructions for torch's ops: one file for each kind of op."""
