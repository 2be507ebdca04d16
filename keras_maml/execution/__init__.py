"""How tasks run: models as functions, forms of layers, vectorised or in turns, compiled."""
