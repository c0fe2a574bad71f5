"""Recipes for known datasets (labels, splits, licence, source): one file per dataset turns its source into a plan."""
