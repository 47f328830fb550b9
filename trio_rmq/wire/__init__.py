"""Bytes <-> values: frames, commands, typed headers, stored records, bodies, ids, flags.

Invariants of the room: no I/O, no clock, no randomness, no state between calls; decoders raise only `ProtocolError`;
limits are checked before memory is taken.
"""
