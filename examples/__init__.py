"""Short programs for one's own data and environments."""
