"""What every rank did when, and what follows from it."""
