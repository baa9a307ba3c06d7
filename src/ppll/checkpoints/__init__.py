"""What a run keeps of its blocks, and how it begins and goes on."""
