"""Ways to break a running cluster, a module for each kind. `known` lists them by name.

fault             what a fault is: `available`, `aim`, `inject`, `heal`
known             all of them, chosen by name
sequence          the faults of one run, one step after the other
kill              processes that end at once
pause             processes that stand still
partition         links that carry nothing
slow_links        links that are late, narrow or loose
disk_and_clock    slow syncs, wrong clocks (by a preloaded library, `disturbance.c`)
full_disk         a store on a small disk that is filled up
stores            wiped, rolled-back and damaged stores of peers
rolled_back_zone  an old store of a gateway
rebuilds          the registry restored from a backup, or with other voters
operations        stops, transfers of the lead, backups
"""
