"""Several processes that share the batches of a block."""
