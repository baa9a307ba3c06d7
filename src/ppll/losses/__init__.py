"""Shelf of local losses: pure functions of predictions, features and targets."""
