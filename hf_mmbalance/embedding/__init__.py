"""Frozen towers run once over each clip; heads, fusions and decision layers are fitted on the features they gave."""
