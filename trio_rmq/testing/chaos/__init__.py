"""Real processes under faults: clusters of servers, scenarios in TOML, workloads, checkers, one report.

`cluster` starts and torments servers, ours and Apache's (`systems`), each behind a proxy for every edge (`proxy`);
`node` is our production server on a disk and a clock that can be made to fail (`orders`, `chaos_disk`, `unsynced`).
`scenario` makes a plan from a file and a seed, `runner` carries it out, `judge` says what broke a promise - with the
checkers of `testing.simulation` - and `report` writes it down.  `trio-rmq chaos run` is the front.

Only the plan repeats from a seed: processes, sockets and disks are real, and take the time they take.
"""
