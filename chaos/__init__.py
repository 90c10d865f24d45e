"""Faults for real processes, and the judge of what they did to the data.

ports       loopback ports that stay ours while a process is down
links       TCP links between processes, which can be cut, slowed and healed
tcp_proxy   our own proxy behind the links, where there is no Toxiproxy
history     what clients asked and what they were answered, as JSON lines
validate    the judge: history against what registry and zones hold now
power_loss  what a power failure leaves of an LMDB file
"""
