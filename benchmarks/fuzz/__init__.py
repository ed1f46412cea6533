"""Files damaged on purpose: whether each is refused in words, or read as other readers read it.

`seeds` are small sound files, `changes` what happens to bytes, numbers and JSON, `atlases` and
`models` what happens to the formats, `oracle` reads a mutant and judges what came of it, `worker`
does so for many in a process of its own, `__main__` starts those and counts.
"""
