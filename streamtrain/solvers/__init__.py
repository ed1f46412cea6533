"""Solvers: scaled batches in, weights out."""
