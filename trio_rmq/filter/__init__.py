"""SQL92 filters: expressions read once and asked per message, and the bloom filter that spares the asking.

This room computes and does nothing else: no input or output, no clock, no randomness, nothing to wait for.  It answers
as Apache's rocketmq-filter does, down to the expressions that are accepted by accident (`compile.py` names them).
"""
