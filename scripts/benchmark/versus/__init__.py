"""`scripts/bench versus`: Apache RocketMQ 4.9.7 and ours in turn, on one machine, under one load.

The load is Apache's own Java client (`java/`), so that no figure is our client's doing.  Each run has fresh servers on
a fresh store; runs alternate, and who is first alternates too, so that a machine that gets slower meanwhile harms both.
"""
