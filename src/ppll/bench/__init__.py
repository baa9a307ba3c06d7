"""The questions of ``ppll bench``: what PPLL and its rivals take, measured side by side."""
