"""The unit of learning: layers, auxiliary network, local loss, optimizer."""
