"""One module a suite: its `cases` under given settings, and the `check` of what was done."""
