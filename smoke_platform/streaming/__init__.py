"""Long-running programs on the stream: producer and micro-batch writer. Knows adapters and domain only."""
