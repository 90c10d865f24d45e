"""Development tools, run by the Makefile.

start.sh     finds a Python and hands over to targets
targets      one make target: its set-up, then its program
setup        the Python environments, made from the locks; environment: the variables and limits of our processes
deps, lock   what else tests can use; the lock files
check, test  lint, types, import rules (imports) and locks; pytest within bounds
cluster      the development cluster (wiring: its addresses and files, processes: its processes)
story        a cluster broken and healed before your eyes, with a backup_job as its load
"""
