"""One module a library, each importing that library alone; see `benchmarks.child`."""
