"""Simulated clusters: the product's own peers and gateways in one process, on clocks and a network that a seed decides.

__main__   `make sim`: seeds, table, verdict
runs       many schedules on all cores, and what they add up to
schedule   one seed: shape, mix of faults, event by event, convergence
faults     what can go wrong, one function per kind
judge      what must hold after every event, of every answer, and at the end
ablations  rules that can be switched off, which schedules must notice
world      clock, chance, processes, trace
network    byte streams that are delivered, delayed, cut and forgotten; rpc: requests to a peer's API
processes  peers (`raftreg.peer.Peer`) and their disks; clients, gateways: who uses them
loop       the event loop of one simulated process
"""
