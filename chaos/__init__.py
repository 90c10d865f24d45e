"""Faults for real processes, and the judge of what they did to the data.

ports         loopback ports that stay ours while a process is down
links         TCP links between processes, which can be cut, slowed and healed
tcp_proxy     our own proxy behind the links, where there is no Toxiproxy
history       what clients asked and what they were answered, as JSON lines
models        sequential specifications of what is asked: registers, images, IDs
checker       linearizability of a history, image by image
lives         the images of a history
validate      the judge of the final state: history against what registry and zones hold now
validators    what else is checked of a history, a module for each promise
judge         all of it, for one run
verdict       what a check found
report        one page that shows a run
scenarios     one run of the suite: cluster, clients, faults, healing, judgement
cluster       the cluster under test
disturbances  what a preloaded library does to disk and clock of a process
small_disks   small file systems for stores
schedule      which faults come when, by a seed
faults        ways to break a running cluster
workloads     what clients do meanwhile
final_state   what a healed cluster holds
power_loss    what a power failure leaves of an LMDB file
simulation    schedules of faults on simulated clusters
"""
