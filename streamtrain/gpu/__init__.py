"""All that runs on a GPU, through CuPy; the same code runs on NumPy for tests."""
