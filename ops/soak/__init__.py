"""Measured runs on real processes: `python -m ops.soak NAME` prints its figures as one JSON line and one verdict line.

- `kills`, `restarts`, `transfers`, `no_quorum`, `near_observer`: the runs, each bounded in time;
- `rejoin`: a peer whose disk was wiped comes back while writes go on; `images` fills a registry for it;
- `plain_clients`: HTTP clients that repeat nothing, so that every failure of the registry is seen;
- `workload`: clients with the client library, whose history a judge compares with what the registry holds;
- `outcome`: what a run says.
"""
