"""Operations: development tools, development cluster, benchmarks and guides. Never part of a wheel."""
