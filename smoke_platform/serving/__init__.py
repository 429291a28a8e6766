"""HTTP API and console. Knows adapters and domain only."""
