"""Seeded simulation of a whole single-broker cluster: production servers and clients, faults, history, verdict.

`plan` makes a run's options, faults and operations from a seed; `runner` runs them; `history` is what was seen;
`checkers` say what broke a promise.  `scripts/simulate` is the front.
"""
