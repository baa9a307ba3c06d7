"""Ranks as processes: started, watched, stopped, and the first cause named."""
