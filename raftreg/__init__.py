"""The image registry: a Raft group whose replicated state lies in LMDB.

- api, api_*, changefeed, leases, metrics: what clients, gateways and operators reach over HTTP
- proposer, reads: writes into the log, reads at a chosen freshness
- raft (with journal, transport, snapshots, store, turns, peer_links): consensus, durable on this peer's disk
- commands, state_machine (with state_*): what entries mean; deterministic
- tables, queries: rows of the replicated state, and reading them
- client, wire, errors: for others (the zone gateways, tools): talking to the registry
- certificates, config, main, cli: identities, settings, wiring, the command line
"""
