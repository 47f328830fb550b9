"""What clients do while servers are tormented; each note of theirs is the evidence that the checkers read.

A send has one try, so that what became of it is known: `ok` with its place, `refused` with the broker's code, or `info`
when nobody can tell - indeterminate, neither lost nor a duplicate when it turns up.
"""
