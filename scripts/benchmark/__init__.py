"""The benchmark: real requests, encoded before the clock starts, against a standalone server in a process of its own.

Beside each TCP run stands a *floor*: the same bytes through a bare Trio loop that only splits them into frames and
answers a constant.  What counts is the ratio of messages per second of server CPU, ours over floor, taken in one run on
one machine: it says how much of what Trio and Python can do at all is left after doing the work.
"""
