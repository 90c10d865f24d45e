"""Long and large runs on real processes: each program prints its figures and one verdict line, and exits with it.

- `images`: fills a registry with images through its API, and says how many per second;
- `rejoin`: a peer whose disk was wiped comes back while writes go on.
"""
