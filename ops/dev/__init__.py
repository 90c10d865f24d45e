"""Development tools, run by the Makefile.

setup    finds a Python, makes the environments from the locks, runs what was asked for in them
deps     the system packages and tools that tests can use and set-up can't make
check    lint, format, types, import rules
imports  who may import what
"""
