"""Typed admin calls: what tools, the command line and the console ask of name servers and brokers.

On anyio, like the client.  Calls that concern topics, groups or brokers stand in a file each and take an `AdminClient`,
which knows who must be asked.
"""
