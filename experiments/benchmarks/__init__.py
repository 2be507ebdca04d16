"""Benchmarks: what a meta-step and an episode cost, beside other frameworks."""
