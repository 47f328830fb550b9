"""The name server: which broker has a topic's queues, who is alive, and a small key-value table.

Name servers never talk to each other: each holds what brokers told it, in memory, and only its key-value table on disk.
"""
