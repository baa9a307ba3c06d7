"""A run folder as one page."""
