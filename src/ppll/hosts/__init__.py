"""A run whose processes torchrun has started, on one host or on many."""
