"""What pipelines take, ours and the rivals', by discrete events."""
