"""Numba kernels: plain arrays in, plain arrays out; nothing here but numba and numpy."""
