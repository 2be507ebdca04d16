"""Learners where they are used: SavedModels that adapt, and pretrained learners."""
