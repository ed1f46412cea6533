"""Streamtrain beside what people would use instead: the same work, one process each, as ratios.

`__main__` takes a suite's name; `suites` say which cases there are and what right work is,
`contenders` do the work in processes of their own (`child`), `measuring` starts those and counts,
`report` turns the JSON lines into tables and pictures.
"""
