"""Tasks whose labels have a meaning and come from a source other than the image: geometry, motion."""
