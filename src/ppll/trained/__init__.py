"""What can be done with a trained network: evaluate, use its exits, export."""
