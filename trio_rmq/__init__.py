"""Apache RocketMQ's system as one typed Python package on Trio.

Importing the package imports nothing else: a server, a client or a test pays only for the rooms it opens
(`ARCHITECTURE.md` draws them).
"""

__version__ = "0.1.0"
