"""Run frozen towers once over each clip, then fit heads, fusions and decision layers on the stored features."""
