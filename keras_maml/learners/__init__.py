"""Learners: Keras models that are trained, evaluated and used on episodes."""
