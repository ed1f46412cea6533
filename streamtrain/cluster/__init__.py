"""A run's stages enter as tasks; a client of dask.distributed has its workers do them."""
