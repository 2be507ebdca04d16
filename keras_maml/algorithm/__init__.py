"""The mathematics of meta-learning: inner loop, update rules, meta-gradients."""
