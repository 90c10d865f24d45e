"""Data stores: where a zone keeps image bytes, each under an opaque key minted at upload."""
