"""Who does the work, by library (see `benchmarks.child`), and what they share.

`delivery`, `split` and `windows` import what every environment has, and nothing of streamtrain's.
"""
