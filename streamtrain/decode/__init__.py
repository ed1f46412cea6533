"""Compressed chunks on disk enter, arrays leave: decoded off the GIL, or else by h5py or zarr."""
