"""Pages of figures that runs write: one file each, with everything inside."""
