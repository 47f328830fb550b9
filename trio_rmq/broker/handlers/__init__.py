"""Request handlers of the broker, a file per concern.  Each takes the two or three parts it needs."""
