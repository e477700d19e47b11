"""Tasks whose labels come from time: the order of frames, and frames that are not shown."""
