"""Ways to break a running cluster, a module for each kind. `known` lists them by name.

fault       what a fault is: `available`, `aim`, `inject`, `heal`
known       all of them, chosen by name
kill        processes that end at once
pause       processes that stand still
partition   links that carry nothing
slow_links  links that are late
"""
