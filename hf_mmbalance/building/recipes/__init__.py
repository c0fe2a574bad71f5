"""The data sets this project knows: labels, splits, licence, source; one file each turns a source into a plan."""
