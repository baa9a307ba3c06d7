"""What a recipe takes and how to place it: costs, cuts, stages, replicas, processes."""
