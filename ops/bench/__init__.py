"""Benchmarks: `python -m ops.bench` (what `make bench` runs) measures and prints one table per capability.

- `peer_process`: a registry voter that also submits commands to itself, steered by JSON lines on stdin;
- `registry`: the figures of raftreg/DESIGN.md, from three such processes and from three real peers over HTTP.
"""
