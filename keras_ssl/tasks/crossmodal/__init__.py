"""Tasks whose labels come from another sensor or from geometry."""
