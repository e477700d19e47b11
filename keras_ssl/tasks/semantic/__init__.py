"""Tasks whose labels have a meaning that something else than the image knows: geometry, motion."""
