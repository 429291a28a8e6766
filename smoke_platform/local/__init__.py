"""The embedded stack: broker, Java, supervisor, doctor. Knows adapters and domain only."""
