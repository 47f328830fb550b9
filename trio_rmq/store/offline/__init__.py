"""A store folder without a broker: look into it, prove it, print from it, make its queues and index anew.

Only `rebuild` writes.  `folder` finds the files, `log_check`, `queue_check` and `index_check` compare them with each
other for `verify`, `inspect` sums up, `dump` prints records.  All take Apache's folders as well as ours.
"""
