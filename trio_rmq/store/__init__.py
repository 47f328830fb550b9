"""The durable store: commit log and consume queues in RocketMQ's bytes on disk."""
